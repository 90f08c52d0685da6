"""The codec of index rows against PostgreSQL and against an independent one: every column, value and NULL."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frames.dicom.cases import CASES
from support.builders import JPEG, PIXEL_DATA, Element, Fragments, dicom, image, pattern
from voxtier import _core
from voxtier._core import ROW_COLUMNS, Refusal, decode_rows, encode_rows, file_key
from voxtier.errors import FormatError, SourceError
from voxtier.frames import FrameCache, FrameTable, TableResult, read_table, read_tables
from voxtier.frames.memory.ranking import preload_rows
from voxtier.frames.store.store import FrameStore

NAMES = [name for name, _, _ in ROW_COLUMNS]
IN_MEMORY = {name for name, _, in_memory in ROW_COLUMNS if in_memory}
# What a table says where the data set, or a column, has no value (`Attributes` in the core).
ABSENT = {
    "truncated_from": None, "notes": (), "transfer_syntax_uid": "", "number_of_frames": 1, "rows": 0,
    "columns": 0, "samples_per_pixel": 1, "bits_allocated": 0, "photometric_interpretation": "",
    "pixel_data_pos": None, "sop_instance_uid": "", "series_instance_uid": "", "study_instance_uid": "",
    "mtime_ns": None, "ctime_ns": None, "inode": None, "etag": None, "frames": b"",
}  # fmt: skip
# Columns that hold no attribute of a table.
OF_THE_ROW = {"key", "path", "parser_version", "frame_count"}
OF_A_REFUSAL = {"error_kind", "error_offset", "error_detail"}
# What a file has and bytes in memory have not.
STATE = {"mtime_ns": 3, "ctime_ns": 4, "inode": 5, "etag": "tag"}
WIDTHS = {"int2": ">h", "int4": ">i", "int8": ">q"}


def unpack(value: bytes | None, sql_type: str) -> Any:
    """Decode one field as PostgreSQL's documentation describes the binary formats of types."""
    if value is None:
        return None
    if sql_type in WIDTHS:
        return struct.unpack(WIDTHS[sql_type], value)[0]
    if sql_type == "uuid":
        return UUID(bytes=value)
    if sql_type == "bytea":
        return value
    if sql_type == "text[]":
        dimensions, has_null, element_type, length, start = struct.unpack_from(">5i", value)
        assert (dimensions, has_null, element_type, start) == (1, 0, 25, 1)
        at, found = 20, []
        for _ in range(length):
            (size,) = struct.unpack_from(">i", value, at)
            found.append(value[at + 4 : at + 4 + size].decode())
            at += 4 + size
        assert at == len(value)
        return found
    return value.decode()  # text, and the labels of enumerations


def pack(value: Any, sql_type: str) -> bytes | None:
    """Encode one field; the inverse of `unpack`."""
    if value is None:
        return None
    if sql_type in WIDTHS:
        return struct.pack(WIDTHS[sql_type], value)
    if sql_type == "uuid":
        return bytes(value.bytes)
    if sql_type == "bytea":
        return bytes(value)
    if sql_type == "text[]":
        items = [item.encode() for item in value]
        head = struct.pack(">5i", 1, 0, 25, len(items), 1) if items else struct.pack(">3i", 0, 0, 25)
        return head + b"".join(struct.pack(">i", len(item)) + item for item in items)
    return str(value).encode()


def fields_of(row: bytes) -> dict[str, Any]:
    """Take one tuple of COPY apart."""
    (count,) = struct.unpack_from(">h", row)
    assert count == len(ROW_COLUMNS)
    at, found = 2, {}
    for name, sql_type, _ in ROW_COLUMNS:
        (size,) = struct.unpack_from(">i", row, at)
        at += 4
        found[name] = unpack(None if size < 0 else row[at : at + size], sql_type)
        at += max(size, 0)
    assert at == len(row)
    return found


def row_of(fields: dict[str, Any], *, as_record: bool = False, last_used_us: int | None = None) -> bytes:
    """Make a tuple of COPY, or a value of type record, out of fields."""
    values = [pack(fields[name], sql_type) for name, sql_type, _ in ROW_COLUMNS]
    if last_used_us is not None:
        values.append(struct.pack(">q", last_used_us))
    parts = [struct.pack(">i" if as_record else ">h", len(values))]
    for value in values:
        parts.append(struct.pack(">I", 4711) if as_record else b"")
        parts.append(struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value)
    return b"".join(parts)


def encoded(table: FrameTable, path: str = "/a") -> dict[str, Any]:
    rows, refused = encode_rows("s", [TableResult(path, table, None)])
    assert refused == []
    return fields_of(rows)


