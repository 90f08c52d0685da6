"""Exports that other tools wrote again, or that are damaged: imported as they were, or refused by name."""

from __future__ import annotations

import decimal
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frames.dicom.cases import CASES
from voxtier.errors import ConfigError, FormatError, SourceError
from voxtier.frames import FrameTable, export_index, import_index, read_tables, to_arrow
from voxtier.frames.dicom.table import TableResult
from voxtier.frames.store.groups import restrict
from voxtier.frames.store.store import FrameStore

Table = Any
WHOLE = ("size", "mtime_ns", "ctime_ns", "inode", "error_offset", "frame_count", "rows", "truncated_from")
TEXT = ("path", "etag", "error_kind", "error_detail", "status", "sop_instance_uid")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[TableResult]:
    """Every reference case, among them refused ones, and a path without a file."""
    folder = tmp_path_factory.mktemp("files")
    for case in CASES:
        (folder / f"{case.name} ü.dcm").write_bytes(case.content)
    return sorted(
        read_tables([*folder.iterdir(), folder / "nothing"], verify="all"), key=lambda each: each.path
    )


def said(results: list[TableResult], *, states: bool = True) -> dict[str, object]:
    """What results say, by path; of refused files with their states."""
    return {
        str(path): (str(error), type(error), fingerprint if states else None) if table is None else table
        for path, table, error, fingerprint in results
    }


def imported(store: FrameStore, table: Table, tmp_path: Path, **options: bool) -> dict[str, object]:
    pq.write_table(table, tmp_path / "in.parquet")
    import_index(store, "s", tmp_path / "in.parquet")
    return said(list(store.results("s")), **options)


def replaced(table: Table, column: str, values: Any) -> Table:
    return table.set_column(table.schema.get_field_index(column), column, values)


def cast(names: tuple[str, ...], kind: Any) -> Callable[[Table], Table]:
    def change(table: Table) -> Table:
        for name in names:
            table = replaced(table, name, table.column(name).cast(kind))
        return table

    return change


def listed(kind: Any) -> Callable[[Table], Table]:
    """Records as lists of numbers, as from a tool without a type of bytes."""
    return lambda table: replaced(
        table, "record", pa.array([each and list(each) for each in table.column("record").to_pylist()], kind)
    )


@pytest.mark.parametrize(
    "change",
    [
        cast(TEXT, pa.large_string()),
        cast(TEXT, pa.string_view()),
        cast(TEXT, pa.dictionary(pa.int32(), pa.string())),
        cast(TEXT, pa.binary()),
        cast(("record",), pa.large_binary()),
        cast(("record",), pa.binary_view()),
        cast(("size", "error_offset", "frame_count", "rows"), pa.int32()),
        cast(("size", "error_offset", "frame_count"), pa.float64()),
        cast(("size", "mtime_ns", "ctime_ns", "inode"), pa.decimal128(38, 2)),
        listed(pa.list_(pa.uint8())),
        listed(pa.large_list(pa.int64())),
        lambda table: table.select(table.schema.names[::-1]).append_column("more", pa.nulls(len(table))),
    ],
)
def test_types_of_other_tools_are_taken_as_what_they_mean(
    store: FrameStore, results: list[TableResult], tmp_path: Path, change: Callable[[Table], Table]
) -> None:
    assert imported(store, change(to_arrow(results)), tmp_path) == said(results)


def test_what_pandas_writes_is_imported_without_states_that_lost_digits(
    store: FrameStore, results: list[TableResult], tmp_path: Path
) -> None:
    pytest.importorskip("pandas")
    frame = to_arrow(results).to_pandas()
    assert frame["mtime_ns"].dtype == frame["error_offset"].dtype == float
    frame.to_parquet(tmp_path / "in.parquet")
    assert import_index(store, "s", tmp_path / "in.parquet").inserted == len(results)
    found = list(store.results("s"))
    assert said(found, states=False) == said(results, states=False)
    assert {each.fingerprint for each in found if each.table is None} == {None}
    tables = [each.table for each in found if each.table is not None]
    assert tables, "records hold the states of their files"
    assert {table.mtime_ns for table in tables} == {
        each.table.mtime_ns for each in results if each.table is not None
    }


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("path", None, "there is none"),
        ("path", 5, "it is int, not text"),
        ("path", b"\xff", "it is no UTF-8"),
        ("record", "text", "it is str, not bytes"),
        ("record", [1, 256], "it is no list of bytes"),
        ("error_kind", None, "a row has this, or a record"),
        ("error_kind", float("nan"), "a row has this, or a record"),
        ("error_kind", "new_kind", "is no kind of error that this version knows"),
        ("error_detail", 7.5, "it is float, not text"),
        ("error_offset", 1.5, "'1.5' is no whole number"),
        ("error_offset", 2.0**60, "the float has lost digits"),
        ("error_offset", -1, "-1 is out of range"),
        ("error_offset", True, "'True' is no whole number"),
        ("size", "12", "'12' is no whole number"),
        ("size", float("inf"), "is no whole number"),
        ("size", decimal.Decimal("1.50"), "'1.50' is no whole number"),
        ("mtime_ns", 2.0**70, "is out of range"),
    ],
)
def test_a_value_that_is_none_of_its_column_is_named(
    store: FrameStore, tmp_path: Path, column: str, value: object, why: str
) -> None:
    refused = [
        TableResult(f"/{number}", None, FormatError("not_dicom", 0, "x"), (1, 2, 3, 4, None))
        for number in range(3)
    ]
    table = to_arrow(refused)
    kind = pa.scalar(value).type
    good = [None if column == "path" else pa.scalar(None, kind).as_py()] * 2
    only = replaced(table, column, pa.array([*good, value], kind)) if column != "path" else table
    if column in ("path", "error_kind"):
        only = replaced(table.slice(2), column, pa.array([value], kind))
    pq.write_table(only, tmp_path / "in.parquet")
    with pytest.raises(ConfigError) as caught:
        import_index(store, "s", tmp_path / "in.parquet")
    number = 0 if len(only) == 1 else 2
    assert f"in.parquet: row {number}, counted from 0, column {column}: " in str(caught.value)
    assert why in str(caught.value)


