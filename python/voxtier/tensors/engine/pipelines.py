"""Which transforms are the pipeline of a configuration: those that the engine knows."""

from __future__ import annotations

from typing import Any

from monai.data.image_reader import NibabelReader
from monai.transforms import LoadImaged, Orientationd, Resized, ScaleIntensityRanged, Spacingd

from voxtier.tensors.identity.config import ImageProcessing
from voxtier.tensors.identity.pipeline import build_transforms, directory_hash


def find_processing(transforms: Any) -> ImageProcessing | None:
    """Return the settings that `build_transforms` makes equal transforms of, or None.

    Parameters
    ----------
    transforms : sequence
        Transforms with dictionaries, in order.

    Returns
    -------
    ImageProcessing or None
        None where a parameter of any transform differs from what the settings give.
    """
    transforms = list(transforms)
    kinds = (LoadImaged, Orientationd, Spacingd, ScaleIntensityRanged, Resized)
    if len(transforms) != 7 or not all(
        isinstance(each, kind) for each, kind in zip(transforms, kinds, strict=False)
    ):
        return None
    load, orientation, spacing, scale, resize, typed = transforms[:6]
    readers = load._loader.readers
    try:
        found = ImageProcessing(
            target_spacing=tuple(float(length) for length in spacing.spacing_transform.pixdim),
            target_shape_dhw=tuple(int(length) for length in resize.resizer.spatial_size),
            clip_hu_min=scale.scaler.a_min,
            clip_hu_max=scale.scaler.a_max,
            orientation_axcodes=str(orientation.ornt_transform.axcodes),
            scale_b_min=scale.scaler.b_min,
            scale_b_max=scale.scaler.b_max,
            torch_dtype=str(typed.dtype[0]).removeprefix("torch."),
        )
        own = build_transforms(found)
        is_equal = directory_hash(own.transforms) == directory_hash(transforms)
    except (AttributeError, TypeError, ValueError):  # parameters of other types than a configuration gives
        return None
    is_plain = (
        type(readers[-1]) is NibabelReader
        and _options(readers[-1]) == _options(own.transforms[0]._loader.readers[-1])
        and _options(load._loader) == _options(own.transforms[0]._loader)
    )
    return found if is_equal and is_plain else None


def _options(loader: Any) -> dict[str, Any]:
    """Return what a loader or reader was made with, which the hash does not see."""
    return {name: value for name, value in vars(loader).items() if name not in ("filenames", "readers")}
