"""Patches by lesion: components against scipy, draws against their distribution, notes that were spoilt."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtier import _core
from voxtier.errors import ConfigError
from voxtier.volumes import ForegroundSampler, LesionSampler, RadiObject, Volume
from voxtier.volumes.store import foreground
from voxtier.volumes.training.epochs import generator

SHAPE = (45, 37, 50)


def lesions_of(mask: Any) -> Any:
    """The number of each voxel's lesion, from 1, by scipy: voxels of one class that touch."""
    scipy = pytest.importorskip("scipy.ndimage")
    numbers, count = np.zeros(mask.shape, np.int64), 0
    for label in np.unique(mask[mask > 0]):
        found, more = scipy.label(mask == label, np.ones((3, 3, 3)))
        numbers[found > 0] = found[found > 0] + count
        count += more
    return numbers, count


def noted(uri: Path, mask: Any) -> Volume:
    """A mask in a store, with what an ingest notes of it."""
    import nibabel as nib

    nib.save(nib.Nifti1Image(mask, np.eye(4)), uri.with_suffix(".nii"))
    return RadiObject.from_niftis(uri, images={"seg": [(uri.with_suffix(".nii"), "a")]}).seg.iloc[0]


@pytest.fixture(scope="module")
def mask() -> Any:
    """A large lesion over several blocks, small ones of the same class beside it, others of another class."""
    rng = np.random.default_rng(3)
    mask = np.zeros(SHAPE, np.int16)
    mask[10:30, 8:28, 12:40] = 1
    mask[12:28, 14:22, 18:34] = 0  # hollow, and
    mask[20, 17, 20] = 1  # a lesion inside of another
    mask[31, 29, 41] = mask[40:43, 2:4, 2] = 1
    for x, y, z in rng.integers(0, 36, (12, 3)):
        mask[x, y, z] = 2
    mask[44, 36, 49], mask[:2, :, :3] = 200, -1
    return mask


@pytest.mark.parametrize("density", [0.02, 0.2, 0.6])
def test_components_are_those_of_scipy(density: float) -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random(SHAPE) < density).astype(np.uint8) * rng.integers(1, 4, SHAPE, dtype=np.uint8)
    found = foreground.find_lesions(labels)
    assert found is not None
    numbers, count = lesions_of(labels)
    assert len(found.classes) == count
    sizes = np.bincount(found.parts[:, 0], found.parts[:, 3])
    wanted = np.bincount(numbers.ravel())[1:]
    assert sorted(sizes) == sorted(wanted)
    assert _core.find_components(labels.reshape(-1), (1, 2, 3), 16) is None


def test_each_lesion_is_drawn_alike_and_so_are_its_voxels(tmp_path: Path, mask: Any) -> None:
    volume = noted(tmp_path / "r", mask)
    numbers, count = lesions_of(mask)
    draws = 60 * count
    sampler = LesionSampler(1.0)
    drawn = np.array([sampler.start(volume, volume, (1, 1, 1), generator(0, 0, n)) for n in range(draws)])
    hit = numbers[tuple(drawn.T)]
    assert hit.min() > 0
    assert np.bincount(hit, minlength=count + 1)[1:] == pytest.approx(60, abs=35)
    largest = np.bincount(numbers.ravel())[1:].argmax() + 1
    inside = np.argwhere(numbers == largest)
    seen = drawn[hit == largest]
    assert np.abs(seen.mean(0) - inside.mean(0)).max() < 5
    other = LesionSampler(1.0, label=2)
    assert {mask[other.start(volume, volume, (1, 1, 1), generator(0, 0, n))] for n in range(50)} == {2}
    none = LesionSampler(1.0, label=9)
    starts = [none.start(volume, volume, (9, 9, 9), generator(0, 0, n)) for n in range(20)]
    assert len(set(starts)) > 10


