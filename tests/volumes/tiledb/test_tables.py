"""Observation tables: types with missing values, updates of shuffled subsets, one filter grammar."""

from __future__ import annotations

import datetime
import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiledb

from voxtier.errors import ConfigError, NotFoundError, SourceError
from voxtier.volumes import Dataframe, Table
from voxtier.volumes.compat import dataframe as compat
from voxtier.volumes.tiledb.locks import only_writer
from voxtier.volumes.tiledb.session import Session
from voxtier.volumes.tiledb.tables.columns import as_table

COLUMNS = {
    "i1": np.array([1, -2, 3, 4], np.int8),
    "u2": np.array([1, 2, 3, 65535], np.uint16),
    "i8": [1, None, -(2**60), 4],
    "f4": np.array([1.5, 2, 3, 4], np.float32),
    "f8": [1.0, float("nan"), 3.0, 4.0],
    "b": [True, None, False, True],
    "text": ["a", "", None, "ü\n日"],
    "only_null": [None] * 4,
    "day": np.array(["2020-01-01", "2021-05-06", "2022-01-01", "1999-12-31"], "M8[ns]"),
    "u8": np.array([0, 1, 2, 2**63], np.uint64),
    "i4": np.arange(4, dtype=np.int32),
    "fixed": np.array(["x", "yy", "zzz", ""], "U3"),
}
KEYS = {"obs_subject_id": ["z", "m", "a", "ü"], "obs_id": ["z1", "m1", "a1", "ü1"]}


def rows_by_key(frame: Dataframe) -> dict[str, dict[str, Any]]:
    return {row["obs_id"]: row for row in frame.read().rows()}


def expected_rows() -> dict[str, dict[str, Any]]:
    found = {}
    for place, key in enumerate(KEYS["obs_id"]):
        row = {}
        for name, values in COLUMNS.items():
            value = values[place]
            value = (
                value.item()
                if isinstance(value, np.generic) and not isinstance(value, np.datetime64)
                else value
            )
            row[name] = None if value is None or value != value else value
        found[key] = row
    return found


def test_twelve_types_keep_their_values_and_missing_ones(tmp_path: Path) -> None:
    frame = Dataframe.from_pandas(tmp_path / "t", {**KEYS, **COLUMNS})
    assert frame.shape == (4, 12)
    for key, wanted in expected_rows().items():
        row = rows_by_key(frame)[key]
        assert {name: row[name] for name in COLUMNS} == wanted


def test_updates_of_shuffled_subsets_keep_the_rest(tmp_path: Path) -> None:
    frame = Dataframe.from_pandas(tmp_path / "t", {**KEYS, **COLUMNS})
    frame.update(
        {"obs_subject_id": ["ü", "m"], "obs_id": ["ü1", "m1"], "i8": [77, 88], "text": [None, "new"]}
    )
    wanted = expected_rows()
    wanted["ü1"] |= {"i8": 77, "text": None}
    wanted["m1"] |= {"i8": 88, "text": "new"}
    for key, row in rows_by_key(frame).items():
        assert {name: row[name] for name in COLUMNS} == wanted[key]
    with pytest.raises(NotFoundError):
        frame.update({"obs_subject_id": ["q"], "obs_id": ["q"], "i8": [1]})
    with pytest.raises(ConfigError, match="no column"):
        frame.update({"obs_subject_id": ["z"], "obs_id": ["z1"], "nope": [1]})
    frame.add_column("score", np.float64, [1.0, None, 2.0, 3.0])
    assert [row["score"] for row in frame.read().rows()].count(None) == 1
    assert frame.delete("i8 == 77") == 1
    assert len(frame) == 3


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("age > 40", ["b", "c"]),
        ("age > 40 and sex == 'F'", ["c"]),
        ("not (age > 40)", ["a", "d"]),
        ("sex in ['F', 'X'] or age < 20", ["a", "c"]),
        ("40 < age <= 60", ["b"]),
        ("age != 50", ["a", "c"]),
        ("sex not in ['F']", ["b"]),
        ("ok", ["a", "d"]),
        ("age > -1.5e3", ["a", "b", "c"]),
    ],
)
def test_a_filter_selects_these_rows(expression: str, wanted: list[str]) -> None:
    table = Table(
        {
            "id": np.array(["a", "b", "c", "d"], object),
            "age": np.ma.MaskedArray([10, 50, 70, 0], mask=[0, 0, 0, 1]),
            "sex": np.ma.MaskedArray(np.array(["F", "M", "F", ""], object), mask=[0, 0, 0, 1]),
            "ok": np.array([True, False, False, True]),
        }
    )
    assert table.take(np.flatnonzero(table.matching(expression)))["id"].tolist() == wanted


