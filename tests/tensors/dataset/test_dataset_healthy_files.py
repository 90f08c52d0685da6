"""`HealingPersistentDataset` replaces a damaged file only: whatever else fails, healthy bytes stay.

Failures of the surroundings (memory, device, permission), files of other programs and of older versions, and
items that stock MONAI saves and cannot load again.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import stat
import struct
import types
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from monai.data import DataLoader, PersistentDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose, Transform

from support.accounts import let_others_enter
from tensors.cases import fork
from voxtier.errors import NotLoadedError, SourceError
from voxtier.tensors import HealingPersistentDataset

# Python 3.12 warns at a fork beside threads, such as numpy's
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

FIXTURES = Path(__file__).parents[1] / "fixtures"


class Give(Transform):
    """Returns what it was given to return, and counts."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.calls = 0

    def __call__(self, _: Any) -> Any:
        self.calls += 1
        return self.value() if callable(self.value) else self.value


def dataset_of(give: Give, folder: Path, count: int = 1, **options: Any) -> HealingPersistentDataset:
    return HealingPersistentDataset([{"n": n} for n in range(count)], Compose([give]), folder, **options)


def path_of(dataset: PersistentDataset, index: int = 0) -> Path:
    return Path(dataset.cache_dir) / f"{pickle_hashing(dataset.data[index]).decode()}.pt"


def hashes(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too: nothing may appear, go or change."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def in_child(work: Callable[[], str]) -> str:
    """Run in a forked child, whose limits and rights end with it; return what it says."""
    read_end, write_end = os.pipe()

    def run() -> None:
        text = work()
        os.write(write_end, text.encode())

    process = fork(run)
    os.close(write_end)
    with os.fdopen(read_end) as stream:
        said = stream.read()
    process.join()
    assert process.exitcode == 0
    return said


def access(dataset: HealingPersistentDataset) -> str:
    try:
        dataset[0]
    except Exception as error:
        return " | ".join([type(error).__name__, str(error), *getattr(error, "__notes__", [])])
    return "served"


def limit_memory() -> None:
    """Leave 16 MiB of address space to this process, for threads and what is small."""
    torch.set_num_threads(1)  # a forked child has none of its parent's
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20),) * 2)


LARGE = 128 << 20
"""More than the memory that a process has freed and kept."""


@pytest.fixture
def large(tmp_path: Path) -> HealingPersistentDataset:
    """A dataset with one file of 128 MB; its transform gives something small."""
    dataset = dataset_of(Give({"image": torch.ones(3)}), tmp_path / "c")
    torch.save({"image": torch.zeros(LARGE, dtype=torch.uint8)}, path_of(dataset))
    return dataset


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("check", ["full", "structure"])
def test_a_healthy_file_stays_when_memory_is_short(
    check: str, weights_only: bool, large: HealingPersistentDataset
) -> None:
    """The previous version took the failed allocation for damage, and replaced the file."""
    large.check, large.weights_only = check, weights_only
    before = hashes(Path(large.cache_dir))

    def work() -> str:
        limit_memory()
        return access(large)

    said = in_child(work)
    assert said.startswith(("RuntimeError", "MemoryError")), said
    assert "not damaged (ok), and is left as it is" in said
    assert hashes(Path(large.cache_dir)) == before
    assert large[0]["image"].shape == (LARGE,)
    assert large.transform.transforms[0].calls == 0


def test_a_damaged_file_stays_when_memory_for_its_item_is_short(tmp_path: Path) -> None:
    dataset = dataset_of(Give(lambda: {"image": torch.zeros(LARGE, dtype=torch.uint8)}), tmp_path / "c")
    torch.save({"image": torch.ones(40)}, path_of(dataset))
    with path_of(dataset).open("r+b") as stream:
        stream.truncate(900)
    before = hashes(tmp_path / "c")

    def work() -> str:
        limit_memory()
        return access(dataset)

    said = in_child(work)
    assert "it could not be recomputed, and is kept" in said
    assert hashes(tmp_path / "c") == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
