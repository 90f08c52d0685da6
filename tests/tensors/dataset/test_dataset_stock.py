"""What transforms draw and leave in items, with HealingPersistentDataset as with MONAI's own class."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, PersistentDataset, ThreadDataLoader, decollate_batch
from monai.data.utils import set_rnd
from monai.transforms import (
    Compose,
    Invertd,
    OneOf,
    Randomizable,
    RandomOrder,
    SomeOf,
    Transform,
)

from voxtier.tensors import HealingPersistentDataset
from voxtier.tensors.engine.pipelines import IMAGE
from voxtier.tensors.identity.config import ImageProcessing
from voxtier.tensors.identity.pipeline import build_head

# Python 3.12 warns at a fork beside threads, such as numpy's
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

ITEMS = [{"n": number} for number in range(6)]
PROCESSING = ImageProcessing((1.5, 1.5, 1.5), (12, 12, 12), -1000.0, 1000.0, "RAS", 0.0, 1.0, "float32")


class Number(Transform):
    def __call__(self, item: Any) -> dict[str, Any]:
        return {"n": item["n"], "drawn": torch.zeros(0, dtype=torch.float64)}


class Draw(Randomizable, Transform):  # type: ignore[misc]  # (MONAI is untyped)
    """Notes the number that it draws."""

    def randomize(self, _: object = None) -> None:
        self.drawn = float(self.R.random_sample())

    def __call__(self, item: Any) -> dict[str, Any]:
        self.randomize()
        return {**item, "drawn": torch.cat([item["drawn"], torch.tensor([self.drawn]).double()])}


class DrawArray(Draw):
    def __call__(self, array: torch.Tensor) -> torch.Tensor:
        drawn: torch.Tensor = super().__call__({"drawn": array})["drawn"]
        return drawn


class ToArray(Transform):
    def __call__(self, item: Any) -> torch.Tensor:
        return torch.full((1,), float(item["n"])).double()


def draws(count: int) -> list[Any]:
    return [Draw() for _ in range(count)]


CONTAINERS: dict[str, Callable[[], Any]] = {
    "one after the other": lambda: Compose([Number(), *draws(3)]),
    "nested": lambda: Compose([Number(), Compose([Draw(), Compose(draws(2))]), *draws(2)]),
    "one of several": lambda: Compose([Number(), OneOf(draws(3)), Draw()]),
    "some of several": lambda: Compose([Number(), SomeOf(draws(4), num_transforms=3), Draw()]),
    "in any order": lambda: Compose([Number(), RandomOrder(draws(3))]),
    "arrays": lambda: Compose([ToArray(), DrawArray(), DrawArray()]),
}


def drawn_of(dataset: Any, loader: Any, **options: Any) -> list[Any]:
    torch.manual_seed(0)
    made = loader(dataset, batch_size=2, **options)
    batches = [batch if isinstance(batch, torch.Tensor) else batch["drawn"] for _ in "ab" for batch in made]
    return torch.cat(batches).tolist()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    ("loader", "options"),
    [
        (DataLoader, {}),
        (DataLoader, {"num_workers": 2}),
        (ThreadDataLoader, {}),
        (ThreadDataLoader, {"num_workers": 1, "use_thread_workers": True}),
    ],
)
def test_random_transforms_draw_what_they_draw_in_monai(
    tmp_path: Path, container: str, loader: Any, options: dict[str, Any]
) -> None:
    make = CONTAINERS[container]
    wanted = drawn_of(PersistentDataset(ITEMS, make(), tmp_path / "stock"), loader, **options)
    ways = (lambda each: each, copy, deepcopy, lambda each: pickle.loads(pickle.dumps(each)))
    for way in ways[: 1 if options else None]:
        dataset = way(HealingPersistentDataset(list(ITEMS), make(), tmp_path / "ours"))
        assert drawn_of(dataset, loader, **options) == wanted
    assert len({number for item in wanted for number in item[-2:]}) > 6  # they do differ


def test_no_way_but_one_leads_from_a_dataset_to_its_transforms_and_items(tmp_path: Path) -> None:
    """Once seeds are handed out, each thing was met as often as in the dataset of MONAI."""

    class Met:
        count = 0

        def set_random_state(self, seed: int) -> None:
            self.count += 1

    found = []
    for kind in (PersistentDataset, HealingPersistentDataset):
        step, item = Met(), Met()
        dataset = kind([item], Compose([Number()]), tmp_path, hash_func=lambda _: b"x")
        dataset.transform.set_random_state = step.set_random_state
        set_rnd(dataset, seed=1)
        dataset.set_data([item])
        set_rnd(dataset, seed=1)
        found.append((step.count, item.count))
    assert found == [(2, 2)] * 2


@pytest.fixture
def image(tmp_path: Path) -> str:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (20, 18, 14)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.2, 0.9, 2.0, 1.0])), tmp_path / "a.nii.gz")
    return str(tmp_path / "a.nii.gz")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_without_a_cache_folder_an_item_keeps_its_history(image: str) -> None:
    transform = Compose(build_head(PROCESSING, image_only=True))
    stock = PersistentDataset([{IMAGE: image}], transform, None)
    ours = HealingPersistentDataset([{IMAGE: image}], transform, None)
    history = [[step["class"] for step in each[0][IMAGE].applied_operations] for each in (stock, ours)]
    assert history[0] == history[1] != []
    back = Invertd(keys=["pred"], transform=transform, orig_keys=[IMAGE], nearest_interp=False)
    inverted = []
    for dataset in (stock, ours):
        (item,) = decollate_batch(next(iter(DataLoader(dataset, batch_size=1))))
        inverted.append(back({**item, "pred": item[IMAGE]})["pred"])
    assert inverted[0].shape == (1, 20, 18, 14)
    assert torch.equal(*inverted)


def test_steps_that_are_exchanged_in_their_list_are_done(image: str, tmp_path: Path) -> None:
    steps = build_head(PROCESSING, image_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        items = [{IMAGE: image, "n": number} for number in range(4)]
        dataset = HealingPersistentDataset(items, Compose(steps), tmp_path / "a")
        dataset.transform.transforms = list(steps)
        for number in range(4):  # the core is proved then, and not compared any more
            assert dataset[number][IMAGE].shape == (1, 12, 12, 12)
        dataset.cache_dir = tmp_path / "b"
        dataset.cache_dir.mkdir()
        dataset.transform.transforms[-1:] = []
        wanted = PersistentDataset([{IMAGE: image}], Compose(steps[:-1]), None)[0]
        assert dataset[0][IMAGE].shape == wanted[IMAGE].shape != (1, 12, 12, 12)
