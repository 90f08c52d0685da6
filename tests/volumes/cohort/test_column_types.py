"""Columns keep the types of their numbers: in copies, and as a caller gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volumes.support.images import pairs
from voxtier.volumes import RadiObject, RadiObjectWriter, VolumeCollection
from voxtier.volumes.tiledb.tables.columns import Table

TYPES = {name: np.dtype(name) for name in ("int8", "int16", "int32", "int64", "float32", "float64")}
TYPES |= {name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64", "bool")}


def numbers(dtype: np.dtype[Any]) -> list[Any]:
    """Return a value, a missing one and the greatest of a type."""
    if dtype.kind == "f":
        return [0.1, None, float(np.finfo(dtype).max)]
    return [True, None, False] if dtype.kind == "b" else [1, None, int(np.iinfo(dtype).max)]


def column(dtype: np.dtype[Any]) -> Any:
    """Return them as numpy's own column."""
    return np.ma.MaskedArray(np.array([value or 0 for value in numbers(dtype)], dtype), [False, True, False])


def check(table: Table) -> None:
    """Hold the columns of a table against numpy's."""
    assert {name: table[name].dtype for name in TYPES} == TYPES
    for name, dtype in TYPES.items():
        wanted = column(dtype)
        assert np.ma.getmaskarray(table[name]).tolist() == np.ma.getmaskarray(wanted).tolist()
        assert np.ma.allequal(table[name], wanted)


COPIES: dict[str, Callable[[RadiObject, Path], VolumeCollection]] = {
    "cohort": lambda radi, to: radi.materialize(to).T1w,
    "part": lambda radi, to: radi.T1w.iloc[[0, 1, 2]].materialize(to),
    "query": lambda radi, to: radi.lazy().map(lambda voxels: voxels + 1).materialize(to).T1w,
    "results": lambda radi, to: radi.T1w.map(lambda voxels: voxels + 1).write(to),
    "collections": lambda radi, to: RadiObject.from_collections(to, {"T1w": radi.T1w}).T1w,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_column_of_a_copy_has_the_type_of_its_source(tmp_path: Path, way: str) -> None:
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", "abc")})
    for name, dtype in TYPES.items():
        radi.T1w.obs.add_column(name, dtype, numbers(dtype))
    radi = RadiObject(radi.uri)
    check(radi.T1w.table)
    copy = COPIES[way](radi, tmp_path / "copy")
    check(copy.table)
    for expression in ("float32 == 0.1", "float64 == 0.1", "uint64 > 9", "bool == True"):
        assert len(copy.filter(expression)) == len(radi.T1w.filter(expression)) == 1


def from_pandas(images: Any, to: Path) -> Table:
    pandas = pytest.importorskip("pandas")
    own = {name: name.title().replace("Ui", "UI").replace("Bool", "boolean") for name in TYPES}
    given = {name: pandas.array(numbers(dtype), dtype=own[name]) for name, dtype in TYPES.items()}
    given = pandas.DataFrame({"obs_subject_id": list("abc"), **given})
    return RadiObject.from_niftis(to, images={"T1w": images}, obs_meta=given).obs_meta.read()


def from_writer(_: Any, to: Path) -> Table:
    with RadiObjectWriter(to) as writer:
        writer.write_obs_meta({"obs_subject_id": list("abc"), **{n: column(d) for n, d in TYPES.items()}})
        with writer.add_collection("T1w") as collection:
            for subject in "abc":
                collection.write_volume(np.zeros((3, 3, 3), np.int16), f"{subject}_T1w", subject)
    return RadiObject(to).obs_meta.read()


def from_obs(images: Any, to: Path) -> Table:
    given = {name: column(dtype) for name, dtype in TYPES.items()}
    given |= {"obs_subject_id": list("abc"), "obs_id": ["a_CT", "b_CT", "c_CT"]}
    return VolumeCollection.from_niftis(to, images, obs=given).table


def from_mapping(images: Any, to: Path) -> Table:
    given = {"obs_subject_id": list("abc"), **{name: column(dtype) for name, dtype in TYPES.items()}}
    return RadiObject.from_niftis(to, images={"T1w": images}, obs_meta=given).obs_meta.read()


@pytest.mark.parametrize("way", [from_mapping, from_pandas, from_writer, from_obs])
def test_a_column_that_is_given_has_the_type_of_its_numbers(
    tmp_path: Path, way: Callable[[Any, Path], Table]
) -> None:
    check(way(pairs(tmp_path / "in", "abc"), tmp_path / "r"))


def test_rows_that_are_appended_take_the_types_that_are_there(tmp_path: Path) -> None:
    images = pairs(tmp_path / "in", "abc")
    given = {"obs_subject_id": list("abc"), **{name: column(dtype) for name, dtype in TYPES.items()}}
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": images}, obs_meta=given)
    more = {"obs_subject_id": ["d"], **{name: [1] for name in TYPES if name != "bool"}}
    radi.append(images={"T1w": pairs(tmp_path / "more", "d")}, obs_meta=more)
    table = RadiObject(radi.uri).obs_meta.read()
    assert [table[name].tolist()[3] for name in more if name in TYPES] == [1] * (len(TYPES) - 1)
    check(table.take([0, 1, 2]))


def test_halves_are_stored_in_the_next_wider_type(tmp_path: Path) -> None:
    given = {"obs_subject_id": ["a", "b"], "h": np.array([0.1, 2], np.float16)}
    images = {"T1w": pairs(tmp_path / "in", "ab")}
    stored = RadiObject.from_niftis(tmp_path / "r", images=images, obs_meta=given).obs_meta.read()["h"]
    assert stored.dtype == np.float32
    assert np.array_equal(stored, given["h"])


def test_a_frame_of_pandas_goes_back_as_it_came(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    given: dict[str, Any] = {name: column(dtype) for name, dtype in TYPES.items()}
    given |= {"most": np.ma.MaskedArray([2**53, 0, -(2**53)], [False, True, False])}
    given |= {"beyond": np.ma.MaskedArray([2**53 + 1, 0, -(2**63)], [False, True, False])}
    given |= {"full": [2**53 + 1, 5, -(2**63)], "text": ["x", None, "z"], "empty": [None] * 3}
    given |= {"none": np.ma.MaskedArray([0, 0, 0], mask=True)}
    for unit in ("us", "ns"):
        given[f"day_{unit}"] = np.array(["2020-01-01T00:00:00.000001", "NaT", "1700-01-01"], f"M8[{unit}]")
        given[f"day_{unit}"] = np.ma.MaskedArray(given[f"day_{unit}"], [False, True, False])
    radi = RadiObject.from_niftis(
        tmp_path / "r",
        images={"T1w": pairs(tmp_path / "in", "abc")},
        obs_meta={"obs_subject_id": list("abc"), **given},
    )
    before = radi.obs_meta.read()
    frame = before.to_pandas()
    wide = {"int64": "Int64", "uint64": "UInt64", "beyond": "Int64"}
    assert {name: str(frame[name].dtype) for name in wide} == wide
    assert str(frame["most"].dtype) == str(frame["int32"].dtype) == "float64"  # as pandas itself makes them
    for name in given:
        for row, value in zip(before.rows(), frame[name], strict=True):
            assert pandas.isna(value) if row[name] is None else value == row[name], name
    radi.obs_meta.update(frame)
    after = RadiObject(radi.uri).obs_meta.read()
    assert list(after.rows()) == list(before.rows())
    check(after)
