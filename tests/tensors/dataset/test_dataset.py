"""HealingPersistentDataset against stock behaviour: every damage, upgrades, concurrency, workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor, PersistentDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose, LoadImaged, RandScaleIntensityd, Spacingd, Transform

from tensors.keeping.damage import MATRIX
from voxtier.errors import NotLoadedError, SourceError
from voxtier.tensors import HealingPersistentDataset
from voxtier.tensors.identity.pipeline import _quiet_construction
from voxtier.tensors.keeping.migrate import monai_key

# Python 3.12 warns at a fork beside threads, such as numpy's
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

FIXTURES = Path(__file__).parents[1] / "fixtures"


class Compute(Transform):
    """Makes an image of an item's number, and leaves one line a call."""

    def __init__(self, journal: Path, seconds: float = 0.0) -> None:
        self.journal = journal
        self.seconds = seconds
        self.broken = False

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        if self.broken:
            raise FileNotFoundError("the raw file is gone")
        with self.journal.open("a") as stream:
            stream.write(f"{item['n']}\n")
        time.sleep(self.seconds)
        generator = torch.Generator().manual_seed(item["n"])
        return {"image": torch.rand((1, 32, 32, 32), generator=generator), "n": item["n"]}

    def calls(self) -> int:
        return len(self.journal.read_text().splitlines()) if self.journal.exists() else 0


class Refuse(Transform):
    def __call__(self, _: object) -> object:
        raise FileNotFoundError("the raw file is gone")


@pytest.fixture
def compute(tmp_path: Path) -> Compute:
    return Compute(tmp_path / "journal")


def healing(compute: Any, folder: Path, count: int = 1, **options: Any) -> HealingPersistentDataset:
    return HealingPersistentDataset([{"n": n} for n in range(count)], Compose([compute]), folder, **options)


def cached(dataset: PersistentDataset, index: int = 0) -> Path:
    return Path(dataset.cache_dir) / f"{pickle_hashing(dataset.data[index]).decode()}.pt"


def test_files_are_those_of_stock_monai(compute: Compute, tmp_path: Path) -> None:
    ours = healing(compute, tmp_path / "c", 3)
    mine = [ours[n] for n in range(3)]
    stock = PersistentDataset(ours.data, Compose([Refuse()]), tmp_path / "c")
    for left, right in zip(mine, stock, strict=True):
        assert torch.equal(left["image"], right["image"])
        assert type(left["image"]) is type(right["image"]) is torch.Tensor
    back = healing(Refuse(), tmp_path / "d", 3)
    PersistentDataset(ours.data, Compose([compute]), tmp_path / "d")[0]
    assert torch.equal(back[0]["image"], mine[0]["image"])


