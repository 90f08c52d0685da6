"""Frame tables in the published shape: one dictionary a frame, ``end_pos`` inclusive, frames from 0."""

from __future__ import annotations

from typing import Any

from voxtier._core import FrameTable
from voxtier.errors import FormatError
from voxtier.frames.databricks.table_names import local_path
from voxtier.frames.table import read_table

__all__ = ["compute_bot_from_local_path", "frame_range", "frame_ranges", "readable_frames"]


def compute_bot_from_local_path(path: str) -> dict[str, Any]:
    """Read the frame table of a file, every entry held against the file.

    Parameters
    ----------
    path : str
        The file; a leading ``dbfs:`` is dropped.

    Returns
    -------
    dict
        ``transfer_syntax_uid``, ``num_frames`` and ``frames``, see `frame_ranges`.

    Raises
    ------
    ValueError
        The file is refused (`FormatError`), or holds no frame that lies in it as it is.
    OSError
        It cannot be read.
    """
    table = read_table(local_path(path), verify="all")
    frames = frame_ranges(table)
    if not frames:
        where = "its data set is deflated" if table.offsets_in == "inflated" else f"status {table.status}"
        raise FormatError(
            "invalid_argument", table.pixel_data_pos, f"no frame can be read by byte ranges: {where}"
        )
    return {
        "transfer_syntax_uid": table.transfer_syntax_uid,
        "frames": frames,
        "num_frames": len(frames),
    }


def readable_frames(table: FrameTable) -> int:
    """Return how many frames lie wholly in the file as it is: none of a deflated data set."""
    if table.offsets_in != "file":
        return 0
    return len(table) if table.truncated_from is None else table.truncated_from


def frame_range(table: FrameTable, frame: int) -> dict[str, int]:
    """Return one frame as ``start_pos``, ``end_pos`` (inclusive) and ``pixel_data_pos`` (of the tag).

    A frame of several fragments is one span that holds their item headers (PS3.5 A.4); ``fragment_count``
    tells, and is absent for one fragment.
    """
    ranges = table.ranges(frame)
    found = {
        "start_pos": min((start for start, _ in ranges), default=0),
        "end_pos": max((end for _, end in ranges), default=0) - 1,
        "pixel_data_pos": table.pixel_data_pos or 0,
    }
    return found if len(ranges) <= 1 else {**found, "fragment_count": len(ranges)}


def frame_ranges(table: FrameTable) -> list[dict[str, int]]:
    """Return all frames that can be read by byte ranges, each with its ``frame_number`` from 0."""
    return [{"frame_number": frame, **frame_range(table, frame)} for frame in range(readable_frames(table))]
