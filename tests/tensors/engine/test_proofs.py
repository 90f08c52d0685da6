"""What earlier volumes have proved is kept for the same settings, software and machine, and for no others."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from voxtier.tensors.engine import proofs
from voxtier.tensors.engine.outcome import Outcome
from voxtier.tensors.engine.proofs import EnginePolicy, Proofs
from voxtier.tensors.identity.config import ImageProcessing

PROCESSING = ImageProcessing((1.5, 1.5, 3.0), (16, 20, 24), -1000, 1000, "LPS", -1.0, 1.0, "float32")


def kept(home: Path, **options: Any) -> Proofs:
    return Proofs(PROCESSING, home=home, **options)


def run(policy: EnginePolicy, volume_class: str, *, difference: str = "") -> str:
    """Let the policy decide on a volume that proves what it can, or differs."""
    mode = policy.expect(volume_class)
    policy.begin(volume_class, mode)
    seconds = {"fused": 1.0, "stock": 20.0} if mode == "check" else {"fused": 1.0}
    outcome = Outcome("fused", is_checked=mode == "check", difference=difference, seconds=seconds)
    policy.settle(volume_class, mode, outcome)
    return mode


def test_a_later_run_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    first = EnginePolicy("fused", 5, kept(tmp_path))
    assert not first.is_proved
    assert [run(first, "a") for _ in range(4)] == ["check", "check", "fused", "fused"]
    second = EnginePolicy("fused", 5, kept(tmp_path))
    assert second.is_proved
    assert kept(tmp_path).seconds == {"fused": 2.0, "stock": 40.0}
    assert [run(second, "a") for _ in range(4)] == ["fused", "fused", "check", "fused"]
    assert run(second, "b") == "check"
    third = EnginePolicy("fused", 50, kept(tmp_path))
    assert [run(third, name) for name in "bbcc"] == ["check", "fused", "check", "check"]
    assert [run(third, name) for name in "ddee"] == ["check", "check", "fused", "fused"]  # a fifth class


def test_a_difference_ends_what_was_proved_for_good(tmp_path: Path) -> None:
    other = EnginePolicy("fused", proofs=kept(tmp_path))
    policy = EnginePolicy("fused", proofs=kept(tmp_path))
    assert [run(policy, "a") for _ in range(3)] == ["check", "check", "fused"]
    assert run(policy, "b", difference="3 voxels") == "check"
    assert policy.expect("a") == "stock"
    assert [run(other, "a") for _ in range(3)] == ["check", "check", "fused"]  # under way meanwhile
    later = kept(tmp_path)
    assert (later.classes, later.difference) == ({}, "3 voxels")
    again = EnginePolicy("fused", proofs=later)
    assert [run(again, "a") for _ in range(3)] == ["check", "check", "fused"]
    assert not EnginePolicy("fused", proofs=kept(tmp_path)).is_proved


def test_processes_add_to_each_others_proofs(tmp_path: Path) -> None:
    one, two = kept(tmp_path), kept(tmp_path)
    one.keep(Counter(a=2), 3)
    two.keep(Counter(a=1, b=1), 4)
    assert kept(tmp_path).classes == {"a": 2, "b": 1}
    assert kept(tmp_path).unchecked == 4


def test_a_difference_is_not_lost_to_a_process_that_writes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file = proofs.write_file
    one, two = kept(tmp_path), kept(tmp_path)
    other = threading.Thread(target=two.keep, args=(Counter(), 0, "3 voxels"))

    def write(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(proofs, "write_file", write_file)
        other.start()
        other.join(0.3)  # it ends within this where nothing keeps it waiting
        write_file(*arguments, **options)

    monkeypatch.setattr(proofs, "write_file", write)
    one.keep(Counter(a=2), 0)
    other.join()
    assert (kept(tmp_path).classes, kept(tmp_path).difference) == ({}, "3 voxels")


def test_other_settings_software_or_machines_share_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path).keep(Counter(a=2), 0)
    assert kept(tmp_path).classes == {"a": 2}
    others = [
        Proofs(dataclasses.replace(PROCESSING, clip_hu_max=999), home=tmp_path),
        kept(tmp_path, threads=2),
        kept(tmp_path, onednn=False),
        kept(tmp_path, precision="matmul medium"),
        kept(tmp_path, pipeline="another"),
    ]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    others.append(kept(tmp_path))
    monkeypatch.undo()
    for name in ("_describe_cpu", "_torch_libraries"):
        monkeypatch.setattr(proofs, name, list)
        others.append(kept(tmp_path))
        monkeypatch.undo()
    monkeypatch.setattr("voxtier.tensors.identity.fingerprint.version", lambda _: "0")
    others.append(kept(tmp_path))
    assert all(not each.classes for each in others)
    assert len({each.path for each in others}) == len(others)


def test_a_damaged_or_foreign_file_proves_nothing(tmp_path: Path) -> None:
    first = kept(tmp_path)
    first.keep(Counter(a=2), 1)
    assert first.path is not None
    row = json.loads(first.path.read_text())
    for change in (
        {"facts": {**row["facts"], "threads": 9}},
        {"classes": ["a"]},
        {"classes": {"a": []}},
        {"seconds": 3},
        {"unchecked": None},
    ):
        first.path.write_text(json.dumps({**row, **change}))
        assert kept(tmp_path).classes == {}, change
    for text in ("", "[]", "[" * 100_000, "\xff", '{"facts": 1}'):
        first.path.write_bytes(text.encode("latin-1"))
        assert kept(tmp_path).classes == {}, text[:10]
    first.path.unlink()
    first.path.mkdir()
    first.keep(Counter(a=3), 1)  # cannot be written: no error
    assert kept(tmp_path).classes == {}


def test_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(proofs, "home_if_any", lambda: None)
    proof = Proofs(PROCESSING)
    proof.keep(Counter(a=2), 1)
    assert proof.path is None
    assert Proofs(PROCESSING).classes == {}
