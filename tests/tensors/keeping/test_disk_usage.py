"""`ls`, `du`, `gc` and `evict`: dry runs by default; files that cannot be made again stay."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from tensors.cases import fill_cache, names_of, rows, run_cli, run_unread, write_project
from tensors.keeping.damage import MATRIX
from voxtier.cli.tensors.disk_usage import du_command, gc_command, ls_command
from voxtier.cli.tensors.migrate import migrate_command
from voxtier.errors import ConfigError
from voxtier.system import machine
from voxtier.tensors import Manifest, claims, fix, list_cache, load_config, verify
from voxtier.tensors.identity.folders import item_folder, remember_folder
from voxtier.tensors.keeping.adopt import adopt
from voxtier.tensors.keeping.disk_usage import (
    choose_evictions,
    find_duplicates,
    find_garbage,
    measure_usage,
    remove,
)


def test_gc_removes_dead_files_and_keeps_live_and_precious_ones(healthy: Path, tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", names_of(2))
    config = load_config(path, environment={})
    folder = item_folder(config)
    remember_folder(config, folder)
    files = fill_cache(folder, healthy, 4)
    Manifest(folder).record([{"key": files[2].stem, "source": {"path": str(path)}}])
    dead = folder / f".x.pt.{machine.numbering()}-999999999-1.tmp"
    dead.write_bytes(b"half")
    alive = folder / f".y.pt.{machine.numbering()}-{os.getpid()}-1.tmp"
    alive.write_bytes(b"half")
    claim = claims.Claim.take(files[0])
    assert claim is not None
    stale = claims.Claim.path_for(files[1])
    stale.write_text(
        json.dumps({"pid": 999_999_999, "host": os.uname().nodename, "boot": machine.numbering()})
    )
    os.utime(stale, (1, 1))
    part = config.img_dir / ".train_9_a_1.nii.gz.part"
    part.write_bytes(b"half")
    os.utime(part, (1, 1))
    fresh = config.img_dir / ".train_8_a_1.nii.gz.part"
    fresh.write_bytes(b"half")
    os.utime(fresh, (time.time() + 3600,) * 2)  # fresh however long this test takes
    expected = {str(dead), str(stale), str(part), str(files[2])}
    dry = run_cli("gc", "--config", path, "--json")
    results = {row["path"]: row["result"] for row in rows(dry.stdout)}
    assert results.pop(str(files[3])).startswith("kept: its source is not known to exist")
    assert results == dict.fromkeys(expected, "would be removed")
    assert all(Path(name).exists() for name in expected)
    assert run_cli("gc", "--config", path, "--yes").returncode == 3
    assert not any(Path(name).exists() for name in expected)
    assert files[3].exists()
    assert run_cli("gc", "--config", path, "--yes", "--force").returncode == 0
    assert not files[3].exists()
    assert alive.exists()
    assert fresh.exists()
    assert claim.path.exists()
    assert not list(find_garbage(folder))
    claim.release()


def test_gc_removes_empty_folders_and_parts_of_the_hub_client(healthy: Path, tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", names_of(1))
    config = load_config(path, environment={})
    folder = item_folder(config)
    remember_folder(config, folder)
    fill_cache(folder, healthy, 1)
    dead = config.cache_dir / ("0" * 32)
    patient = config.img_dir / "train_7" / "train_7_a"
    client = config.img_dir / ".cache" / "huggingface" / "download"
    young = config.cache_dir / ("1" * 32)
    for made in (dead, patient, client, young):
        made.mkdir(parents=True)
    (dead / "cache_params.json").write_text("{}")
    leftover = client / "train_7.nii.gz.incomplete"
    mine = config.img_dir / "mine.incomplete"
    for file in (leftover, mine):
        file.write_bytes(b"half")
    for old in (dead, patient, patient.parent, leftover, mine):
        os.utime(old, (1, 1))
    expected = [dead / "cache_params.json", dead, leftover, patient, patient.parent]
    found = list(find_garbage(config.cache_dir, images=config.img_dir))
    assert [garbage.path for garbage in found] == expected
    assert {remove(garbage) for garbage in found} == {"removed"}
    assert young.exists()
    assert mine.exists()
    assert folder.exists()


@pytest.mark.parametrize("is_linked", [False, True])
def test_gc_lists_a_file_once_where_the_cache_lies_below_the_images(is_linked: bool, tmp_path: Path) -> None:
    images = tmp_path / "images"
    cache = images / "cache"
    claim = cache / "folder" / ".a.pt.claim"
    empty = cache / "old" / "deep"
    for folder in (claim.parent, empty):
        folder.mkdir(parents=True)
    claim.write_text(json.dumps({"pid": 999_999_999, "host": "h", "boot": machine.numbering()}))
    for folder in (empty, empty.parent):
        os.utime(folder, (0, 0))
    if is_linked:
        (tmp_path / "link").symlink_to(images)
        images = tmp_path / "link"
    found = list(find_garbage(cache, images=images))
    assert [garbage.path for garbage in found] == [claim, empty, empty.parent]
    assert [remove(garbage) for garbage in found] == ["removed"] * 3


def test_evict_refuses_a_budget_that_is_not_a_size(tmp_path: Path) -> None:
    for size in ("1.2.3GB", "many", "", "-1"):
        done = run_cli("evict", tmp_path, "--budget", size)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_evict_refuses_files_that_cannot_be_made_again(healthy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    paths = fill_cache(cache, healthy, 6)
    size = healthy.stat().st_size
    for age, path in enumerate(paths):
        os.utime(path, (1_000_000 + age, 1_000_000 + age))
    raw = tmp_path / "raw"
    raw.write_bytes(b"")
    hub = {"repo": "a/b", "commit": "1" * 40, "hub_path": "x"}
    Manifest(cache).record(
        [
            {"key": path.stem, "source": {"path": str(raw)} if n % 2 else hub}
            for n, path in enumerate(paths[:4])
        ]
        + [{"key": paths[0].stem, "pinned": True}]
    )
    done = run_cli("evict", cache, "--budget", 4 * size, "--json")
    assert "nothing was changed: repeat with --yes to remove 2 files, " in done.stderr
    assert [row["path"] for row in rows(done.stdout)] == [str(paths[1]), str(paths[2])]
    assert all(path.exists() for path in paths)
    refused = run_cli("evict", cache, "--budget", "1kB", "--yes")
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    assert all(path.exists() for path in paths)
    assert run_cli("evict", cache, "--budget", 4 * size, "--yes").returncode == 0
    assert [path.exists() for path in paths] == [True, False, False, True, True, True]
    listing = list_cache(cache)
    keep = frozenset(path.name for path in paths)
    with pytest.raises(ConfigError):
        choose_evictions(listing, 0, keep=keep, can_be_remade=lambda _: True, force=True)


def test_evict_without_a_reader_of_its_list_removes_all_of_it(healthy: Path, tmp_path: Path) -> None:
    paths = fill_cache(tmp_path, healthy, 11)
    raw = tmp_path / "raw"
    raw.write_bytes(b"")
    Manifest(tmp_path).record([{"key": path.stem, "source": {"path": str(raw)}} for path in paths[:10]])
    done = run_unread("evict", tmp_path, "--budget", "1kB", "--yes", "--json", "--force")
    assert done.returncode == 0
    assert "11 files removed" in done.stderr
    assert not any(path.exists() for path in paths)


def test_ls_du_and_adopt_report_files_bytes_and_duplicates(healthy: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for name, params in (
        ("a" * 32, {"transforms": [{"class": "X", "v": 1}]}),
        ("b" * 32, {"transforms": []}),
    ):
        fill_cache(root / name, healthy, 2)
        (root / name / "cache_params.json").write_text(json.dumps(params))
    broken = next((root / ("a" * 32)).glob("*.pt"))
    broken.write_bytes(MATRIX["cut to 50 %"][0](broken.read_bytes()))
    assert run_cli("verify", root, "--fix", "--force").returncode == 0
    listed = rows(run_cli("ls", root, "--json").stdout)
    assert [(Path(row["folder"]).name, row["files"]) for row in listed] == [("a" * 32, 1), ("b" * 32, 2)]
    totals = json.loads(run_cli("du", root, "--json").stdout)
    assert totals["tensors"] == 3 * healthy.stat().st_size
    assert totals["quarantine"] > healthy.stat().st_size / 3
    assert measure_usage(root) == totals
    list(adopt(root))
    entries = Manifest(root / ("b" * 32)).read()
    assert find_duplicates(entries) == [sorted(entries)]
    assert run_cli("adopt", root / ("b" * 32), "--duplicates").stdout.startswith("2 ok\nequal: ")
    first = next((root / ("b" * 32)).glob("*.pt"))
    first.unlink()
    assert "equal" not in run_cli("adopt", root, "--duplicates").stdout
    (root / ("b" * 32) / f".x.pt.{machine.numbering()}-999999999-1.tmp").write_bytes(b"half")
    assert run_cli("adopt", root).returncode == 0, "what a dead run left is no damage"
    (root / ("a" * 32) / "cache_params.json").write_text("[" * 100_000)
    assert [row["parameters"] for row in rows(run_cli("ls", root, "--json").stdout)] == [{}, {}]


def test_relative_folders_tell_the_truth(
    healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = fill_cache(tmp_path / "a" / "cache", healthy, 2)
    Manifest(paths[0].parent).record([{"key": "k"}])
    expected = measure_usage(tmp_path / "a")
    assert expected["tensors"] == sum(path.stat().st_size for path in paths)
    assert expected["manifests"] > expected["other"] == 0
    assert measure_usage(paths[0].parent) == expected  # its manifest lies beside it
    monkeypatch.chdir(tmp_path / "a")
    assert measure_usage(Path()) == measure_usage(Path("../a")) == expected
    monkeypatch.chdir(paths[0].parent)
    assert list(Manifest(Path()).read()) == ["k"]
    paths[0].write_bytes(paths[0].read_bytes()[:-9])
    found = list(verify(list_cache(Path())))
    assert [result.action for result in fix(Path(), found, force=True)] == ["quarantined"]


def test_folders_that_cannot_be_read_are_told(
    healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`du` said 0 B. Root may read every folder, so the refusal of the system is raised in its place."""
    paths = fill_cache(tmp_path / "shut", healthy, 1) + fill_cache(tmp_path / "open", healthy, 1)
    scan = os.scandir

    def refuse(folder: str | os.PathLike[str]) -> os.ScandirIterator[str]:  # type: ignore[name-defined]
        if str(folder).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    errors: list[OSError] = []
    assert measure_usage(tmp_path, errors.append)["tensors"] == paths[1].stat().st_size
    assert [error.filename for error in errors] == [str(tmp_path / "shut")]
    shut = tmp_path / "shut"
    commands = (
        (du_command, [str(tmp_path)], f"not counted: {shut}: Permission denied"),
        (ls_command, [str(tmp_path)], f"not listed: {shut}: folder: Permission denied"),
        (ls_command, [str(shut)], f"not listed: {shut}: folder: Permission denied"),
        (gc_command, [str(tmp_path)], f"not looked into: {shut}: Permission denied"),
        (migrate_command, [str(tmp_path), "--make-safe"], f"io_error: {shut}: folder: Permission denied"),
    )
    for command, arguments, said in commands:
        done = CliRunner().invoke(command, arguments, standalone_mode=False)
        assert (done.return_value, done.output.count(said)) == (3, 1), done.output
    with pytest.raises(ConfigError, match="cannot be read"):
        choose_evictions(list_cache(tmp_path), 0, can_be_remade=lambda _: True, force=True)