@pytest.mark.parametrize(
    "expression",
    [
        "agee > 3",
        "age > 'x'",
        "__import__('os')",
        "age > 3 +",
        "age",
        "3 > 2",
        "age > [1]",
        "x" * 20_000,
        "(" * 500,
        "age in 3",
    ],
)
def test_text_outside_the_grammar_is_refused(expression: str) -> None:
    with pytest.raises(ConfigError):
        Table({"age": np.array([1, 2])}).matching(expression)


def test_mixed_types_and_objects_cannot_be_a_column(tmp_path: Path) -> None:
    for bad in ([1, "a"], [object()], [[1], [2]]):
        with pytest.raises(ConfigError):
            Dataframe.from_pandas(
                tmp_path / "t",
                {"obs_subject_id": ["a", "b"][: len(bad)], "obs_id": ["a", "b"][: len(bad)], "c": bad},
            )
    with pytest.raises(ConfigError, match="differ in length"):
        Dataframe.from_pandas(tmp_path / "u", {"obs_subject_id": ["a"], "obs_id": ["a", "b"]})


@pytest.mark.parametrize("missing", [None, float("nan"), np.datetime64("NaT")])
@pytest.mark.parametrize("key", list(KEYS))
def test_a_row_without_its_key_is_refused(tmp_path: Path, key: str, missing: Any) -> None:
    gap = {**KEYS, key: [*KEYS[key][:3], missing], "n": [1, 2, 3, 4]}
    with pytest.raises(ConfigError, match=f"row 3 of the table has no {key}"):
        Dataframe.from_pandas(tmp_path / "gap", gap)
    frame = Dataframe.from_pandas(tmp_path / "t", {**KEYS, "n": [1, 2, 3, 4]})
    with pytest.raises(ConfigError, match=f"row 3 of the table has no {key}"):
        frame.update(gap)


def test_ids_with_bytes_that_are_no_text_come_back_and_others_are_refused(tmp_path: Path) -> None:
    ids = [os.fsdecode(name) for name in (b"a\x80", b"\xff%80", "ü".encode(), b"%FF")]
    frame = Dataframe.from_pandas(tmp_path / "t", {"obs_subject_id": ids, "obs_id": ids, "n": [0, 1, 2, 3]})
    assert dict(zip(*(frame.read()[name] for name in ("obs_id", "n")), strict=True)) == dict(
        zip(ids, range(4), strict=True)
    )
    frame.update({"obs_subject_id": ids[:1], "obs_id": ids[:1], "n": [7]})
    assert sorted(frame.read()["n"]) == [1, 2, 3, 7]
    for wrong in ("a\ud800", "\udcc3\udcbc"):  # no byte of a name; the bytes of ü
        with pytest.raises(ConfigError, match=r"ud800|'ü'"):
            Dataframe.from_pandas(tmp_path / "u", {"obs_subject_id": [wrong], "obs_id": [wrong]})


