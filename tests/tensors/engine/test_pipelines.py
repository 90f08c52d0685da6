"""Pipelines beyond a configuration's: labels, and MONAI's own transforms after the core's part."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("monai")

import torch
from monai.data import NibabelReader, PersistentDataset
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    CropForegroundd,
    DivisiblePadd,
    EnsureTyped,
    Lambdad,
    NormalizeIntensityd,
    OneOf,
    RandFlipd,
    RandomOrder,
    Resized,
    ResizeWithPadOrCropd,
    ScaleIntensityRanged,
    SelectItemsd,
    SomeOf,
    Spacingd,
    SpatialPadd,
)

from tensors.engine import fuzz
from tensors.engine.test_generate import hashes
from voxtier.errors import EngineLimitError
from voxtier.tensors.dataset import HealingPersistentDataset
from voxtier.tensors.engine import checked, self_test
from voxtier.tensors.engine.engine import Engine, describe_difference
from voxtier.tensors.engine.pipelines import Pipeline, find_pipeline
from voxtier.tensors.identity.config import ImageProcessing
from voxtier.tensors.identity.pipeline import build_head, build_transforms

PROCESSING = ImageProcessing((1.5, 1.5, 3.0), (16, 20, 24), -1000, 1000, "LPS", 0.0, 1.0, "float32")

pytestmark = pytest.mark.usefixtures("one_thread")
BOTH = ["image", "label"]


def write_label(path: Path, random: np.random.Generator, shape: Any, affine: Any) -> Path:
    kind = random.choice(["uint8", "int16", "float32", "int32"])
    values = random.integers(0, 5, shape).astype(kind)
    if kind == "float32":
        values[values == 1] = -0.0
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def followers(number: int, keys: list[str]) -> list[Any]:
    """What MONAI does after the core, by number."""
    crop = CropForegroundd(keys, source_key=keys[-1], margin=number % 3, k_divisible=[1, 4][number % 2])
    choices: list[list[Any]] = [
        [],
        [crop],
        [CropForegroundd(keys, source_key="image", allow_smaller=True), SpatialPadd(keys, (40, 20, 30))],
        [ResizeWithPadOrCropd(keys, (24, 30, 17))],
        [CenterSpatialCropd(keys, (9, 70, 8)), DivisiblePadd(keys, 4), NormalizeIntensityd(["image"])],
        [crop, Resized(["image"], (12, 13, 14), mode="trilinear", anti_aliasing=True)],
    ]
    return [*choices[number % len(choices)], EnsureTyped(keys), SelectItemsd(keys)][: 9 - number % 3]


def compare(number: int, folder: Path) -> str:
    """Make an item both ways; return ``fused`` or why MONAI has to make it."""
    random = np.random.default_rng(number)
    case = fuzz.draw(random, number)
    keys = BOTH[: 1 + (number % 4 != 0)]
    size = case.processing.target_shape_dhw if number % 2 else ()
    processing = dataclasses.replace(case.processing, target_shape_dhw=size)
    head = build_head(
        processing,
        has_label=len(keys) == 2,
        has_channel=number % 3 == 1,
        is_smoothed=number % 5 != 0,
        image_only=number % 7 > 2,
        reader=[None, "NibabelReader"][number % 2],
    )
    transforms = Compose([*head, *followers(number, keys)])
    item: dict[str, Any] = {"image": case.write(folder)}
    if len(keys) == 2:
        shape, affine = case.shape, case.affine.copy()
        if number % 5 == 1:
            affine[:3, 3] += 0.5
        elif number % 5 == 2:
            shape = tuple(int(length) for length in random.integers(2, 40, 3))
        elif number % 5 == 3:
            affine[:3, :3] *= 1.25
        item["label"] = write_label(folder / f"{number}-label.nii.gz", random, shape, affine)
    pipeline = find_pipeline(transforms.transforms)
    assert pipeline is not None
    assert pipeline.has_label == (len(keys) == 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made, _ = Engine(pipeline).fuse(item)
        except EngineLimitError as limit:
            return f"stock: {limit.reason}"
        expected = transforms(item)
    assert describe_difference(made, expected) == "", (number, case)
    for key in keys:
        assert fuzz.layout(made[key]) == fuzz.layout(expected[key]), (number, key)
        assert made[key].meta.keys() == expected[key].meta.keys()
        assert repr(made[key].meta) == repr(expected[key].meta), (number, key)
    return "fused"


def test_labels_and_what_follows_have_the_bits_of_monai(tmp_path: Path) -> None:
    found = Counter(compare(number, tmp_path) for number in range(40_000, 40_060))
    assert found["fused"] >= 40, found
    assert set(found) <= {"fused", "stock: constant", "stock: NaN or infinite"} | {
        each for each in found if each.startswith("stock: a scaling")
    }


def test_a_difference_in_a_label_is_named() -> None:
    made = {"image": torch.zeros(3), "label": torch.zeros(4)}
    expected = {"image": torch.zeros(3), "label": torch.tensor([0.0, 2.0, 0.0, -0.0])}
    assert describe_difference(made, made) == ""
    assert describe_difference(made, expected) == "label: 2 of 4 voxels, by 2 at most"


def test_a_dataset_with_labels_writes_the_files_of_monai(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    data = []
    for number in range(4):
        case = fuzz.draw(np.random.default_rng(number), number + 7)
        case = dataclasses.replace(case, shape=(30, 28, 12), element="int16", scaling=None)
        label = write_label(tmp_path / f"{number}.nii.gz", random, case.shape, case.affine)
        data.append({"image": str(case.write(tmp_path)), "label": str(label)})
    head = build_head(PROCESSING, has_label=True, image_only=True)
    files = {}
    for engine in ("stock", "fused"):
        steps = [*head, CropForegroundd(BOTH, source_key="image"), RandFlipd(BOTH, prob=0.5)]
        dataset = HealingPersistentDataset(data, Compose(steps), tmp_path / engine, engine=engine)
        assert (dataset._pipeline is not None) == (engine == "fused")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number in range(4):
                dataset[number]
        files[engine] = hashes(tmp_path / engine)
    assert files["stock"] == files["fused"]
    assert len(files["fused"]) == 4


def test_what_resamples_once_or_otherwise_is_left_to_monai(tmp_path: Path) -> None:
    head = build_head(PROCESSING, has_label=True, image_only=True)

    def found(**changes: Any) -> Pipeline | None:
        steps = list(head)
        for place, each in changes.items():
            steps[int(place[1:])] = each
        return find_pipeline(steps)

    from monai.transforms import Orientationd

    assert found() is not None
    assert find_pipeline([*head, Lambdad(BOTH, lambda each: each)]) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found(_1=Orientationd(BOTH, "LPS", lazy=True)) is None
        assert found(_1=Orientationd(BOTH, "LPS", labels=(("R", "L"), ("P", "A"), ("I", "S")))) is None
        assert found(_1=Orientationd(BOTH, "LPS", allow_missing_keys=True)) is None
    assert found(_2=Spacingd(BOTH, (1.5, 1.5, 3.0), mode="bilinear")) is None
    assert found(_2=Spacingd(BOTH, (1.5, 1.5, 3.0), mode=("bilinear", "nearest"), dtype=np.float32)) is None
    assert found(_2=Spacingd(BOTH, (1.5, 1.5), mode=("bilinear", "nearest"))) is None
    assert found(_2=Spacingd(["image"], (1.5, 1.5, 3.0))) is None
    assert found(_3=ScaleIntensityRanged(BOTH, -1000, 1000, 0, 1, clip=True)) is None
    assert found(_3=ScaleIntensityRanged(["image"], -1000, 1000, 0, 1)) is None
    assert found(_4=Resized(BOTH, (16, 20, 24), mode="trilinear", anti_aliasing=True)) is None
    assert found(_4=Resized(["image"], (16, 20, 24), mode="trilinear", anti_aliasing=True)) is None
    assert find_pipeline([*head[:2], *head[3:]]) is None
    dataset = HealingPersistentDataset([], Compose(head, lazy=True), tmp_path)
    assert dataset._pipeline is None


def write_image(path: Path) -> Path:
    values = np.random.default_rng(1).integers(-900, 900, (20, 18, 12)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.2, 0.9, 2.0, 1.0])), path)
    return path


def pixdim(*lengths: float) -> tuple[int, Any]:
    return 2, Spacingd(["image"], lengths, mode=("bilinear",))


def window(a_min: Any, a_max: Any, b_min: Any = 0.0, b_max: Any = 1.0) -> tuple[int, Any]:
    return 3, ScaleIntensityRanged(["image"], a_min, a_max, b_min, b_max, clip=True)


def typed(dtype: Any) -> tuple[int, Any]:
    return 5, EnsureTyped(["image"], dtype=dtype)


UNUSUAL: dict[str, tuple[tuple[int, Any], bool]] = {
    "numpy's type": (typed(np.float32), True),
    "Python's float": (typed(float), True),
    "Python's int": (typed(int), True),
    "a type by name": (typed("float16"), True),
    "complex numbers": (typed(torch.complex128), True),
    "a window turned round": (window(1000, -1000), True),
    "a window above 16 bits": (window(40_000, 80_000), True),
    "one length is 0": (pixdim(1.0, 1.0, 0.0), True),
    "all lengths are 0": (pixdim(0.0, 0.0, 0.0), True),
    "a length below 0": (pixdim(1.0, 1.0, -2.0), True),
    "a length that is no number": (pixdim(1.0, 1.0, np.nan), True),
    "an infinite length": (pixdim(1.0, 1.0, np.inf), True),
    "an infinite window": (window(-np.inf, 1000), False),
    "a window of no number": (window(np.nan, 1000), False),
    "a window of tensors": (window(torch.tensor(-1000.0), torch.tensor(1000.0)), False),
    "a window of single precision": (window(np.float32(-1000.3), np.float32(1000.7)), False),
    "a window without width": (window(5, 5), False),
    "no lower end": (window(-1000, 1000, None, 1.0), False),
}


@pytest.mark.parametrize("case", UNUSUAL)
@pytest.mark.parametrize("is_resized", [False, True])
def test_whatever_monai_takes_has_the_bits_of_monai(tmp_path: Path, case: str, is_resized: bool) -> None:
    (place, step), is_taken = UNUSUAL[case]
    steps = build_head(PROCESSING, image_only=True)
    steps[place : place + 1] = [step]
    if not is_resized:
        del steps[4]
    items = [{"image": str(write_image(tmp_path / "a.nii.gz"))}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = PersistentDataset(items, Compose(steps), tmp_path / "stock")[0]
        dataset = HealingPersistentDataset(items, Compose(steps), tmp_path / "fused")
        made = dataset[0]
    assert (dataset._pipeline is not None) == is_taken
    assert describe_difference(made, expected) == ""


class Twice(Compose):  # type: ignore[misc]  # (MONAI is untyped)
    def __call__(self, item: Any, **options: Any) -> Any:
        made = super().__call__(item, **options)
        return {**made, "image": made["image"] * 2}


def test_what_a_subclass_of_compose_does_is_done(tmp_path: Path) -> None:
    items = [{"image": str(write_image(tmp_path / "a.nii.gz"))}] * 3
    steps = build_head(PROCESSING, image_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = HealingPersistentDataset(items, Compose(steps), None)
        once = [dataset[number]["image"] for number in range(3)]  # proved: not compared any more
        twice = HealingPersistentDataset(items, Twice(steps), tmp_path / "twice")[0]["image"]
        assert torch.equal(twice, once[0] * 2)
        dataset.transform = Twice(steps)
        assert torch.equal(dataset[0]["image"], once[0] * 2)
        dataset.transform = Compose(steps)
        assert torch.equal(dataset[0]["image"], once[0])
        dataset.transform.transforms = steps[:-1]
        assert dataset[0]["image"].shape != once[0].shape
    for other in (SomeOf(steps, num_transforms=4), RandomOrder(steps), OneOf(steps)):
        assert HealingPersistentDataset(items, other, None)._pipeline is None


CHANGES: dict[str, Callable[[Any], None]] = {
    "window": lambda transform: setattr(transform.transforms[3].scaler, "a_min", -500),
    "shape": lambda transform: setattr(transform.transforms[4].resizer, "spatial_size", (5, 5, 5)),
    "no Gaussian": lambda transform: setattr(transform.transforms[4], "anti_aliasing", (False,)),
    "axes": lambda transform: setattr(transform.transforms[1].ornt_transform, "axcodes", "RAS"),
    "lengths": lambda transform: setattr(transform.transforms[2].spacing_transform, "pixdim", np.ones(3)),
    "mode": lambda transform: setattr(transform.transforms[2], "mode", ("nearest",)),
    "all lazy": lambda transform: setattr(transform, "lazy", True),
    "type": lambda transform: setattr(transform.transforms[0]._loader, "dtype", np.uint8),
    "a reader": lambda transform: transform.transforms[0].register(Doubled()),
    "a mixed type": lambda transform: setattr(transform.transforms[3].scaler, "b_max", torch.tensor(0.5)),
    "a follower": lambda transform: setattr(transform.transforms[5].padder, "spatial_size", (30, 30, 30)),
}


class Doubled(NibabelReader):  # type: ignore[misc]  # (MONAI is untyped)
    def get_data(self, image: Any) -> Any:
        voxels, metadata = super().get_data(image)
        return voxels * 2, metadata


class OfPlainFiles(Doubled):
    """A site's reader of the files of one scanner."""

    def verify_suffix(self, name: Any) -> bool:
        return str(name[0] if isinstance(name, tuple | list) else name).endswith(".nii")


