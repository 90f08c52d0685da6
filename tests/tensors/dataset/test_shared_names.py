"""Different items that one cache file would stand for are refused: one would get the tensor of the other."""

from __future__ import annotations

import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import PersistentDataset
from monai.data.utils import json_hashing, pickle_hashing
from monai.transforms import Compose, Lambda, ScaleIntensityd, Transform

from voxtier.errors import ConfigError
from voxtier.tensors import HealingPersistentDataset, claims, stable_hash, volume_hash
from voxtier.tensors.identity.sharing import is_small

PATIENTS = [{"image": f"/data/patient{n}/CT/image.nii.gz"} for n in (1, 2)]


class Digits(Transform):
    """A tensor of the digits in an item's path."""

    def __call__(self, item: Any) -> torch.Tensor:
        return torch.tensor([int(digit) for digit in str(item["image"]) if digit.isdigit()])


class Asked(Sequence[Any]):
    """A sequence that makes its items when they are asked for, and counts."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.count = items, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        self.count += 1
        return dict(self.items[index])


def made(items: Any, folder: Path, hash_func: Callable[..., bytes] = stable_hash) -> HealingPersistentDataset:
    return HealingPersistentDataset(items, Compose([Digits()]), folder, hash_func=hash_func)


@pytest.mark.parametrize(
    ("items", "hash_func", "said"),
    [
        (PATIENTS, stable_hash, "in ['image']: '/data/patient1/CT/image.nii.gz' and '/data/patient2/CT/"),
        ([{"image": Path(item["image"])} for item in PATIENTS], stable_hash, "patient2"),
        ([{"image": [item["image"], "/b"]} for item in PATIENTS], stable_hash, "in ['image'][0]"),
        (
            [{"image": "/1.nii", "volume_name": "a"}, {"image": "/2.nii", "volume_name": "a"}],
            volume_hash,
            "'/1.nii' and '/2.nii'",
        ),
        ([{"image": "/1.nii"}, {"image": "/1.nii", "fold": 1}], lambda _: b"same", "in ['fold']: None and 1"),
        (
            [{"image": "1", "at": np.array([1, 2])}, {"image": "1", "at": np.array([1, 3])}],
            lambda _: b"x",
            "",
        ),
    ],
)
def test_items_of_one_file_are_refused_when_the_dataset_is_made(
    tmp_path: Path, items: list[Any], hash_func: Callable[..., bytes], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        made(items, tmp_path, hash_func)
    text = str(refused.value)
    assert "the items 0 and 1 have one cache file" in text
    assert said in text
    assert "hash_func" in text
    assert made(items, tmp_path, pickle_hashing)[1].tolist() != []
    dataset = made(items[:1], tmp_path, hash_func)
    with pytest.raises(ConfigError, match="the items 0 and 1"):
        dataset.set_data(items)
    assert dataset.data == items[:1]


def test_an_item_may_be_listed_twice(tmp_path: Path) -> None:
    path = tmp_path / "a1" / "CT" / "image.nii.gz"
    item = {"image": str(path), "age": float("nan"), "box": np.array([1.0, np.nan]), "name": "x"}
    same = [dict(item), {**item, "image": path}, {**item, "image": os.path.relpath(path)}, {**item}]
    assert len(set(map(stable_hash, [item, *same]))) == 1
    dataset = made([item, *same, item], tmp_path / "cache")
    assert len({str(dataset[n].tolist()) for n in range(6)}) == 1
    again = pickle.loads(pickle.dumps(dataset))
    assert again._distinct.value is again.data


@pytest.mark.parametrize("one", ["ab", Path("ab")])
def test_one_path_is_one_item(one: str | Path, tmp_path: Path) -> None:
    """Not as many as it has letters."""
    dataset = made(one, tmp_path)
    assert list(dataset.data) == [one]
    dataset.set_data(one)
    assert (len(dataset), list(dataset.data)) == (1, [one])


def test_other_data_is_compared_when_it_is_asked_for(tmp_path: Path) -> None:
    asked = Asked([*PATIENTS, PATIENTS[0]])
    dataset = made(asked, tmp_path)
    assert asked.count == 0  # the items may cost much
    first = dataset[0]
    with pytest.raises(ConfigError, match=r"two items .*patient1.*patient2"):
        dataset[1]
    assert torch.equal(dataset[2], first)
    other = made(PATIENTS[:1], tmp_path)
    other.data = list(PATIENTS)
    assert torch.equal(other[0], first)
    with pytest.raises(ConfigError, match="patient2"):
        other[1]


def test_what_cannot_be_hashed_fails_when_it_is_asked_for(tmp_path: Path) -> None:
    dataset = made([{"image": "1", "file": object()}, {"image": "2"}], tmp_path)
    assert dataset[1].tolist() == [2]
    with pytest.raises(TypeError, match="stable text"):
        dataset[0]
    large = [{"image": str(n), "voxels": np.zeros((9, 9, 9))} for n in range(2)]
    assert made(large, tmp_path, lambda _: b"large")[1].tolist() == [
        1
    ]  # not compared: neither hash nor memory
    without_cache = HealingPersistentDataset(PATIENTS, Compose([Digits()]), None, hash_func=stable_hash)
    assert [without_cache[n].tolist() for n in range(2)] == [[1], [2]]


def access(dataset: HealingPersistentDataset, index: int, results: list[Any]) -> threading.Thread:
    """Ask for an item in a thread, which ends with this process if it waits for ever."""

    def ask() -> None:
        try:
            results.append(dataset[index])
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


def test_a_second_stage_that_reads_the_first_under_its_own_name_is_refused(tmp_path: Path) -> None:
    """It waited for ever for the claim of its own thread."""
    (tmp_path / "link").symlink_to("c")
    first = HealingPersistentDataset(["a"], Compose([Lambda(lambda _: torch.ones(3))]), tmp_path / "c")
    second = Compose([Lambda(lambda _: {"image": torch.zeros(2), "before": first[0]})])
    for folder in (tmp_path / "c", tmp_path / "link"):
        results: list[Any] = []
        access(HealingPersistentDataset(["a"], second, folder), 0, results).join(60)
        assert [type(result.__cause__) for result in results] == [ConfigError]
        assert "hash_transform" in str(results[0].__cause__)
    assert list((tmp_path / "c").iterdir()) == []
    apart = HealingPersistentDataset(["a"], second, tmp_path / "c", hash_transform=pickle_names)
    assert apart[0]["before"].tolist() == [1, 1, 1]


def pickle_names(transforms: Any) -> bytes:
    return pickle_hashing([type(transform).__name__ for transform in transforms])


def test_threads_that_would_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    both = threading.Barrier(2)
    first = HealingPersistentDataset([0, 1], Compose([Lambda(torch.tensor)]), tmp_path)

    def ask_for_the_other(item: int) -> Any:
        both.wait(60)
        return first[1 - item]

    second = HealingPersistentDataset([0, 1], Compose([Lambda(ask_for_the_other)]), tmp_path)
    results: list[Any] = []
    threads = [access(second, index, results) for index in range(2)]
    for thread in threads:
        thread.join(60)
    assert len(results) == 2
    assert ConfigError in [type(getattr(result, "__cause__", None)) for result in results]


def test_an_item_that_another_thread_makes_is_waited_for(tmp_path: Path) -> None:
    go_on, calls = threading.Event(), []

    def make(item: str) -> torch.Tensor:
        calls.append(item)
        assert go_on.wait(60)
        return torch.ones(2)

    dataset = HealingPersistentDataset(["a"], Compose([Lambda(make)]), tmp_path)
    results: list[Any] = []
    threads = [access(dataset, 0, results) for _ in range(2)]
    while not (calls and claims._waiting):
        assert all(thread.is_alive() for thread in threads), results
        time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert [result.tolist() for result in results] == [[1, 1]] * 2
    assert (len(calls), claims._holders, claims._waiting) == (1, {}, {})


def test_a_hash_of_the_transforms_that_sees_their_classes_alone_is_a_warning(tmp_path: Path) -> None:
    def hashes(hash_transform: Callable[..., bytes] | None) -> set[str]:
        found = set()
        for factor in (0.5, 2.0, 0.5):
            pipeline = Compose([Digits(), ScaleIntensityd("image", factor=factor)])
            options: dict[str, Any] = {"cache_dir": tmp_path, "hash_transform": hash_transform}
            own = HealingPersistentDataset([], pipeline, **options).transform_hash
            assert own == PersistentDataset([], pipeline, **options).transform_hash
            found.add(own)
        return found

    with pytest.warns(UserWarning, match="json_hashing cannot.*differ in parameters.*pickle_hashing") as said:
        assert len(hashes(json_hashing)) == 1
    assert [warning.filename for warning in said] == [__file__] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(hashes(pickle_hashing)) == 2
        assert hashes(None) == {""}
        HealingPersistentDataset([], Digits(), tmp_path, hash_transform=lambda _: b"own")


TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **{
        name: (lambda each, name=name: each.to(getattr(torch, name)))
        for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "complex32", "uint16", "bool")
    },
    "of bits": lambda each: each.to(torch.uint8).view(torch.bits8),
    "conjugate": lambda each: torch.complex(each, each).conj(),
    "negated view": lambda each: torch.complex(each, each).conj().imag,
    "with a gradient": lambda each: each.clone().requires_grad_(),
    "quantized": lambda each: torch.quantize_per_tensor(each, 0.5, 0, torch.qint8),
    "by channel": lambda each: torch.quantize_per_channel(
        each, torch.full((4,), 0.5), torch.zeros(4), 0, torch.qint8
    ),
    "sparse": lambda each: each.reshape(2, 2).to_sparse(),
    "by rows": lambda each: each.reshape(2, 2).to_sparse_csr(),
    "by columns": lambda each: each.reshape(2, 2).to_sparse_csc(),
    "by blocks": lambda each: each.reshape(2, 2).to_sparse_bsr((1, 2)),
    "by blocks of columns": lambda each: each.reshape(2, 2).to_sparse_bsc((2, 1)),
    "nested": lambda each: torch.nested.nested_tensor([each[:1], each[1:]]),
    "jagged": lambda each: torch.nested.nested_tensor([each[:1], each[1:]], layout=torch.jagged),
    "not in one piece": lambda each: torch.stack([each, each], 1).bfloat16()[:, 0],
    "a number": lambda each: each[3].bfloat16(),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", TENSORS)
def test_items_are_one_or_another_whatever_their_tensors_are(tmp_path: Path, kind: str) -> None:
    first, same, other = (TENSORS[kind](torch.tensor([1.0, 0.0, 2.0, last])) for last in (1.0, 1.0, 0.0))
    assert is_small({"w": first})
    items = [{"image": "1", "w": first}, {"image": "1", "w": same}]
    dataset = made(items, tmp_path / "one", lambda _: b"x")
    dataset.data = Asked(items)  # compared when they are asked for
    if "row" not in kind and "block" not in kind and "column" not in kind and kind != "nested":
        assert [dataset[n].tolist() for n in (0, 1, 0)] == [[1]] * 3  # torch can copy them
    with pytest.raises(ConfigError, match=r"the items 0 and 1 .* differ in \['w'\]"):
        made([items[0], {"image": "1", "w": other}], tmp_path / "two", lambda _: b"x")


def test_tensors_without_numbers_are_told_apart_by_form(tmp_path: Path) -> None:
    one, other = torch.ones(3, device="meta"), torch.ones(4, device="meta")
    made(
        [{"image": "1", "w": one}, {"image": "1", "w": torch.ones(3, device="meta")}],
        tmp_path,
        lambda _: b"x",
    )
    with pytest.raises(ConfigError, match="differ"):
        made([{"image": "1", "w": one}, {"image": "1", "w": other}], tmp_path, lambda _: b"x")
    with pytest.raises(ConfigError, match="differ"):  # equal numbers in another layout
        tensors = torch.eye(2), torch.eye(2).to_sparse()
        made([{"image": "1", "w": each} for each in tensors], tmp_path, lambda _: b"x")