def test_a_store_without_notes_gives_the_same_draws_and_no_mask_is_scanned_with_them(
    tmp_path: Path, mask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_notes = noted(tmp_path / "r", mask)
    assert foreground.LESIONS_KEY in with_notes.meta
    without = Volume.from_numpy(tmp_path / "v", mask)  # as stores of version 0.1
    assert foreground.LESIONS_KEY not in without.meta
    reads: list[Any] = []
    read = Volume.read
    monkeypatch.setattr(Volume, "read", lambda self, *key, **kw: reads.append(key) or read(self, *key, **kw))
    new, old = LesionSampler(0.7), pickle.loads(pickle.dumps(LesionSampler(0.7)))
    for number in range(80):
        first = new.start(with_notes, with_notes, (5, 6, 7), generator(2, 0, number))
        assert first == old.start(without, without, (5, 6, 7), generator(2, 0, number))
    assert sum(key == () for key in reads) == 1  # of the one without notes
    with_notes.update((40, 2, 2), np.zeros((3, 2, 1), np.int16))  # a lesion goes
    gone = LesionSampler(1.0, label=1)
    assert all(gone.start(with_notes, with_notes, (1, 1, 1), generator(0, 0, n))[2] > 2 for n in range(40))


def test_damaged_notes_are_ignored(tmp_path: Path, mask: Any) -> None:
    volume = noted(tmp_path / "r", mask)
    whole = json.loads(volume.meta[foreground.LESIONS_KEY])
    assert foreground.read_lesions(volume.uri, volume.meta, volume.shape, volume.session) is not None
    spoilt: list[Any] = [
        "",
        "{}",
        "[]",
        {**whole, "of": "x"},
        {**whole, "size": [1, 1]},
        {**whole, "size": [9]},
    ]
    spoilt += [{**whole, "size": [-1, 3]}, {**whole, "size": [10**12, 10**12]}, {**whole, "lesions": "AAAA"}]
    for content in spoilt:
        meta = {foreground.LESIONS_KEY: content if isinstance(content, str) else json.dumps(content)}
        assert foreground.read_lesions(volume.uri, meta, volume.shape, volume.session) is None
    # Parts outside of the mask, and of lesions that are not there.
    lesions = foreground.find_lesions(mask)
    assert lesions is not None
    for column, value in ((1, 10**6), (3, 5000), (3, 0), (0, 77)):
        parts = lesions.parts.copy()
        parts[-1, column] = value
        packed = foreground._pack(lesions.classes, parts)
        meta = {foreground.LESIONS_KEY: json.dumps({**whole, "lesions": packed})}
        assert foreground.read_lesions(volume.uri, meta, volume.shape, volume.session) is None


def test_the_result_of_a_transform_takes_no_notes_of_its_mask_along(tmp_path: Path, mask: Any) -> None:
    noted(tmp_path / "r", mask)
    halves = RadiObject(tmp_path / "r").seg.map(lambda voxels: voxels * np.float32(0.5))
    volume = halves.write(tmp_path / "halves").iloc[0]
    assert volume.dtype == np.float32
    assert not {*foreground.META_KEYS} & {*volume.meta}


@pytest.mark.parametrize("kind", [ForegroundSampler, LesionSampler])
def test_no_sampler_draws_by_what_was_found_for_another_class(tmp_path: Path, mask: Any, kind: Any) -> None:
    volume = noted(tmp_path / "r", mask)

    def classes(sampler: Any) -> set[int]:
        draws = [sampler.start(volume, volume, (1, 1, 1), generator(0, 0, n)) for n in range(30)]
        return {int(mask[start]) for start in draws}

    used = kind(1.0, 1)
    assert classes(used) == {1}
    copies = [copy.copy(used), copy.deepcopy(used), pickle.loads(pickle.dumps(used)), replace(used)]
    for each in copies:
        assert each == used
        each.label = 2
    assert [classes(each) for each in [*copies, replace(used, label=2)]] == [{2}] * 5
    assert classes(used) == {1}
    used.label = 2
    assert classes(used) == {2}


def test_batches_by_lesion_are_the_items_of_the_dataset(tmp_path: Path, mask: Any) -> None:
    torch = pytest.importorskip("torch")
    from voxtier.volumes import DatasetConfig, SegmentationDataset, batches

    noted(tmp_path / "r", mask)
    radi = RadiObject(tmp_path / "r")
    config = DatasetConfig("patch", (8, 7, 6), 12, LesionSampler(1.0), seed=1)  # type: ignore[arg-type]
    data = SegmentationDataset(radi.seg, radi.seg, config)
    starts = torch.cat([batch["patch_start"] for batch in batches(data, 4, shuffle=False)])
    assert starts.tolist() == [data[item]["patch_start"].tolist() for item in range(12)]
    assert all((data[item]["mask"] > 0).any() for item in range(12))


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, mask: Any) -> None:
    for options in ({"p_pos": 1.5}, {"label": 0}, {"label": 256}):
        with pytest.raises(ConfigError):
            LesionSampler(**options)
    volume = Volume.from_numpy(tmp_path / "v", mask)
    with pytest.raises(ConfigError, match="need a mask"):
        LesionSampler().start(volume, None, (1, 1, 1), generator(0, 0, 0))
