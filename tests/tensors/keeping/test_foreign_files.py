"""Files that `torch.save` of today did not write: each has its state, and `--fix` moves none of them."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from tensors.cases import rows, run_cli
from voxtier import _core

Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Own:
    number: int


class Colour(enum.Enum):
    RED = 1


VALUE = {"image": torch.arange(64.0), "n": [1, 2.5, "x"]}


def own(case: str) -> Any:
    return OWN[case]() if case == "nested" else OWN[case]


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def npz(*, compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, a=np.arange(50), b=np.ones(3))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(9))
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content of " + name.encode())
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    return buffer.getvalue()


def safetensors(size: int = 12) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def torchscript() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 1), torch.ones(2)), buffer)
    return buffer.getvalue()


def exported() -> bytes:
    names = "archive_format", "models/model.json", "byteorder", "data/constants/model_constants_config.json"
    return zipped(*(f"program/{name}" for name in names), "program/.data/serialization_id")


def nifti() -> bytes:
    return bytes(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4)).to_bytes())


def flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


FOREIGN: dict[str, Callable[[], bytes]] = {
    "npz": npz,
    "npz, compressed": lambda: npz(compressed=True),
    "npz, damaged": lambda: flipped(npz()),
    "npz, cut": lambda: npz()[:-60],
    "npy": npy,
    "safetensors": safetensors,
    "safetensors, cut": lambda: safetensors(5),
    "TorchScript": torchscript,
    "TorchScript, damaged": lambda: flipped(torchscript()),
    "torch.export": exported,
    "zip": lambda: zipped("word/document.xml", "docProps/app.xml", "version"),
    "zip of loose records": lambda: zipped("data.pkl", "version", "byteorder"),
    "zip, cut": lambda: zipped("a.txt", "b/c.txt")[:-30],
    "gzip of a torch file": lambda: gzip.compress(saved(VALUE)),
    "gzip, cut": lambda: gzip.compress(saved(VALUE))[:-9],
    "tar": tar,
    "NIfTI": nifti,
    "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(600),
    "DICOM": lambda: bytes(128) + b"DICM" + bytes(300),
    "pointer of Git LFS": lambda: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    ),
    **{f"pickle {n}": lambda n=n: pickle.dumps({"a": np.ones(3), "b": [1, 2.5, "x"]}, n) for n in range(6)},
    "two pickles": lambda: pickle.dumps(1) + pickle.dumps([2]),
    "pickle, cut": lambda: pickle.dumps({"a": np.ones(30)})[:-20],
}
OWN: dict[str, Any] = {
    "namedtuple": Point(1, torch.ones(70)),
    "dataclass": Own(1),
    "enum": Colour.RED,
    "date": datetime.datetime(2026, 1, 1),
    "path": Path("/data"),
    "range": range(4),
    "model": torch.nn.Linear(2, 2),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)]),
}
# torch.jit.trace, and nested tensors, announce that they are old or new
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning",
    "ignore:.*torch.jit:DeprecationWarning",
    "ignore:.*API of nested tensors:UserWarning",
    "ignore:Sparse CSR tensor support:UserWarning",
    "ignore:Sparse CSC tensor support:UserWarning",
)


def state_of(content: bytes, folder: Path) -> _core.TensorReport:
    path = folder / "a.pt"
    path.write_bytes(content)
    return _core.verify_tensor_file(path)


@pytest.mark.parametrize("case", FOREIGN)
def test_a_file_of_another_program_is_unknown_and_called_by_its_name(case: str, tmp_path: Path) -> None:
    report = state_of(FOREIGN[case](), tmp_path)
    assert report.state == "unknown", report.detail
    assert "left as it is" in report.detail
    word = {"zip of loose records": "zip", "two pickles": "pickle"}.get(
        case, case.split(" ")[0].strip(",0123456789")
    )
    assert word.removeprefix("torch.") in report.detail.replace("exported", "export")


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("case", [None, *OWN])
def test_own_classes_and_other_protocols_are_no_damage(
    case: str | None, protocol: int, tmp_path: Path
) -> None:
    value = VALUE if case is None else {"v": own(case)}
    report = state_of(saved(value, pickle_protocol=protocol), tmp_path)
    assert report.state == ("ok" if case is None and protocol in (2, 3) else "not_weights_only"), (
        report.detail
    )


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("case", [None, *OWN])
def test_the_legacy_format_is_told_by_its_structure(case: str | None, protocol: int, tmp_path: Path) -> None:
    value = VALUE if case is None else {"v": own(case), "image": torch.ones(3)}
    content = saved(value, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    report = state_of(content, tmp_path)
    assert report.state == "legacy_format", report.detail
    assert ("image", "float32") in [(tensor[0], tensor[1]) for tensor in report.tensors]
    for cut in (1, 8, 20, len(content) // 3, len(content) // 2):
        assert state_of(content[:-cut], tmp_path).state == "truncated"


def test_a_legacy_file_that_contradicts_itself_is_damaged(tmp_path: Path) -> None:
    content = saved({"a": torch.ones(5)}, _use_new_zipfile_serialization=False)
    at = content.rindex(struct.pack("<q", 5))
    for count in (4, 6, 2**62, -1):
        report = state_of(content[:at] + struct.pack("<q", count) + content[at + 8 :], tmp_path)
        assert report.state in {"bad_structure", "truncated"}
    assert (
        state_of(content.replace(b"FloatStorage", b"DoubleStorage"[:12]), tmp_path).state != "legacy_format"
    )


def test_every_cut_of_a_legacy_file_is_damage_or_unknown(tmp_path: Path) -> None:
    content = saved(VALUE, _use_new_zipfile_serialization=False)
    states = [state_of(content[:end], tmp_path).state for end in range(len(content))]
    assert set(states) == {"truncated", "unknown", "bad_structure"}
    assert set(states[60:]) == {"truncated"}


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_an_evil_pickle_in_any_form_is_named(protocol: int, tmp_path: Path) -> None:
    forms = [pickle.dumps({"x": Evil()}, protocol)]
    if protocol:
        forms += [saved({"x": Evil()}, pickle_protocol=protocol)]
        forms += [saved({"x": Evil()}, pickle_protocol=protocol, _use_new_zipfile_serialization=False)]
    for content in forms:
        report = state_of(content, tmp_path)
        assert (report.state, "posix.system" in report.detail) == ("unsafe_globals", True)


def names_globals(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n.".encode()


def test_every_module_of_the_standard_library_is_dangerous_but_for_what_is_inert(tmp_path: Path) -> None:
    for module in sys.stdlib_module_names:
        assert state_of(names_globals(f"{module}.anything"), tmp_path).state == "unsafe_globals", module
    for name in _core.INERT_GLOBALS + _core.ALLOWED_GLOBALS:
        assert state_of(names_globals(name), tmp_path).state == "unknown", name


def test_inert_globals_exist_or_are_of_another_version() -> None:
    from voxtier.tensors.saving import _harmless_globals

    found = {name for _, name in _harmless_globals()}
    assert {name for name in _core.INERT_GLOBALS if name not in found} == set()
    assert {"numpy.dtypes.Float64DType", "numpy.dtypes.StrDType"} <= found


def test_fix_moves_no_file_of_others_whatever_the_force(healthy: Path, tmp_path: Path) -> None:
    contents = {case: make() for case, make in FOREIGN.items()}
    contents |= {case: saved({"v": own(case)}) for case in OWN}
    contents |= {
        "legacy": saved(VALUE, _use_new_zipfile_serialization=False),
        "healthy": healthy.read_bytes(),
    }
    contents |= {f"protocol {n}": saved(VALUE, pickle_protocol=n) for n in (1, 4, 5)}
    for number, content in enumerate(contents.values()):
        (tmp_path / f"{number:02}.pt").write_bytes(content)
    for options in ([], ["--force"], ["--force", "--delete"], ["--force", "--quick"]):
        done = run_cli("verify", tmp_path, "--fix", "--json", *options)
        assert done.returncode == 1, done.stderr  # classes of others are findings
        found = rows(done.stdout)
        assert not any("action" in row for row in found)
        assert {row["state"] for row in found} == {"ok", "unknown", "not_weights_only", "legacy_format"}
    left = {path.read_bytes() for path in tmp_path.iterdir()}
    assert left == set(contents.values())


def test_fix_that_fixed_all_exits_0_and_the_next_command_runs(healthy: Path, tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.pt").write_bytes(healthy.read_bytes()[: None if number else 5000])
    done = run_cli("verify", tmp_path, "--fix", "--json")
    assert done.returncode == 0
    states = [row["state"] for row in rows(done.stdout) if "action" not in row]
    assert sorted(states) == ["ok"] * 8 + ["truncated"]
    (tmp_path / "1.pt").write_bytes(npz())
    assert run_cli("verify", tmp_path, "--fix").returncode == 3
    (tmp_path / "2.pt").write_bytes(saved(VALUE, _use_new_zipfile_serialization=False))
    assert run_cli("verify", tmp_path, "--fix").returncode == 1


def test_sparse_and_nested_tensors_are_listed_as_torch_shows_them(tmp_path: Path) -> None:
    dense = torch.tensor([[0.0, 0, 3, 0], [4, 0, 5, 0]])
    values = {
        "coo": dense.to_sparse(),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "parameter": torch.nn.Parameter(dense.to_sparse()),
        "nested": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)]),
        "jagged": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged),
    }
    report = state_of(saved(values), tmp_path)
    found = {name: (dtype, shape) for name, dtype, shape, _ in report.tensors}
    assert found == {
        **dict.fromkeys(("coo", "csr", "csc", "parameter"), ("float32", [2, 4])),
        "nested": ("float32", [2, -1, -1]),
        "jagged": ("float32", [2, -1, 3]),
    }
    (tmp_path / "a.pt").write_bytes(saved(values["coo"]))
    assert "hold no tensor" not in run_cli("verify", tmp_path).stderr


NOISE = torch.linspace(0, 1, 4096).reshape(4, 32, 32)


def with_(value: float, where: Any, base: torch.Tensor = NOISE) -> torch.Tensor:
    changed = base.clone()
    changed[where] = value
    return changed


@pytest.mark.parametrize(
    ("name", "value", "suspicious"),
    [
        ("constant slice of a storage that varies", with_(3, 1)[1], True),
        ("varying slice of a storage with NaN elsewhere", with_(float("nan"), 2)[0], False),
        ("slice with NaN", with_(float("nan"), (2, 5, 5))[2], True),
        ("strided view that skips the NaN", with_(float("nan"), (0, 0, 1))[:, :, ::2], False),
        ("strided view that meets the NaN", with_(float("nan"), (0, 0, 2))[:, :, ::2], True),
        ("transposed view of a varying storage", NOISE.permute(2, 0, 1), False),
        ("constant column", with_(2, (slice(None), slice(None), 3))[:, :, 3], True),
        ("column beside a constant one", with_(2, (slice(None), slice(None), 3))[:, :, 4], False),
        ("expanded number", torch.tensor([1.5]).expand(100), True),
        ("slices that cover all, one of them zero", list(with_(0, 3).unbind()), True),
        ("slices that cover all", list(NOISE.unbind()), False),
        ("half precision slice with infinity elsewhere", with_(float("inf"), 1).half()[0], False),
        ("double slice with infinity", with_(float("inf"), 1).double()[1, :2], True),
        ("bfloat16 view", with_(7, 1).bfloat16()[1], True),
        ("sliding windows", NOISE.reshape(-1).unfold(0, 8, 4), False),
        ("few numbers", with_(1, 0)[0, 0, :32], False),
        ("sparse mask of ones", torch.eye(100).to_sparse(), False),
        (
            "sparse with NaN",
            (torch.eye(100) * float("nan")).nan_to_num(posinf=1, nan=float("nan")).to_sparse(),
            True,
        ),
        ("the same view twice", [with_(3, 1)[1], NOISE], True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_statistics_are_those_of_the_view(name: str, value: Any, suspicious: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"image": value}, path)
    report = _core.verify_tensor_file(path, content=True)
    assert (report.state == "suspicious_content") == suspicious, (name, report.detail)