@pytest.mark.parametrize("device", ["cuda:0", "xpu:1", "mps", "some_device"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_a_device_that_is_not_here_is_as_stock_and_stays(
    zipped: bool, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_of(Give({"image": torch.ones(3)}), tmp_path / "c")
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: device)
        torch.save({"image": torch.ones(64)}, path_of(dataset), _use_new_zipfile_serialization=zipped)
    assert device.encode() in path_of(dataset).read_bytes()
    before = hashes(tmp_path / "c")
    stock = PersistentDataset(dataset.data, dataset.transform, tmp_path / "c")
    errors = []
    for each in (stock, dataset, dataset):
        with pytest.raises(Exception) as caught:
            each[0]
        errors.append(caught.value)
    assert [type(error) for error in errors] == [type(errors[0])] * 3
    assert "left as it is" in errors[1].__notes__[0]
    assert hashes(tmp_path / "c") == before
    assert dataset.transform.transforms[0].calls == 0


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder that every user may enter."""
    let_others_enter(tmp_path)
    return tmp_path


def as_nobody(work: Callable[[], str]) -> str:
    def run() -> str:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        return work()

    return in_child(run)


def test_a_file_without_permission_is_an_error_and_stays(open_folder: Path) -> None:
    dataset = dataset_of(Give({"image": torch.ones(3)}), open_folder)
    dataset[0]
    before = hashes(open_folder)
    dataset._verified.clear()
    path_of(dataset).chmod(0)
    said = as_nobody(lambda: access(dataset))
    path_of(dataset).chmod(0o644)
    assert said.startswith("SourceError")
    assert "Permission denied" in said
    assert hashes(open_folder) == before


def test_a_folder_without_permission_serves_healthy_and_damaged_items_and_keeps_them(
    open_folder: Path,
) -> None:
    dataset = dataset_of(Give({"image": torch.ones(30)}), open_folder, 3)
    for index in (0, 1):
        dataset[index]
    path_of(dataset, 1).write_bytes(path_of(dataset, 1).read_bytes()[:-200])
    before = hashes(open_folder)
    open_folder.chmod(0o555)

    def work() -> str:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert [torch.equal(item["image"], torch.ones(30)) for item in dataset] == [True] * 3
        return " | ".join(str(each.message) for each in caught)

    said = as_nobody(work)
    open_folder.chmod(0o755)
    assert said.count("could not be cached") == 2
    assert hashes(open_folder) == before


def write_legacy(value: Any, path: Path, **options: Any) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False, **options)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
@pytest.mark.parametrize("mapped", [False, True])
def test_a_legacy_cache_is_loaded_as_stock_loads_it_and_kept(mapped: bool, tmp_path: Path) -> None:
    from torch.utils.serialization import config

    give = Give(None)
    dataset = dataset_of(give, tmp_path / "c", 4)
    base = torch.arange(60.0).reshape(3, 4, 5)
    values = [
        {"image": base, "label": 1},
        {"image": base[1:, ::2], "mask": base > 3, "half": base.half(), "none": torch.zeros(0)},
        [torch.ones(3, dtype=torch.bfloat16), base, base],
        {"image": torch.nn.Parameter(base), "sparse": torch.eye(3).to_sparse()},
    ]
    for index, value in enumerate(values):
        write_legacy(value, path_of(dataset, index))
    before = hashes(tmp_path / "c")
    stock = [torch.load(path_of(dataset, index), weights_only=True) for index in range(4)]
    config.load.mmap = mapped
    try:
        for _ in range(2):
            for index in range(4):
                assert_same(dataset[index], stock[index])
    finally:
        config.load.mmap = False
    assert hashes(tmp_path / "c") == before
    assert give.calls == 0


@pytest.mark.parametrize("lost", [1, 100, 260, 700])
def test_a_cut_legacy_file_is_healed(lost: int, tmp_path: Path) -> None:
    give = Give({"image": torch.ones(30)})
    dataset = dataset_of(give, tmp_path / "c")
    write_legacy({"image": torch.ones(30)}, path_of(dataset))
    content = path_of(dataset).read_bytes()
    path_of(dataset).write_bytes(content[:-lost])
    assert torch.equal(dataset[0]["image"], torch.ones(30))
    assert give.calls == 1


@pytest.mark.parametrize("version", ["1.5.0", "1.5.2", "1.6.1"])
@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("track_meta", [True, False])
def test_a_cache_of_another_monai_keeps_every_byte(
    track_meta: bool, weights_only: bool, version: str, tmp_path: Path
) -> None:
    folder = tmp_path / version
    shutil.copytree(FIXTURES / f"monai-{version}", folder)
    known = json.loads((folder / "facts.json").read_text())
    before = hashes(folder)
    keys = dict(zip(map(str, known["items"]), known["keys"], strict=True))
    give = Give(None)
    dataset = HealingPersistentDataset(
        known["items"],
        Compose([give]),
        folder,
        hash_func=lambda item: keys[str(item)].encode(),
        weights_only=weights_only,
        track_meta=track_meta,
    )
    sums = [float(torch.as_tensor(item["image"]).double().sum()) for item in dataset]
    assert sums == known["sums"]
    assert hashes(folder) == before
    assert give.calls == 0


def npz(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), a=np.ones(3))
    path.with_suffix(".npz").rename(path)


def safetensors(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 1), torch.ones(2)), path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "write", [npz, safetensors, torchscript, lambda p: p.write_bytes(pickle.dumps({"a": 1}))]
)
def test_a_file_of_another_program_is_refused_and_stays(write: Any, tmp_path: Path) -> None:
    give = Give({"image": torch.ones(3)})
    dataset = dataset_of(give, tmp_path / "c")
    write(path_of(dataset))
    before = hashes(tmp_path / "c")
    for _ in range(2):
        with pytest.raises(NotLoadedError, match=r"not a file of torch.*left as it is"):
            dataset[0]
    assert hashes(tmp_path / "c") == before
    assert give.calls == 0


def test_a_link_whose_target_is_gone_is_an_error_and_stays(tmp_path: Path) -> None:
    dataset = dataset_of(Give({"image": torch.ones(3)}), tmp_path / "c")
    path_of(dataset).symlink_to(tmp_path / "gone.pt")
    with pytest.raises(SourceError, match="target is gone"):
        dataset[0]
    assert path_of(dataset).is_symlink()


def test_a_file_that_stock_monai_finishes_meanwhile_is_served_and_kept(tmp_path: Path) -> None:
    """Stock MONAI copies across devices in place, without claims: what looked cut is whole a moment later."""
    healthy = tmp_path / "healthy.pt"
    torch.save({"image": torch.full((30,), 7.0)}, healthy)
    folder = tmp_path / "c"

    def finish() -> Any:
        shutil.copy(healthy, path_of(dataset))
        return {"image": torch.zeros(30)}

    dataset = dataset_of(Give(finish), folder)
    path_of(dataset).write_bytes(healthy.read_bytes()[:500])
    assert torch.equal(dataset[0]["image"], torch.full((30,), 7.0))
    assert path_of(dataset).read_bytes() == healthy.read_bytes()


class Point(NamedTuple):
    x: int
    y: torch.Tensor


@dataclasses.dataclass
class Own:
    number: int
    name: str


class Colour(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


class Sub(dict):  # type: ignore[type-arg]
    pass


PLAIN: dict[str, Any] = {
    "path": Path("/data/ct.nii.gz"),
    "pure path": type(Path()).__mro__[1]("a/b"),
    "frozenset": frozenset([1, 2]),
    "set": {1, "two"},
    "range": range(2, 9, 3),
    "slice": slice(1, None),
    "date": datetime.date(2026, 1, 2),
    "datetime": datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC),
    "time": datetime.time(3, 4),
    "timedelta": datetime.timedelta(days=2, seconds=1),
    "decimal": decimal.Decimal("1.50"),
    "fraction": fractions.Fraction(2, 3),
    "uuid": uuid.UUID(int=7),
    "default dict": collections.defaultdict(list, {"a": [1]}),
    "counter": collections.Counter("abba"),
    "ordered dict": collections.OrderedDict(b=1, a=2),
    "namespace": types.SimpleNamespace(a=1),
    "arguments": argparse.Namespace(a=1),
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"ab"),
    "complex": 1 + 2j,
    "long integer": 10**40,
    "none": None,
    "text array": np.array(["a", "bc"]),
    "object array": np.array([None, "x", 3], dtype=object),
    "numpy number": np.float32(1.5),
    "namedtuple": Point(1, torch.ones(2)),
    "own dict": Sub(a=1),
}
OWN: dict[str, Any] = {
    "dataclass": Own(1, "a"),
    "enum": Colour.RED,
    "int enum": Number.ONE,
    "in a list": [1, {"deep": Own(2, "b")}],
    "module": torch.nn.Identity(),
}
NEVER: dict[str, Any] = {
    "function of os": os.getcwd,
    "lambda": lambda: 1,
    "open file": io.BytesIO().getbuffer(),
    "generator": (n for n in range(2)),
}


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left.to_dense(), right.to_dense()) if left.is_sparse else torch.equal(left, right)
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        assert left.tolist() == right.tolist()
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, torch.nn.Module):
        assert str(left) == str(right)
    else:
        assert left == right


def stock_value(value: Any, folder: Path) -> Any:
    """What stock MONAI gives from its file."""
    stock = PersistentDataset([{"n": 0}], Compose([Give({"v": value})]), folder, weights_only=False)
    stock[0]
    return stock[0]["v"]


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("case", PLAIN)
def test_a_plain_item_is_what_stock_gives_and_computed_once(
    case: str, weights_only: bool, tmp_path: Path
) -> None:
    expected = stock_value(PLAIN[case], tmp_path / "stock")
    give = Give({"v": PLAIN[case]})
    dataset = dataset_of(give, tmp_path / "c", weights_only=weights_only)
    for each in (dataset, dataset, dataset_of(give, tmp_path / "c", weights_only=weights_only)):
        assert_same(each[0]["v"], expected)
    assert give.calls == 1
    assert len(hashes(tmp_path / "c")) == 1


@pytest.mark.parametrize("case", OWN)
def test_an_own_class_is_refused_at_the_first_item_unless_it_is_allowed(case: str, tmp_path: Path) -> None:
    value = OWN[case]
    name = r"Identity" if case == "module" else rf"{__name__.rpartition('.')[2]}\.\w+"
    give = Give({"v": value})
    dataset = dataset_of(give, tmp_path / "c")
    for calls in (1, 2):
        with pytest.raises(
            NotLoadedError, match=rf"is not saved.*{name}.*add_safe_globals.*weights_only=False"
        ):
            dataset[0]
        assert give.calls == calls
    assert hashes(tmp_path / "c") == {}
    expected = stock_value(value, tmp_path / "stock")
    trusting = dataset_of(give, tmp_path / "c", weights_only=False)
    for _ in range(2):
        assert_same(trusting[0]["v"], expected)
    assert give.calls == 3
    before = hashes(tmp_path / "c")
    with pytest.raises(NotLoadedError, match=r"is not loaded.*left as it is"):
        dataset[0]
    with torch.serialization.safe_globals([Own, Colour, Number, torch.nn.Identity]):
        if case != "module":  # its parts are many
            assert_same(dataset[0]["v"], expected)
    assert hashes(tmp_path / "c") == before
    assert give.calls == 3


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("case", NEVER)
def test_what_cannot_be_cached_is_refused_and_no_disk_is_blamed(
    case: str, weights_only: bool, tmp_path: Path
) -> None:
    give = Give(lambda: {"v": NEVER[case]})
    dataset = HealingPersistentDataset([{"n": 0}], Compose([give]), tmp_path / "c", weights_only=weights_only)
    with pytest.raises(NotLoadedError, match=r"not saved|cannot be saved") as caught:
        dataset[0]
    assert "disk" not in str(caught.value)
    assert hashes(tmp_path / "c") == {}


def test_what_torch_refuses_though_it_is_harmless_is_refused_at_the_first_item(tmp_path: Path) -> None:
    give = Give({"v": collections.deque([1, 2])})
    with pytest.raises(NotLoadedError, match=r"is not saved.*Can only extend lists"):
        dataset_of(give, tmp_path / "c")[0]
    assert hashes(tmp_path / "c") == {}
    trusting = dataset_of(give, tmp_path / "c", weights_only=False)
    assert [trusting[0], trusting[0]] == [{"v": collections.deque([1, 2])}] * 2
    assert give.calls == 2


def test_a_pickle_protocol_that_cannot_be_loaded_is_refused_at_the_first_item(tmp_path: Path) -> None:
    """Stock MONAI saves, deletes and recomputes it at every access."""
    give = Give({"v": torch.ones(3)})
    dataset = dataset_of(give, tmp_path / "c", pickle_protocol=4)
    with pytest.raises(NotLoadedError, match="protocol 2, or weights_only=False"):
        dataset[0]
    assert hashes(tmp_path / "c") == {}
    trusting = dataset_of(give, tmp_path / "c", pickle_protocol=4, weights_only=False)
    trusting[0]
    assert torch.equal(trusting[0]["v"], torch.ones(3))
    assert give.calls == 2


def test_an_item_beyond_the_limit_of_the_check_is_refused_at_the_first_item(tmp_path: Path) -> None:
    give = Give({"v": list(range(2_100_000))})
    with pytest.raises(NotLoadedError, match="more than 2000000 values"):
        dataset_of(give, tmp_path / "c")[0]
    assert hashes(tmp_path / "c") == {}


def test_a_refusal_in_a_worker_arrives_as_such(tmp_path: Path) -> None:
    dataset = dataset_of(Give({"v": Own(1, "a")}), tmp_path / "c", 2)
    loader = DataLoader(dataset, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(NotLoadedError, match="add_safe_globals"):
        list(loader)


def test_new_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    dataset = dataset_of(Give({"v": 1}), tmp_path / "c")
    before = os.umask(0o027)
    try:
        dataset[0]
    finally:
        os.umask(before)
    assert stat.S_IMODE(path_of(dataset).stat().st_mode) == 0o640
