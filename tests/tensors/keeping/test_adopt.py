"""`adopt` records what a cache holds; `explain` finds files that would be made differently today."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tensors.cases import fill_cache, names_of, put_raw, rows, run_cli, run_forked, write_project
from voxtier._core import verify_tensor_file
from voxtier.tensors import Manifest, item_key, load_config
from voxtier.tensors.identity.fingerprint import describe_processing
from voxtier.tensors.identity.folders import item_folder, remember_folder
from voxtier.tensors.keeping.adopt import adopt, find_stale, has_tensors, list_tensors
from voxtier.tensors.manifest import Manifests


def test_a_deleted_manifest_is_restored_by_adopt(healthy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    paths = fill_cache(cache, healthy, 4)
    assert {state.state for state in adopt(cache, volumes={paths[0].stem: "train_1_a_1.nii.gz"})} == {"ok"}
    first = Manifest(cache).read()
    assert first[paths[0].stem]["volume"] == "train_1_a_1.nii.gz"
    assert first[paths[0].stem]["tensors"] == [["image", "float32", [1, 32, 32, 32]]]
    shutil.rmtree(tmp_path / ".voxtier")
    list(adopt(cache, volumes={paths[0].stem: "train_1_a_1.nii.gz"}))
    again = Manifest(cache).read()

    def without_time(entries: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
        return {key: {k: v for k, v in entry.items() if k != "at"} for key, entry in entries.items()}

    assert without_time(again) == without_time(first)  # entries come in the order in which files were checked


def test_explain_tells_of_a_folder_that_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said that there is no file."""
    config = write_project(tmp_path / "p", names_of(1))
    loaded = load_config(config, environment={})
    folder = item_folder(loaded)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(folder)
    remember_folder(loaded, folder)
    commands = (
        lambda: list(find_stale(folder, {})),
        lambda: list_tensors(folder),
        lambda: has_tensors(folder),
    )
    for command in commands:
        with pytest.raises(OSError, match="symbolic links"):
            command()
    done = run_forked("explain", "--config", config)
    assert (done.returncode, "symbolic links" in done.stderr) == (3, True), done.stderr
    folder.unlink()
    done = run_forked("explain", "--config", config)
    assert (done.returncode, "there is no file" in done.stderr) == (1, True)


def test_whether_there_is_a_tensor_is_told_by_the_first_one(
    healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: looks.append(path) or is_file(path))
    assert not has_tensors(tmp_path / "absent")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    assert not has_tensors(tmp_path / "other")
    assert not looks
    fill_cache(tmp_path / "c", healthy, 4)
    assert has_tensors(tmp_path / "c")
    assert len(looks) == 1


