"""Turned patches against grid_sample, mirrored ones against flips, draws against their distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from volumes.training.test_batches import SHAPES, cohort, drained  # noqa: E402, F401
from voxtier.errors import ConfigError  # noqa: E402
from voxtier.volumes import (  # noqa: E402
    Augmentation,
    RadiObject,
    SegmentationDataset,
    StreamingWriter,
    VolumeCollectionDataset,
    batches,
)
from voxtier.volumes.training.augmenting import rotation_matrix  # noqa: E402
from voxtier.volumes.training.datasets import DatasetConfig  # noqa: E402
from voxtier.volumes.training.epochs import generator  # noqa: E402

NOTHING: dict[str, Any] = {
    "p_rotation": 0, "p_scale": 0, "mirror": (False, False, False), "p_noise": 0, "p_blur": 0,
    "p_brightness": 0, "p_contrast": 0, "p_low_resolution": 0, "p_gamma_inverted": 0, "p_gamma": 0,
}  # fmt: skip


def made(cohort: Path, size: Any = (14, 11, 18)) -> SegmentationDataset:  # noqa: F811
    radi = RadiObject(cohort)
    return SegmentationDataset(radi.PET, radi.seg, DatasetConfig("patch", size, 4, seed=2))


def reference(volume: Any, start: Any, size: Any, matrix: Any, mode: str) -> Any:
    """torch's grid_sample of the whole volume (zeros outside), at the places that the matrix defines."""
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) @ torch.tensor(matrix, dtype=torch.float64).T
    place = grid + torch.tensor(
        [s + (n - 1) / 2 for s, n in zip(start, size, strict=True)], dtype=torch.float64
    )
    shape = torch.tensor(volume.shape, dtype=torch.float64)
    normal = (2 * place + 1) / shape - 1
    image = torch.from_numpy(np.ascontiguousarray(volume, np.float64))[None, None]
    found = torch.nn.functional.grid_sample(
        image, normal.flip(-1)[None], mode=mode, padding_mode="zeros", align_corners=False
    )
    return found[0, 0].numpy()


@pytest.mark.parametrize("layout", ["view", "contiguous"])
def test_turned_patches_are_those_of_grid_sample(cohort: Path, layout: Any) -> None:  # noqa: F811
    data, augment = (
        made(cohort),
        Augmentation(**{**NOTHING, "p_rotation": 1, "p_scale": 1, "labels": "nearest"}),
    )
    radi = RadiObject(cohort)
    for batch in drained(batches(data, 4, shuffle=False, augment=augment, layout=layout)):
        place = int(batch["idx"][0])
        image, mask = radi.PET.iloc[place].to_numpy(), radi.seg.iloc[place].to_numpy()
        for row in range(4):
            item = place * 4 + row
            matrix = augment.draw(generator(2, 0, item, stream=2), 1)[0]
            assert matrix is not None
            start = batch["patch_start"][row].tolist()
            wanted = reference(image, start, (14, 11, 18), matrix, "bilinear")
            error = np.abs(batch["image"][row, 0].numpy() - wanted).max()
            assert error < 1e-4 * (image.max() - image.min())
            labels = reference(mask, start, (14, 11, 18), matrix, "nearest")
            assert (batch["mask"][row, 0].numpy() != labels).mean() < 2e-3  # places between two voxels


def test_heaviest_labels_are_linear_class_by_class(cohort: Path) -> None:  # noqa: F811
    data, augment = made(cohort, 24), Augmentation(**{**NOTHING, "p_rotation": 1})
    radi = RadiObject(cohort)
    for batch in drained(batches(data, 4, shuffle=False, augment=augment)):
        place = int(batch["idx"][0])
        mask = radi.seg.iloc[place].to_numpy()
        for row in range(4):
            matrix = augment.draw(generator(2, 0, place * 4 + row, stream=2), 1)[0]
            start = batch["patch_start"][row].tolist()
            shares = np.stack([reference(mask == c, start, (24,) * 3, matrix, "bilinear") for c in (1, 2)])
            shares = np.concatenate([1 - shares.sum(0, keepdims=True), shares])
            found = batch["mask"][row, 0].numpy()
            assert np.take_along_axis(shares, found[None], 0)[0] == pytest.approx(shares.max(0), abs=1e-4)


