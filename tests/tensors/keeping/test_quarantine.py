"""`verify --fix` moves files on evidence alone, and refuses when too many look damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from tensors.cases import fill_cache, rows, run_cli
from tensors.keeping.damage import damage_file
from voxtier.tensors import Manifest, claims
from voxtier.tensors.keeping.quarantine import fix
from voxtier.tensors.keeping.verify import list_cache, verify


def test_findings_exit_1_and_change_nothing(healthy: Path, tmp_path: Path) -> None:
    paths = fill_cache(tmp_path / "cache", healthy, 12)
    damage_file(paths[3], "bit flip in tensor")
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "cache").rglob("*"))
    done = run_cli("verify", tmp_path / "cache", "--json")
    assert done.returncode == 1
    states = {Path(row["path"]).name: row["state"] for row in rows(done.stdout)}
    assert states.pop(paths[3].name) == "bad_crc"
    assert set(states.values()) == {"ok"}
    assert sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "cache").rglob("*")) == before


def test_fix_moves_with_a_reason_and_keeps_the_rest(healthy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    paths = fill_cache(cache / "abc", healthy, 12)
    damage_file(paths[3], "cut to 50 %")
    content = paths[3].read_bytes()
    done = run_cli("verify", cache, "--fix")
    assert done.returncode == 0, done.stderr
    assert "truncated (end): " in done.stdout
    assert not paths[3].exists()
    assert sum(p.exists() for p in paths) == 11
    (moved,) = (cache / "quarantine").rglob("*.pt")
    assert moved.read_bytes() == content
    reason = json.loads(moved.with_name(moved.name + ".json").read_text())
    assert (reason["state"], reason["moved_from"]) == ("truncated", str(paths[3]))
    assert run_cli("verify", cache).returncode == 0


def test_fix_refuses_when_more_than_a_fifth_is_damaged(healthy: Path, tmp_path: Path) -> None:
    paths = fill_cache(tmp_path / "cache", healthy, 10)
    for path in paths[:3]:
        damage_file(path, "all zero")
    done = run_cli("verify", tmp_path / "cache", "--fix")
    assert done.returncode == 1
    assert "nothing was touched" in done.stderr
    assert all(path.exists() for path in paths)
    assert run_cli("verify", tmp_path / "cache", "--fix", "--force").returncode == 0
    assert sum(path.exists() for path in paths) == 7


def test_files_that_cannot_be_read_do_not_speak_for_the_disk(healthy: Path, tmp_path: Path) -> None:
    """Twelve links to a disk that was not there counted as good, so all files that were there were moved."""
    cache = tmp_path / "cache"
    paths = fill_cache(cache, healthy, 3)
    for path in paths:
        damage_file(path, "all zero")
    for number in range(12):
        (cache / f"{number}.pt").symlink_to(tmp_path / "unmounted" / f"{number}.pt")
    done = run_cli("verify", cache, "--fix")
    assert (done.returncode, "3 of 3 readable files are bad" in done.stderr) == (1, True)
    assert all(path.exists() for path in paths)


def test_a_relative_link_in_quarantine_leads_to_the_damaged_file(healthy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    paths = fill_cache(cache / "abc", healthy, 10)
    (stored,) = fill_cache(tmp_path / "store", healthy, 1)
    paths[0].unlink()
    paths[0].symlink_to(f"../../store/{stored.name}")
    damage_file(stored, "cut to 50 %")
    content = stored.read_bytes()
    assert run_cli("verify", cache, "--fix").returncode == 0
    (moved,) = (cache / "quarantine").rglob("*.pt")
    assert (moved.is_symlink(), moved.read_bytes() == content) == (True, True)
    assert not os.path.lexists(paths[0])
    assert stored.is_file()


def test_fix_leaves_files_that_cannot_be_read(healthy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    paths = fill_cache(cache, healthy, 4)
    loop = cache / "loop.pt"
    loop.symlink_to(loop)
    (cache / "folder.pt").mkdir()
    done = run_cli("verify", cache, "--fix", "--delete", "--force", "--json")
    assert done.returncode == 3
    assert {row["state"] for row in rows(done.stdout)} == {"ok", "io_error"}
    assert loop.is_symlink()
    assert all(path.exists() for path in paths)


def test_a_killed_verifier_deletes_no_healthy_file(healthy: Path, tmp_path: Path) -> None:
    """D1: the predecessor took a killed worker for 379 damaged files, and deleted them."""
    cache = tmp_path / "cache"
    paths = fill_cache(cache, healthy, 400)
    command = [
        sys.executable,
        "-m",
        "voxtier",
        "tensors",
        "verify",
        str(cache),
        "--fix",
        "--delete",
        "-w",
        "2",
    ]
    for delay in (0.05, 0.1, 0.12, 0.14):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        running.kill()
        running.wait()
    assert all(path.exists() for path in paths)
    assert run_cli("verify", cache).returncode == 0


def test_delete_needs_a_source_and_spares_unsafe_files(healthy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    paths = fill_cache(cache, healthy, 20)
    raw = tmp_path / "raw.nii.gz"
    raw.write_bytes(b"raw")
    Manifest(cache).record([{"key": paths[0].stem, "source": {"path": str(raw)}}])
    damage_file(paths[0], "bit flip in tensor")
    damage_file(paths[1], "bit flip in tensor")
    torch.save({"x": os.path.join}, paths[2])
    done = run_cli("verify", cache, "--fix", "--delete", "--json")
    actions = {row["path"]: row["action"] for row in rows(done.stdout) if "action" in row}
    assert actions == {
        str(paths[0]): "deleted",
        str(paths[1]): "quarantined",
        str(paths[2]): "quarantined",
    }


def test_a_claimed_file_and_a_changed_file_are_left(healthy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    paths = fill_cache(cache, healthy, 20)
    damage_file(paths[0], "bit flip in tensor")
    damage_file(paths[1], "bit flip in tensor")
    states = list(verify(list_cache(cache)))
    paths[1].write_bytes(healthy.read_bytes())
    claim = claims.Claim.take(paths[0])
    assert claim is not None
    assert {result.action for result in fix(cache, states)} == {"left"}
    claim.release()
    actions = {result.path: result.action for result in fix(cache, states)}
    assert actions == {str(paths[0]): "quarantined", str(paths[1]): "left"}