def decoded(row: bytes) -> FrameTable | Refusal:
    [(path, found, _)] = decode_rows(row)
    assert path == "/a"
    return found


def full_table() -> FrameTable:
    """A table with a value in every attribute: fragments, cut, with notes."""
    payloads = [pattern(20 + 2 * i, i) for i in range(5)]
    content = dicom([*image(frames=5), Element(PIXEL_DATA, "OB", Fragments(payloads))], JPEG).content
    table = read_table(content[: len(content) - 30], verify="all")
    assert (table.status, len(table)) == ("truncated", 5)
    assert table.notes
    return table


@pytest.fixture
def store(dsn: str) -> Iterator[FrameStore]:
    with FrameStore(dsn) as store:
        yield store


def test_the_schema_has_each_column_with_its_type(store: FrameStore, dsn: str) -> None:
    store.sources()
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute "
            "WHERE attrelid = 'voxtier.file'::regclass AND attnum > 0 AND NOT attisdropped"
        ).fetchall()
        types = {
            sql_type: connection.execute("SELECT format_type(to_regtype(%s), NULL)", (sql_type,)).fetchone()
            for _, sql_type, _ in ROW_COLUMNS
        }
    own = {"inserted_at", "source_id", "allowed_groups"}  # of the store, no part of what a file holds
    assert {name: kind for name, kind in found if name not in own} == {
        name: types[sql_type][0] for name, sql_type, _ in ROW_COLUMNS
    }


def test_each_attribute_of_a_table_is_a_column() -> None:
    of_layout = {"offsets", "lengths", "frame_first", "fragment_count", "frame_bits", "holds_spans", "packed"}
    attributes = {name for name in dir(FrameTable) if not callable(getattr(FrameTable, name))}
    attributes = {name for name in attributes if not name.startswith("_")}
    assert attributes - of_layout | {"frames"} == set(NAMES) - OF_THE_ROW - OF_A_REFUSAL


def test_each_column_holds_the_attribute_of_its_name() -> None:
    table = full_table()
    fields = encoded(table)
    assert fields["key"] == UUID(bytes=file_key("s", "/a"))
    assert (fields["path"], fields["parser_version"]) == ("/a", _core.PARSER_VERSION)
    assert (fields["frame_count"], fields["frames"]) == (len(table), table.packed)
    empty = {name: value for name, value in fields.items() if value is None}
    # Bytes in memory have no times and no number.
    assert set(empty) == OF_A_REFUSAL | {"etag", "mtime_ns", "ctime_ns", "inode"}
    for name in set(NAMES) - OF_THE_ROW - OF_A_REFUSAL - {"frames"}:
        expected = getattr(table, name)
        assert fields[name] == (list(expected) if name == "notes" else expected), name


@pytest.mark.parametrize("as_record", [False, True])
def test_a_row_of_another_encoder_is_read(as_record: bool) -> None:
    table = full_table()
    fields = encoded(table) | {"mtime_ns": -7}
    row = row_of(fields, as_record=as_record, last_used_us=5)
    [(path, found, last_used_us)] = decode_rows(row)
    assert isinstance(found, FrameTable)
    assert (path, last_used_us, found.mtime_ns) == ("/a", 5, -7)
    assert fields_of(encode_rows("s", [TableResult("/a", found, None)])[0]) == fields


OTHER_VALUES = {
    "status": "ok", "kind": "video", "method": "bot", "verified": "ends", "offsets_in": "inflated",
    "truncated_from": 2**31 - 1, "notes": ["bot_wrapped"], "transfer_syntax_uid": "1." + "2" * 62,
    "number_of_frames": 2**31 - 1, "rows": 2**31 - 1, "columns": 2**31 - 1, "samples_per_pixel": 2**16 - 1,
    "bits_allocated": 2**16 - 1, "photometric_interpretation": "X" * 16, "pixel_data_pos": 2**63 - 1,
    "sop_instance_uid": "2.5", "series_instance_uid": "2.6", "study_instance_uid": "2.7", "size": 2**63 - 1,
    "etag": "other", "mtime_ns": -(2**63), "ctime_ns": 2**63 - 1, "inode": 2**63 - 1, "frames": None,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(NAMES) - OF_THE_ROW - OF_A_REFUSAL))
def test_each_column_changes_its_attribute_alone(name: str) -> None:
    fields = encoded(full_table()) | {"mtime_ns": 9}
    changed = fields | {name: OTHER_VALUES[name]}
    assert changed != fields
    found = decoded(row_of(changed))
    assert isinstance(found, FrameTable)
    changed["frame_count"] = len(found)
    assert encoded(found) == changed


