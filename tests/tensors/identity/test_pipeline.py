"""The directory hash and ``cache_params.json``, byte for byte those of the predecessor."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from voxtier.tensors import build_transforms, cache_params_text, directory_hash
from voxtier.tensors.identity.config import ImageProcessing

SMALL = ImageProcessing(
    target_spacing=(1.5, 1.5, 3.0),
    target_shape_dhw=(16, 32, 32),
    clip_hu_min=-1000,
    clip_hu_max=1000,
    orientation_axcodes="LPS",
    scale_b_min=-1.0,
    scale_b_max=1.0,
    torch_dtype="float32",
)
LARGE = dataclasses.replace(SMALL, target_shape_dhw=(128, 256, 256), target_spacing=(0.75, 0.75, 1.5))
VECTORS = [
    (SMALL, "17e95ace6fb8b3620cedcb3aaf6a1f1d"),
    (dataclasses.replace(SMALL, scale_b_min=-1, scale_b_max=1), "a2e2f962ab61c0e965959873ce5d2cce"),
    (LARGE, "0bc58549041336377d0bae56dd124b3e"),
    (dataclasses.replace(LARGE, torch_dtype="float16"), "73dc765f10b27e6e791b007ea25908fd"),
]


@pytest.mark.parametrize(("settings", "expected"), VECTORS)
def test_directory_hash_vectors(settings: ImageProcessing, expected: str) -> None:
    assert directory_hash(build_transforms(settings)) == expected


def test_cache_params_bytes() -> None:
    text = cache_params_text(build_transforms(SMALL))
    assert len(text) == 4725
    assert hashlib.sha256(text.encode("ascii")).hexdigest()[:16] == "bed2ca50b467a8a6"


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_what_the_docstring_says_is_not_seen_is_not_seen() -> None:
    """Of caches that exist the names stay, so these cannot be added."""
    from monai.transforms import Compose, LoadImaged, Resized

    def name(*, lazy: bool = False, **options: object) -> str:
        return directory_hash(Compose([LoadImaged("image", **options), Resized("image", 6)], lazy=lazy))

    unseen = {
        "lazy": True,
        "reader": "NibabelReader",
        "dtype": np.float64,
        "ensure_channel_first": True,
        "image_only": False,
        "simple_keys": True,
        "prune_meta_pattern": "x",
    }
    assert {name(**{option: value}) for option, value in unseen.items()} == {name()}
    assert all(f"``{option}``" in str(directory_hash.__doc__) for option in unseen)
    assert name(overwriting=True) != name()


def test_a_lambda_has_no_hash() -> None:
    from monai.transforms import Lambdad

    with pytest.raises(TypeError, match="cannot be part of a cache key"):
        directory_hash([Lambdad(keys="image", func=len), np.ufunc])
