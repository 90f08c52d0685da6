"""An argument of another kind is refused where it is given, by its name and with what it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volumes.support.images import pairs
from voxtier.cli.volumes.stores import open_uri, open_volume
from voxtier.errors import ConfigError, NotFoundError
from voxtier.volumes import (
    Augmentation,
    DatasetConfig,
    ForegroundSampler,
    GridPatchDataset,
    RadiObject,
    SegmentationDataset,
    Volume,
    VolumeCollection,
    VolumeCollectionDataset,
    batches,
)


@pytest.fixture(scope="module")
def radi(tmp_path_factory: pytest.TempPathFactory) -> RadiObject:
    folder = tmp_path_factory.mktemp("kinds")
    images = {name: pairs(folder / name, ["a", "b", "c"], name) for name in ("CT", "seg")}
    return RadiObject.from_niftis(folder / "r", images=images)


def patches(**options: Any) -> DatasetConfig:
    return DatasetConfig("patch", patch_size=2, **options)


def batched(radi: RadiObject, **options: Any) -> Any:
    return batches(SegmentationDataset(radi.CT, radi.seg, patches()), 2, **options)


ARRAY: Any = np.zeros((3, 3, 3), np.int16)
Door = Callable[[Any, Path], Any]
WRONG: dict[str, tuple[Door, str]] = {
    "a cohort as images": (lambda r, _: VolumeCollectionDataset(r), "images takes .*radi.CT, got RadiObject"),
    "a cohort among images": (lambda r, _: SegmentationDataset([r.CT, r], r.seg), "radi.CT, got RadiObject"),
    "a text as images": (lambda r, _: VolumeCollectionDataset("CT"), "radi.CT, got 'CT'"),
    "nothing as images": (lambda r, _: VolumeCollectionDataset(None), "radi.CT, got NoneType"),
    "a config as mask": (lambda r, _: SegmentationDataset(r.CT, patches()), "mask takes .*got DatasetConfig"),
    "no mask": (lambda r, _: SegmentationDataset(r.CT, None), "mask takes .*radi.seg, got NoneType"),
    "a mask's name": (lambda r, _: VolumeCollectionDataset(r.CT, mask="seg"), "mask takes .*got 'seg'"),
    "a dict as config": (
        lambda r, _: SegmentationDataset(r.CT, r.seg, {}),
        "config takes a DatasetConfig, got dict",
    ),
    "a class as config": (
        lambda r, _: VolumeCollectionDataset(r.CT, DatasetConfig),
        "write DatasetConfig\\(\\)",
    ),
    "a collection's batches": (lambda r, _: batches(r.CT, 4), "takes a dataset, .*got VolumeCollection"),
    "augment=True": (lambda r, _: batched(r, augment=True), "augment takes an Augmentation\\(\\), got True"),
    "the class Augmentation": (lambda r, _: batched(r, augment=Augmentation), "write Augmentation\\(\\)"),
    "a dtype of batches": (lambda r, _: batched(r, dtype="float23"), "dtype must be .*got 'float23'"),
    "no state": (lambda r, _: batched(r).load_state_dict(None), "what state_dict\\(\\) gave, got NoneType"),
    "a sampler's name": (lambda r, _: patches(sampler="foreground"), "sampler takes .*got 'foreground'"),
    "a sampler's class": (lambda r, _: patches(sampler=ForegroundSampler), "write ForegroundSampler\\(\\)"),
    "a dtype": (lambda r, _: patches(dtype="float23"), "dtype must be a type of numpy, .*got 'float23'"),
    "normalize=True": (lambda r, _: patches(normalize=True), "normalize takes a Normalize, got True"),
    "a grid over an array": (lambda r, _: GridPatchDataset(ARRAY, 2), "takes a Volume, .*got ndarray"),
    "a grid's dtype": (lambda r, _: GridPatchDataset(r.CT.iloc[0], 2, dtype="x"), "dtype must be .*got 'x'"),
    "a glob as images": (
        lambda r, p: RadiObject.from_niftis(p, images="*.nii"),
        "takes a mapping .*got '\\*.nii'",
    ),
    "a list as images": (lambda r, p: RadiObject.from_images(p, [p]), "takes a mapping .*niftis=, got list"),
    "a list to append": (lambda r, p: r.append(images=[p]), "images takes a mapping .*got list"),
    "swapped": (
        lambda r, p: Volume.from_numpy(ARRAY, p),
        "from_numpy\\(uri, array\\) stores an array, got ndarray",
    ),
    "an array as address": (lambda r, _: Volume(ARRAY), "address takes a path or a URI; .*got ndarray"),
    "a cohort as address": (lambda r, _: RadiObject(r), "address takes a path or a URI, got RadiObject"),
    "a dtype to create": (lambda r, p: Volume.create(p, (2, 2, 2), "float23"), "dtype must be .*'float23'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_such_thing_is_refused_by_name(case: str, radi: RadiObject, tmp_path: Path) -> None:
    door, words = WRONG[case]
    with pytest.raises(ConfigError, match=words):
        door(radi, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_has_the_kind_is_taken_however_it_came(radi: RadiObject) -> None:
    class Corner:
        def start(self, *_: Any) -> tuple[int, int, int]:
            return 0, 0, 0

    both = VolumeCollectionDataset(
        (one for one in (radi.CT, radi.seg)), patches(sampler=Corner(), dtype=None)
    )
    assert both.n_channels == 2
    assert list(both[0]["patch_start"]) == [0, 0, 0]
    assert len(VolumeCollectionDataset(radi.head(2).CT, patches(dtype=np.float32))) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("find", [lambda r: r["CT"], lambda r: r.loc["CT"], lambda r: r.loc[["a", "CT"]]])
def test_a_cohort_says_that_subjects_are_its_keys(
    radi: RadiObject, find: Callable[[RadiObject], Any]
) -> None:
    with pytest.raises(KeyError, match=r"'CT' is none of the 3 subjects here .a collection is an attribute"):
        find(radi)
    with pytest.raises(KeyError, match="'a' is none of the 3 volumes here"):
        radi.CT.loc["a"]


@pytest.mark.parametrize("kind", [RadiObject, VolumeCollection, open_uri])
def test_a_store_that_is_not_there_is_told_in_one_sentence(
    kind: Callable[[str], Any], tmp_path: Path
) -> None:
    for place in (tmp_path / "nope", tmp_path):
        with pytest.raises(NotFoundError, match=f"^there is no store at {place}$"):
            kind(str(place))


def test_what_obs_takes_is_all_or_a_part_that_says_so(radi: RadiObject, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"--obs takes one of a_CT, b_CT, c_CT$"):
        open_volume(radi.CT.uri, "a")
    with pytest.raises(NotFoundError, match=r"--obs takes ids such as a_CT$"):
        open_volume(radi.uri, "a_")
    with pytest.raises(NotFoundError, match=r"--obs takes one of a_CT, b_CT, c_CT, a_seg, b_seg and 1 more"):
        open_volume(radi.uri, "zzz")