def test_a_cache_stays_when_the_working_folder_changes(
    compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other" / "c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    dataset = healing(compute, Path("c"), 2)
    first = dataset[0]["image"]
    monkeypatch.chdir(tmp_path / "other")
    assert torch.equal(dataset[0]["image"], first)
    dataset[1]
    assert compute.calls() == len(list((tmp_path / "c").iterdir())) == 2
    assert not list((tmp_path / "other" / "c").iterdir())


@pytest.mark.parametrize("case", MATRIX)
def test_every_damage_is_healed(case: str, compute: Compute, tmp_path: Path) -> None:
    first = healing(compute, tmp_path / "c")
    expected = first[0]["image"].clone()
    path = cached(first)
    content = path.read_bytes()
    path.write_bytes(MATRIX[case][0](content))
    fine = MATRIX[case][1] <= {"ok", "ok_trailing"}
    for dataset in (first, healing(compute, tmp_path / "c")):
        assert torch.equal(dataset[0]["image"], expected)
    assert compute.calls() == (1 if fine else 2)
    assert [p.name for p in (tmp_path / "c").iterdir()] == [path.name]
    assert torch.equal(torch.load(path)["image"], expected)


@pytest.mark.parametrize("case", [c for c, row in MATRIX.items() if not row[1] <= {"ok", "ok_trailing"}])
def test_a_damaged_file_stays_when_it_cannot_be_recomputed(
    case: str, compute: Compute, tmp_path: Path
) -> None:
    dataset = healing(compute, tmp_path / "c")
    dataset[0]
    path = cached(dataset)
    broken = MATRIX[case][0](path.read_bytes())
    path.write_bytes(broken)
    compute.broken = True
    with pytest.raises(Exception, match=r"raw file is gone|applying transform") as caught:
        healing(compute, tmp_path / "c")[0]
    assert "is kept" in str(getattr(caught.value, "__notes__", ""))
    assert path.read_bytes() == broken


def test_an_unreadable_file_is_an_error_and_stays(compute: Compute, tmp_path: Path) -> None:
    dataset = healing(compute, tmp_path / "c")
    path = cached(dataset)
    path.mkdir(parents=True)
    with pytest.raises(SourceError, match="left as it is"):
        dataset[0]
    assert path.is_dir()


def facts(version: str, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path / version
    shutil.copytree(FIXTURES / f"monai-{version}", folder)
    return folder, json.loads((folder / "facts.json").read_text())


def md5(item: Any) -> bytes:
    return monai_key(item, "md5").encode()


@pytest.mark.parametrize("version", ["1.5.0", "1.5.2", "1.6.1"])
def test_a_cache_of_another_version_is_kept_without_raw_files(version: str, tmp_path: Path) -> None:
    folder, known = facts(version, tmp_path)
    before = {path.name: path.read_bytes() for path in folder.glob("*.pt")}
    hash_func = pickle_hashing if version == "1.6.1" else md5
    dataset = HealingPersistentDataset(known["items"], Compose([Refuse()]), folder, hash_func=hash_func)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sums = [float(torch.as_tensor(item["image"]).double().sum()) for item in dataset]
    assert sums == known["sums"]
    assert {path.name: path.read_bytes() for path in folder.glob("*.pt")} == before
    assert len(before) == 10


def test_reading_an_old_file_leaves_torch_s_list_as_it_was(tmp_path: Path) -> None:
    """torch.serialization.safe_globals forgets on exit what MONAI had registered before."""
    folder, known = facts("1.5.0", tmp_path)
    before = set(torch.serialization.get_safe_globals())
    HealingPersistentDataset(known["items"], Compose([Refuse()]), folder, hash_func=md5)[0]
    assert set(torch.serialization.get_safe_globals()) == before


def test_stock_monai_loses_the_same_cache(tmp_path: Path) -> None:
    """The reason for all this: should MONAI learn to keep it, we want to know."""
    folder, known = facts("1.5.0", tmp_path)
    stock = PersistentDataset(known["items"], Compose([Refuse()]), folder, hash_func=md5)
    for index in range(10):
        with pytest.warns(UserWarning, match="Corrupt cache file"), pytest.raises(Exception):  # noqa: B017
            stock[index]
    assert list(folder.glob("*.pt")) == []


@pytest.mark.parametrize("version", ["1.5.0", "1.5.2", "1.6.1"])
def test_names_of_items_are_those_of_each_version(version: str) -> None:
    known = json.loads((FIXTURES / f"monai-{version}" / "facts.json").read_text())
    algorithm = "sha256" if version == "1.6.1" else "md5"
    for item, key in [*zip(known["items"], known["keys"], strict=True), *known["shapes"]]:
        assert monai_key(item, algorithm) == key


@pytest.mark.parametrize(
    ("index", "key"),
    [(0, "ba5f88a12f1d"), (1, "1f1638955a89"), (2, "19c13b8842e9"), (3, "b2c071d28b34"), (4, "0e49d85b28c7")],
)
def test_md5_names_of_items_match_the_vectors(index: int, key: str) -> None:
    item = json.loads((FIXTURES / "monai-1.5.2" / "facts.json").read_text())["shapes"][index][0]
    assert monai_key(item, "md5").startswith(key)


def test_a_metatensor_with_metadata_is_computed_once(tmp_path: Path) -> None:
    """Stock 1.6.1 with track_meta and weights_only deletes and recomputes every item on every access."""
    nibabel.save(nibabel.Nifti1Image(np.arange(60.0).reshape(5, 4, 3), np.eye(4)), tmp_path / "v.nii.gz")
    journal = Compute(tmp_path / "journal")

    class Count(Transform):
        def __call__(self, item: Any) -> Any:
            with journal.journal.open("a") as stream:
                stream.write("x\n")
            return item

    with _quiet_construction():
        load = LoadImaged("image", reader="NibabelReader", ensure_channel_first=True)
    steps = Compose(
        [
            Count(),
            load,
            Spacingd("image", (1, 1, 2)),
        ]
    )
    dataset = HealingPersistentDataset(
        [{"image": str(tmp_path / "v.nii.gz")}], steps, tmp_path / "c", track_meta=True, weights_only=True
    )
    items = [dataset[0] for _ in range(3)]
    assert journal.calls() == 1
    assert {type(item["image"]) for item in items} == {MetaTensor}
    assert torch.equal(items[0]["image"].affine, items[2]["image"].affine)
    assert items[2]["image"].applied_operations


def test_the_second_recomputation_is_a_warning(compute: Compute, tmp_path: Path) -> None:
    dataset = healing(compute, tmp_path / "c")
    dataset[0]
    path = cached(dataset)
    path.write_bytes(b"")
    dataset[0]
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match="recomputed again"):
        dataset[0]
    assert dataset.recomputed[path.name] == 2


def test_a_bare_function_first_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="caches the raw item"):
        HealingPersistentDataset([{"n": 1}], Compose([lambda item: item]), tmp_path / "c")


