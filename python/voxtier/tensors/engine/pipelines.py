"""`Pipeline`: which transforms the core stands for, and which ones MONAI applies to what the core gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import monai.transforms
import torch
from monai.data.image_reader import NibabelReader
from monai.transforms import (
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    Orientationd,
    Resized,
    ScaleIntensityRanged,
    Spacingd,
)
from monai.transforms.io.array import SUPPORTED_READERS
from monai.utils import get_equivalent_dtype

from voxtier.tensors.identity.config import ImageProcessing
from voxtier.tensors.identity.pipeline import (
    build_head,
    build_transforms,
    cache_params_text,
    directory_hash,
)

IMAGE, LABEL = "image", "label"
FOLLOWERS = frozenset(
    f"{name}d"
    for name in (
        *("BorderPad", "CastToType", "CenterSpatialCrop", "CropForeground", "DeleteItems", "DivisiblePad"),
        *("EnsureType", "NormalizeIntensity", "Resize", "ResizeWithPadOrCrop", "ScaleIntensity"),
        *(
            "ScaleIntensityRange",
            "SelectItems",
            "SpatialCrop",
            "SpatialPad",
            "ThresholdIntensity",
            "ToTensor",
        ),
    )
)
"""What MONAI may apply after the core: it looks at voxels and affine, not at earlier transforms.

A subclass may look at anything, and is left to MONAI with all that comes before it.
"""


_MONAI_READERS = frozenset(SUPPORTED_READERS.values())


@dataclass(frozen=True, eq=False)
class Pipeline:
    """The transforms of a pipeline in the parts in which the engine does them."""

    processing: ImageProcessing
    """The settings of the core's part; ``target_shape_dhw`` is empty where it ends with the intensities."""
    text: str
    """What proofs are kept under; empty for the pipeline of a configuration."""
    load: Any
    channel: tuple[Any, ...]
    """`EnsureChannelFirstd`, where it is a transform of its own."""
    orientation: Any
    spacing: Any
    followers: tuple[Any, ...]
    """What MONAI applies to the core's item."""
    is_smoothed: bool = True
    """Whether a Gaussian comes before the interpolation to the target shape."""

    @property
    def has_label(self) -> bool:
        """Whether a label is made beside the image."""
        return LABEL in self.load.keys


def configured_pipeline(transforms: Any, processing: ImageProcessing) -> Pipeline:
    """Return the pipeline of a configuration.

    Parameters
    ----------
    transforms : Compose
        From `build_transforms`.
    processing : ImageProcessing
        Its settings.
    """
    load, orientation, spacing, _, _, *followers = transforms.transforms
    return Pipeline(processing, "", load, (), orientation, spacing, tuple(followers))


def find_pipeline(transforms: Iterable[Any]) -> Pipeline | None:
    """Return what the engine does of transforms with dictionaries, or None where they are not for it.

    They begin with `LoadImaged` of ``image``, or of ``image`` and ``label``, with channels first;
    `Orientationd`; `Spacingd`, labels by nearest neighbour; `ScaleIntensityRanged` of the image with
    ``clip``; and `Resized`, or not. What is not named here is MONAI's default. `FOLLOWERS` may come after.
    """
    steps = list(transforms)
    if any(getattr(each, "lazy", False) for each in steps):
        return None
    try:
        found = _parse(steps)
        if found is None:
            return None
        own = build_transforms(found.processing) if found.processing.target_shape_dhw else None
        if own is not None and directory_hash(own.transforms) == directory_hash(steps):
            return replace(found, text="")  # with the caller's own cleaner of keys
        return found
    except Exception:  # parameters of other types than these: whatever they raise, MONAI knows them
        return None


