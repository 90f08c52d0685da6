"""The MONAI transforms of a configuration, and the hash of their parameters that names a cache folder.

The hash is the predecessor's, byte for byte: caches that it made are found again.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    MapTransform,
    Orientationd,
    Resized,
    ScaleIntensityRanged,
    Spacingd,
)

from voxtier.system.fork import after_fork_in_child

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import ImageProcessing

KEPT = ("image", "image_meta_dict")
_SKIPPED = frozenset(["f", "g", "R", "lazy", "backend", "end_pending", "progress", "VERSION"])


class KeyCleanerD(MapTransform):  # type: ignore[misc]  # (MONAI is untyped)
    """Keep the named keys of an item, in the order in which they are named.

    The class name is part of every directory hash: it stays.
    """

    def __init__(self, keys_to_keep: tuple[str, ...]) -> None:
        super().__init__(keys=keys_to_keep, allow_missing_keys=True)
        self.keys_to_keep = tuple(keys_to_keep)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return a new dict of the kept keys."""
        return {key: item[key] for key in self.keys_to_keep if key in item}


def build_transforms(processing: ImageProcessing) -> Compose:
    """Return the transforms whose result is cached: all of them are deterministic."""
    typed = EnsureTyped(keys=["image"], dtype=getattr(torch, processing.torch_dtype))
    return Compose([*build_head(processing), typed, KeyCleanerD(KEPT)])


def build_head(
    processing: ImageProcessing,
    *,
    has_label: bool = False,
    has_channel: bool = False,
    is_smoothed: bool = True,
    image_only: bool = False,
    reader: str | None = "NibabelReader",
) -> list[Any]:
    """Return the transforms from file to intensities and, with a target shape, to that shape.

    Parameters
    ----------
    processing : ImageProcessing
        The settings; an empty ``target_shape_dhw`` leaves `Resized` out.
    has_label : bool
        Whether a ``label`` goes the same way, by nearest neighbour.
    has_channel : bool
        Whether `EnsureChannelFirstd` follows the loader, instead of the loader's option.
    is_smoothed : bool
        ``anti_aliasing`` of the image.
    image_only, reader : bool, str or None
        As for `LoadImaged`.

    Returns
    -------
    list of monai.transforms.Transform
        In order.
    """
    keys = ["image", "label"] if has_label else ["image"]
    image = ["image"]
    modes = [("bilinear", "trilinear", is_smoothed), ("nearest", "nearest", False)][: len(keys)]
    of_spacing, of_shape, smoothed = zip(*modes, strict=True)
    channel = [EnsureChannelFirstd(keys=keys)] if has_channel else []
    with _construction_lock, _quiet_construction():
        steps = [
            LoadImaged(keys=keys, image_only=image_only, ensure_channel_first=not has_channel, reader=reader),
            *channel,
            Orientationd(keys=keys, axcodes=processing.orientation_axcodes),
            Spacingd(keys=keys, pixdim=np.array(processing.target_spacing), mode=of_spacing),
            ScaleIntensityRanged(
                keys=image,
                a_min=processing.clip_hu_min,
                a_max=processing.clip_hu_max,
                b_min=processing.scale_b_min,
                b_max=processing.scale_b_max,
                clip=True,
            ),
        ]
    size = processing.target_shape_dhw
    resize = [Resized(keys=keys, spatial_size=size, mode=of_shape, anti_aliasing=smoothed)] if size else []
    return [*steps, *resize]


_construction_lock = threading.Lock()  # warning filters belong to the whole process


def _begin_child() -> None:
    global _construction_lock
    _construction_lock = threading.Lock()


after_fork_in_child(_begin_child)


@contextlib.contextmanager
def _quiet_construction() -> Iterator[None]:
    """Silence two warnings of the constructors that no user can act on.

    LoadImaged tries every DICOM reader and reports the one that lacks a codec. Orientationd announces a new
    default of ``labels``, which cannot be passed here: it is part of the hash.
    """
    logger = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader", category=UserWarning)
            warnings.filterwarnings("ignore", message=".*Orientationd.*labels", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def transform_params(transforms: object) -> Any:
    """Return the public parameters of transforms as a tree of values that `_json_value` can write."""
    if isinstance(transforms, list | tuple):
        return [transform_params(item) for item in transforms]
    class_text = str(transforms.__class__)
    if "monai.transforms" not in class_text and "monai.data" not in class_text:
        return transforms
    params: dict[str, Any] = {"class": type(transforms).__name__}
    for name, value in inspect.getmembers(transforms):
        if not (
            name.startswith("_") or name in _SKIPPED or inspect.ismethod(value) or inspect.isfunction(value)
        ):
            params[name] = transform_params(value)
    return params


def directory_hash(transforms: object) -> str:
    """Return the name of the cache folder of these transforms, 32 hexadecimal digits.

    It does not see all that changes a tensor: ``lazy`` of a transform or of `Compose`, and of `LoadImaged`
    what its loader keeps (``reader``, ``dtype``, ``ensure_channel_first``, ``image_only``, ``simple_keys``,
    ``prune_meta_pattern``), and functions among the parameters, such as ``select_fn`` of `CropForegroundd`.
    Pipelines that differ in these alone need folders of their own.

    Raises
    ------
    TypeError
        A parameter cannot be written as JSON, for instance a lambda.
    """
    once = json.dumps(transform_params(transforms), sort_keys=True, default=_json_value)
    # The predecessor encoded the text a second time, and its folders are named by that.
    return hashlib.md5(json.dumps(once).encode(), usedforsecurity=False).hexdigest()


def cache_params_text(transforms: object) -> str:
    """Return the content of ``cache_params.json``."""
    return json.dumps(transform_params(transforms), indent=4, default=_json_value)


def _json_value(value: object) -> Any:
    if type(value).__name__ == "KeyCleanerD":
        return {"class": "KeyCleanerD", "keys_to_keep": sorted(value.keys_to_keep)}  # type: ignore[attr-defined]
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, Path | torch.dtype):
        return str(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, np.random.RandomState):
        return "np.random.RandomState object"
    raise TypeError(
        f"a transform parameter of type {type(value).__name__} cannot be part of a cache key: use a named"
        " transform instead"
    )