def test_explain_names_what_changed_since_a_file_was_made(healthy: Path, tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", names_of(2))
    config = load_config(path, environment={})
    folder = item_folder(config)
    remember_folder(config, folder)
    files = fill_cache(folder, healthy, 2)
    today = describe_processing(config.processing)
    raw = put_raw(tmp_path / "p", names_of(1)[0])
    source = {"path": str(raw), "size": raw.stat().st_size, "mtime_ns": raw.stat().st_mtime_ns}
    rows_ = [{"key": file.stem, "fingerprint": today, "source": source} for file in files]
    Manifest(folder).record(rows_)
    assert list(find_stale(folder, today)) == []
    Manifest(folder).record([{"key": files[0].stem, "fingerprint": {**today, "reader": "ITKReader"}}])
    raw.write_bytes(b"another volume")
    found = {stale.key: stale.reasons for stale in find_stale(folder, today)}
    assert found[files[0].stem][0] == 'reader: "ITKReader" -> "NibabelReader"'
    assert all("changed since" in reasons[-1] for reasons in found.values())
    done = run_cli("explain", "--config", path, "--json")
    assert (done.returncode, len(rows(done.stdout))) == (1, 2)
    files[0].unlink()
    assert [stale.key for stale in find_stale(folder, today)] == [files[1].stem]


def test_adopt_takes_names_and_sources_from_a_configuration(healthy: Path, tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", names_of(2))
    config = load_config(path, environment={})
    folder = item_folder(config)
    remember_folder(config, folder)
    fill_cache(folder, healthy, 2)
    raw = put_raw(tmp_path / "p", names_of(1)[0])
    assert run_cli("adopt", "--config", path, "--same-pipeline").returncode == 0
    entry = Manifest(folder).read()[item_key(names_of(1)[0])]
    assert (entry["volume"], entry["source"]["path"]) == (names_of(1)[0], str(raw))
    assert entry["fingerprint"] == describe_processing(config.processing)
    assert run_cli("explain", "--config", path).returncode == 0


HUB = {"repo": "x/y", "commit": "0" * 40, "hub_path": "dataset/a.nii.gz", "sha256": "1" * 64}


@pytest.mark.parametrize("is_moved", [False, True], ids=["same path", "other path"])
def test_adopt_keeps_what_generate_recorded_of_a_source(
    healthy: Path, tmp_path: Path, is_moved: bool
) -> None:
    path = write_project(tmp_path / "p", names_of(3))
    config = load_config(path, environment={})
    folder = item_folder(config)
    remember_folder(config, folder)
    files = {name: folder / f"{item_key(name)}.pt" for name in names_of(3)}
    fill_cache(folder, healthy, 3)
    raws = {name: put_raw(tmp_path / "p", name) for name in names_of(3)}
    recorded = {}
    for number, (name, raw) in enumerate(raws.items()):
        of_file = {"size": raw.stat().st_size, "mtime_ns": raw.stat().st_mtime_ns}
        place = f"/elsewhere/{name}" if is_moved else str(raw)
        recorded[name] = {"path": place, **of_file, **(HUB if number else {})}
    Manifest(folder).record([{"key": files[name].stem, "source": recorded[name]} for name in names_of(2)])
    assert run_cli("adopt", "--config", path).returncode == 0
    entries = Manifest(folder).read()
    found = [entries[files[name].stem]["source"] for name in names_of(3)]
    first, second, third = (str(raws[name]) for name in names_of(3))
    if is_moved:  # size and time were another file's
        assert found == [{"path": first}, {**HUB, "path": second}, {"path": third}]
    else:
        assert found == [recorded[names_of(1)[0]], recorded[names_of(2)[1]], {"path": third}]
    for raw in raws.values():
        raw.unlink()
    assert [Manifests().has_source(file) for file in files.values()] == [False, True, False]


def test_explain_vouches_for_nothing_that_it_knows_nothing_of(healthy: Path, tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", names_of(3))
    config = load_config(path, environment={})
    folder = item_folder(config)
    remember_folder(config, folder)
    files = fill_cache(folder, healthy, 3)
    Manifest(folder).record(
        [{"key": file.stem, "fingerprint": describe_processing(config.processing)} for file in files]
    )
    done = run_cli("explain", "--config", path)
    assert (done.returncode, done.stderr) == (0, "no file would be made differently today\n")
    Manifest(folder).record([{"key": files[0].stem, "fingerprint": None}])
    one = run_cli("explain", "--config", path)
    assert (one.returncode, one.stdout) == (1, "")
    assert "without a record of how they were made: 1 file;" in one.stderr
    shutil.rmtree(folder.parent / ".voxtier" / folder.name)
    put_raw(tmp_path / "p", names_of(1)[0])
    assert run_cli("adopt", "--config", path).returncode == 0  # not --same-pipeline
    three = run_cli("explain", "--config", path, "--json")
    assert (three.returncode, "made: 3 files;" in three.stderr) == (1, True)
    assert sorted(row["volume"] for row in rows(three.stdout)) == names_of(3)
    assert all(row["reasons"] == ["no record of how it was made"] for row in rows(three.stdout))
    shutil.rmtree(folder)
    gone = run_cli("explain", "--config", path)
    assert (gone.returncode, "there is no file" in gone.stderr) == (1, True)


def project_of(base: Path, count: int) -> tuple[Path, Path, list[Path]]:
    """Return a configuration, its cache folder, and files there that `generate` has recorded."""
    path = write_project(base, names_of(count))
    config = load_config(path, environment={})
    folder = item_folder(config)
    remember_folder(config, folder)
    folder.mkdir(parents=True)
    files = [folder / f"{item_key(name)}.pt" for name in names_of(count)]
    for number, file in enumerate(files):
        torch.save({"image": torch.full((1, 4, 4, 4), float(number))}, file)
        report = verify_tensor_file(file)
        made = {
            "fingerprint": {**describe_processing(config.processing), "engine": {"name": "fused"}},
            "records": {name: crc for name, _, crc in report.records},
            "engine": "fused",
            "seconds": 1.5,
            "created": 5.0,
            "state": "ok",
            "pinned": True,
            "size": report.size,
            "mtime_ns": report.mtime_ns,
            "ctime_ns": report.ctime_ns,
            "source": {**HUB, "path": "/data/a.nii.gz", "size": 7, "mtime_ns": 8},
        }
        Manifest(folder).record([{"key": file.stem, "volume": names_of(count)[number], **made}])
    return path, folder, files


OTHERS: dict[str, Any] = {
    "of the same size": {"image": torch.full((1, 4, 4, 4), 9.0)},
    "of another size": {"image": torch.full((1, 4, 4, 5), 9.0)},
    "with an array": {"image": np.full((1, 4, 4, 4), 9.0, np.float32)},
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_file_that_another_program_wrote_is_not_vouched_for(tmp_path: Path, other: str) -> None:
    path, folder, files = project_of(tmp_path / "p", 3)
    said = run_cli("explain", "--config", path)
    assert (said.returncode, said.stderr) == (0, "no file would be made differently today\n")
    torch.save(OTHERS[other], files[0])
    status = files[1].stat()
    files[1].write_bytes(files[1].read_bytes())  # the same file again, at another time
    assert files[1].stat().st_mtime_ns != status.st_mtime_ns
    files[2].write_bytes(files[2].read_bytes()[:-300])  # damaged: for `verify`, not for `explain`

    def unknown() -> list[str]:
        done = run_cli("explain", "--config", path, "--json")
        assert all(row["reasons"] == ["no record of how it was made"] for row in rows(done.stdout))
        assert done.returncode == 1
        return [row["key"] for row in rows(done.stdout)]

    assert unknown() == [files[0].stem]
    for _ in range(2):
        done = run_cli("verify", folder, "--since-last")
        words = "another program wrote it" if other.startswith("of") else "numpy"
        assert words in done.stdout + done.stderr
    assert unknown() == [files[0].stem]  # what `verify` records changes nothing
    assert run_cli("adopt", "--config", path).returncode == 1  # one is damaged
    assert unknown() == [files[0].stem]
    entries = Manifest(folder).read()
    replaced, kept, damaged = (entries[file.stem] for file in files)
    for entry in (kept, damaged):
        assert (entry["engine"], entry["seconds"], entry["created"]) == ("fused", 1.5, 5.0)
        assert entry["fingerprint"] is not None
    assert [replaced[name] for name in ("fingerprint", "engine", "seconds", "created")] == [None] * 4
    assert (replaced["source"]["repo"], replaced["volume"], replaced["pinned"]) == (
        HUB["repo"],
        names_of(3)[0],
        True,
    )
    found = verify_tensor_file(files[0])
    is_fine = other.startswith("of")
    crcs = {name: crc for name, _, crc in found.records} if is_fine else None
    assert (replaced["records"], replaced["size"]) == (crcs, found.size)
    assert run_cli("adopt", "--config", path, "--same-pipeline").returncode == 1
    again = run_cli("explain", "--config", path)  # its owner knows better
    assert (again.returncode, again.stderr) == (0, "no file would be made differently today\n")
    assert run_cli("adopt", "--config", path).returncode == 1
    assert run_cli("explain", "--config", path).returncode == 0
