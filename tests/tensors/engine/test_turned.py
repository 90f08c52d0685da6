"""Volumes that are turned and not resampled lie in memory as MONAI leaves them: torch sums in that order."""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("monai")

import torch
from monai.data import PersistentDataset
from monai.transforms import (
    Compose,
    NormalizeIntensityd,
    Orientationd,
    Resized,
    ScaleIntensityRanged,
    Spacingd,
)

from support.depth import depth
from tensors.engine import fuzz
from tensors.engine.test_generate import hashes
from voxtier.tensors.dataset import HealingPersistentDataset
from voxtier.tensors.engine.engine import Engine
from voxtier.tensors.engine.pipelines import find_pipeline
from voxtier.tensors.identity.pipeline import build_head

pytestmark = pytest.mark.usefixtures("one_thread")


def write(path: Path, shape: Any, order: Any, signs: Any = (1, 1, 1), *, seed: int = 0) -> str:
    """Write a volume whose axes are the world's in that order."""
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for world, axis in enumerate(order):
        affine[world, axis] = signs[axis]
    values = np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return str(path)


def head(keys: list[str], codes: str, spacing: Any = (1.0, 1.0, 1.0)) -> list[Any]:
    from tensors.engine.test_pipelines import PROCESSING

    has_label = len(keys) > 1
    load = build_head(PROCESSING, has_label=has_label, image_only=True)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        turn = Orientationd(keys, codes)
    space = Spacingd(keys, spacing, mode=("bilinear", "nearest")[: len(keys)])
    return [load, turn, space, ScaleIntensityRanged(["image"], -1000, 1000, 0.0, 1.0, clip=True)]


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_a_mean_over_a_turned_volume_has_the_bits_of_monai(tmp_path: Path, order: Any) -> None:
    data = [
        {"image": write(tmp_path / f"{number}.nii", (40, 32, 16), order, seed=number)} for number in range(6)
    ]
    transforms = Compose([*head(["image"], "RAS"), NormalizeIntensityd(["image"])])
    stock = PersistentDataset(data, transforms, tmp_path / "stock")
    fused = HealingPersistentDataset(data, transforms, tmp_path / "fused")
    left = HealingPersistentDataset(data, transforms, tmp_path / "left to MONAI", engine="stock")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(6):
            stock[number], left[number]
            made, expected = fused[number]["image"], stock[number]["image"]
            assert np.array_equal(fuzz.bits(made), fuzz.bits(expected))
            assert made.stride() == expected.stride()  # also those of the file
    assert fused._pipeline is not None
    assert hashes(tmp_path / "fused") == hashes(tmp_path / "left to MONAI")


SHAPES = [(12, 10, 8), (5, 5, 5), (1, 10, 8), (12, 1, 8), (12, 10, 1), (1, 1, 8)]
TURNS = [("RAS", (1, 1, 1)), ("LPS", (-1, 1, 1)), ("ASR", (1, -1, -1)), ("SLA", (-1, -1, 1))]


@cache
def steps_and_engine(number: int, spacing: Any, size: Any) -> tuple[list[Any], Engine]:
    """Return the transforms to the codes of that number, for every second of them with a label."""
    keys = ["image", "label"][: 1 + number % 2]
    steps = head(keys, TURNS[number][0], spacing)
    if size:
        modes = {"mode": ("trilinear", "nearest")[: len(keys)], "anti_aliasing": False}
        steps.append(Resized(keys, size, **modes))
    pipeline = find_pipeline(steps)
    assert pipeline is not None
    return steps, Engine(pipeline)


@pytest.mark.deep
@pytest.mark.parametrize("shape", SHAPES)
def test_every_turn_has_the_layout_of_monai(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """Also of labels and slices; and what is resampled is dense in the order of its axes.

    Each order of axes that a turn leads to is there with and without labels, and with each way to resample.
    """
    same = (1.0, 1.0, 1.0)
    ways = [(same, None), (same, (6, 5, 7)), (same, shape), ((1.0, 1.0, 1.5), None)]
    met: Counter[Any] = Counter()
    for order, (number, (codes, signs)) in product(permutations(range(3)), enumerate(TURNS)):
        path = write(tmp_path / "a.nii", shape, order, signs)
        world = {"RL": 0, "AP": 1, "SI": 2}
        turn = tuple(order[axis] for code in codes for pair, axis in world.items() if code in pair)
        first = sum(turn[:2]) + number  # of this turn, another one for each of the four codes
        for place in range(depth(2, 4)):
            way = (first + place) % 4
            steps, engine = steps_and_engine(number, *ways[way])
            keys = steps[0].keys
            item = dict.fromkeys(keys, path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made, expected = engine.fuse(item)[0], Compose(steps)(item)
            met[turn, way, len(keys)] += 1
            for key in keys:
                assert fuzz.layout(made[key]) == fuzz.layout(expected[key]), (order, codes, ways[way], key)
                assert torch.equal(made[key].as_tensor(), expected[key].as_tensor())
    assert (len(met), {*met.values()}) == (6 * 4 * 2, {depth(1, 2)})
