"""What a row of the index is: its key, its columns, and how results become rows and rows results."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from voxtier import _core
from voxtier._core import FrameTable
from voxtier.errors import FormatError, SourceError, error_of

_LONGEST_DETAIL = 500

# The columns of a batch, in the order and of the types in which `_core` writes them for COPY ... (FORMAT
# binary); an enumeration travels as its label, absent text (a UID, for instance) as NULL.
STAGING_COLUMNS = {
    "key": "uuid",
    "path": "text",
    "parser_version": "int2",
    "etag": "text",
    "status": "voxtier.table_status",
    "kind": "voxtier.pixel_kind",
    "method": "voxtier.table_method",
    "verified": "voxtier.table_verified",
    "offsets_in": "voxtier.offsets_in",
    "truncated_from": "int4",
    "notes": "text[]",
    "transfer_syntax_uid": "text",
    "number_of_frames": "int4",
    "frame_count": "int4",
    "rows": "int4",
    "columns": "int4",
    "samples_per_pixel": "int4",
    "bits_allocated": "int4",
    "photometric_interpretation": "text",
    "pixel_data_pos": "int8",
    "sop_instance_uid": "text",
    "series_instance_uid": "text",
    "study_instance_uid": "text",
    "size": "int8",
    "mtime_ns": "int8",
    "error_kind": "text",
    "error_offset": "int8",
    "error_detail": "text",
    "frames": "bytea",
}
# What `stored` takes: a row's verdict, its packed table, and the attributes of the table by their names.
_VERDICT = ("parser_version", "error_kind", "error_offset", "error_detail", "frames")
_ATTRIBUTES = tuple(
    name for name in STAGING_COLUMNS if name not in {*_VERDICT, "key", "path", "etag", "frame_count"}
)
STORED_COLUMNS = (*_VERDICT, *_ATTRIBUTES)

MAX_PATH_BYTES = _core.MAX_PATH_BYTES


class Outcome(Protocol):
    """What came of reading one file: exactly one of `table` and `error` is not None."""

    @property
    def path(self) -> str | PathLike[str]:
        """The file."""

    @property
    def table(self) -> FrameTable | None:
        """Its table."""

    @property
    def error(self) -> FormatError | SourceError | None:
        """Why there is none."""


class Known(NamedTuple):
    """What the index holds of a file, without its table: enough to tell whether the file changed."""

    size: int | None
    mtime_ns: int | None
    etag: str | None
    parser_version: int
    status: str
    error_kind: str | None
    frame_count: int


class Refusal(NamedTuple):
    """A file that was refused when it was indexed, and the state of the file for which this holds."""

    error: FormatError | SourceError
    size: int | None
    mtime_ns: int | None


class StoredTable(NamedTuple):
    """A table of the index and the file that it describes."""

    source: str
    path: str
    table: FrameTable


class StoredError(NamedTuple):
    """A file of the index that has no table, and why."""

    path: str
    kind: str
    offset: int | None
    detail: str


class Upserted(NamedTuple):
    """What a batch did to the index.

    Attributes
    ----------
    inserted, updated, unchanged : int
        Rows.
    refused : tuple of (str, str)
        Paths that cannot be stored, and why; their files are left out, the others are not.
    """

    inserted: int
    updated: int
    unchanged: int
    refused: tuple[tuple[str, str], ...] = ()


def staging_row(source: str, path: str, outcome: Outcome) -> tuple[Any, ...]:
    """Return the values of a batch's row, in the order of `STAGING_COLUMNS`."""
    table, error = outcome.table, outcome.error
    key = UUID(bytes=_core.file_key(source, path))
    values: dict[str, Any] = {"key": key, "path": path, "parser_version": _core.PARSER_VERSION}
    if table is not None:
        values |= {name: getattr(table, name) for name in _ATTRIBUTES}
        values |= {"frame_count": len(table), "notes": list(table.notes), "frames": table.packed}
    else:
        assert error is not None
        values |= {
            "status": _core.refused_status(error.kind), "kind": "error", "method": "none",
            "verified": "none", "offsets_in": "file", "frame_count": 0,
            "error_kind": error.kind, "error_offset": error.offset,
            "error_detail": error.detail.replace("\0", " ")[:_LONGEST_DETAIL],
        }  # fmt: skip
    return tuple(None if values.get(name) in ("", b"", []) else values.get(name) for name in STAGING_COLUMNS)


def stored(row: Sequence[Any]) -> FrameTable | Refusal | None:
    """Rebuild what a row holds, from `STORED_COLUMNS`; None when that is worth nothing any more.

    Worth nothing: a row of another parser version, and a packed table that does not decode.
    """
    parser_version, error_kind, error_offset, error_detail, packed = row[: len(_VERDICT)]
    attributes = dict(zip(_ATTRIBUTES, row[len(_VERDICT) :], strict=True))
    if parser_version != _core.PARSER_VERSION:
        return None
    if error_kind is not None:
        error = error_of(error_kind, error_offset, error_detail or "")
        return Refusal(error, attributes["size"], attributes["mtime_ns"])
    try:
        return FrameTable.from_parts(packed, **attributes)
    except (ValueError, OverflowError):  # OverflowError: a number that the column takes and the table not
        return None
