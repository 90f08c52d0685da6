"""batches(): the items of a DataLoader, for any number of threads, from any point; nothing is left behind."""

from __future__ import annotations

import gc
import signal
import threading
import time
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from volumes.support.forks import Script, run_forks  # noqa: E402
from voxtier.errors import ConfigError, FormatError  # noqa: E402
from voxtier.volumes import (  # noqa: E402
    ClassSampler,
    ForegroundSampler,
    Normalize,
    RadiObject,
    RandomSampler,
    ReadConfig,
    SegmentationDataset,
    TileConfig,
    VolumeCollectionDataset,
    WeightedSampler,
    batches,
    configure,
    data_loader,
)
from voxtier.volumes.training.datasets import DatasetConfig  # noqa: E402

SHAPES = [(40, 36, 30), (33, 50, 28), (40, 40, 17)]


def save(path: Path, voxels: Any, slope: float = 1.0, inter: float = 0.0) -> Path:
    import nibabel as nib

    image = nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0]))
    nib.save(image, path)
    if (slope, inter) != (1.0, 0.0):  # nibabel would scale the voxels to the header
        raw = bytearray(path.read_bytes())
        raw[112:120] = np.array([slope, inter], "<f4").tobytes()
        path.write_bytes(bytes(raw))
    return path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects: CT with a scaled header, PET of floats, a mask of 16 bits."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    images: dict[str, list[tuple[Path, str]]] = {"CT": [], "PET": [], "seg": []}
    for number, shape in enumerate(SHAPES):
        subject = f"s{number}"
        ct = rng.integers(-1000, 3000, shape).astype(np.int16)
        ct[:9] = -1000  # chunks of one value
        pet = rng.normal(size=shape).astype(np.float32)
        mask = np.zeros(shape, np.uint16)
        mask[20:24, 3:6, 10:12], mask[30, 20, 5] = 1, 2
        ct_file = save(folder / f"{subject}_ct.nii", ct, *((0.5, -3.25) if number else (1, 0)))
        images["CT"].append((ct_file, subject))
        images["PET"].append((save(folder / f"{subject}_pet.nii", pet), subject))
        images["seg"].append((save(folder / f"{subject}_seg.nii", mask), subject))
    configure(tile=TileConfig("isotropic", 16, 16, 16))
    RadiObject.from_niftis(folder / "r", images=images)
    return folder / "r"


def dataset(cohort: Path, size: Any = (16, 12, 20), **options: Any) -> SegmentationDataset:
    radi = RadiObject(cohort)
    config = DatasetConfig("patch", size, 5, ForegroundSampler(0.5), seed=7, **options)
    return SegmentationDataset([radi.CT, radi.PET], radi.seg, config)


def drained(loader: Any) -> list[dict[str, Any]]:
    """Copies of all batches of one epoch."""
    return [{k: v.clone() if hasattr(v, "clone") else v for k, v in batch.items()} for batch in loader]


def same(left: Any, right: Any) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert set(one) == set(other)
        for key, value in one.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == other[key].dtype, key
                assert value.shape == other[key].shape, key
                assert torch.equal(value.contiguous(), other[key].contiguous()), key
            else:
                assert list(value) == list(other[key]), key


@pytest.mark.parametrize("layout", ["view", "contiguous"])
@pytest.mark.parametrize("cache", [0, 64])
@pytest.mark.parametrize("size", [(16, 12, 20), (44, 8, 31)], ids=["inside", "reaches-out"])
def test_batches_are_those_of_a_data_loader(cohort: Path, layout: Any, cache: int, size: Any) -> None:
    configure(read=ReadConfig(tile_cache_size_mb=cache, concurrency=1))
    wanted = drained(
        data_loader(dataset(cohort, size, fill=-4, mask_fill=3), batch_size=4, shuffle=True, seed=7)
    )
    found = batches(dataset(cohort, size, fill=-4, mask_fill=3), 4, threads=3, layout=layout)
    assert found.explain()["reader"] == "core"
    assert len(found) == 4
    same(drained(found), wanted)
    assert all(batch["image"].is_contiguous() is (layout == "contiguous") for batch in found)