def test_fill_is_the_value_of_every_row(tmp_path: Path) -> None:
    frame = Dataframe.from_pandas(tmp_path / "t", {**KEYS, "n": [1, 2, 3, 4]})
    frame.add_column("reviewed", np.bool_, fill=False)
    frame.add_column("site", str, fill="ü")
    frame.add_column("empty", np.float32)
    for place, key in enumerate(KEYS["obs_id"]):
        row = rows_by_key(frame)[key]
        assert (row["n"], row["reviewed"], row["site"], row["empty"]) == (place + 1, False, "ü", None)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": np.int32, "fill": "text"},
        {"dtype": np.int8, "fill": 1000},
        {"dtype": np.int32, "values": [1, 2, 3]},
        {"dtype": np.int32, "values": [1, 2, 3, 4], "fill": 0},
        {"dtype": np.complex64},
        {"dtype": "category"},
        {"dtype": "no type"},
        {"dtype": object, "values": [np.array([1, 2]), np.array([3]), None, None]},
        {"dtype": np.int64, "values": np.arange(4).astype("m8[ns]")},
    ],
)
def test_a_column_that_cannot_be_filled_is_not_added(tmp_path: Path, options: dict[str, Any]) -> None:
    frame = Dataframe.from_pandas(tmp_path / "t", {**KEYS, "n": [1, 2, 3, 4]})
    with pytest.raises(ConfigError):
        frame.add_column("score", **options)
    assert frame.columns == ["n"]


@pytest.mark.parametrize("text", ["J\udcfcrgen", "\ud800"])
def test_text_that_is_no_utf8_is_refused(tmp_path: Path, text: str) -> None:
    """It was an array that TileDB cannot use."""
    keys = {"obs_subject_id": ["a", "b"], "obs_id": ["a1", "b1"]}
    frame = Dataframe.from_pandas(tmp_path / "t", {**keys, "note": ["x", "y"]})
    for change in (
        lambda: frame.update({"obs_subject_id": ["a"], "obs_id": ["a1"], "note": [text]}),
        lambda: frame.add_column(text, "i4"),
    ):
        with pytest.raises(ConfigError, match="is no UTF-8 text"):
            change()
    assert frame.read()["note"].tolist() == ["x", "y"]
    assert frame.read()["obs_subject_id"].tolist() == ["a", "b"]


def test_types_of_a_new_column_may_be_named_as_pandas_does(tmp_path: Path) -> None:
    frame = Dataframe.from_pandas(tmp_path / "t", {**KEYS, "n": [1, 2, 3, 4]})
    pandas = pytest.importorskip("pandas")
    for kind in ("Int16", "string", "boolean", "Float32", pandas.UInt8Dtype(), pandas.StringDtype()):
        frame.add_column(f"{kind!r}", kind)
    assert [dtype.str[1:] for dtype in frame.dtypes.values()] == ["i8", "i2", "O", "b1", "f4", "u1", "O"]


def test_two_columns_whose_names_are_one_text_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    for frame in ({1: [1], "1": [2]}, pandas.DataFrame([[1, 2]], columns=[1, "1"])):
        with pytest.raises(ConfigError, match="two columns have one name"):
            as_table(frame)


def test_a_column_without_rows_keeps_its_type() -> None:
    pandas = pytest.importorskip("pandas")
    for kind in ("Int64", "boolean", "Float32"):
        series = pandas.Series([], dtype=kind)
        assert as_table({"x": series})["x"].dtype == series.dtype.numpy_dtype


def test_a_filter_finds_a_name_that_python_spells_otherwise() -> None:
    table = Table({"\u00b5": np.array([1, 2]), "ﬁeld": np.array([3, 3])})
    assert table.matching("\u00b5 == 1 and ﬁeld == 3").tolist() == [True, False]
    both = Table({"x\u00b2": np.array([1]), "x\u2082": np.array([2])})
    with pytest.raises(ConfigError, match="no column 'x2'"):
        both.matching("x2 == 1")