def test_set_data_keeps_the_files(compute: Compute, tmp_path: Path) -> None:
    dataset = healing(compute, tmp_path / "c", 2)
    dataset[0]
    dataset.set_data([{"n": 5}])
    assert len(dataset) == 1
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_an_evil_file_is_never_loaded(compute: Compute, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    for weights_only in (True, False):
        for zipped in (True, False):
            dataset = healing(compute, tmp_path / "c", weights_only=weights_only)
            torch.save({"image": Evil()}, cached(dataset), _use_new_zipfile_serialization=zipped)
            before = cached(dataset).read_bytes()
            for _ in range(2):
                with pytest.raises(NotLoadedError, match=r"posix\.system.*left as it is"):
                    dataset[0]
            assert cached(dataset).read_bytes() == before
    assert not marker.exists()
    assert compute.calls() == 0


def test_a_random_transform_stays_random(compute: Compute, tmp_path: Path) -> None:
    steps = Compose([compute, RandScaleIntensityd("image", factors=0.5, prob=1.0)])
    dataset = HealingPersistentDataset([{"n": 1}], steps, tmp_path / "c")
    assert not torch.equal(dataset[0]["image"], dataset[0]["image"])
    assert compute.calls() == 1


def test_without_a_cache_folder_every_access_computes(compute: Compute) -> None:
    dataset = HealingPersistentDataset([{"n": 1}], Compose([compute]), None)
    dataset[0]
    dataset[0]
    assert compute.calls() == 2


def test_dataloader_workers_share_the_work(compute: Compute, tmp_path: Path) -> None:
    dataset = healing(compute, tmp_path / "c", 8)
    loader = DataLoader(dataset, num_workers=2, batch_size=2, multiprocessing_context="fork")
    for _ in range(2):
        assert sum(batch["image"].shape[0] for batch in loader) == 8
    assert compute.calls() == 8


def _read_all(folder: Path, journal: Path) -> None:
    dataset = healing(Compute(journal, seconds=0.02), folder, 16)
    for item in dataset:
        assert item["image"].shape == (1, 32, 32, 32)


def test_four_ranks_compute_sixteen_items_once_each(compute: Compute, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_read_all, args=(tmp_path / "c", compute.journal)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    assert compute.calls() == 16


def test_a_full_disk_is_reported_and_the_item_is_served(
    compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = healing(compute, tmp_path / "c")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("voxtier.tensors.dataset.save_checked", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert dataset[0]["image"].shape == (1, 32, 32, 32)
    assert list((tmp_path / "c").iterdir()) == []