def test_the_general_reader_gives_the_same_batches(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = drained(batches(dataset(cohort), 4, threads=2))
    monkeypatch.setenv("VOXTIER_DIRECT", "0")
    from voxtier.volumes.tiledb import arrays

    monkeypatch.setattr(arrays, "_open", type(arrays._open)())
    found = batches(dataset(cohort), 4, threads=2)
    explained = found.explain()
    assert explained["reader"] == "general"
    assert explained["reasons"] == {"several fragments, or filters that the core does not read": 3}
    same(drained(found), wanted)


@pytest.mark.parametrize("sampler", [RandomSampler(), ForegroundSampler(1.0, label=2), "weighted"])
def test_every_sampler_draws_the_same_places(cohort: Path, sampler: Any) -> None:
    radi = RadiObject(cohort)
    images, masks = radi.CT.iloc[:1], radi.seg.iloc[:1]
    if sampler == "weighted":
        sampler = WeightedSampler(np.random.default_rng(1).random(SHAPES[0]))
    config = DatasetConfig("patch", 9, 40, sampler, seed=-3)
    made = SegmentationDataset(images, masks, config)
    loader = batches(made, 8, shuffle=False, threads=2)
    for epoch in range(2):
        made.set_epoch(epoch)
        starts = torch.cat([batch["patch_start"] for batch in loader])
        assert starts.tolist() == [made[item]["patch_start"].tolist() for item in range(40)]


def test_classes_are_drawn_by_ratio_among_those_that_are_there(cohort: Path) -> None:
    radi = RadiObject(cohort)
    config = DatasetConfig("patch", 1, 300, ClassSampler({0: 1, 1: 2, 2: 5, 7: 9}), seed=5)
    made = SegmentationDataset(radi.CT.iloc[:1], radi.seg.iloc[:1], config)
    found = drained(batches(made, 50, shuffle=False))
    starts = torch.cat([batch["patch_start"] for batch in found])
    assert starts[:20].tolist() == [made[item]["patch_start"].tolist() for item in range(20)]
    classes = torch.cat([batch["mask"].flatten() for batch in found]).bincount(minlength=3) / 300
    assert torch.allclose(classes, torch.tensor([1, 2, 5]) / 8, atol=0.08)
    absent = DatasetConfig("patch", 4, 2, ClassSampler({7: 1}))
    assert len(drained(batches(SegmentationDataset(radi.CT, radi.seg, absent), 2))) == 3
    for ratios in ({}, {1: -1.0}, {1: 0.0}, {1: float("nan")}):
        with pytest.raises(ConfigError, match="ratios"):
            ClassSampler(ratios)
    with pytest.raises(ConfigError, match="by class need a mask"):
        next(iter(batches(VolumeCollectionDataset(radi.CT, config), 2)))


def test_draws_of_the_core_are_those_of_numpy_for_long_axes(tmp_path: Path) -> None:
    """A volume of more than 2**16 slices, whose room needs every bit of a draw."""
    images = {"CT": [(save(tmp_path / "a.nii", np.zeros((32_000, 2, 2), np.uint8)), "a")]}
    made = VolumeCollectionDataset(
        RadiObject.from_niftis(tmp_path / "r", images=images).CT, DatasetConfig("patch", (1, 2, 1), 400)
    )
    starts = torch.cat([batch["patch_start"] for batch in batches(made, 50, shuffle=False)])
    assert starts.tolist() == [made[item]["patch_start"].tolist() for item in range(400)]


def test_bytes_do_not_depend_on_threads_ranks_or_prefetch(cohort: Path) -> None:
    one = drained(batches(dataset(cohort), 1, threads=1, prefetch=1, shuffle=False))
    same(drained(batches(dataset(cohort), 1, threads=8, prefetch=16, shuffle=False)), one)
    parts = [
        drained(batches(dataset(cohort), 1, shuffle=False, rank=rank, world_size=3)) for rank in range(3)
    ]
    assert [len(part) for part in parts] == [5, 5, 5]
    same([parts[n % 3][n // 3] for n in range(15)], one)


def test_a_batch_that_is_held_keeps_its_voxels(cohort: Path) -> None:
    loader = batches(dataset(cohort), 1, prefetch=2)
    held = [batch["image"] for batch in loader]  # views of the ring: no copy
    wanted = [batch["image"] for batch in drained(batches(dataset(cohort), 1))]
    assert all(torch.equal(left, right) for left, right in zip(held, wanted, strict=True))
    places = {tensor.untyped_storage().data_ptr() for tensor in held}
    assert len(places) == 15
    del held
    again = {batch["image"].untyped_storage().data_ptr() for batch in loader}
    assert len(again) <= 5  # memory is used again when tensors are gone


def test_stored_numbers_and_normalised_ones(cohort: Path) -> None:
    radi = RadiObject(cohort)
    made = VolumeCollectionDataset(radi.CT, DatasetConfig("patch", 8, 2))
    stored, physical = (
        drained(batches(made, 3, dtype=dtype, shuffle=False)) for dtype in ("int16", "float32")
    )
    for left, right in zip(stored, physical, strict=True):
        assert left["image"].dtype == torch.int16
        box = (slice(None), slice(None), None, None, None)
        assert torch.equal(left["image"] * left["slope"][box] + left["inter"][box], right["image"])
    with pytest.raises(ConfigError, match="int8 cannot hold"):
        drained(batches(made, 3, dtype="int8"))
    normal = Normalize(mean=40, std=250, low=-900, high=1000)
    config = DatasetConfig("patch", 8, 2, normalize=normal)
    found = drained(batches(VolumeCollectionDataset(radi.CT, config), 3, shuffle=False))
    for left, right in zip(found, physical, strict=True):
        wanted = (np.clip(right["image"].numpy(), -900, 1000) - np.float32(40)) / np.float32(250)
        assert np.array_equal(left["image"].numpy(), wanted)
    assert torch.equal(
        torch.from_numpy(VolumeCollectionDataset(radi.CT, config)[1]["image"]), found[0]["image"][1]
    )


def test_metatensors_and_subjects_are_those_of_the_dataset(cohort: Path) -> None:
    from monai.data import list_data_collate
    from monai.data.utils import decollate_batch

    from voxtier.volumes import ToMetaTensor

    made = dataset(cohort)
    batch = next(iter(batches(made, 3, shuffle=False, kind="metatensor")))
    samples = [ToMetaTensor()(made[item]) for item in range(3)]
    wanted = list_data_collate(samples)
    for key in ("image", "mask"):
        assert torch.equal(batch[key].as_tensor(), wanted[key].as_tensor())
        assert torch.equal(batch[key].affine, wanted[key].affine)
        parts = decollate_batch(batch[key])
        assert torch.equal(parts[1].affine, samples[1][key].affine)
    pytest.importorskip("torchio")
    subjects = next(iter(batches(made, 3, shuffle=False, kind="torchio")))
    assert torch.equal(subjects[2].image.data, torch.from_numpy(made[2]["image"]))
    assert np.allclose(subjects[2].mask.affine, made[2]["affine"])


def test_a_damaged_tile_is_named_or_left_out(cohort: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(cohort, tmp_path / "r")
    made = dataset(tmp_path / "r")
    good = drained(batches(made, 1, shuffle=False))
    configure(read=ReadConfig(tile_cache_size_mb=0, concurrency=1))
    victim = RadiObject(tmp_path / "r").CT.iloc[1]
    file = next(Path(victim.uri).rglob("a0.tdb"))
    raw = bytearray(file.read_bytes())
    state = file.stat()
    for at in range(5000, len(raw) - 200, 400):
        raw[at : at + 40] = bytes(40)
    with file.open("r+b") as out:  # in place, as a failing disk does; the open descriptor sees it
        out.write(raw)
    import os

    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(FormatError, match=r"bad_tile.*s1_CT, patch at \("):
        drained(batches(made, 1, shuffle=False))
    loader = batches(made, 2, shuffle=False, on_error="skip")
    found = drained(loader)
    lost = {failure.item for failure in loader.skipped}
    assert lost
    assert lost <= set(range(5, 10))
    rows = [row for batch in found for row in batch["image"]]
    wanted = [batch["image"][0] for item, batch in enumerate(good) if item not in lost]
    assert all(torch.equal(left, right) for left, right in zip(rows, wanted, strict=True))
    assert {failure.obs_id for failure in loader.skipped} == {"s1_CT"}


def test_a_volume_that_is_written_again_gives_its_new_voxels_in_the_next_epoch(
    cohort: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(cohort, tmp_path / "r")
    radi = RadiObject(tmp_path / "r")
    made = VolumeCollectionDataset(radi.PET, DatasetConfig("patch", SHAPES[0], 1))
    loader = batches(made, 1, shuffle=False)
    before = drained(loader)[0]["image"]
    radi.PET.iloc[0].update((0, 0, 0), np.full((2, *SHAPES[0][1:]), 5, np.float32))
    after = drained(loader)[0]["image"]
    assert (after[0, 0, :2] == 5).all()
    assert torch.equal(before[0, 0, 2:], after[0, 0, 2:])


def test_a_machine_of_many_processors_is_used_as_far_as_threads_go(
    cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxtier.volumes.training.batches.usable_processors", lambda: 384)
    assert batches(dataset(cohort), 4).explain()["threads"] == 256


def test_threads_end_with_the_iteration_however_it_ends(cohort: Path) -> None:
    def engine_threads() -> int:
        names = []
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):  # it may end now
                names.append((task / "comm").read_text())
        return sum(name.startswith("voxtier-batch") for name in names)

    assert engine_threads() == 0
    iterator = iter(batches(dataset(cohort), 2, threads=3))
    next(iterator)
    while engine_threads() < 3:  # a thread names itself when it begins to run
        time.sleep(0.01)
    assert engine_threads() == 3
    del iterator
    gc.collect()
    assert engine_threads() == 0

    def train() -> None:
        for _ in batches(dataset(cohort), 2):
            raise RuntimeError("the loss is NaN")

    with pytest.raises(RuntimeError, match="NaN"):
        train()
    gc.collect()
    assert engine_threads() == 0


BESIDE = """
import sys
from voxtier.volumes import DatasetConfig, RadiObject, VolumeCollectionDataset, batches
store, dtype, kept = sys.argv[1:]
config = DatasetConfig("patch", 8, 9, dtype=dtype)
loader = batches(VolumeCollectionDataset(RadiObject(store).CT, config), 4, dtype=dtype)
iterator = iter(loader)
next(iterator)
print(loader.explain()["reader"])
if kept:
    import json
    json.kept = iterator
"""


def test_a_process_ends_without_a_word_beside_an_iterator(cohort: Path, tmp_path: Path) -> None:
    ways = list(product(["float32", "float64"], ["", "kept"]))
    scripts = [[BESIDE, str(cohort), *way] for way in ways]
    found = run_forks(tmp_path / "forks", ["torch", "voxtier.volumes.training.loaders"], scripts)
    for (dtype, _), script in zip(ways, found, strict=True):
        assert script == Script(0, "core\n" if dtype == "float32" else "general\n", "")


def test_ctrl_c_interrupts_the_wait(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import _thread

    from voxtier.volumes.training.workers import filling

    loader = batches(dataset(cohort), 2)
    monkeypatch.setattr(filling.CoreFiller, "wait", lambda *_: None)  # a disk that does not answer
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # test processes may ignore it
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(iter(loader))
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_cannot_work_is_refused(cohort: Path) -> None:
    radi = RadiObject(cohort)
    whole = VolumeCollectionDataset(radi.CT)
    with pytest.raises(ConfigError, match="reads patches"):
        batches(whole, 2)
    made = dataset(cohort)
    for name, value in [
        ("batch_size", 0),
        ("threads", 0),
        ("prefetch", -1),
        ("layout", "zyx"),
        ("on_error", "x"),
    ]:
        with pytest.raises(ConfigError, match=name):
            batches(made, **{"batch_size": 2, name: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be used on this machine"):
        batches(made, 2, device="cuda:7")
    with pytest.raises(ConfigError, match="foreground patches need a mask"):
        config = DatasetConfig("patch", 8, 2, ForegroundSampler(0.5))
        next(iter(batches(VolumeCollectionDataset(radi.CT, config), 2)))
    configure(read=ReadConfig(memory_budget_mb=64, tile_cache_size_mb=10))
    with pytest.raises(ConfigError, match="the budget is 64 MB"):
        batches(dataset(cohort, (200, 200, 200)), 2)
    assert len(drained(batches(made, 2, threads=64))) == 8  # more threads than cores


def test_a_transform_runs_item_by_item_with_its_own_random_numbers(cohort: Path) -> None:
    from monai.transforms import RandGaussianNoised

    noisy = dataset(cohort)
    noisy.transform = RandGaussianNoised(keys=["image"], prob=1.0)
    wanted = drained(data_loader(noisy, batch_size=4, shuffle=True, seed=7))
    found = drained(batches(noisy, 4))
    same(found, wanted)


def test_a_store_that_is_replaced_in_mid_epoch_gives_old_patches_or_names_them(tmp_path: Path) -> None:
    files = []
    for number in range(3):
        voxels = np.random.default_rng(number).integers(0, 99, (40, 40, 40)).astype(np.int16)
        files.append((save(tmp_path / f"{number}.nii", voxels), f"s{number}"))
    radi = RadiObject.from_niftis(tmp_path / "r", images={"CT": files})
    old = [volume.to_numpy() for volume in radi.CT]
    made = VolumeCollectionDataset(radi.CT, DatasetConfig("patch", 20, 12))
    loader = batches(made, 2, shuffle=False, prefetch=1, on_error="skip")
    seen = 0
    for number, batch in enumerate(loader):
        if number == 2:
            for file, _ in files:
                save(file, np.full((40, 40, 40), -5, np.int16))
            RadiObject.from_niftis(tmp_path / "r", images={"CT": files}, overwrite=True)
        for image, place, start in zip(batch["image"], batch["idx"], batch["patch_start"], strict=True):
            box = tuple(slice(int(s), int(s) + 20) for s in start)
            assert np.array_equal(image[0].numpy(), old[place][box])
            seen += 1
    assert seen + len(loader.skipped) == 36
    assert all(failure.obs_id in {"s1_CT", "s2_CT"} for failure in loader.skipped)
    found = batches(VolumeCollectionDataset(RadiObject(tmp_path / "r").CT, made.config), 2)
    assert all((batch["image"] == -5).all() for batch in found)


def test_a_store_that_grows_in_mid_epoch_changes_nothing_until_it_is_opened_again(tmp_path: Path) -> None:
    files = []
    for number in range(5):
        voxels = np.random.default_rng(number).integers(0, 99, (40, 40, 40)).astype(np.int16)
        files.append((save(tmp_path / f"{number}.nii", voxels), f"s{number}"))
    radi = RadiObject.from_niftis(tmp_path / "r", images={"CT": files[:3]})
    config = DatasetConfig("patch", 20, 12, seed=3)
    wanted = drained(batches(VolumeCollectionDataset(radi.CT, config), 2))
    loader = batches(VolumeCollectionDataset(RadiObject(tmp_path / "r").CT, config), 2, prefetch=1)
    found = []
    for number, batch in enumerate(loader):
        if number in (2, 7):
            RadiObject(tmp_path / "r").append(images={"CT": files[3:4] if number == 2 else files[4:]})
        found += drained([batch])
    same(found, wanted)
    assert len(found) == len(loader) == 18
    grown = VolumeCollectionDataset(RadiObject(tmp_path / "r").CT, config)
    assert len(batches(grown, 2)) == 30
    assert {name for batch in batches(grown, 2) for name in batch["obs_id"]} == {f"s{n}_CT" for n in range(5)}
    # The loader of the smaller cohort goes on with it, and a state of one is not of the other.
    assert len(drained(loader)) == 18
    with pytest.raises(ConfigError, match="items 36 instead of 60"):
        batches(grown, 2).load_state_dict(loader.state_dict())


def test_spacings_that_differ_are_told_and_a_mask_of_another_is_refused(tmp_path: Path) -> None:
    import nibabel as nib

    images: dict[str, list[Any]] = {"CT": [], "seg": []}
    for subject, mm in (("a", 1.0), ("b", 2.0)):
        for name, spacing in (("CT", mm), ("seg", 1.0)):
            image = nib.Nifti1Image(np.zeros((20, 20, 20), np.int16), np.diag([spacing] * 3 + [1.0]))
            nib.save(image, tmp_path / f"{subject}{name}.nii")
            images[name].append((tmp_path / f"{subject}{name}.nii", subject))
    radi = RadiObject.from_niftis(tmp_path / "r", images=images)
    config = DatasetConfig("patch", 8, 1)
    assert batches(VolumeCollectionDataset(radi.CT, config), 2).explain()["spacings"] == 2
    assert batches(VolumeCollectionDataset(radi.CT.iloc[:1], config), 2).explain()["spacings"] == 1
    with pytest.raises(FormatError, match="b_"):
        SegmentationDataset(radi.CT, radi.seg, config)