def test_a_dropped_column_comes_back_empty_and_of_another_type(tmp_path: Path) -> None:
    """TileDB reads the cells of an older schema as those of a column of one name: rows are written again."""
    frame = Dataframe.from_pandas(tmp_path / "t", {**KEYS, "n": [1, 2, 3, 4], "keep": ["a", "b", "c", "d"]})
    for dtype, values in ((str, ["x", None, "z", "w"]), (np.float64, [0.5, 1.5, None, 3.5]), (np.int8, None)):
        frame.drop_column("n")
        assert frame.columns == ["keep"]
        assert list(frame.read().columns) == ["obs_subject_id", "obs_id", "keep"]
        frame.add_column("n", dtype, values)
        wanted = [None] * 4 if values is None else values
        assert [row["n"] for row in frame.read().rows()] == wanted
        assert {row["keep"] for row in frame.read().rows()} == {"a", "b", "c", "d"}
    for name in ("obs_id", "absent"):
        with pytest.raises(ConfigError):
            frame.drop_column(name)


def test_a_column_named_as_voxtiers_own_is_told_to_be_renamed_and_can_be_dropped(tmp_path: Path) -> None:
    """Earlier versions took such a column, and never showed it again."""
    frame = Dataframe.from_pandas(tmp_path / "t", {**KEYS, "n": [1, 2, 3, 4]})
    frame.add_attributes({"voxtier_score": np.dtype(np.int32)})
    for name in ("voxtier_score", "voxtier_array", "voxtier_new"):
        with pytest.raises(ConfigError, match="rename it"):
            frame.update({**KEYS, name: [1, 2, 3, 4]})
    assert frame.read(columns="voxtier_score").columns[-1] == "voxtier_score"
    frame.drop_column("voxtier_score")
    assert "voxtier_score" not in frame.read_all()
    assert frame.read()["n"].tolist() == Dataframe(tmp_path / "t").read()["n"].tolist()
    for name in ("voxtier_nulls", "voxtier_array"):
        with pytest.raises(ConfigError, match="voxtier's own"):
            frame.drop_column(name)
    with pytest.raises(ConfigError, match="has no column 'voxtier_score'"):
        frame.drop_column("voxtier_score")


def test_a_table_has_the_keys_that_it_was_made_with(tmp_path: Path) -> None:
    rows = {"scanner": ["b", "a"], "field": [3.0, 1.5], "obs_id": ["x", "y"]}
    frame = Dataframe.from_pandas(tmp_path / "t", rows, index_columns=("scanner",))
    assert frame.index_columns == Dataframe(tmp_path / "t").index_columns == ("scanner",)
    assert Dataframe(tmp_path / "t").read().columns == ["scanner", "field", "obs_id"]
    assert [row["scanner"] for row in Dataframe(tmp_path / "t").read(["field"]).rows()] == ["a", "b"]
    assert Dataframe(tmp_path / "t").read(include_index=False).columns == ["field", "obs_id"]
    frame.update({"scanner": ["a"], "field": [7.0]})
    assert [row["field"] for row in frame.read().rows()] == [7.0, 3.0]
    created = Dataframe.create(tmp_path / "c", {"n": np.int32}, index_columns=("one", "two", "three"))
    assert created.all_columns == ["one", "two", "three", "n"]
    for keys in ((), ("n",), ("one", "one"), ("",)):
        with pytest.raises(ConfigError):
            Dataframe.create(tmp_path / "bad", {"n": np.int32}, index_columns=keys)
    with pytest.raises(ConfigError, match="lacks the key"):
        Dataframe.from_pandas(tmp_path / "bad", rows)


def keyed(**columns: Any) -> dict[str, Any]:
    rows = len(next(iter(columns.values())))
    ids = [f"r{number}" for number in range(rows)]
    return {"obs_subject_id": ids, "obs_id": ids, **columns}


FAR_DATES = ["0001-01-01", "1600-01-01", "1970-01-01", "2262-04-12", "9999-12-31"]