def test_mirrors_flip_image_and_mask_alike(cohort: Path) -> None:  # noqa: F811
    plain = drained(batches(made(cohort), 1, shuffle=False))
    for axis in range(3):
        mirror = tuple(axis == other for other in range(3))
        augment = Augmentation(**{**NOTHING, "mirror": mirror})
        flipped = 0
        for item, batch in enumerate(drained(batches(made(cohort), 1, shuffle=False, augment=augment))):
            is_flipped = augment.draw(generator(2, 0, item, stream=2), 1)[1][axis]
            flipped += is_flipped
            for key in ("image", "mask"):
                wanted = plain[item][key].flip(2 + axis) if is_flipped else plain[item][key]
                assert torch.equal(batch[key], wanted)
        assert 0 < flipped < 12


def test_a_mirror_of_a_turned_patch_is_a_flip(cohort: Path) -> None:  # noqa: F811
    turns = {**NOTHING, "p_rotation": 1}
    plain = drained(batches(made(cohort), 1, shuffle=False, augment=Augmentation(**turns)))
    mirrored = Augmentation(**{**turns, "mirror": (False, True, True)})
    for item, batch in enumerate(drained(batches(made(cohort), 1, shuffle=False, augment=mirrored))):
        rng = generator(2, 0, item, stream=2)
        mirrored._matrix(rng)
        mirrored._changes(rng, 1)
        axes = [axis for axis in (1, 2) if rng.random() < 0.5]
        wanted = plain[item]["image"].flip([2 + axis for axis in axes])
        assert torch.allclose(batch["image"], wanted, atol=1e-4)


def test_bytes_do_not_depend_on_threads_with_all_changes(cohort: Path) -> None:  # noqa: F811
    augment = Augmentation(
        p_rotation=0.5, p_noise=0.5, p_blur=1, p_brightness=1, p_contrast=1, p_low_resolution=1, p_gamma=1,
        p_gamma_inverted=1,
    )  # fmt: skip
    one = drained(batches(made(cohort), 3, threads=1, augment=augment))
    other = drained(batches(made(cohort), 3, threads=5, prefetch=9, augment=augment))
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left["image"], right["image"])
        assert torch.equal(left["mask"], right["mask"])
        assert torch.isfinite(left["image"]).all()


def test_changes_of_intensities_are_their_definitions(cohort: Path) -> None:  # noqa: F811
    """Each change alone, against numpy, scipy and torch."""
    import scipy.ndimage

    data = made(cohort, (20, 22, 24))
    plain = drained(batches(data, 1, shuffle=False))

    def changed(**options: Any) -> Any:
        augment = Augmentation(**{**NOTHING, **options})
        for item, batch in enumerate(drained(batches(data, 1, shuffle=False, augment=augment))):
            for _, _, numbers in augment.draw(generator(2, 0, item, stream=2), 1)[3]:
                yield (
                    plain[item]["image"][0, 0].double().numpy(),
                    numbers,
                    batch["image"][0, 0].double().numpy(),
                )

    for before, (factor, *_), after in changed(p_brightness=1):
        assert np.allclose(after, before * factor, atol=1e-5)
    for before, (factor, *_), after in changed(p_contrast=1):
        mean = before.mean()
        assert np.allclose(
            after, np.clip((before - mean) * factor + mean, before.min(), before.max()), atol=1e-5
        )
    for sign, name in ((1, "p_gamma"), (-1, "p_gamma_inverted")):
        for before, (power, *_), after in changed(**{name: 1}):
            image = before * sign
            reach = image.max() - image.min()
            raised = ((image - image.min()) / reach) ** power * reach + image.min()
            raised = (raised - raised.mean()) * (image.std() / raised.std()) + image.mean()
            assert np.allclose(after, raised * sign, atol=2e-4)
    for before, widths, after in changed(p_blur=1):
        wanted = scipy.ndimage.gaussian_filter(before, widths, mode="mirror", truncate=20)
        assert np.abs(after - wanted).max() < 0.02 * before.std()  # the kernel ends at three widths
    for before, (scale, *_), after in changed(p_low_resolution=1):
        size = [round(n * scale) for n in before.shape]
        image = torch.from_numpy(before)[None, None]
        small = torch.nn.functional.interpolate(image, size, mode="nearest-exact")
        wanted = torch.nn.functional.interpolate(small, before.shape, mode="trilinear")[0, 0].numpy()
        assert np.allclose(after, wanted, atol=1e-4)