def test_a_registered_reader_is_asked_for_the_files_that_it_takes(tmp_path: Path) -> None:
    names = [*(f"{number}.nii.gz" for number in range(3)), "3.nii"]
    items = [{"image": str(write_image(tmp_path / name))} for name in names]
    made = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in (PersistentDataset, HealingPersistentDataset):
            head = build_head(PROCESSING, image_only=True, reader=None)
            head[0].register(OfPlainFiles())
            dataset = kind(items, Compose(head), tmp_path / kind.__name__)
            made[kind] = [dataset[number] for number in range(4)]
    for ours, monais in zip(made[HealingPersistentDataset], made[PersistentDataset], strict=True):
        assert describe_difference(ours, monais) == ""
    assert find_pipeline(head) is None
    head[0] = build_head(PROCESSING, image_only=True, reader=None)[0]
    head[0].register(NibabelReader())
    assert find_pipeline(head) is not None


@pytest.mark.parametrize("change", CHANGES)
def test_a_parameter_changed_in_place_counts_from_the_next_item_on(tmp_path: Path, change: str) -> None:
    items = [{"image": str(write_image(tmp_path / f"{number}.nii.gz"))} for number in range(5)]
    processing = dataclasses.replace(PROCESSING, target_shape_dhw=(9, 8, 7))  # with a Gaussian
    made = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in (PersistentDataset, HealingPersistentDataset):
            head = build_head(processing, image_only=True, reader=None)
            transform = Compose([*head, SpatialPadd(["image"], (9, 9, 30))])
            dataset = kind(items, transform, tmp_path / kind.__name__)
            before = [dataset[number]["image"] for number in range(3)]  # proved: not compared any more
            found = getattr(dataset, "_pipeline", None)
            assert found is getattr(dataset, "_pipeline", None)
            CHANGES[change](transform)
            made[kind] = [*before, *(dataset[number]["image"] for number in range(5))]
    for ours, monais in zip(made[HealingPersistentDataset], made[PersistentDataset], strict=True):
        assert describe_difference({"image": ours}, {"image": monais}) == ""
    assert describe_difference({"image": made[PersistentDataset][-1]}, {"image": made[PersistentDataset][0]})