def test_a_missing_state_is_none_and_environment_errors_stay_such(store: FrameStore, tmp_path: Path) -> None:
    """Records and kinds of error decide; NaN is no value."""
    gone = TableResult("/gone", None, SourceError("io_error", None, "No such file", 2))
    table = to_arrow([gone])
    for name in ("size", "mtime_ns", "etag", "error_offset"):
        table = replaced(table, name, pa.array([float("nan")], pa.float64(), from_pandas=False))
    found = imported(store, table, tmp_path)
    assert found == {"/gone": ("io_error: No such file", SourceError, None)}


def test_a_file_is_imported_under_the_path_that_an_index_run_gives_it(
    store: FrameStore, results: list[TableResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = next(each for each in results if each.table is not None)
    spellings = ["s3a://b/x.dcm", "/data//x.dcm", "dbfs:/data/x.dcm", "./x.dcm"]
    table = to_arrow([one._replace(path=name) for name in spellings])
    assert imported(store, table, tmp_path).keys() == {"s3://b/x.dcm", "/data/x.dcm", f"{tmp_path}/x.dcm"}


def test_a_damaged_file_is_refused_and_one_that_cannot_be_looked_at_is_not(
    store: FrameStore, results: list[TableResult], tmp_path: Path
) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(to_arrow(results), path, compression="zstd")
    whole = path.read_bytes()
    dice = random.Random(5)
    told = set()
    for at in [len(whole) // 3, len(whole) // 2, *(dice.randrange(4, len(whole) - 40) for _ in range(60))]:
        path.write_bytes(whole[:at] + b"\xff" * 40 + whole[at + 40 :])
        try:
            import_index(store, "s", path)
        except ConfigError as error:
            assert str(path) in str(error)
            told.add(str(error).removeprefix(f"{path} ").partition(":")[0])
        except FormatError as error:
            assert error.kind == "bad_table"
    assert {"is damaged", "is no Parquet file"} <= told
    with pytest.raises(FileNotFoundError):
        import_index(store, "s", tmp_path / "none.parquet")
    path.write_bytes(whole)
    import_index(store, "t", path)
    assert any(isinstance(each.table, FrameTable) for each in store.results("t"))


GROUPS: list[list[str] | None] = [None, ["staff"], ["röntgen", 'a,"b'], []]


def test_groups_of_a_rule_are_a_list(results: list[TableResult], store: FrameStore) -> None:
    """One text would let the groups ``s``, ``t``, ``a`` and ``f`` see the file."""
    store.upsert("s", results)
    path = str(results[0].path)
    for wrong in ("staff", b"staff", 5, [5]):
        with pytest.raises(ConfigError, match="groups="):
            restrict(store, "s", {path: wrong})  # type: ignore[dict-item]
    assert seen(store, "s")[path] is None
    restrict(store, "s", {path: iter(["staff", ""])})
    assert seen(store, "s")[path] == ["staff"]


def seen(store: FrameStore, source: str) -> dict[str, list[str] | None]:
    return {str(path): groups for (path, *_), groups in store.results_and_groups(source)}


@pytest.mark.parametrize("again", ["as it was", "pandas", "large", "binary"])
def test_groups_of_files_are_exported_and_imported(
    results: list[TableResult], store: FrameStore, tmp_path: Path, again: str
) -> None:
    store.upsert("s", results)
    expected = {str(each.path): GROUPS[n % 4] for n, each in enumerate(results)}
    restrict(store, "s", {path: groups for path, groups in expected.items() if groups is not None})
    assert seen(store, "s") == expected
    path = tmp_path / "out.parquet"
    export_index(store, "s", path)
    if again == "pandas":
        pd = pytest.importorskip("pandas")
        pd.read_parquet(path).to_parquet(path)
    elif again != "as it was":
        kind = pa.large_list(pa.large_string() if again == "large" else pa.binary())
        table = pq.read_table(path)
        pq.write_table(replaced(table, "allowed_groups", table.column("allowed_groups").cast(kind)), path)
    for _ in range(2):
        import_index(store, "restored", path)
        assert seen(store, "restored") == expected
    store.delete("restored", list(expected))
    without = pq.read_table(path).drop_columns(["allowed_groups"])  # as of an earlier version
    pq.write_table(without, path)
    import_index(store, "restored", path)
    assert seen(store, "restored") == expected  # nobody sees more than before
    import_index(store, "other", path)
    assert set(seen(store, "other").values()) == {None}


@pytest.mark.parametrize(
    "groups", [["staff"] * 3, [["staff"], [""], ["staff"]], [["staff"], [None], None]], ids=str
)
def test_what_are_no_groups_is_refused_before_the_row_is_written(
    results: list[TableResult], store: FrameStore, tmp_path: Path, groups: list[Any]
) -> None:
    table = to_arrow(results[:3]).append_column("allowed_groups", pa.array(groups))
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(ConfigError, match=r"row \d, counted from 0, column allowed_groups"):
        import_index(store, "s", tmp_path / "in.parquet")
    assert None not in seen(store, "s").values()