@pytest.mark.parametrize("unit", ["D", "h", "s", "ms", "us"])
def test_dates_beyond_what_nanoseconds_hold_come_back(tmp_path: Path, unit: str) -> None:
    frame = Dataframe.from_pandas(tmp_path / "t", keyed(day=np.array(FAR_DATES, f"M8[{unit}]")))
    found = [value.item().date().isoformat() for value in frame.read()["day"]]  # Python's calendar
    assert found == FAR_DATES
    frame.update(keyed(day=[None] * 4 + [datetime.date(1700, 2, 28)]))
    assert [row["day"] for row in frame.read().rows()][3:] == [None, np.datetime64("1700-02-28")]
    frame.add_column("end", "M8[D]", fill=datetime.date(9999, 12, 31))
    assert set(frame.read()["end"].tolist()) == {datetime.datetime(9999, 12, 31)}


def test_dates_of_python_numpy_and_pandas_are_columns(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    moment = datetime.datetime(1600, 2, 29, 23, 59, 59, 999_999)
    table = keyed(
        day=[datetime.date(9999, 12, 31), None],
        moment=[moment, datetime.date(2020, 1, 1)],
        mixed=[np.datetime64("9999-12-31", "us"), np.datetime64("2020-01-01", "ns")],
        fine=pandas.to_datetime(pandas.Series(["2020-01-01T00:00:00.123456789", None])),
        objects=pandas.Series([pandas.Timestamp("2020-01-01T00:00:00.000000001"), pandas.NaT], dtype=object),
        seconds=pandas.Series(np.array(["1066-10-14", "2500-01-01"], "M8[s]")),
        none=[pandas.NaT, None],
    )
    frame = Dataframe.from_pandas(tmp_path / "t", table)
    rows = list(frame.read().rows())
    assert [row["day"] for row in rows] == [np.datetime64("9999-12-31"), None]
    assert rows[0]["moment"].item() == moment
    assert str(rows[0]["mixed"])[:10] == "9999-12-31"
    assert str(rows[0]["fine"]) == "2020-01-01T00:00:00.123456789"
    assert str(rows[0]["objects"]) == "2020-01-01T00:00:00.000000001"
    assert [str(row["seconds"])[:10] for row in rows] == ["1066-10-14", "2500-01-01"]
    assert frame.dtypes["none"] == np.dtype("M8[us]")
    back = frame.read().to_pandas()
    assert back["day"].tolist() == [datetime.datetime(9999, 12, 31), pandas.NaT]
    assert back["fine"][0] == pandas.Timestamp("2020-01-01T00:00:00.123456789")


def test_a_date_that_a_column_cannot_hold_is_refused(tmp_path: Path) -> None:
    frame = Dataframe.from_pandas(
        tmp_path / "t",
        keyed(fine=np.array(["2020-01-01"], "M8[ns]"), coarse=np.array(["2020-01-01"], "M8[D]"), n=[1]),
    )
    before = list(frame.read().rows())
    for column, value in (
        ("fine", datetime.date(9999, 12, 31)),
        ("coarse", np.datetime64("2020-01-01T00:00:00.123456789")),
        ("coarse", 5),
        ("n", datetime.date(2020, 1, 1)),
    ):
        with pytest.raises(ConfigError, match=column):
            frame.update(keyed(**{column: [value]}))
    zoned = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    ends = [np.datetime64("9999-12-31", "us"), np.datetime64("2020-01-01T00:00:00.123456789")]
    for dates, word in (([zoned], "time zone"), (ends, "no unit"), ([datetime.timedelta(1)], "mixes")):
        with pytest.raises(ConfigError, match=word):
            Dataframe.from_pandas(tmp_path / "u", keyed(day=dates))
    assert list(frame.read().rows()) == before


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("day > '2020-01-01'", [2, 3]),
        ("day >= '2020-01-01T00:00:00'", [1, 2, 3]),
        ("'1700' < day < '2100-06-01 12:00'", [1, 2]),
        ("day == '9999-12-31'", [3]),
        ("day != '9999-12-31'", [0, 1, 2]),
        ("day in ['1600-01-01', '2020-01-01']", [0, 1]),
        ("day not in ['1600-01-01']", [1, 2, 3]),
        ("day > fine", [2, 3]),
        ("fine < '9999-12-31' and n > 1", [2, 3]),
    ],
)
def test_a_filter_compares_dates(expression: str, wanted: list[int]) -> None:
    days = np.array(["1600-01-01", "2020-01-01", "2020-01-01T00:00:01", "9999-12-31", "1970-01-01"], "M8[us]")
    table = Table(
        {
            "n": np.arange(5),
            "day": np.ma.MaskedArray(days, mask=[0, 0, 0, 0, 1]),
            "fine": np.array(["2020-01-01", "2020-01-01", "2020-01-01", "2262-01-01", "NaT"], "M8[ns]"),
        }
    )
    assert np.flatnonzero(table.matching(expression)).tolist() == wanted


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("x == 0.1", [0, 2]),
        ("0.1 == x", [0, 2]),
        ("x != 0.1", [1, 3]),
        ("x <= 0.1", [0, 2]),
        ("x in [0.1, 7]", [0, 2, 3]),
        ("x not in [0.1]", [1, 3]),
        ("x < 1e300", [0, 1, 2, 3]),
    ],
)
def test_a_column_compares_alike_with_and_without_missing_values(
    expression: str, wanted: list[int], dtype: str
) -> None:
    cells = np.array([0.1, 0.2, 0.1, 7], dtype)
    assert np.flatnonzero(Table({"x": cells}).matching(expression)).tolist() == wanted
    masked = np.ma.MaskedArray(cells, [False, False, True, False])
    found = np.flatnonzero(Table({"x": masked}).matching(expression)).tolist()
    assert found == [place for place in wanted if place != 2]