def test_the_preset_has_the_distribution_of_nnunet() -> None:
    augment = Augmentation()
    drawn = [augment.draw(generator(0, 0, item, stream=2), 1) for item in range(4000)]
    turned = np.mean([view[0] is not None for view in drawn])
    assert turned == pytest.approx(1 - 0.8 * 0.8, abs=0.03)
    names = [name for view in drawn for _, name, _ in view[3]]
    wanted = {
        "noise": 0.1,
        "blur": 0.1,
        "multiply": 0.15,
        "contrast": 0.15,
        "low_resolution": 0.125,
        "gamma": 0.4,
    }
    for name, share in wanted.items():
        assert names.count(name) / 4000 == pytest.approx(share, abs=0.025), name
    factors = np.array([numbers[0] for view in drawn for _, name, numbers in view[3] if name == "multiply"])
    assert factors.min() >= 0.75
    assert factors.max() <= 1.25
    assert np.mean(factors < 1) == pytest.approx(0.5, abs=0.08)
    for angles in ([0.3, 0, 0], [0.1, -0.4, 0.5]):
        matrix = rotation_matrix(angles)
        assert np.allclose(matrix @ matrix.T, np.eye(3))
        assert np.linalg.det(matrix) == pytest.approx(1)


def test_what_cannot_be_drawn_is_refused(cohort: Path) -> None:  # noqa: F811
    for options in ({"p_noise": 1.5}, {"scale": (0.0, 1.0)}, {"blur": (2.0, 1.0)}, {"labels": "linear"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            Augmentation(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="float32"):
        batches(made(cohort), 2, augment=Augmentation(), dtype="float64")


STANDARD: dict[str, Any] = {
    "p_rotation": 0.5, "p_scale": 0.5, "p_noise": 0.5, "p_blur": 0.5, "p_brightness": 0.5, "p_contrast": 0.5,
    "p_low_resolution": 0.5, "p_gamma": 0.5, "p_gamma_inverted": 0.5,
}  # fmt: skip


def equal(left: Any, right: Any) -> None:
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        for key in ("image", "mask", "patch_start"):
            if key in one or key in other:
                assert torch.equal(one[key].contiguous(), other[key].contiguous()), key


def test_the_general_reader_gives_the_same_changed_patches(
    cohort: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from voxtier.volumes.tiledb import arrays

    augment = Augmentation(**STANDARD)

    def loaders() -> Any:
        for size in ((14, 11, 18), (45, 9, 31)):
            for layout in ("view", "contiguous"):
                yield batches(made(cohort, size), 3, augment=augment, layout=layout)  # type: ignore[arg-type]

    wanted = [drained(loader) for loader in loaders()]
    monkeypatch.setenv("VOXTIER_DIRECT", "0")
    monkeypatch.setattr(arrays, "_open", type(arrays._open)())
    for loader, batch in zip(loaders(), wanted, strict=True):
        assert loader.explain()["reader"] == "general"
        equal(drained(loader), batch)


def test_doubles_and_points_in_time_are_changed_alike(tmp_path: Path) -> None:
    import nibabel as nib

    rng = np.random.default_rng(4)
    voxels = rng.normal(size=(30, 26, 28, 3)).astype(np.float32)
    images: dict[str, Any] = {}
    for name, array in (
        ("single", voxels[..., 1]),
        ("double", voxels[..., 1].astype(np.float64)),
        ("times", voxels),
    ):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii")
        images[name] = [(tmp_path / f"{name}.nii", "a")]
    radi = RadiObject.from_niftis(tmp_path / "r", images=images)
    config, augment = DatasetConfig("patch", (9, 10, 11), 12, seed=5), Augmentation(**STANDARD)
    found, reasons = {}, {}
    for name in images:
        data = VolumeCollectionDataset(radi.collection(name), config)
        loader = batches(data, 4, augment=augment, layout="contiguous")  # as those of 4-D volumes are
        found[name], reasons[name] = drained(loader), loader.explain()["reasons"]
    equal(found["double"], found["single"])
    times = [{**batch, "image": batch["image"][..., 1]} for batch in found["times"]]
    equal(times, found["single"])
    assert reasons["single"] == {}
    assert reasons["times"] == {"4-D": 1}
    assert reasons["double"] == {}
    radi.single.iloc[0].update((3, 3, 3), np.full((2, 2, 2), 9, np.float32))  # a second fragment
    loader = batches(VolumeCollectionDataset(radi.single, config), 4, augment=augment)
    assert "several fragments" in next(iter(loader.explain()["reasons"]))
    changed = drained(loader)
    radi.single.iloc[0].consolidate()
    radi.single.iloc[0].vacuum()
    equal(drained(batches(VolumeCollectionDataset(radi.single, config), 4, augment=augment)), changed)


WAYS = {
    "mirrored": {"mirror": (True, True, True)},
    "scaled": {"p_scale": 1},
    "turned": {"p_rotation": 1},
    "flat": {"p_rotation": 1, "p_scale": 1, "flat_axis": 2, "mirror": (True, False, True)},
    "all": {"p_rotation": 0.7, "p_scale": 0.7, "mirror": (True, True, True)},
}


@pytest.mark.parametrize("reader", ["core", "general"])
@pytest.mark.parametrize("way", WAYS)
def test_the_affine_is_that_of_the_patch_as_it_is_handed_out(tmp_path: Path, way: str, reader: str) -> None:
    """Each volume holds one coordinate of its voxels in the world, so that a voxel says where it is from."""
    turn = rotation_matrix([0.3, -0.2, 0.5])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [0.7, -1.1, 2.5], (-31, 12, 400)
    shape, size = (24, 20, 22), (9, 8, 7)
    grid = np.stack(np.meshgrid(*map(np.arange, (*shape,)), indexing="ij"), -1)
    world = grid @ affine[:3, :3].T + affine[:3, 3]
    with StreamingWriter(tmp_path / "c") as writer:
        for axis in range(3):
            writer.write_volume(world[..., axis].astype(np.float32), "xyz"[axis], "a", affine=affine)
    collection = writer.close()
    if reader == "general":
        for volume in collection:
            volume.update((0, 0, 0), volume[:1, :1, :1])  # a second fragment
    data = VolumeCollectionDataset(collection, DatasetConfig("patch", size, 12, seed=3))
    augment = Augmentation(**{**NOTHING, **WAYS[way]})
    voxels = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, 3)
    compared = 0
    for kind in ("tensors", "metatensor", "torchio"):
        loader = batches(data, 5, threads=1, augment=augment, kind=kind)  # type: ignore[arg-type]
        assert loader.explain()["reader"] == reader
        for batch in loader:
            items = batch if kind == "torchio" else range(len(batch["idx"]))
            for item in items:
                if kind == "torchio":
                    image, placed, axis = (
                        item.image.data[0].numpy(),
                        item.image.affine,
                        "xyz".index(item.obs_id),
                    )
                else:
                    image, placed = batch["image"][item, 0].numpy(), batch["affine"][item].numpy()
                    axis = int(batch["idx"][item])
                if kind == "metatensor":
                    placed = batch["image"].affine[item].numpy()
                places = voxels @ placed[:3, :3].T + placed[:3, 3]
                index = (places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
                is_inside = ((index > 1e-3) & (index < np.array(shape) - 1 - 1e-3)).all(1)
                found = image[tuple(voxels[is_inside].T)]
                assert np.allclose(found, places[is_inside, axis], rtol=0, atol=2e-3)
                compared += int(is_inside.sum())
    assert compared > 108 * 504 / 3
