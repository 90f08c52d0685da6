"""The engine gives the bits of stock MONAI, or leaves the volume to it."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("monai")

import torch

from tensors.engine import fuzz
from voxtier.errors import EngineLimitError
from voxtier.tensors.engine import checked, plan, rounding
from voxtier.tensors.engine.engine import Engine
from voxtier.tensors.engine.pipelines import configured_pipeline
from voxtier.tensors.engine.proofs import FULL_PRECISION
from voxtier.tensors.engine.self_test import find_fault
from voxtier.tensors.identity.config import ImageProcessing
from voxtier.tensors.identity.pipeline import build_transforms

PROCESSING = ImageProcessing((1.5, 1.5, 3.0), (16, 20, 24), -1000, 1000, "LPS", -1.0, 1.0, "float32")

pytestmark = pytest.mark.usefixtures("one_thread")


def write(path: Path, affine: Any = None, shape: tuple[int, ...] = (24, 20, 12), **options: Any) -> Path:
    values = np.random.default_rng(1).integers(-1200, 1200, shape).astype(options.pop("dtype", np.int16))
    image = nibabel.Nifti1Image(values, np.diag([-1.4, -1.4, 2.8, 1.0]) if affine is None else affine)
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def make(path: Path, processing: ImageProcessing = PROCESSING, **options: Any) -> tuple[Any, Any]:
    """Make the item of a file by the engine, and by MONAI where it is asked to."""
    transforms = build_transforms(processing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Engine(configured_pipeline(transforms, processing)).make(
            {"image": path}, lambda: dict(transforms({"image": path})), **options
        )


@pytest.mark.parametrize("start", [0, 10_000])
def test_random_volumes_have_the_bits_of_monai(start: int) -> None:
    found = fuzz.run(100, start)
    assert found["fused"] >= 60, found
    assert found["fused, oblique"] >= 3, found
    known = ("fused", "stock: constant", "stock: NaN or infinite", "stock: refuses")
    assert all(outcome.startswith(known) for outcome in found), found


def test_two_threads_choose_other_convolutions_and_have_monais_bits_too() -> None:
    found = fuzz.run(12, 20_000, threads=2)
    assert found["fused"] >= 8, found


def test_a_torch_without_vector_code_is_equalled_or_not_used() -> None:
    script = (
        "from tensors.engine.test_bits import PROCESSING; from tensors.engine import fuzz\n"
        "from voxtier.tensors.engine.self_test import find_fault\n"
        "print('off' if find_fault(PROCESSING) else fuzz.run(6, 30_000)['fused'])"
    )
    done = _run(script, ATEN_CPU_CAPABILITY="default", VOXTIER_CPU="baseline").strip()
    assert done == "off" or int(done) >= 4


def _run(script: str, **environment: str) -> str:
    import os

    tests = str(Path(__file__).parents[2])
    path = os.pathsep.join([tests, *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_without_onednn_the_engine_asks_torch_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", shape=(70, 66, 60))
    processing = dataclasses.replace(PROCESSING, target_shape_dhw=(30, 31, 17))
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        _, outcome = make(path, processing, is_checked=True)
        assert outcome.label() == "fused", outcome.difference


def set_matmul(precision: str) -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision(precision)
    return stack


def set_default(dtype: torch.dtype) -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_default_dtype(dtype)
    return stack


def autocast(dtype: torch.dtype = torch.bfloat16) -> Any:
    return torch.autocast("cpu", dtype=dtype)


def test_each_setting_of_torch_that_decides_bits_is_a_state_of_its_own() -> None:
    full = rounding.torch_state()
    assert full.precision == FULL_PRECISION
    settings: list[Callable[[], Any]] = [
        lambda: set_matmul("high"),
        lambda: set_matmul("medium"),
        autocast,
        lambda: autocast(torch.float16),
        lambda: set_default(torch.float64),
        lambda: torch.backends.mkldnn.flags(enabled=False),
    ]
    states = [full]
    for setting in settings:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without oneDNN: of TF32 on GPUs
            with setting():
                states.append(rounding.torch_state())
        assert rounding.torch_state() == full
    assert len(set(states)) == len(states)


def test_what_is_proved_in_full_precision_holds_in_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOXTIER_HOME", str(tmp_path / "home"))
    processing = dataclasses.replace(PROCESSING, target_shape_dhw=(30, 31, 17))
    transforms = build_transforms(processing)
    item = {"image": write(tmp_path / "a.nii.gz", shape=(70, 66, 60))}

    def stock() -> dict[str, Any]:
        return dict(transforms(item))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = checked.CheckedEngine(configured_pipeline(transforms, processing))
        outcomes = [engine.make(item, stock)[1] for _ in range(3)]
        assert [each.is_checked for each in outcomes] == [True, True, False]
        plain = fuzz.bits(stock()["image"])
        for setting in (autocast, lambda: set_matmul("medium"), contextlib.nullcontext):
            with setting():
                expected = fuzz.bits(stock()["image"])
                for each in (engine, checked.CheckedEngine(configured_pipeline(transforms, processing))):
                    made, outcome = each.make(item, stock)
                    assert np.array_equal(fuzz.bits(made["image"]), expected)
                    if setting is not contextlib.nullcontext:
                        assert outcome.engine == "stock" or outcome.is_checked
                    else:
                        assert outcome.label() == "fused"
            assert setting is not autocast or not np.array_equal(expected, plain)


def test_answers_of_torch_are_asked_for_again_in_another_state(monkeypatch: pytest.MonkeyPatch) -> None:
    state = rounding.torch_state()
    rounding.ask_again_after_change(state)
    cleared: list[int] = []
    monkeypatch.setattr(rounding, "clear", lambda: cleared.append(1))
    rounding.ask_again_after_change(state)
    assert not cleared
    rounding.ask_again_after_change(state._replace(precision="matmul medium"))
    rounding.ask_again_after_change(state)
    assert len(cleared) == 2


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("4 axes", {"shape": (12, 11, 10, 2)}),
        ("2 axes", {"shape": (12, 11)}),
        ("voxels of type complex64", {"dtype": np.complex64}),
    ],
)
def test_what_the_engine_does_not_take_goes_through_monai(
    tmp_path: Path, reason: str, options: dict[str, Any]
) -> None:
    path = write(tmp_path / "a.nii.gz", **options)
    with pytest.raises(EngineLimitError, match=reason):
        Engine(configured_pipeline(build_transforms(PROCESSING), PROCESSING)).fuse({"image": path})


@pytest.mark.parametrize(
    ("name", "pack", "engine"),
    [
        ("a.nii.bz2", bz2.compress, "stock(a file of type .bz2)"),
        ("A.NII.GZ", gzip.compress, "fused"),
        ("A.NII", bytes, "fused"),
    ],
)
def test_a_packed_file_is_unpacked_or_left_to_monai(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes], engine: str
) -> None:
    plain = write(tmp_path / "plain.nii", dtype=np.uint8)  # noise, of which bzip2 makes more bytes
    path = tmp_path / name
    path.write_bytes(pack(plain.read_bytes()))
    item, outcome = make(path)
    assert outcome.label() == engine
    assert np.array_equal(fuzz.bits(item["image"]), fuzz.bits(make(plain)[0]["image"]))


def test_damaged_files_raise_what_monai_raises(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.nii.gz").read_bytes()
    plain = write(tmp_path / "plain.nii").read_bytes()
    header = bytearray(plain)
    header[42:44] = np.int16(30_000).tobytes()
    cases = {
        "cut.nii.gz": whole[: len(whole) // 2],
        "crc.nii.gz": whole[:-8] + bytes(4) + whole[-4:],
        "members.nii.gz": gzip.compress(plain[:4000]) + gzip.compress(plain[4000:]),
        "garbage.nii.gz": whole + b"garbage",
        "padded.nii.gz": whole + bytes(100),
        "longer.nii.gz": gzip.compress(plain + bytes(1000)),
        "short.nii": plain[:-100],
        "lies.nii": bytes(header),
        "lies.nii.gz": gzip.compress(bytes(header)),
        "empty.nii.gz": b"",
        "text.nii": b"no image" * 100,
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        transforms = build_transforms(PROCESSING)
        try:
            expected: Any = fuzz.bits(transforms({"image": path})["image"])
        except Exception as error:
            expected = type(error)
        try:
            found: Any = fuzz.bits(make(path)[0]["image"])
        except Exception as error:
            found = type(error)
        if isinstance(expected, type):
            assert found is expected, name
        else:
            assert np.array_equal(found, expected), name


def test_a_kernel_that_rounds_otherwise_is_found_and_monais_tensor_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.nii.gz")
    truth = not rounding.interpolation_is_fused()
    monkeypatch.setattr(plan, "interpolation_is_fused", lambda: truth)
    item, outcome = make(path, is_checked=True)
    assert outcome.label() == "stock(differs)"
    assert " of 7,680 voxels, by " in outcome.difference
    assert np.array_equal(
        fuzz.bits(item["image"]), fuzz.bits(build_transforms(PROCESSING)({"image": path})["image"])
    )
    assert "self-test" in find_fault(PROCESSING)
    with pytest.warns(UserWarning, match="core and MONAI differ"):
        engine = checked.CheckedEngine(configured_pipeline(build_transforms(PROCESSING), PROCESSING))
    assert engine.make({"image": path}, lambda: {"image": 1})[0] == {"image": 1}


def test_a_torch_without_the_private_question_is_left_to_monai(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch._C, "_select_conv_backend")
    assert "which convolution" in find_fault(PROCESSING)
    assert make(write(tmp_path / "a.nii.gz", shape=(60, 20, 12)))[1].engine == "stock"
