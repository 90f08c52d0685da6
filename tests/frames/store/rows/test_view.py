"""The view `voxtier.dicom_frames`: SQL decodes packed tables as Rust does, for readers of a row per frame."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frames.dicom.cases import CASES, SPARSE, Case
from support.builders import JPEG, PIXEL_DATA, Element, Fragments, dicom, image, pattern
from voxtier import _core
from voxtier.frames import FrameTable, TableResult, read_table, read_tables
from voxtier.frames.store.store import FrameStore

# Of the origin's table, in its order, and one that says how many fragments the span holds.
COLUMNS = [
    "filename", "frame", "start_pos", "end_pos", "pixel_data_pos", "uc_table_name", "transfer_syntax_uid",
    "inserted_at", "last_used_at", "access_count", "allowed_groups", "fragment_count",
    "verified",
]  # fmt: skip
TABLES = [case for case in CASES if not case.error]


@pytest.fixture(scope="module")
def view(postgres: str) -> Iterator[tuple[FrameStore, psycopg.Connection]]:
    """A store that all tests of this module add files to, and a connection that reads its view."""
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute("CREATE DATABASE of_the_view TEMPLATE template0")
        dsn = psycopg.conninfo.make_conninfo(postgres, dbname="of_the_view")
        with FrameStore(dsn) as store:
            store.sources()
            with psycopg.connect(dsn, autocommit=True) as connection:
                yield store, connection
        admin.execute("DROP DATABASE of_the_view WITH (FORCE)")


def frames_of(connection: psycopg.Connection, path: str, source: str = "s") -> list[tuple]:
    return connection.execute(
        "SELECT frame, start_pos, end_pos, fragment_count FROM voxtier.dicom_frames "
        "WHERE filename = %s AND uc_table_name = %s ORDER BY frame",
        (path, source),
    ).fetchall()


def expected(table: FrameTable) -> list[tuple]:
    """The same from the table's own arrays: inclusive ends, the span of each frame's fragments."""
    rows = []
    for frame in range(len(table) if table.truncated_from is None else table.truncated_from):
        ranges = table.ranges(frame)
        start, end = min(start for start, _ in ranges), max(end for _, end in ranges)
        rows.append((frame, start, end - 1, len(ranges)))
    return rows


def test_columns_are_the_predecessors_in_its_order(view: tuple[FrameStore, psycopg.Connection]) -> None:
    cursor = view[1].execute("SELECT * FROM voxtier.dicom_frames LIMIT 0")
    assert [column.name for column in cursor.description or ()] == COLUMNS


def test_columns_hold_one_frame_and_its_statistics(view: tuple[FrameStore, psycopg.Connection]) -> None:
    store, connection = view
    table = read_table(dicom([*image(frames=2), Element(PIXEL_DATA, "OW", bytes(32))]).content)
    store.upsert("cat.schema.table", [TableResult("/held", table, None)])
    used = datetime(2024, 5, 6, tzinfo=UTC)
    question = "SELECT * FROM voxtier.dicom_frames WHERE filename = '/held' ORDER BY frame"
    row = dict(zip(COLUMNS, connection.execute(question).fetchall()[1], strict=True))
    assert (row["last_used_at"], row["access_count"]) == (None, 0)
    store.touch([_core.file_key("cat.schema.table", "/held")], [5], [used])
    row = dict(zip(COLUMNS, connection.execute(question).fetchall()[1], strict=True))
    pixels = table.size - 32
    inserted = row.pop("inserted_at")
    assert abs((datetime.now(UTC) - inserted).total_seconds()) < 300
    assert row == {
        "filename": "/held", "frame": 1, "start_pos": pixels + 16, "end_pos": pixels + 31,
        "pixel_data_pos": pixels - 12, "uc_table_name": "cat.schema.table",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1", "last_used_at": used, "access_count": 5,
        "allowed_groups": None, "fragment_count": 1, "verified": table.verified,
    }  # fmt: skip


def test_a_look_up_by_file_name_uses_the_index(view: tuple[FrameStore, psycopg.Connection]) -> None:
    store, connection = view
    table = read_table(dicom([*image(), Element(PIXEL_DATA, "OW", bytes(16))]).content)
    store.upsert("many", [TableResult(f"/{n}", table, None) for n in range(500)])
    connection.execute("ANALYZE voxtier.file")
    question = "SELECT * FROM voxtier.dicom_frames WHERE filename = '/7' AND uc_table_name = 'many'"
    assert "file_path" in str(connection.execute("EXPLAIN " + question).fetchall())


@pytest.mark.parametrize("case", TABLES, ids=str)
def test_every_case_gives_its_spans(view: tuple[FrameStore, psycopg.Connection], case: Case) -> None:
    store, connection = view
    table = read_table(case.content, verify="all")
    store.upsert("s", [TableResult(f"/{case.name}", table, None)])
    found = frames_of(connection, f"/{case.name}")
    if case.offsets_in != "file":
        assert found == []  # positions in an inflated copy are no positions in the file
        return
    whole = case.ranges[: case.truncated_from]
    assert [(start, end + 1) for _, start, end, _ in found] == [
        (min(start for start, _ in ranges), max(end for _, end in ranges)) for ranges in whole
    ]
    assert [count for *_, count in found] == [len(ranges) for ranges in whole]
    assert [frame for frame, *_ in found] == list(range(len(whole)))
    # What lies between is the frame, where the frame is one fragment.
    for (_, start, end, count), pixels in zip(found, case.pixels, strict=False):
        if count == 1:
            assert case.content[start : end + 1] == pixels


@pytest.mark.parametrize("case", SPARSE, ids=str)
def test_positions_beyond_4_gib_give_their_spans(
    view: tuple[FrameStore, psycopg.Connection],
    tmp_path_factory: pytest.TempPathFactory,
    case: Case,
) -> None:
    store, connection = view
    path = tmp_path_factory.mktemp("sparse") / "file"
    with path.open("wb") as file:
        case.write(file)
    [result] = read_tables([path], verify="all")
    assert result.table is not None
    store.upsert("s", [result])
    found = frames_of(connection, str(path))
    assert found == expected(result.table)
    assert found[-1][2] > 1 << 32


def test_a_table_of_many_blocks_gives_its_spans(view: tuple[FrameStore, psycopg.Connection]) -> None:
    store, connection = view
    payloads = [pattern(2 * (i % 9) + 2, i) for i in range(3000)]
    elements = [*image(frames=len(payloads)), Element(PIXEL_DATA, "OB", Fragments(payloads))]
    table = read_table(dicom(elements, JPEG).content, verify="all")
    store.upsert("s", [TableResult("/slide", table, None)])
    assert frames_of(connection, "/slide") == expected(table)


def test_fragment_counts_of_a_table_not_verified_are_null(
    view: tuple[FrameStore, psycopg.Connection],
) -> None:
    store, connection = view
    content = next(case for case in CASES if case.name == "e04_bot_multifrag").content
    store.upsert("s", [TableResult("/spans", read_table(content, verify="ends"), None)])
    assert {count for *_, count in frames_of(connection, "/spans")} == {None}


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_random_packed_tables_give_their_spans(
    view: tuple[FrameStore, psycopg.Connection], data: st.DataObject
) -> None:
    """Forms AFFINE, RAW (u32, u64) and U32CKPT, with and without fragments, written here by hand."""
    numbers = data.draw(st.integers(0, 2**32).map(random.Random))
    items = data.draw(st.sampled_from([1, 2, 3, 7, 255, 256, 257, 600]))
    form = data.draw(st.sampled_from(["affine", "raw", "wide", "checkpoints"]))
    mapping = data.draw(st.sampled_from(["none", "one", "map"]))
    packed, spans = write_packed(numbers, items, form, mapping)
    rows = view[1].execute("SELECT * FROM voxtier.frame_spans(%s)", (packed,)).fetchall()
    assert rows == spans


@pytest.mark.parametrize("at, value", [(0, 2), (1, 2), (1, 3), (1, 6), (2, 16), (2, 128), (2, 1)])
def test_a_form_that_sql_does_not_know_is_refused(
    view: tuple[FrameStore, psycopg.Connection], at: int, value: int
) -> None:
    packed = bytearray(struct.pack("<4B3I2Q", 1, 1, 2, 0, 0, 1, 1, 100, 64))
    packed[at] = value
    with pytest.raises(psycopg.errors.RaiseException, match="does not decode"):
        view[1].execute("SELECT * FROM voxtier.frame_spans(%s)", (bytes(packed),))


def write_packed(numbers: random.Random, items: int, form: str, mapping: str) -> tuple[bytes, list[tuple]]:
    """A packed table by the letter of its description, and the rows that it stands for."""
    base = numbers.choice([132, 5000, (1 << 33) + 8])
    lengths = [numbers.randrange(2, 70_000, 2) for _ in range(items)]
    if form == "affine":
        lengths = lengths[:1] * items
    if form == "wide":
        lengths[-1] = (1 << 32) + 10
    tags = [base]
    for length in lengths[:-1]:
        gap = numbers.choice([0, 0, 12]) if form in {"raw", "wide"} else 0
        tags.append(tags[-1] + 8 + length + gap)
    end = tags[-1] + 8 + lengths[-1]

    first = list(range(items + 1))
    if mapping == "one":
        first = [0, items]
    elif mapping == "map":
        first = sorted({0, items, *(numbers.randrange(items) for _ in range(items // 2))})
    frames = len(first) - 1
    flags = {"none": 0, "one": 4, "map": 8}[mapping] | (64 if form == "wide" else 0)

    code = {"affine": 1, "raw": 4, "wide": 4, "checkpoints": 5}[form]
    last = (lengths[0] + 8) * 8 if form == "affine" else end
    packed = struct.pack("<4B3I2Q", 1, code, flags, 0, 0, items, frames, base, last)
    if form in {"raw", "wide"}:
        packed += struct.pack(f"<{items}Q", *tags)
    if form == "checkpoints":
        packed += struct.pack(f"<{len(tags[::256])}Q", *tags[::256])
    if form == "wide":
        packed += struct.pack(f"<{items}Q", *lengths)
    elif form != "affine":
        packed += struct.pack(f"<{items}I", *lengths)
    packed += bytes(-len(packed) % 8)
    if mapping == "map":
        packed += struct.pack(f"<{frames + 1}I", *first)
        packed += bytes(-len(packed) % 8)

    rows = []
    for frame in range(frames):
        mine = range(first[frame], first[frame + 1])
        start, stop = tags[mine[0]] + 8, tags[mine[-1]] + 8 + lengths[mine[-1]]
        rows.append((frame, start, stop - 1, len(mine)))
    return packed, rows
