"""One name where several may stand is one, and what can be read once only is not read twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest

from volumes.support.images import pairs, series
from voxtier.errors import ConfigError
from voxtier.volumes import Dataframe, Index, RadiObject, TileConfig, VolumeCollection
from voxtier.volumes.compat.ingest import detect_format, resolve_image_source, resolve_nifti_source
from voxtier.volumes.tiledb.tables.columns import as_table

SUBJECTS = ["ab", "a", "b"]


@pytest.fixture(scope="module")
def radi(tmp_path_factory: pytest.TempPathFactory) -> RadiObject:
    """Names of which one is made of the letters of others."""
    folder = tmp_path_factory.mktemp("several")
    images = {name: pairs(folder / name, SUBJECTS) for name in ("CT", "C", "T")}
    table = {"obs_subject_id": SUBJECTS, "xy": [1, 2, 3], "x": [4, 5, 6], "y": [7, 8, 9]}
    return RadiObject.from_niftis(folder / "store", images=images, obs_meta=table)


Ask = Callable[[RadiObject, Any], Any]

ONE: dict[str, tuple[str, Ask]] = {
    "collections": ("CT", lambda radi, names: radi.select_collections(names).collection_names),
    "query": ("CT", lambda radi, names: list(radi.lazy().select_collections(names).count().n_volumes)),
    "volumes": ("ab", lambda radi, names: radi.CT.sel(subject=names).obs_subject_ids),
    "filter": ("ab", lambda radi, names: len(radi.CT.lazy().filter_subjects(names))),
    "loc": ("ab", lambda radi, names: radi.lazy().loc(names).to_obs_meta()["obs_subject_id"].tolist()),
    "sel": ("ab", lambda radi, names: radi.sel(subject=names).obs_subject_ids),
    "columns": ("xy", lambda radi, names: radi.obs_meta.read(names).columns),
    "table": ("xy", lambda radi, names: radi._table.select(names).columns),
    "results": (
        "obs_id",
        lambda radi, names: list(radi.CT.map_batches(lambda b: [1] * len(b)).to_dataframe(names)),
    ),
    "index": ("ab", lambda radi, names: list(Index(names))),
    "common": ("ab", lambda radi, names: list(radi.index & names)),
    "others": ("ab", lambda radi, names: list(radi.index - names)),
    "either": ("ab", lambda radi, names: list(radi.index ^ names)),
    "both": ("ac", lambda radi, names: list(radi.index | names)),
    "within": ("ab", lambda radi, names: (radi.index <= names, radi.index >= names)),
    "replicas": ("coronal", lambda radi, names: TileConfig(replicas=names).replicas),
}


@pytest.mark.parametrize("what", ONE)
def test_one_name_is_one_and_an_iterator_is_its_names(radi: RadiObject, what: str) -> None:
    name, ask = ONE[what]
    expected = ask(radi, [name])
    assert ask(radi, name) == expected
    assert ask(radi, (each for each in [name])) == expected


def test_keys_and_columns_of_a_table_by_one_name(radi: RadiObject, tmp_path: Path) -> None:
    columns = {"o": ["p", "q"], "b": [1, 2], "ob": ["r", "s"]}
    frame = Dataframe.from_pandas(tmp_path / "t", columns, index_columns="ob")
    assert frame.index_columns == ("ob",)
    assert frame.read("b").columns == ["ob", "b"]
    assert frame.read(name for name in ("b", "o")).columns == ["ob", "b", "o"]


def test_images_that_are_given_once_are_ingested(tmp_path: Path) -> None:
    given = pairs(tmp_path / "in", SUBJECTS)
    wanted = [np.asarray(volume) for volume in VolumeCollection.from_niftis(tmp_path / "0", given, name="CT")]
    for number, made in enumerate(
        (
            lambda to: RadiObject.from_images(to, {"CT": iter(given)}).CT,
            lambda to: RadiObject.from_niftis(to, images={"CT": iter(given)}).CT,
            lambda to: RadiObject.from_niftis(to, iter(given), collection_name="CT").CT,
            lambda to: VolumeCollection.from_niftis(to, np.array(given, object), name="CT"),
            lambda to: VolumeCollection.from_niftis(to, iter(given), valid_subject_ids=iter(SUBJECTS)),
        ),
        1,
    ):
        found = list(made(tmp_path / str(number)))
        assert all(np.array_equal(one, two) for one, two in zip(found, wanted, strict=True))
    with pytest.raises(ConfigError, match="not allowed here: a, b"):
        VolumeCollection.from_niftis(tmp_path / "no", given, valid_subject_ids="ab")
    assert detect_format(iter(given)).value == "nifti"
    assert len(resolve_image_source(iter(given))[0]) == len(SUBJECTS)
    paths = (path for path, _ in given)
    assert [name for _, name in resolve_nifti_source(paths, lambda path: path.stem)] == [
        path.stem for path, _ in given
    ]


def test_series_of_dicom_are_pairs_of_folder_and_subject(tmp_path: Path) -> None:
    folder = series(tmp_path / "sc", [(0, 0, z) for z in range(3)])
    files = (path for path in sorted(folder.iterdir()))
    found = RadiObject.from_dicoms(tmp_path / "store", iter([(files, "sub-1")]))
    assert found.obs_subject_ids == ["sub-1"]
    assert found.CT.iloc[0].shape[2] == 3
    numbered = RadiObject.from_dicoms(tmp_path / "numbered", [(folder, 7), (folder, np.int64(8))])
    assert numbered.obs_subject_ids == ["7", "8"]  # of a column of numbers
    for wrong in (folder, str(folder), [folder], (folder, "sub-1"), ["sc"], [(folder, "")], [(folder, None)]):
        with pytest.raises(ConfigError, match=r"\(folder, subject\) pairs"):
            RadiObject.from_dicoms(tmp_path / "no", wrong)


@pytest.mark.parametrize(
    "value", [5, "abc", b"abc", {0: 1, 1: 2, 2: 3}, {1, 2, 3}, np.int64(3), np.zeros((3, 2))]
)
def test_a_column_has_a_value_for_each_row(radi: RadiObject, value: Any) -> None:
    with pytest.raises(ConfigError, match="column 'age' is no sequence of values"):
        as_table({"obs_subject_id": SUBJECTS, "age": value})
    with pytest.raises(ConfigError, match="column 'age' is no sequence of values"):
        radi.obs_meta.add_column("age", str, value)
    assert "age" not in radi.obs_meta.columns


def test_a_table_of_pyarrow_is_a_table(tmp_path: Path) -> None:
    arrow = pyarrow.table(
        {
            "obs_subject_id": SUBJECTS,
            "age": pyarrow.array([2**62 + 1, None, 3], pyarrow.int64()),
            "small": pyarrow.array([1, None, 3], pyarrow.int8()),
            "sex": pyarrow.array(["F", None, "M"]).dictionary_encode(),
            "seen": pyarrow.array([1, None, 3], pyarrow.timestamp("us")),
            "none": pyarrow.nulls(3, pyarrow.float32()),
        }
    )
    for number, table in enumerate((arrow, arrow.to_batches()[0])):
        radi = RadiObject.from_niftis(
            tmp_path / str(number), images={"T1w": pairs(tmp_path / "in", SUBJECTS)}, obs_meta=table
        )
        assert {row["obs_subject_id"]: row["age"] for row in radi.obs_meta.read().rows()} == dict(
            zip(SUBJECTS, arrow["age"].to_pylist(), strict=True)
        )
        stored = radi.sel(subject=SUBJECTS).obs_meta.read()
        for name in ("age", "small", "sex", "none"):
            assert [row[name] for row in stored.rows()] == arrow[name].to_pylist()
        assert stored["seen"].compressed().tolist() == [each for each in arrow["seen"].to_pylist() if each]
        assert (stored["small"].dtype, stored["none"].dtype) == (np.int8, np.float32)
    for wrong in (
        {"x": pyarrow.array([1], pyarrow.timestamp("us", "UTC"))},
        {"x": pyarrow.array([[1]])},
        {"x": pyarrow.array([{"a": 1}])},
    ):
        with pytest.raises(ConfigError, match="column 'x'"):
            as_table(pyarrow.table(wrong))
    with pytest.raises(ConfigError, match="two columns have one name"):
        as_table(pyarrow.Table.from_arrays([pyarrow.array([1])] * 2, names=["x", "x"]))


def test_a_table_without_rows_yet_is_refused_by_name() -> None:
    class LazyFrame:  # as those of polars and Spark: columns by name, rows once they are collected
        columns = ("age",)

        def __getitem__(self, name: str) -> Any:
            raise TypeError("not subscriptable")

        def collect(self) -> Any:
            raise AssertionError

    with pytest.raises(ConfigError, match=r"a LazyFrame holds no rows yet.*collect"):
        as_table(LazyFrame())
    with pytest.raises(ConfigError, match="a table is a mapping of columns"):
        as_table(5)
