"""Queries, lazy and eager: what they select, what transforms get and give, and what is stored of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from volumes.support.images import code_of, nifti, pairs
from voxtier.errors import ConfigError, IngestError, ViewError
from voxtier.volumes import RadiObject, VolumeCollection

SUBJECTS = ["s3", "s1", "s5", "s2", "s4"]


@pytest.fixture(scope="module")
def radi(tmp_path_factory: pytest.TempPathFactory) -> RadiObject:
    folder = tmp_path_factory.mktemp("cohort")
    return RadiObject.from_niftis(
        folder / "r",
        images={name: pairs(folder / name, SUBJECTS, name) for name in ("T1w", "seg")},
        obs_meta={"obs_subject_id": SUBJECTS, "age": [30, 10, 50, 20, 40]},
    )


@pytest.mark.parametrize(
    ("narrow", "wanted"),
    [
        (lambda q: q.head(2), ["s1", "s2"]),
        (lambda q: q.tail(2), ["s4", "s5"]),
        (lambda q: q.iloc(-1), ["s5"]),
        (lambda q: q.iloc(np.int64(1)), ["s2"]),
        (lambda q: q.iloc([3, 0]), ["s4", "s1"]),
        (lambda q: q.iloc(slice(1, 3)), ["s2", "s3"]),
        (lambda q: q.iloc(np.array([True, False, False, False, True])), ["s1", "s5"]),
        (lambda q: q.tail(3).head(1), ["s3"]),  # a query is narrowed from what it holds, not from the root
        (lambda q: q.filter_subjects(["s5", "s2"]), ["s5", "s2"]),
        (lambda q: q.filter_subjects([]), []),
        (lambda q: q.sample(5, seed=1).head(0), []),
    ],
)
def test_queries_of_cohort_and_collection_select_alike(
    radi: RadiObject, narrow: Any, wanted: list[str]
) -> None:
    cohort, collection = narrow(radi.lazy()), narrow(radi.T1w.lazy())
    assert list(cohort.to_obs_meta()["obs_subject_id"]) == wanted
    assert list(collection.to_obs()["obs_subject_id"]) == wanted
    assert (cohort.count().n_subjects, cohort.count().n_volumes) == (
        len(wanted),
        {"T1w": len(wanted), "seg": len(wanted)},
    )
    assert collection.count() == len(collection) == len(wanted)
    assert [int(v[0, 0, 0]) for v in collection.iter_volumes()] == [code_of(s, "T1w") for s in wanted]


def test_two_filters_of_one_collection_keep_subjects_with_a_volume_that_satisfies_both(
    tmp_path: Path,
) -> None:
    images = tmp_path / "in"
    images.mkdir()
    for subject, session in (("a", 1), ("a", 2), ("b", 1), ("b", 3)):
        nifti(images / f"sub-{subject}_ses-{session}_T1w.nii", subject)
    query = RadiObject.from_niftis(tmp_path / "r", image_dir=images).lazy()
    neither = query.filter_collection("T1w", "session == '1'").filter_collection("T1w", "session == '2'")
    assert (neither.count().n_subjects, neither.count().n_volumes) == (0, {"T1w": 0})
    both = query.filter_collection("T1w", "session != '1'").filter_collection("T1w", "session != '2'")
    assert list(both.to_obs_meta()["obs_subject_id"]) == ["sub-b"]
    assert both.materialize(tmp_path / "copy").all_obs_ids == ["sub-b_ses-3_T1w"]


def test_ids_select_and_absent_ones_are_refused(radi: RadiObject) -> None:
    assert list(radi.lazy().loc("s4").to_obs_meta()["age"]) == [40]
    assert radi.T1w.lazy().loc(["s4_T1w", "s1_T1w"]).to_numpy_stack()[:, 0, 0, 0].tolist() == [
        code_of("s4", "T1w"),
        code_of("s1", "T1w"),
    ]
    for query, absent in ((radi.lazy().head(1), "s5"), (radi.T1w.lazy().head(1), "s5_T1w")):
        with pytest.raises(KeyError):
            query.loc(absent)
    with pytest.raises(ConfigError, match="no volume"):
        radi.T1w.lazy().head(0).to_numpy_stack()


def test_rows_of_one_id_never_leave_the_view(radi: RadiObject) -> None:
    assert radi.T1w.get_obs_row_by_obs_id("s4_T1w")["obs_subject_id"].tolist() == ["s4"]
    assert radi.get_obs_row_by_obs_subject_id("s4")["age"].tolist() == [40]
    view = radi.filter("age < 40")
    assert len(view.T1w.get_obs_row_by_obs_id("s4_T1w")) == 0
    assert len(view.get_obs_row_by_obs_subject_id("s4")) == 0
    assert view.T1w.subjects.to_list() == view.obs_subject_ids == view.T1w.to_obs()["obs_subject_id"].tolist()
    assert view.T1w.subjects.is_aligned(view.seg.subjects)


def test_a_view_refuses_to_change(radi: RadiObject) -> None:
    view = radi.head(2)
    with pytest.raises(ViewError):
        view.append([("x.nii", "s9")])
    with pytest.raises(ViewError):
        view.T1w.append([("x.nii", "s9")])
    with pytest.raises(ViewError):
        view.T1w.obs.update({"obs_id": ["s1_T1w"]})


def annotate(voxels: NDArray[Any], row: dict[str, Any]) -> tuple[NDArray[Any], dict[str, Any]]:
    return voxels + 1, {"mean": np.float32(voxels.mean()), "owner": row["obs_subject_id"], "seen": True}


def test_columns_that_transforms_set_are_seen_by_later_ones_and_stored(
    radi: RadiObject, tmp_path: Path
) -> None:
    def later(voxels: NDArray[Any], row: dict[str, Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        assert row["owner"] == row["obs_subject_id"]
        return voxels, {"mean": row["mean"] + 0.5}

    lazy = radi.T1w.lazy().map(annotate).map(later).write(tmp_path / "lazy")
    eager = radi.T1w.map_batches(lambda batch: [annotate(*pair) for pair in batch], 2).map(later)
    for made in (lazy, eager.write(tmp_path / "eager", name="T1w")):
        rows = list(made.obs.read().rows())
        assert [row["owner"] for row in rows] == sorted(SUBJECTS)
        assert [row["mean"] for row in rows] == [code_of(s, "T1w") + 0.5 for s in sorted(SUBJECTS)]
        assert all(row["seen"] is True for row in rows)
        assert [int(v[0, 0, 0]) for v in made] == [code_of(s, "T1w") + 1 for s in sorted(SUBJECTS)]
        assert np.array_equal(made.iloc[0].affine, radi.T1w.iloc[0].affine)
        assert made.name == "T1w"
    assert "mean" not in radi.T1w.obs.columns


def test_rows_say_nothing_of_a_grid_or_of_numbers_that_are_gone(radi: RadiObject, tmp_path: Path) -> None:
    halved = radi.T1w.lazy().map(lambda voxels: voxels[::2]).write(tmp_path / "halved")
    row = next(halved.obs.read().rows())
    assert row["dimensions"] == "(3, 6, 7)"
    for name in ("voxel_spacing", "affine_json", "axcodes", "orientation_source", "scl_slope", "datatype"):
        assert row[name] is None, name
    assert row["series_type"] == "T1w"
    assert halved.iloc[0].affine is None
    stated = radi.T1w.lazy().map(lambda v: (v[::2], {"voxel_spacing": "(2.0, 2.0, 3.0)"}))
    assert next(stated.write(tmp_path / "stated").obs.read().rows())["voxel_spacing"] == "(2.0, 2.0, 3.0)"
    same = next(radi.T1w.lazy().map(np.negative).write(tmp_path / "same").obs.read().rows())
    assert (same["voxel_spacing"], same["bitpix"]) == ("(1.0, 2.0, 3.0)", None)


def with_options(voxels: NDArray[Any], **options: Any) -> NDArray[Any]:
    return voxels + options.get("more", 0)


def with_a_keyword(voxels: NDArray[Any], *, more: int) -> NDArray[Any]:
    return voxels + more


def with_a_row_and_options(voxels: NDArray[Any], row: Any, **options: Any) -> NDArray[Any]:
    return voxels + (row["obs_id"] == "s1_T1w") * options["more"]


def wrapper(*args: Any, **kwargs: Any) -> NDArray[Any]:
    return with_a_row_and_options(*args, more=2, **kwargs)


@pytest.mark.parametrize(
    ("fn", "wanted"),
    [
        (partial(np.clip, a_min=0, a_max=5), lambda stored: np.clip(stored, 0, 5)),
        (with_options, lambda stored: stored),
        (partial(with_options, more=2), lambda stored: stored + 2),
        (partial(with_a_keyword, more=2), lambda stored: stored + 2),
        (partial(with_a_row_and_options, more=2), lambda stored: stored + 2),
        (wrapper, lambda stored: stored + 2),
        (np.negative, lambda stored: -stored),
    ],
)
def test_a_transform_gets_the_row_where_it_takes_a_second_argument(
    radi: RadiObject, fn: Any, wanted: Any
) -> None:
    one = radi.T1w.loc[["s1_T1w"]]
    stored = one.iloc[0].to_numpy()
    assert np.array_equal(one.lazy().map(fn).to_numpy_stack()[0], wanted(stored))
    eager = one.map_batches(lambda batch: [voxels for voxels, _ in batch], 1).map(fn)
    assert np.array_equal(eager[0][0], wanted(stored))


def test_eager_results_are_pairs_of_value_and_row(radi: RadiObject) -> None:
    sizes: list[int] = []

    def measure(batch: list[tuple[NDArray[Any], dict[str, Any]]]) -> list[Any]:
        sizes.append(len(batch))
        return [{"peak": int(voxels.max())} for voxels, _ in batch]

    found = radi.T1w.map_batches(measure, batch_size=2)
    assert sizes == [2, 2, 1]
    peaks = [code_of(s, "T1w") for s in sorted(SUBJECTS)]
    assert [value["peak"] for value, _ in found] == peaks == [found[n][0]["peak"] for n in range(len(found))]
    assert [row["obs_id"] for _, row in found.to_list()] == radi.T1w.obs_ids
    assert found.to_dataframe()["peak"].tolist() == peaks
    assert list(found.map(lambda value: value["peak"]).to_dataframe(["obs_id", "result"]).columns) == [
        "obs_id",
        "result",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda c, to: c.map_batches(lambda batch: batch[:1]),
        lambda c, to: c.map_batches(lambda batch: batch, 0),
        lambda c, to: c.head(0).map_batches(lambda batch: batch).write(to),
        lambda c, to: c.map_batches(lambda batch: [voxels.mean() for voxels, _ in batch]).write(to),
        lambda c, to: c.map_batches(lambda batch: [voxels[0] for voxels, _ in batch]).write(to),
        lambda c, to: c.map_batches(lambda batch: [(voxels, {"obs_id": "x"}) for voxels, _ in batch]).write(
            to
        ),
        lambda c, to: c.lazy().map(lambda v: (v, {"mean": v})).write(to),
        lambda c, to: c.lazy().map(lambda v: (v, {"dimensions": "(1, 1, 1)"})).write(to),
        lambda c, to: c.lazy().map(lambda v: (v, {"voxtier_score": 1})).write(to),
        lambda c, to: c.lazy().map(lambda v: "nothing").write(to),
        lambda c, to: list(c.lazy().iter_batches(0)),
    ],
)
def test_what_is_no_volume_or_no_column_is_refused(radi: RadiObject, tmp_path: Path, wrong: Any) -> None:
    with pytest.raises((ConfigError, IngestError)):
        wrong(radi.T1w, tmp_path / "made")
    with pytest.raises(Exception, match=r"made|no TileDB|not exist|cut off"):
        VolumeCollection(tmp_path / "made")