def test_du_tells_what_it_cannot_count(
    healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a manifest of another user it said 0 B and 0, although its help promises 3."""
    cache = tmp_path / "c"
    fill_cache(cache, healthy, 1)
    Manifest(cache).record([{"key": "k"}])
    scan, found, shut = os.scandir, Path.lstat, Manifest(cache).path

    def refuse(folder: str | os.PathLike[str]) -> os.ScandirIterator[str]:  # type: ignore[name-defined]
        if str(folder) == str(shut):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    def refuse_size(path: Path) -> os.stat_result:
        if path.suffix == ".pt":
            raise PermissionError(13, "Permission denied", str(path))
        return found(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        done = CliRunner().invoke(du_command, [str(cache)], standalone_mode=False)
        assert (done.return_value, f"not counted: {shut}: Permission denied" in done.output) == (3, True)
    monkeypatch.setattr(Path, "lstat", refuse_size)
    errors: list[OSError] = []
    assert measure_usage(cache, errors.append)["tensors"] == 0
    assert [Path(error.filename).suffix for error in errors] == [".pt"]
    assert measure_usage(tmp_path / "c" / ".." / "c")["manifests"] > 0


def test_evict_with_force_does_not_advise_force(healthy: Path, tmp_path: Path) -> None:
    (path,) = fill_cache(tmp_path, healthy, 1)
    for force, advised in ((False, True), (True, False)):
        with pytest.raises(ConfigError) as refused:
            choose_evictions(
                list_cache(tmp_path),
                0,
                keep=frozenset({path.name}),
                can_be_remade=lambda _: True,
                force=force,
            )
        assert ("--force" in str(refused.value)) == advised


def test_gc_leaves_files_of_other_programs(tmp_path: Path) -> None:
    cache, images = tmp_path / "cache", tmp_path / "images"
    others = {
        cache / ".insurance.claim": '{"amount": 3}',
        cache / ".report.claim": "text",
        cache / ".list.claim": "[1]",
        cache / ".x.tmp": "text",
        images / ".film.part": "half",
        images / ".book.part.json": "{}",
    }
    torn = {cache / ".a.pt.claim": "", cache / ".b.pt.claim": '{"pid": 12'}
    for path, text in {**others, **torn}.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        os.utime(path, (1, 1))
    assert [garbage.path for garbage in find_garbage(cache, images=images)] == [*torn]
