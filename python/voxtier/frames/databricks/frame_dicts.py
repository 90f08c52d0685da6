"""Frame tables as published dictionaries, one a frame: ``end_pos`` inclusive, frames counted from 0."""

from __future__ import annotations

from typing import Any

from voxtier._core import FrameTable
from voxtier.errors import FormatError
from voxtier.frames.dicom.table import read_table


def compute_bot_from_local_path(path: str) -> dict[str, Any]:
    """Read the frame table of a file and compare every entry with the file.

    Parameters
    ----------
    path : str
        Path of the file, or its URI: ``dbfs:/a.dcm``, ``file:///a.dcm``.

    Returns
    -------
    dict
        ``transfer_syntax_uid`` (str), ``num_frames`` (int) and ``frames``, see `frame_ranges`.

    Raises
    ------
    ValueError
        The file is refused (`FormatError`), or none of its frames is a range of its bytes.
    OSError
        The file cannot be read.
    """
    table = read_table(path, verify="all")
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
    """Return the number of frames that lie wholly in the file; none of a deflated data set does."""
    if table.offsets_in != "file":
        return 0
    return len(table) if table.truncated_from is None else table.truncated_from


def frame_range(table: FrameTable, frame: int) -> dict[str, int]:
    """Return ``start_pos``, ``end_pos`` (inclusive) and ``pixel_data_pos`` (of the tag) of a frame, in bytes.

    A frame of several fragments is one span that includes their item headers (PS3.5 A.4); only then there is
    a ``fragment_count``.
    """
    ranges = table.ranges(frame)
    span = {
        "start_pos": min((start for start, _ in ranges), default=0),
        "end_pos": max((end for _, end in ranges), default=0) - 1,
        "pixel_data_pos": table.pixel_data_pos or 0,
    }
    return span if len(ranges) <= 1 else {**span, "fragment_count": len(ranges)}


def frame_ranges(table: FrameTable) -> list[dict[str, int]]:
    """Return `frame_range` of all `readable_frames`, each with its ``frame_number``."""
    return [{"frame_number": frame, **frame_range(table, frame)} for frame in range(readable_frames(table))]