@pytest.mark.parametrize(
    "expression", ["day > 5", "day > 'today'", "day == ''", "day > '2020-13-01'", "day > n", "day == True"]
)
def test_a_date_is_compared_with_a_date_alone(expression: str) -> None:
    table = Table({"day": np.array(["2020-01-01"], "M8[us]"), "n": np.array([1])})
    with pytest.raises(ConfigError, match="2020"):
        table.matching(expression)


def test_a_column_takes_what_is_of_its_kind(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = Dataframe.from_pandas(
        tmp_path / "t", keyed(n=[50, 2**60 + 1], x=np.ones(2, np.float32), text=["a", "b"])
    )
    frame.update(pandas.DataFrame(keyed(n=[45.0, None])).iloc[:1])
    assert frame.read()["n"].tolist() == [45, 2**60 + 1]
    frame.update(keyed(n=pandas.array([7, None], dtype="Int64"), x=[2, None]))
    assert frame.read()["n"].tolist() == [7, None]
    before = list(frame.read().rows())
    for columns in (
        {"n": [1.5]},
        {"n": [2.0**63]},
        {"x": [1e300]},
        {"text": [5]},
        {"text": [True]},
        {"n": ["5"]},
    ):
        with pytest.raises(ConfigError, match=next(iter(columns))):
            frame.update(keyed(**columns))
    for numbers in ([2**70], [-1, 2**63], [2**60 + 1, 0.5]):
        with pytest.raises(ConfigError, match="column 'n'"):
            Dataframe.from_pandas(tmp_path / "u", keyed(n=numbers))
    assert list(frame.read().rows()) == before


def test_a_column_without_values_keeps_its_type(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = keyed(
        age=pandas.Series([np.nan, np.nan]),
        count=pandas.array([None, None], dtype="Int64"),
        ok=pandas.array([None, None], dtype="boolean"),
        weight=[float("nan"), None],
        day=pandas.Series(np.array(["NaT", "NaT"], "M8[s]")),
    )
    frame = Dataframe.from_pandas(tmp_path / "t", pandas.DataFrame(table))
    kinds = {name: dtype.kind for name, dtype in frame.dtypes.items()}
    assert kinds == {"age": "f", "count": "i", "ok": "b", "weight": "f", "day": "M"}
    assert {value for row in frame.read(include_index=False).rows() for value in row.values()} == {None}


def gap_of(kind: str, values: list[float], dtype: Any = np.float64) -> Any:
    """Return numbers of which NaN is missing, as each kind of table says that."""
    if kind == "numpy":
        return np.array(values, dtype)
    if kind == "masked":
        return np.ma.MaskedArray(np.nan_to_num(np.array(values, dtype)), np.isnan(values))
    if kind == "list":
        return [None if value != value else float(value) for value in values]
    return pytest.importorskip("pandas").Series(values, dtype=dtype)


@pytest.mark.parametrize("kind", ["numpy", "masked", "list", "pandas"])
def test_nan_is_missing_whoever_gave_it_and_after_other_columns_are_updated(
    tmp_path: Path, kind: str
) -> None:
    frame = Dataframe.from_pandas(tmp_path / "t", keyed(age=gap_of(kind, [1, np.nan]), n=[1, 2]))
    frame.add_column("weight", np.float32, values=gap_of(kind, [np.nan, 70], np.float32))
    for _ in range(2):
        table = frame.read()
        assert [row["age"] for row in table.rows()] == [1, None]
        assert [table.matching(text).tolist() for text in ("age != 3", "age not in [3]", "weight != 3")] == [
            [True, False],
            [True, False],
            [False, True],
        ]
        np.testing.assert_array_equal(np.asarray(table["age"]), [1, np.nan])
        np.testing.assert_array_equal(np.asarray(table["weight"]), np.array([np.nan, 70], np.float32))
        frame.update(keyed(n=[3, 4]))


def test_floats_with_missing_values_go_to_pandas_in_their_type() -> None:
    pytest.importorskip("pandas")
    table = Table(
        {
            "some": np.ma.MaskedArray(np.array([1, 2], np.float32), [True, False]),
            "none": np.ma.MaskedArray(np.zeros(2), True),
            "day": np.array(["NaT", "2020-01-01"], "M8[us]"),
        }
    ).to_pandas()
    assert [str(dtype) for dtype in table.dtypes] == ["float32", "float64", "datetime64[us]"]
    assert table.isna().to_numpy().tolist() == [[True, True, True], [False, True, False]]


def test_a_nan_that_an_older_version_or_another_program_stored_is_missing(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    columns = [tiledb.Attr(name="age", dtype="f8"), tiledb.Attr(name="day", dtype="M8[us]")]
    dimensions = [tiledb.Dim(name=key, dtype="ascii") for key in KEYS]
    tiledb.Array.create(uri, tiledb.ArraySchema(tiledb.Domain(*dimensions), columns, sparse=True))
    frame = Dataframe(uri)
    with tiledb.open(uri, "w") as array:
        cells = {"age": np.array([np.nan, 2]), "day": np.array(["2020-01-01", "NaT"], "M8[us]")}
        array[np.array([b"a", b"b"]), np.array([b"a", b"b"])] = cells
    assert list(frame.read(columns=["age", "day"], include_index=False).rows()) == [
        {"age": None, "day": np.datetime64("2020-01-01", "us")},
        {"age": 2, "day": None},
    ]
    assert frame.read(value_filter="age != 3")["obs_id"].tolist() == ["b"]
    frame.update({"obs_subject_id": ["b"], "obs_id": ["b"], "age": [None]})  # needs no mark: NaN says it
    assert [row["age"] for row in frame.read().rows()] == [None, None]


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.update(keyed(x=[1, 1])),
        lambda frame: frame.add_column("x", np.int64, fill=1),
        lambda frame: compat.Dataframe.update(frame, keyed(x=[1, 1])),
    ],
    ids=["update", "add_column", "compat"],
)
def test_two_writers_of_a_table_keep_each_others_values(tmp_path: Path, change: Any) -> None:
    frame = compat.Dataframe.from_pandas(tmp_path / "t", keyed(x=[0, 0], y=[0, 0]))
    if change.__code__.co_names[0] == "add_column":
        frame.drop_column("x")
    other = threading.Thread(target=Dataframe(tmp_path / "t").update, args=[keyed(y=[1, 1])])
    read_all = frame.read_all

    def read_while_another_writes() -> Table:
        table = read_all()
        other.start()
        other.join(0.3)
        return table

    frame.read_all = read_while_another_writes
    change(frame)
    other.join()
    assert [(row["x"], row["y"]) for row in Dataframe(tmp_path / "t").read().rows()] == [(1, 1), (1, 1)]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_table_is_changed_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    frame = Dataframe.from_pandas(tmp_path / "t", {**KEYS, "age": [1, 2, 3, 4]})
    monkeypatch.setattr(fcntl, "flock", refuse)
    frame.update({"obs_subject_id": ["z"], "obs_id": ["z1"], "age": [9]})
    frame.add_column("site", str, fill="A")
    frame.drop_column("site")
    assert frame.delete("obs_id == 'm1'") == 1
    assert {key: row["age"] for key, row in rows_by_key(frame).items()} == {"z1": 9, "a1": 3, "ü1": 4}
    with pytest.raises(SourceError, match="cannot write into"), only_writer(frame.uri, Session.of()):
        pass


def test_the_disk_that_refuses_a_lock_file_refuses_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    frame = Dataframe.from_pandas(tmp_path / "t", {**KEYS, "age": [1, 2, 3, 4]})
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SourceError, match="Input/output error"):
        frame.update({"obs_subject_id": ["z"], "obs_id": ["z1"], "age": [9]})