def describe_head(steps: Sequence[Any], pipeline: Pipeline) -> str:
    """Return what `find_pipeline` has judged of its transforms: another text after a change in place.

    Parameters
    ----------
    steps : sequence of transforms
        Which begin with those in which it was found.
    pipeline : Pipeline
        What was found. Parameters of its followers are of no account: MONAI reads them at each item.
    """
    count = 4 + len(pipeline.channel) + bool(pipeline.processing.target_shape_dhw)
    head = list(steps[:count])
    lazy = [getattr(each, "lazy", False) for each in steps[: count + len(pipeline.followers)]]
    loader = pipeline.load._loader
    readers = [type(each) for each in loader.readers]
    return f"{cache_params_text(head)}\n{lazy}\n{_options(loader)}\n{readers}\n{_options(_reader(loader))}"


def _parse(steps: list[Any]) -> Pipeline | None:
    load, *rest = steps
    channel, rest = (rest[:1], rest[1:]) if type(rest[0]) is EnsureChannelFirstd else ([], rest)
    orientation, spacing, scale, *rest = rest
    resize = rest[0] if rest and type(rest[0]) is Resized else None
    followers = rest if resize is None else rest[1:]
    head = steps[: len(steps) - len(followers)]
    kinds = (LoadImaged, EnsureChannelFirstd, Orientationd, Spacingd, ScaleIntensityRanged, Resized)
    if not all(type(each) in kinds for each in head) or not all(map(_is_follower, followers)):
        return None
    keys = tuple(load.keys)
    if keys not in ((IMAGE,), (IMAGE, LABEL)):
        return None
    dtypes = [each.dtype[0] for each in followers if type(each) is EnsureTyped and each.dtype[0] is not None]
    limits = (scale.scaler.a_min, scale.scaler.a_max, scale.scaler.b_min, scale.scaler.b_max)
    # Neither arrays, which MONAI computes with in their own type, nor None, nor a window that gives NaN.
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in limits):
        return None
    if limits[0] == limits[1]:
        return None
    processing = ImageProcessing(
        target_spacing=tuple(float(length) for length in spacing.spacing_transform.pixdim),
        target_shape_dhw=() if resize is None else tuple(int(each) for each in resize.resizer.spatial_size),
        clip_hu_min=limits[0],
        clip_hu_max=limits[1],
        orientation_axcodes=str(orientation.ornt_transform.axcodes),
        scale_b_min=limits[2],
        scale_b_max=limits[3],
        # `EnsureTyped` also takes numpy's types, Python's and their names.
        torch_dtype=str(get_equivalent_dtype(dtypes[0] if dtypes else torch.float32, torch.Tensor))[6:],
    )
    is_smoothed = resize is None or bool(resize.anti_aliasing[0])
    loader = load._loader
    own = build_head(
        processing,
        has_label=LABEL in keys,
        has_channel=bool(channel),
        is_smoothed=is_smoothed,
        image_only=loader.image_only,
        reader=None if loader.auto_select else "NibabelReader",
    )
    reader, own_reader = _reader(loader), _reader(own[0]._loader)
    is_equal = (
        len(processing.target_spacing) == 3
        and len(processing.target_shape_dhw) in (0, 3)
        and directory_hash(own) == directory_hash(head)
        and all(type(each) in _MONAI_READERS for each in loader.readers)  # another may take some files
        and type(reader) is NibabelReader
        and _options(reader) == _options(own_reader)
        and _options(loader) == _options(own[0]._loader)
    )
    if not is_equal:
        return None
    text = f"{cache_params_text(steps)}\n{_options(loader)}"
    return Pipeline(
        processing, text, load, tuple(channel), orientation, spacing, tuple(followers), is_smoothed
    )


def _is_follower(transform: Any) -> bool:
    name = type(transform).__name__
    if name == "KeyCleanerD":  # ours or that of a predecessor's script
        return True
    return name in FOLLOWERS and type(transform) is getattr(monai.transforms, name, None)


def _reader(loader: Any) -> Any:
    """Return the reader that a loader tries first for a NIfTI file."""
    readers = reversed(loader.readers)
    return next(each for each in readers if not loader.auto_select or each.verify_suffix("a.nii.gz"))


def _options(loader: Any) -> dict[str, Any]:
    """Return what a loader or reader was made with, which the hash does not see."""
    return {name: value for name, value in vars(loader).items() if name not in ("filenames", "readers")}