@pytest.mark.parametrize("name", sorted(ABSENT))
def test_null_means_what_the_attributes_promise(name: str) -> None:
    fields = encoded(full_table()) | {"mtime_ns": 9}
    found = decoded(row_of(fields | {name: None}))
    assert isinstance(found, FrameTable)
    assert getattr(found, "packed" if name == "frames" else name) == ABSENT[name]
    cache = FrameCache(1 << 20)
    assert cache.preload_rows(row_of(fields | {name: None}), 1 << 20) == (1, 0, 0)
    kept = cache.table("/a")
    assert kept is not None
    if name in IN_MEMORY:
        assert getattr(kept, "packed" if name == "frames" else name) == ABSENT[name]


def test_memory_keeps_the_columns_that_are_marked() -> None:
    table = full_table()
    cache = FrameCache(1 << 20)
    assert cache.put_rows(row_of(encoded(table) | STATE)) == (["/a"], 0)
    kept = cache.table("/a")
    assert kept is not None
    for name in set(NAMES) - OF_THE_ROW - OF_A_REFUSAL - {"frames", *STATE}:
        expected = getattr(table, name) if name in IN_MEMORY else ABSENT[name]
        assert getattr(kept, name) == expected, name
    assert {name: getattr(kept, name) for name in STATE} == STATE
    assert kept.packed == table.packed


@pytest.mark.parametrize(
    "change",
    [
        {"parser_version": _core.PARSER_VERSION + 1}, {"status": "fine"}, {"kind": None}, {"method": ""},
        {"notes": ["no_such_note"]}, {"rows": -1}, {"size": None}, {"size": -1}, {"path": None},
        {"transfer_syntax_uid": "1" * 65}, {"photometric_interpretation": "X" * 17}, {"frames": b"\xff"},
        {"samples_per_pixel": 2**16}, {"error_kind": "no_such_kind"},
    ],
    ids=lambda change: "-".join(change),
)  # fmt: skip
def test_a_row_that_does_not_decode_is_left_out(change: dict[str, Any]) -> None:
    fields = encoded(full_table())
    good, bad = row_of(fields), row_of(fields | change)
    if change.get("path", "") is None:
        assert decode_rows(bad)[0][0] == ""
        return
    assert [path for path, _, _ in decode_rows(good + bad + good)] == ["/a", "/a"]
    cache = FrameCache(1 << 20)
    assert cache.preload_rows(bad, 1 << 20) == (0, 0, 1)
    assert cache.put_rows(bad) == ([], 0)


def test_bytes_that_are_no_rows_are_refused() -> None:
    good = row_of(encoded(full_table()))
    for bad in (good[:-1], b"\0\3abc", good + b"\0"):
        with pytest.raises(FormatError, match="bad_table"):
            decode_rows(bad)
    assert decode_rows(b"") == decode_rows(b"\xff\xff") == []
    assert len(decode_rows(good * 3, most=2)) == 2


uids = st.text("0123456789.", max_size=64)
numbers = st.none() | st.integers(0, 2**31 - 1)
small_numbers = st.none() | st.integers(0, 2**16 - 1)
long_numbers = st.none() | st.integers(0, 2**63 - 1)
VALUES = {
    "status": st.sampled_from(["ok", "truncated", "no_pixels"]),
    "kind": st.sampled_from(["native", "encapsulated", "video", "none"]),
    "method": st.sampled_from(_core.METHODS),
    "verified": st.sampled_from(["none", "ends", "all"]),
    "offsets_in": st.sampled_from(["file", "inflated"]),
    "truncated_from": numbers,
    "notes": st.none() | st.lists(st.sampled_from(_core.NOTES), unique=True),
    "transfer_syntax_uid": st.none() | uids,
    "number_of_frames": numbers,
    "rows": numbers,
    "columns": numbers,
    "samples_per_pixel": small_numbers,
    "bits_allocated": small_numbers,
    "photometric_interpretation": st.none() | st.text("ABC_0", max_size=16),
    "pixel_data_pos": long_numbers,
    "sop_instance_uid": st.none() | uids,
    "series_instance_uid": st.none() | uids,
    "study_instance_uid": st.none() | uids,
    "size": st.integers(2**20, 2**63 - 1),
    "mtime_ns": st.none() | st.integers(-(2**63), 2**63 - 1),
    "ctime_ns": st.none() | st.integers(-(2**63), 2**63 - 1),
    "inode": long_numbers,
    "frames": st.none() | st.just(full_table().packed),
}


