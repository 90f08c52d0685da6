"""Observation tables: types with missing values, updates of shuffled subsets, one filter grammar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtier.errors import ConfigError, NotFoundError
from voxtier.volumes import Dataframe, Table

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
    ],
)
def test_a_column_that_cannot_be_filled_is_not_added(tmp_path: Path, options: dict[str, Any]) -> None:
    frame = Dataframe.from_pandas(tmp_path / "t", {**KEYS, "n": [1, 2, 3, 4]})
    with pytest.raises(ConfigError):
        frame.add_column("score", **options)
    assert frame.columns == ["n"]


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