@pytest.mark.parametrize("root", ["gs://bucket/t", "azure://container/t"])
def test_the_lock_of_s3_is_asked_of_s3_alone(root: str) -> None:
    """A client of S3 would take ``gs:`` for the bucket."""
    with only_writer(root, Session.of(), needs_lock=False) as confirm:
        confirm()
    with pytest.raises(ConfigError, match="under a lock"), only_writer(root, Session.of()):
        pass


def test_a_refused_change_of_a_table_changes_nothing(tmp_path: Path) -> None:
    twice = {"obs_subject_id": ["n", "n"], "obs_id": ["n", "n"], "x": [1, 2]}
    with pytest.raises(ConfigError, match="two rows"):
        Dataframe.from_pandas(tmp_path / "t", twice)
    frame = compat.Dataframe.from_pandas(tmp_path / "t", keyed(x=[0, 0]))
    with pytest.raises(ConfigError, match="two rows"):
        frame.update(
            {name: ["r0", *values] if name != "x" else [7, *values] for name, values in twice.items()}
        )
    with pytest.raises(ConfigError, match=r"text.*udc80"):
        frame.add_column("text", str, values=["a\udc80", "b"])
    with pytest.raises(ConfigError, match="udc80"):
        frame.add_column("a\udc80", np.int32)
    with pytest.raises(NotFoundError):
        Dataframe(tmp_path / "not there").update(keyed(x=[1, 1]))
    assert not (tmp_path / "not there").exists()
    assert frame.columns == ["x"]
    assert frame.read()["x"].tolist() == [0, 0]
    frame.update({"obs_subject_id": ["r0", "n"], "obs_id": ["r0", "n"], "x": [7, 1]})
    assert dict(zip(*(frame.read()[name] for name in ("obs_id", "x")), strict=True)) == {
        "n": 1,
        "r0": 7,
        "r1": 0,
    }