@given(st.fixed_dictionaries(VALUES), st.booleans(), st.none() | st.integers(0, 2**63 - 1))
def test_any_values_come_through_both_ways(
    values: dict[str, Any], as_record: bool, last_used_us: int | None
) -> None:
    fields = dict.fromkeys(NAMES) | values | {"path": "/a", "parser_version": _core.PARSER_VERSION}
    row = row_of(fields, as_record=as_record, last_used_us=last_used_us)
    [(_, found, used)] = decode_rows(row)
    assert isinstance(found, FrameTable)
    assert used == (last_used_us or 0)
    for name in VALUES:
        if name != "frames":
            value = ABSENT[name] if values[name] in (None, "") and name in ABSENT else values[name]
            expected = tuple(sorted(value, key=_core.NOTES.index)) if name == "notes" else value
            assert getattr(found, name) == expected, name
    assert found.packed == (values["frames"] or b"")
    again = encoded(found)
    for name in VALUES:
        if values[name] not in (None, "", []):
            expected = values[name]
            if name == "notes":
                expected = sorted(expected, key=_core.NOTES.index)
            assert again[name] == expected, name


@given(
    st.sampled_from(_core.ERROR_KINDS),
    st.none() | st.integers(0, 2**63 - 1),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=600),
)
def test_any_refusal_comes_through_both_ways(kind: str, offset: int | None, detail: str) -> None:
    is_environment = kind in ("io_error", "changed_during_read")
    error = (SourceError if is_environment else FormatError)(kind, offset, detail)
    rows, _ = encode_rows("s", [TableResult("/a", None, error)])
    fields = fields_of(rows)
    of_state, _ = encode_rows("s", [TableResult("/a", None, error, (10, 11, -12, 2**64 - 1, "tag"))])
    assert fields_of(of_state) == fields | {
        "size": 10,
        "mtime_ns": 11,
        "ctime_ns": -12,
        "inode": -1,
        "etag": "tag",
    }
    kept = detail.replace("\0", " ")[:500]
    assert (fields["error_kind"], fields["error_offset"], fields["error_detail"]) == (
        kind, offset, kept or None
    )  # fmt: skip
    assert (fields["status"], fields["kind"], fields["frame_count"]) == (
        _core.refused_status(kind), "error", 0
    )  # fmt: skip
    for state in (
        {},
        {"size": 10, "mtime_ns": 11},
        {"size": 10, "ctime_ns": 12, "inode": 13},
        {"size": 10, "etag": "x"},
    ):
        found = decoded(row_of(fields | state))
        assert isinstance(found, Refusal)
        assert type(found.error) is type(error)
        assert (found.error.kind, found.error.offset, found.error.detail) == (kind, offset, kept)
        for name in ("size", "mtime_ns", "ctime_ns", "inode", "etag"):
            assert getattr(found, name) == state.get(name)
        assert found.describes(bytes(10)) == bool(state)


def test_every_way_out_of_the_database_gives_the_same_table(store: FrameStore, tmp_path: Any) -> None:
    paths = []
    for case in CASES:
        if not case.error and len(case.content) < 100_000:
            path = tmp_path / case.name
            path.write_bytes(case.content)
            paths.append(str(path))
    tables = {str(each.path): each.table for each in read_tables(paths, verify="all")}
    store.upsert("s", [TableResult(path, table, None) for path, table in tables.items()])
    preloaded = FrameCache(1 << 24)
    for rows in preload_rows(store, "s", len(paths)):
        preloaded.preload_rows(rows, 1 << 24)
    for path, table in tables.items():
        assert table is not None
        assert store.get("s", path) == table
        recalled = store.recall("s", path)
        assert recalled is not None
        assert recalled.found == table
        assert decode_rows(recalled.rows) == [(path, table, 0)]
        cache = FrameCache(1 << 24)
        assert cache.put_rows(recalled.rows) == ([path], 0)
        computed = FrameCache(1 << 24)
        assert computed.put_table(path, table)
        assert cache.table(path) == computed.table(path)
        if len(table):
            assert preloaded.table(path) == computed.table(path)
    assert len(preloaded) == sum(len(table) > 0 for table in tables.values() if table is not None)


def test_paths_that_cannot_be_rows_are_named(tmp_path: Any) -> None:
    bad = ["", "/nul\0", "/not-utf8-\udcff", "/lone\ud800", b"/\xff", "/" + "x" * _core.MAX_PATH_BYTES]
    table = full_table()
    outcomes = [TableResult(path, table, None) for path in [*bad, tmp_path, "/good"]]  # type: ignore[arg-type]
    rows, refused = encode_rows("s", outcomes)
    assert [path for path, _ in refused] == bad
    assert all(fault for _, fault in refused)
    assert [path for path, _, _ in decode_rows(rows)] == [str(tmp_path), "/good"]
