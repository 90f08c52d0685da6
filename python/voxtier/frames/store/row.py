"""What the store takes and returns: values that say what the index holds of a file.

The columns of a row, how it is written and how it is read are those of the core (`rust/src/frames/row`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from voxtier._core import FrameTable, Refusal
from voxtier.frames.dicom.table import Fingerprint


class FileState(NamedTuple):
    """What a row says of its file without its table: enough to tell whether the file has changed."""

    size: int | None
    mtime_ns: int | None
    ctime_ns: int | None
    inode: int | None
    etag: str | None
    parser_version: int
    error_kind: str | None
    frame_count: int
    truncated_from: int | None

    @property
    def fingerprint(self) -> Fingerprint | None:
        """The state of the file as the core has it; None where the file could not be opened."""
        return None if self.size is None else (self.size, *self[1:5])


class IndexAnswer(NamedTuple):
    """What the index holds of a file, for memory.

    Attributes
    ----------
    found : FrameTable or Refusal
        Its table, or why it was refused.
    rows : bytes
        Its row and those of other files of its series, for `FrameCache.load`.
    """

    found: FrameTable | Refusal
    rows: bytes


class FoundTable(NamedTuple):
    """A table of the index and the file that it describes."""

    source: str
    path: str
    table: FrameTable


class FoundFile(NamedTuple):
    """A file of the index that holds an instance: its table, or why its frames are refused."""

    source: str
    path: str
    found: FrameTable | Refusal


class RefusedFile(NamedTuple):
    """A file of the index that has no table, and why."""

    path: str
    kind: str
    offset: int | None
    detail: str


class TruncatedFile(NamedTuple):
    """A file of the index that is cut off: the first frame that is not wholly there, and all its frames."""

    path: str
    truncated_from: int
    frame_count: int


class UpsertCounts(NamedTuple):
    """What an upsert changed.

    Attributes
    ----------
    inserted, updated, unchanged : int
        Rows. What could not be read now leaves the row that its file has, and counts as unchanged.
    refused : tuple of (str, str)
        Paths that cannot be stored, each with the reason; the other files are written all the same.
    """

    inserted: int
    updated: int
    unchanged: int
    refused: tuple[tuple[str, str], ...] = ()


class Tally(NamedTuple):
    """Files, their addressable frames, their bytes, and the bytes of their packed tables."""

    files: int
    frames: int
    file_bytes: int
    table_bytes: int


class Summary(NamedTuple):
    """What a source of the index holds, in all and by each closed list, most files first."""

    total: Tally
    by_status: Mapping[str, Tally]
    by_kind: Mapping[str, Tally]
    by_transfer_syntax_uid: Mapping[str, Tally]
    by_method: Mapping[str, Tally]
