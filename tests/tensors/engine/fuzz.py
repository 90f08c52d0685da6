"""Random volumes through the engine and through stock MONAI: ``python -m tensors.engine.fuzz --cases 2000``.

Each case draws shape, type, storage, orientation, spacing and the settings of the pipeline. Stock's tensor is
the truth, bit by bit; a case that the engine leaves to MONAI must be one of those that it says it does.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from voxtier.errors import EngineLimitError
from voxtier.tensors.engine.engine import Engine
from voxtier.tensors.engine.pipelines import configured_pipeline
from voxtier.tensors.identity.config import ImageProcessing
from voxtier.tensors.identity.pipeline import build_transforms

ELEMENTS = ("int16", "int16", "int16", "uint8", "int8", "uint16", "int32", "uint32", "float32", "float64")


@dataclass(frozen=True)
class Case:
    """One volume and the settings of its pipeline."""

    shape: tuple[int, ...]
    element: str
    order: str
    """``<`` or ``>``: the order of bytes."""
    scaling: tuple[float, float] | None
    affine: np.ndarray[Any, np.dtype[np.float64]]
    is_gzipped: bool
    seed: int
    processing: ImageProcessing
    is_oblique: bool = False

    def write(self, folder: Path) -> Path:
        generator = np.random.default_rng(self.seed)
        kind = np.dtype(self.element)
        if kind.kind == "f":
            values = generator.normal(0, 800, self.shape).astype(kind)
            values.reshape(-1)[::7] = -0.0
        else:
            limits = np.iinfo(kind)
            low, high = max(-1500, limits.min), min(2500, limits.max)
            values = generator.integers(low, high + 1, self.shape).astype(kind)
        if self.element in ("int32", "uint32"):
            values.reshape(-1)[::5] = 16_777_217  # no float32
        image = nibabel.Nifti1Image(values, self.affine)
        image.header.set_data_dtype(kind)
        header = bytearray(image.to_bytes()[:352])
        for place, value in zip((112, 116), self.scaling or (1.0, 0.0), strict=True):
            header[place : place + 4] = np.float32(value).tobytes()
        content = bytes(header) + values.tobytes(order="F")
        if self.order == ">":
            swapped = nibabel.Nifti1Header(bytes(header[:348])).as_byteswapped(">")
            content = (
                swapped.binaryblock + bytes(4) + values.astype(kind.newbyteorder(">")).tobytes(order="F")
            )
        path = folder / f"{self.seed}.nii{'.gz' if self.is_gzipped else ''}"
        path.write_bytes(gzip.compress(content, 1) if self.is_gzipped else content)
        return path


def draw(random: np.random.Generator, seed: int, *, is_oblique: bool = False) -> Case:
    """Draw a case; every dimension of it on its own."""
    shape = tuple(int(length) for length in random.integers(2, 70, 3))
    if seed % 7 == 3:
        shape = tuple(1 if axis == seed % 3 else length for axis, length in enumerate(shape))
    lengths = [0.5, 0.7, 0.75, 0.9765625, 1.0, 1.5, 2.5, float(np.float32(random.uniform(0.3, 3)))]
    spacing = random.choice(lengths, 3)
    target = tuple(float(length) for length in random.choice([0.75, 1.0, 1.5, 3.0], 3))
    if seed % 11 == 5:
        target = tuple(float(length) for length in spacing)  # nothing to resample
    size = tuple(int(length) for length in random.integers(1, 64, 3))
    if seed % 13 == 6:
        size = shape
    affine = np.zeros((4, 4))
    permutation = random.permutation(3) if seed % 2 else np.arange(3)
    for axis, world in enumerate(permutation):
        affine[world, axis] = spacing[axis] * random.choice([-1, 1])
    affine[:3, 3] = random.uniform(-200, 200, 3)
    affine[3, 3] = 1.0
    if is_oblique:
        angle = random.uniform(1e-7, 0.4)
        turn = np.eye(4)
        first, second = random.permutation(3)[:2]
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        affine = turn @ affine
        if seed % 3 == 0:  # the tilt of a gantry
            affine[:3, 2] += affine[:3, 1] * random.uniform(-0.4, 0.4)
    low, high = [(-1000.0, 1000.0), (-1000, 400), (0.0, 250.0)][seed % 3]
    b_min, b_max = [(-1.0, 1.0), (0.0, 1.0), (-0.5, 3.0)][seed // 3 % 3]
    codes = ["".join(random.choice(list(pair)) for pair in ("LR", "PA", "IS"))]
    codes += ["".join(random.permutation(list(codes[0])))] if seed % 5 == 0 else []
    processing = ImageProcessing(
        target_spacing=target,
        target_shape_dhw=size,
        clip_hu_min=low,
        clip_hu_max=high,
        orientation_axcodes=codes[-1],
        scale_b_min=b_min,
        scale_b_max=b_max,
        torch_dtype=str(random.choice(["float32"] * 5 + ["float16", "bfloat16", "float64", "int16"])),
    )
    scalings = [(1.0, -1024.0), (0.5, 0.0), (0.1, -7.5), (-2.0, 3.0), (0.0, 5.0), (float("nan"), 0.0)]
    return Case(
        shape=shape,
        element=str(random.choice(ELEMENTS)),
        order=">" if random.random() < 0.1 else "<",
        scaling=scalings[int(random.integers(len(scalings)))] if random.random() < 0.3 else None,
        affine=affine,
        is_gzipped=bool(random.random() < 0.5),
        seed=seed,
        processing=processing,
        is_oblique=is_oblique,
    )


def bits(tensor: Any) -> np.ndarray[Any, Any]:
    """Return the bits of a tensor as integers."""
    tensor = tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return np.asarray(tensor.contiguous().view(kind).numpy())


def layout(tensor: Any) -> list[int]:
    """Return how far voxels lie apart in memory, axis by axis; torch sums in that order."""
    return [step for step, length in zip(tensor.stride(), tensor.shape, strict=True) if length > 1]


def compare(case: Case, folder: Path) -> str:
    """Return ``fused`` where the engine gives stock's bits, ``stock: reason`` where it leaves the case alone.

    Raises
    ------
    AssertionError
        The two differ.
    """
    path = case.write(folder)
    transforms = build_transforms(case.processing)
    item = {"image": path}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = transforms(item)
        except Exception as error:
            try:
                Engine(configured_pipeline(transforms, case.processing)).fuse(item)
            except Exception:
                return f"stock: refuses with {type(error).__name__}"
            raise AssertionError(f"MONAI refuses what the engine takes: {case}") from error
        try:
            made, _ = Engine(configured_pipeline(transforms, case.processing)).fuse(item)
        except EngineLimitError as limit:
            return f"stock: {limit.reason}"
    path.unlink()
    found, wanted = bits(made["image"]), bits(expected["image"])
    assert made["image"].dtype == expected["image"].dtype
    assert found.shape == wanted.shape
    unequal = int((found != wanted).sum())
    assert layout(made["image"]) == layout(expected["image"]), case
    assert unequal == 0, f"{unequal} of {wanted.size} voxels differ: {case}"
    assert repr(made["image_meta_dict"]) == repr(expected["image_meta_dict"]), case
    assert made.keys() == expected.keys()
    return "fused"


def run(cases: int, start: int, *, threads: int = 1) -> Counter[str]:
    """Compare a number of cases, and count what became of them."""
    torch.set_num_threads(threads)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(start, start + cases):
            case = draw(np.random.default_rng(seed), seed, is_oblique=seed % 20 == 19)
            found[compare(case, Path(folder)) + (", oblique" if case.is_oblique else "")] += 1
            if (seed - start) % 500 == 499:
                print(f"{seed - start + 1} cases: no bit differs", flush=True)
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", type=int, default=2000)
    options.add_argument("--start", type=int, default=1_000_000)
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    started = time.monotonic()
    print(run(chosen.cases, chosen.start, threads=chosen.threads))
    print(
        f"{chosen.cases} cases, {chosen.threads} threads: no bit differs; {time.monotonic() - started:.0f} s"
    )
    sys.exit(0)
