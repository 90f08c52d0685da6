"""`verify`: what it lists, skips, reports and logs; it executes nothing and makes no folders."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tensors.cases import fill_cache, rows, run_cli, run_forked, run_unread, write_project
from tensors.keeping.damage import damage_file
from voxtier import _core
from voxtier.system import machine
from voxtier.tensors import Manifest, list_cache, load_config, states, verify
from voxtier.tensors.identity.folders import item_folder, remember_folder
from voxtier.tensors.keeping.adopt import adopt


def test_verify_executes_nothing_and_imports_no_torch(tmp_path: Path) -> None:
    """D4: the predecessor loaded each file with pickle."""
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    script = (
        "import sys; from voxtier.tensors.keeping.verify import verify, list_cache\n"
        f"found = [s.state for s in verify(list_cache({str(tmp_path)!r}))]\n"
        "print(found, 'torch' in sys.modules, 'monai' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "['unsafe_globals'] False False"
    assert run_cli("verify", tmp_path).returncode == 1
    assert not marker.exists()


def test_one_orphan_is_named_whole(healthy: Path, tmp_path: Path) -> None:
    """A file whose name is a part of it is none."""
    names = ["5.pt", "15.pt"]
    for name in names:
        (tmp_path / name).write_bytes(healthy.read_bytes())
    found = {Path(each.path).name: each.state for each in verify(list_cache(tmp_path), orphans="15.pt")}
    assert (found["15.pt"], found["5.pt"] == "orphan") == ("orphan", False)
    several = verify(list_cache(tmp_path), orphans=iter(names))
    assert [each.state for each in several] == ["orphan", "orphan"]


def test_verify_makes_no_folders(tmp_path: Path) -> None:
    """D11: also on a fresh clone, where the message says what is missing."""
    done = run_cli("verify", tmp_path / "absent")
    assert (done.returncode, "no such cache folder" in done.stderr) == (2, True)
    config = write_project(tmp_path / "project", ["train_1_a_1.nii.gz"])
    before = sorted(tmp_path.rglob("*"))
    done = run_forked("verify", "--config", config)
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
    (cache / f".x.pt.{machine.numbering()}-999999999-1.tmp").write_bytes(b"half")
    (cache / f".y.pt.{machine.numbering()}-{os.getpid()}-1.tmp").write_bytes(b"half")
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
    damage_file(paths[2], "bit flip in tensor")
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
    damage_file(path, "bit flip in tensor")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert run_cli("verify", cache, "--since-last").returncode == 1


def _since_last(folder: Path, **options: Any) -> dict[str, tuple[str, str]]:
    """State of each file, and how it was checked."""
    found = verify(list_cache(folder), since_last=True, **options)
    return {Path(each.path).stem: (each.state, each.checked) for each in found}


def test_since_last_checks_what_was_not_asked_before(tmp_path: Path) -> None:
    """After `adopt`, a constant volume and a wrong shape were skipped as right: 0 where 1 is due."""
    cache = tmp_path / "cache"
    cache.mkdir()
    values = {
        "right": torch.rand(1, 4, 4, 4),
        "zero": torch.zeros(1, 4, 4, 4),
        "other": torch.rand(1, 5, 4, 4),
    }
    for name, image in values.items():
        torch.save({"image": image}, cache / f"{name}.pt")
    assert list(adopt(cache))
    skipped = dict.fromkeys(values, ("ok", "manifest"))
    bad = ("suspicious_content", "full")
    assert _since_last(cache) == skipped
    assert _since_last(cache, content=True) == dict.fromkeys(values, ("ok", "full")) | {"zero": bad}
    assert _since_last(cache, shape=(4, 4, 4)) == {**skipped, "other": bad}
    wanted = {**skipped, "other": ("orphan", "manifest")}
    assert _since_last(cache, orphans=["other.pt"]) == wanted
    assert _since_last(cache, orphans=["other.pt"], shape=(4, 4, 4)) == wanted
    assert all(state.report and state.report.digest for state in verify(list_cache(cache), digest=True))
    assert {checked for _, checked in _since_last(cache, digest=True).values()} == {"full"}
    Manifest(cache).record([{"key": "right", "tensors": [["image"]]}, {"key": "other", "tensors": None}])
    checked = _since_last(cache, shape=(4, 4, 4))
    assert checked == {"right": ("ok", "full"), "zero": ("ok", "manifest"), "other": bad}


def test_what_verify_was_asked_is_known_from_then_on(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for name, image in {"right": torch.rand(1, 4, 4, 4), "zero": torch.zeros(1, 4, 4, 4)}.items():
        torch.save({"image": image}, cache / f"{name}.pt")
    Manifest(cache).record([{"key": name} for name in ("right", "zero")])
    assert run_cli("verify", cache, "--content").returncode == 1
    assert run_cli("verify", cache, "--since-last").returncode == 0
    done = run_cli("verify", cache, "--content", "--since-last", "--json")
    assert done.returncode == 1
    assert {Path(row["path"]).stem: row["checked"] for row in rows(done.stdout)} == {
        "right": "manifest",
        "zero": "full",
    }
    assert _since_last(cache, shape=(4, 4, 4))["right"] == ("ok", "manifest")
    # Of a file that was written since, its voxels were not seen.
    torch.save({"image": torch.ones(1, 4, 4, 4)}, cache / "right.pt")
    assert run_cli("verify", cache).returncode == 0
    assert _since_last(cache)["right"] == ("ok", "manifest")
    assert _since_last(cache, content=True)["right"] == ("suspicious_content", "full")


def test_a_marker_whose_files_are_gone_is_not_skipped(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "0123.pt").write_bytes(b"")
    (cache / "0123.pt-image-meta").write_bytes(b"meta")
    Manifest(cache).record([{"key": "0123"}])
    assert run_cli("verify", cache).returncode == 0
    assert _since_last(cache, content=True, shape=(4,)) == {"0123": ("gds_marker", "manifest")}
    (cache / "0123.pt-image-meta").unlink()
    assert _since_last(cache) == {"0123": ("truncated", "full")}


def test_damage_in_one_folder_counts_beside_what_cannot_be_read_in_another(
    healthy: Path, tmp_path: Path
) -> None:
    """3, "could not be read", hid the 1 of the damaged file."""
    (path,) = fill_cache(tmp_path / "a", healthy, 1)
    damage_file(path, "bit flip in tensor")
    fill_cache(tmp_path / "b", healthy, 1)
    os.mkfifo(tmp_path / "b" / "pipe.pt")
    folders = tmp_path / "a", tmp_path / "b"
    assert [run_cli("verify", folder).returncode for folder in folders] == [1, 3]
    assert run_cli("verify", *folders).returncode == run_cli("verify", *folders[::-1]).returncode == 1


def test_files_without_a_tensor_are_remarked(tmp_path: Path) -> None:
    torch.save({"image": "/data/ct.nii.gz"}, tmp_path / "a.pt")
    done = run_cli("verify", tmp_path)
    assert (done.returncode, "1 file without a tensor" in done.stderr) == (0, True)


def test_control_characters_in_names_are_escaped(healthy: Path, tmp_path: Path) -> None:
    (tmp_path / "\x1b[2Jgone\nok.pt").write_bytes(b"")
    done = run_cli("verify", tmp_path)
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    assert "\\x1b[2Jgone\\nok.pt" in done.stdout


def test_the_log_holds_one_line_per_finding_and_per_move(healthy: Path, tmp_path: Path) -> None:
    config = write_project(tmp_path / "p", ["train_1_a_1.nii.gz"])
    loaded = load_config(config, environment={})
    remember_folder(loaded, item_folder(loaded))
    cache = tmp_path / "cache"
    fill_cache(cache, healthy, 6)
    (cache / "\x1b[2Jgone\nok.pt").write_bytes(b"")
    logs = tmp_path / "p" / "logs"
    logs.mkdir()
    log = logs / "cache_verification.log"
    assert run_cli("verify", cache, "--config", config, "--fix").returncode == 0
    first, second = log.read_text().splitlines()
    assert "truncated - " in first
    assert "\\x1b[2Jgone\\nok.pt" in first
    assert "quarantined: " in second
    log.unlink()
    log.mkdir()
    unlogged = run_cli("verify", cache, "--config", config)
    assert (unlogged.returncode, "note: cannot write a log" in unlogged.stderr) == (0, True)


def test_folders_deeper_than_the_stack_are_listed(healthy: Path, tmp_path: Path) -> None:
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
    assert (state.state, "another program wrote it" in state.detail) == ("ok", True)


def test_an_unexpected_shape_is_reported(healthy: Path, tmp_path: Path) -> None:
    fill_cache(tmp_path, healthy, 1)
    assert [s.state for s in verify(list_cache(tmp_path), shape=(32, 32, 32))] == ["ok"]
    assert [s.state for s in verify(list_cache(tmp_path), shape=(9, 32, 32))] == ["suspicious_content"]


def test_verify_with_a_configuration_finds_orphans_and_other_shapes(healthy: Path, tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", [f"train_{n}_a_1.nii.gz" for n in (1, 2)])
    config = load_config(path, environment={})
    paths = fill_cache(item_folder(config), healthy, 3)
    for right in paths[:2]:
        torch.save({"image": torch.rand(1, *config.processing.target_shape_dhw)}, right)
    (tmp_path / "p" / "logs").mkdir()
    started = time.time()
    done = run_forked("verify", "--config", path, "--json")
    assert done.returncode == 0, done.stderr
    assert sorted(row["state"] for row in rows(done.stdout)) == ["ok", "ok", "orphan"]
    torch.save({"image": torch.rand(4, 16, 32, 33)}, paths[0])
    done = run_forked("verify", "--config", path, "--fix")
    assert done.returncode == 1
    assert "shape [4, 16, 32, 33], expected [..., 16, 32, 32]" in done.stdout
    assert all(each.exists() for each in paths)
    log = tmp_path / "p" / "logs" / "cache_verification.log"
    assert log.stat().st_mtime >= started - 1


def test_every_state_of_the_core_has_one_group_or_is_only_reported() -> None:
    reported = {"compressed_storage", "legacy_format", "not_weights_only", "suspicious_content"}
    of_listing = {"gds_marker", *states.NOTED}
    groups = [states.FINE, states.NOTED, states.FIXABLE, states.UNREADABLE, reported]
    assert sorted(state for group in groups for state in group) == sorted({*_core.TENSOR_STATES, *of_listing})
    assert states.INTACT < states.LOADABLE
    assert not states.LOADABLE & (states.FIXABLE | states.UNREADABLE)


def test_a_file_that_is_no_tensor_is_refused_by_name(tmp_path: Path) -> None:
    """`verify config.yaml --fix --force` once moved the configuration to quarantine."""
    path = tmp_path / "config.yaml"
    path.write_text("paths: {}")
    done = run_cli("verify", path, "--fix", "--force")
    assert (done.returncode, "neither a cache folder nor a .pt file" in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == [path]


def test_links_to_folders_elsewhere_are_not_passed_over(healthy: Path, tmp_path: Path) -> None:
    fill_cache(tmp_path / "disk", healthy, 1)
    fill_cache(tmp_path / "cache" / "own", healthy, 1)
    (tmp_path / "cache" / "latest").symlink_to("own")
    (tmp_path / "cache" / "loop").symlink_to("../cache")
    assert [state.state for state in verify(list_cache(tmp_path / "cache"))] == ["ok"]
    link = tmp_path / "cache" / "far"
    link.symlink_to(tmp_path / "disk")
    found = {state.path: state.state for state in verify(list_cache(tmp_path / "cache"))}
    assert found.pop(str(link)) == "unknown"
    assert [*found.values()] == ["ok"]
    assert [state.state for state in verify(list_cache(link))] == ["ok"]


def test_verify_without_a_reader_finds_and_fixes_what_it_would_with_one(
    healthy: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    paths = fill_cache(cache, healthy, 30)
    for path in paths[:2]:
        path.write_bytes(path.read_bytes()[:-40])
    assert run_unread("verify", cache).returncode == 1
    assert run_unread("verify", cache, "--json").returncode == 1
    done = run_unread("verify", cache, "--fix", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.exists() for path in paths[:3]] == [False, False, True]


def test_verify_with_stderr_closed_or_full_says_what_it_found(healthy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    paths = fill_cache(cache, healthy, 3)
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-40])
    command = f"exec {sys.executable} -m voxtier tensors verify {cache}"
    for ending in ("2>&-", "2>/dev/full", "2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}"):
        done = subprocess.run(["bash", "-c", f"{command} {ending}"], capture_output=True, text=True)
        assert done.returncode == 1
        if "PIPE" not in ending:
            assert "1 ok" in done.stdout
            assert done.stdout.count(str(paths[1])) == 1
    full = subprocess.run(["bash", "-c", f"{command} >/dev/full"], capture_output=True, text=True)
    assert (full.returncode, full.stderr.count("No space left")) == (3, 1)