def test_a_class_that_has_the_name_of_a_follower_is_no_follower() -> None:
    head = build_head(PROCESSING, image_only=True)
    assert find_pipeline([*head, SpatialPadd(["image"], (30, 30, 30))]) is not None
    own = type("SpatialPadd", (SpatialPadd,), {})
    assert find_pipeline([*head, own(["image"], (30, 30, 30))]) is None
    own = type("Spacingd", (Spacingd,), {})(["image"], PROCESSING.target_spacing, mode=("bilinear",))
    assert find_pipeline([*head[:2], own, *head[3:]]) is None


def test_the_cleaner_of_the_callers_script_stays_his(tmp_path: Path) -> None:
    class KeyCleanerD:
        keys_to_keep = ("image", "image_meta_dict")

        def __call__(self, item: Any) -> Any:
            return {"image": item["image"] + 1}

    transforms = build_transforms(PROCESSING)
    cleaner = KeyCleanerD()
    pipeline = find_pipeline([*transforms.transforms[:-1], cleaner])
    assert pipeline is not None
    assert pipeline.text == ""
    assert pipeline.followers[-1] is cleaner


def test_a_self_test_that_cannot_run_leaves_all_to_monai_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = build_head(PROCESSING, image_only=True)
    items = [{"image": str(write_image(tmp_path / "a.nii.gz"))}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = PersistentDataset(items, Compose(steps), tmp_path / "stock")[0]

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checked, "Proofs", refuse)
    monkeypatch.setattr(self_test, "_write_volume", refuse)
    with pytest.warns(UserWarning, match=r"self-test could not run: OSError: .*No space left") as seen:
        made = HealingPersistentDataset(items, Compose(steps), tmp_path / "fused")[0]
    assert not any("differ" in str(each.message) for each in seen)
    assert describe_difference(made, expected) == ""
