"""Rows of a Parquet file as results: of what `export_index` wrote, whatever tool has written it again.

Such a tool keeps the values and not always their types: pandas makes floats of whole numbers where one is
missing, polars and DuckDB have text, bytes and lists of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any

from voxtier._core import ERROR_KINDS, FrameTable
from voxtier.errors import ConfigError, error_of
from voxtier.frames.dicom.table import Fingerprint, TableResult
from voxtier.frames.indexing.paths import absolute
from voxtier.frames.store.groups import is_group_name

# Above it a float has neighbours that are further away than 1: the digits of a whole number may be lost.
_EXACT = 1 << 53
_SIGNED, _UNSIGNED = (-(1 << 63), 1 << 63), (0, 1 << 64)


def imported_results(
    path: str | os.PathLike[str],
    batches: Iterable[list[dict[str, Any]]],
    restrict: Callable[[dict[str, list[str]]], None],
) -> Iterator[TableResult]:
    """Yield what rows of files say, by the paths under which the files are indexed.

    Parameters
    ----------
    path : path
        The Parquet file, for messages.
    batches : iterable of list of dict
        Rows, with the columns of `export_index`; that of groups may be missing.
    restrict : callable
        Takes the groups of files by path, before the results of these files are yielded.

    Yields
    ------
    TableResult
        A refused file has no state where a float has lost digits of it: then nobody takes the row for one of
        the file that is there now.

    Raises
    ------
    ConfigError
        A value is none of its column, or a row has neither a record nor a kind of error; names file, row and
        column.
    FormatError
        ``bad_table``: a record is damaged, or of another version of the parser.
    """
    number = 0
    for batch in batches:
        rows = [_Row(os.fspath(path), number + place, values) for place, values in enumerate(batch)]
        restrict(_groups_of(rows))
        for row in rows:
            yield row.result()
        number += len(rows)


def _groups_of(rows: list[_Row]) -> dict[str, list[str]]:
    """Return the groups of rows that name any, up to the first row that will be refused."""
    found: dict[str, list[str]] = {}
    for row in rows:
        try:
            path, groups = row.path(), row.groups()
        except ConfigError:
            break
        if groups is not None:  # of two rows of one file what both allow
            found[path] = [name for name in groups if path not in found or name in found[path]]
    return found


class _Row:
    """One row, by column."""

    def __init__(self, file: str, number: int, values: dict[str, Any]) -> None:
        self._file, self._number, self._values = file, number, values

    def path(self) -> str:
        """Return the path under which its file is indexed."""
        path = self._text("path")
        if path is None:
            raise self._refusal("path", "there is none")
        return absolute(path)

    def groups(self) -> list[str] | None:
        """Return the groups that may see its file; None: everyone, or not known."""
        value = self._value("allowed_groups")
        if value is None:
            return None
        if not isinstance(value, list):
            raise self._refusal("allowed_groups", f"it is {type(value).__name__}, not a list of text")
        names = [name.decode(errors="replace") if isinstance(name, bytes) else name for name in value]
        if wrong := [name for name in names if not isinstance(name, str) or not is_group_name(name)]:
            raise self._refusal("allowed_groups", f"{wrong[0]!r} is no name of a group")
        return names

    def result(self) -> TableResult:
        """Return what it says of its file."""
        path, record = self.path(), self._record()
        self.groups()
        if record is not None:
            return TableResult(path, FrameTable.from_bytes(record), None)
        kind = self._text("error_kind")
        if kind is None:
            raise self._refusal("error_kind", "a row has this, or a record")
        if kind not in ERROR_KINDS:
            raise self._refusal("error_kind", f"{kind[:40]!r} is no kind of error that this version knows")
        offset, detail = self._whole("error_offset", _UNSIGNED), self._text("error_detail") or ""
        if self._lost_digits("error_offset"):
            raise self._refusal("error_offset", "the float has lost digits")
        return TableResult(path, None, error_of(kind, offset, detail), self._state())

    def _state(self) -> Fingerprint | None:
        size, inode = (self._whole(name, _UNSIGNED) for name in ("size", "inode"))
        mtime, ctime = (self._whole(name, _SIGNED) for name in ("mtime_ns", "ctime_ns"))
        etag = self._text("etag")
        if size is None or any(map(self._lost_digits, ("size", "mtime_ns", "ctime_ns", "inode"))):
            return None
        return size, mtime, ctime, inode, etag

    def _record(self) -> bytes | None:
        value = self._value("record")
        if isinstance(value, list):  # of a tool without a type of bytes
            try:
                return bytes(value)
            except (TypeError, ValueError):
                raise self._refusal("record", "it is no list of bytes") from None
        if value is None or isinstance(value, bytes):
            return value
        raise self._refusal("record", f"it is {type(value).__name__}, not bytes")

    def _text(self, column: str) -> str | None:
        value = self._value(column)
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise self._refusal(column, "it is no UTF-8") from None
        if value is None or isinstance(value, str):
            return value
        raise self._refusal(column, f"it is {type(value).__name__}, not text")

    def _whole(self, column: str, limits: tuple[int, int]) -> int | None:
        value = self._value(column)
        if value is None:
            return None
        if not isinstance(value, int | float | Decimal) or isinstance(value, bool) or value % 1 != 0:
            raise self._refusal(column, f"{str(value)[:40]!r} is no whole number")
        if not limits[0] <= value < limits[1]:
            raise self._refusal(column, f"{value} is out of range")
        return int(value)

    def _lost_digits(self, column: str) -> bool:
        value = self._value(column)
        return isinstance(value, float) and abs(value) > _EXACT

    def _value(self, column: str) -> Any:
        """Return a value; None where it is missing, of which pandas and others make a NaN."""
        value = self._values.get(column)
        return None if isinstance(value, float | Decimal) and value != value else value

    def _refusal(self, column: str, why: str) -> ConfigError:
        return ConfigError(
            f"{self._file}: row {self._number:,}, counted from 0, column {column}: {why}. Rows before it may "
            "be in the index; export it again"
        )
