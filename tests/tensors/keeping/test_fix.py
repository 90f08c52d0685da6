"""--fix acts on evidence alone: D1, D4, D5, D11 and the circuit breaker, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tensors.cases import fill_cache, rows, run_cli, write_project
from tensors.keeping.damage import MATRIX
from voxtier.system import durable
from voxtier.tensors import Manifest, claims, item_key, load_config
from voxtier.tensors.identity.folders import item_folder, remember_folder
from voxtier.tensors.keeping.quarantine import fix
from voxtier.tensors.keeping.verify import list_cache, verify


def damage(path: Path, case: str) -> None:
    path.write_bytes(MATRIX[case][0](path.read_bytes()))


def test_findings_exit_1_and_change_nothing(healthy: Path, tmp_path: Path) -> None:
    paths = fill_cache(tmp_path / "cache", healthy, 12)
    damage(paths[3], "bit flip in tensor")
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
    damage(paths[3], "cut to 50 %")
    content = paths[3].read_bytes()
    done = run_cli("verify", cache, "--fix")
    assert done.returncode == 1, done.stderr
    assert not paths[3].exists()
    assert sum(p.exists() for p in paths) == 11
    (moved,) = (cache / "quarantine").rglob("*.pt")
    assert moved.read_bytes() == content
    reason = json.loads(moved.with_name(moved.name + ".json").read_text())
    assert (reason["state"], reason["moved_from"]) == ("truncated", str(paths[3]))
    assert run_cli("verify", cache).returncode == 0


def test_the_breaker_refuses_when_a_fifth_is_bad(healthy: Path, tmp_path: Path) -> None:
    paths = fill_cache(tmp_path / "cache", healthy, 10)
    for path in paths[:3]:
        damage(path, "all zero")
    done = run_cli("verify", tmp_path / "cache", "--fix")
    assert done.returncode == 1
    assert "nothing was touched" in done.stderr
    assert all(path.exists() for path in paths)
    assert run_cli("verify", tmp_path / "cache", "--fix", "--force").returncode == 1
    assert sum(path.exists() for path in paths) == 7


def test_what_cannot_be_read_is_never_fixed(healthy: Path, tmp_path: Path) -> None:
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


def test_d1_a_verifier_killed_at_any_moment_deletes_no_healthy_file(healthy: Path, tmp_path: Path) -> None:
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
    damage(paths[0], "bit flip in tensor")
    damage(paths[1], "bit flip in tensor")
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
    damage(paths[0], "bit flip in tensor")
    damage(paths[1], "bit flip in tensor")
    states = list(verify(list_cache(cache)))
    paths[1].write_bytes(healthy.read_bytes())
    claim = claims.Claim.take(paths[0])
    assert claim is not None
    assert {result.action for result in fix(cache, states)} == {"left"}
    claim.release()
    actions = {result.path: result.action for result in fix(cache, states)}
    assert actions == {str(paths[0]): "quarantined", str(paths[1]): "left"}


def test_d4_verify_executes_nothing_and_leaves_torch_alone(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    script = (
        "import sys; from voxtier.tensors.keeping.verify import verify, list_cache\n"
        f"states = [s.state for s in verify(list_cache({str(tmp_path)!r}))]\n"
        "print(states, 'torch' in sys.modules, 'monai' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "['unsafe_globals'] False False"
    assert run_cli("verify", tmp_path).returncode == 1
    assert not marker.exists()


def test_d11_verify_makes_no_folders(tmp_path: Path) -> None:
    done = run_cli("verify", tmp_path / "absent")
    assert (done.returncode, "no such cache folder" in done.stderr) == (2, True)
    config = write_project(tmp_path / "project", ["train_1_a_1.nii.gz"])
    before = sorted(tmp_path.rglob("*"))
    done = run_cli("verify", "--config", config)
    assert done.returncode == 2
    assert "no such cache folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    assert run_cli("verify", "--config", tmp_path / "none.yaml").returncode == 2
    assert run_cli("verify").returncode == 2


def test_gds_markers_lmdb_and_temporaries_are_no_damage(healthy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fill_cache(cache, healthy, 3)
    (cache / "0123.pt").write_bytes(b"")
    (cache / "0123.pt-image").write_bytes(b"raw")
    (cache / "0123.pt-image-meta").write_bytes(b"meta")
    (cache / "monai_cache.lmdb").write_bytes(b"\0" * 100)
    (cache / f".x.pt.{durable.boot_id()}-999999999-1.tmp").write_bytes(b"half")
    (cache / f".y.pt.{durable.boot_id()}-{os.getpid()}-1.tmp").write_bytes(b"half")
    done = run_cli("verify", cache, "--json")
    assert done.returncode == 0
    assert sorted(row["state"] for row in rows(done.stdout)) == [
        "gds_marker",
        "leftover_temp",
        "ok",
        "ok",
        "ok",
    ]
    assert "LMDB" in done.stderr
    assert "4 of 4 verified" in run_cli("verify", cache).stderr  # what was left is no file of the cache


def test_since_last_skips_what_is_unchanged(healthy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    paths = fill_cache(cache, healthy, 5)
    Manifest(cache).record([{"key": path.stem} for path in paths])
    assert run_cli("verify", cache).returncode == 0
    damage(paths[2], "bit flip in tensor")
    done = run_cli("verify", cache, "--since-last", "--json")
    checked = {row["path"]: row["checked"] for row in rows(done.stdout)}
    assert checked.pop(str(paths[2])) == "full"
    assert set(checked.values()) == {"manifest"}
    assert done.returncode == 1


def test_a_time_that_was_set_back_does_not_hide_a_change(healthy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (path,) = fill_cache(cache, healthy, 1)
    before = path.stat()
    Manifest(cache).record([{"key": path.stem}])
    assert run_cli("verify", cache).returncode == 0
    damage(path, "bit flip in tensor")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert run_cli("verify", cache, "--since-last").returncode == 1


def test_files_without_a_tensor_are_remarked(tmp_path: Path) -> None:
    torch.save({"image": "/data/ct.nii.gz"}, tmp_path / "a.pt")
    done = run_cli("verify", tmp_path)
    assert (done.returncode, "1 files hold no tensor" in done.stderr) == (0, True)


def test_names_do_not_speak_to_the_terminal(healthy: Path, tmp_path: Path) -> None:
    (tmp_path / "\x1b[2Jgone\nok.pt").write_bytes(b"")
    done = run_cli("verify", tmp_path)
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    assert "\\x1b[2Jgone\\nok.pt" in done.stdout


def test_a_log_holds_one_line_a_file_and_every_move(healthy: Path, tmp_path: Path) -> None:
    config = write_project(tmp_path / "p", ["train_1_a_1.nii.gz"])
    loaded = load_config(config, environment={})
    remember_folder(loaded, item_folder(loaded))
    cache = tmp_path / "cache"
    fill_cache(cache, healthy, 6)
    (cache / "\x1b[2Jgone\nok.pt").write_bytes(b"")
    logs = tmp_path / "p" / "logs"
    logs.mkdir()
    log = logs / "cache_verification.log"
    assert run_cli("verify", cache, "--config", config, "--fix").returncode == 1
    first, second = log.read_text().splitlines()
    assert "truncated - " in first
    assert "\\x1b[2Jgone\\nok.pt" in first
    assert "quarantined: " in second
    log.unlink()
    log.mkdir()
    unlogged = run_cli("verify", cache, "--config", config)
    assert (unlogged.returncode, "note: no log" in unlogged.stderr) == (0, True)


def test_folders_deeper_than_the_stack(healthy: Path, tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["d"] * 1200)
    subprocess.run(["mkdir", "-p", str(folder)], check=True)  # Python's own recurses
    (folder / "a.pt").write_bytes(healthy.read_bytes())
    try:
        assert [state.state for state in verify(list_cache(tmp_path))] == ["ok"]
    finally:
        subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)


def test_a_sample_is_seeded(healthy: Path, tmp_path: Path) -> None:
    fill_cache(tmp_path, healthy, 40)

    def full(seed: int) -> set[str]:
        states = verify(list_cache(tmp_path), sample=0.5, seed=seed)
        return {state.path for state in states if state.checked == "full"}

    assert full(1) == full(1) != full(2)
    assert 5 < len(full(1)) < 35


def test_a_replaced_file_is_noticed(healthy: Path, tmp_path: Path) -> None:
    (path,) = fill_cache(tmp_path / "cache", healthy, 1)
    Manifest(path.parent).record([{"key": path.stem, "size": 1, "records": {"data/0": 1}}])
    (state,) = verify(list_cache(path.parent))
    assert (state.state, "another wrote it" in state.detail) == ("ok", True)


def test_a_corrupt_manifest_is_no_obstacle(healthy: Path, tmp_path: Path) -> None:
    (path,) = fill_cache(tmp_path / "cache", healthy, 1)
    manifest = Manifest(path.parent)
    manifest.record([{"key": path.stem, "volume": "a"}])
    (segment,) = manifest.path.glob("*.jsonl")
    segment.write_bytes(b"\xff\xfe{\n[1]\n" + b"[" * 200_000 + b"\n" + segment.read_bytes() + b'{"key": "tor')
    assert Manifest(path.parent).read()[path.stem]["volume"] == "a"
    assert run_cli("verify", path.parent, "--since-last").returncode == 0


def test_a_shape_that_is_not_expected(healthy: Path, tmp_path: Path) -> None:
    fill_cache(tmp_path, healthy, 1)
    assert [s.state for s in verify(list_cache(tmp_path), shape=(32, 32, 32))] == ["ok"]
    assert [s.state for s in verify(list_cache(tmp_path), shape=(9, 32, 32))] == ["suspicious_content"]


@pytest.mark.parametrize("name", ["train_1_a_1.nii.gz"])
def test_item_key_vector(name: str) -> None:
    assert item_key(name) == "a688fe64537c110e725a890a41ac3dde"
