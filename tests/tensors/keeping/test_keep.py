"""Manifest, adoption, migration, space: dry by default, and nothing that cannot be made again goes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from monai.data import PersistentDataset
from monai.transforms import Compose, Transform

from tensors.cases import fill_cache, names_of, put_raw, rows, run_cli, run_here, write_project
from tensors.keeping.damage import MATRIX
from voxtier import _core
from voxtier.errors import ConfigError
from voxtier.system import durable, processes
from voxtier.tensors import Manifest, claims, item_key, list_cache, load_config, verify
from voxtier.tensors.identity.fingerprint import differences, fingerprint
from voxtier.tensors.identity.folders import item_folder, remember_folder
from voxtier.tensors.keeping.adopt import Stale, adopt, find_stale
from voxtier.tensors.keeping.disk_usage import (
    choose_evictions,
    find_duplicates,
    find_garbage,
    measure_usage,
    remove,
)
from voxtier.tensors.keeping.migrate import (
    carry_out,
    make_safe,
    monai_key,
    plan_folder_moves,
    plan_renames,
)
from voxtier.tensors.making.ledger import Ledger
from voxtier.tensors.making.plan import make_plan
from voxtier.tensors.manifest import Manifests

FIXTURES = Path(__file__).parents[1] / "fixtures"


class Refuse(Transform):
    def __call__(self, _: object) -> object:
        raise AssertionError("recomputed")


def test_b11_a_deleted_manifest_is_restored_by_adopt(healthy: Path, tmp_path: Path) -> None:
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


def test_the_manifest_survives_set_data(healthy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    fill_cache(cache, healthy, 2)
    list(adopt(cache))
    PersistentDataset([1], Compose([Refuse()]), cache).set_data([2])
    assert list(cache.iterdir()) == []
    assert len(Manifest(cache).read()) == 2


def test_segments_of_finished_processes_are_joined(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    for number in range(3):
        Manifest(cache).record([{"key": "a", "n": number}, {"key": f"b{number}"}])
    Manifest(cache).forget(["b1"])
    manifest = Manifest(cache)
    before = manifest.read()
    manifest.compact()
    assert len(list(manifest.path.iterdir())) == 1
    assert Manifest(cache).read() == before
    assert before["a"]["n"] == 2
    assert "b1" not in before


def test_runs_that_end_together_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two joiners would write a file without what only the other has read, and remove the rest."""
    cache = tmp_path / "c"
    for number in range(3):
        Manifest(cache).record([{"key": f"a{number}"}])
    manifest = Manifest(cache)
    segments = sorted(manifest.path.iterdir())
    claim = claims.Claim.take(manifest.path / "joined.jsonl")
    assert claim is not None
    manifest.compact()
    assert sorted(path for path in manifest.path.iterdir() if path != claim.path) == segments
    claim.release()
    join = Manifest._merge

    def join_late(reader: Manifest, segments: list[Path]) -> dict[str, dict[str, object]]:
        if reader is manifest:
            Manifest(cache).compact()  # between the list of files and their contents
        return join(reader, segments)

    monkeypatch.setattr(Manifest, "_merge", join_late)
    assert sorted(manifest.read()) == ["a0", "a1", "a2"]
    assert [path.name for path in manifest.path.iterdir()] == ["joined.jsonl"]


STRANGE = [
    {"state": ["ok"], "mtime_ns": 1},
    {"mtime_ns": "x", "state": "ok"},
    {"size": 10**400},
    {"seconds": float("inf")},
    {"at": "now"},
    {"at": None},
    {"digest": [1]},
    {"source": {"mtime_ns": 1}},
    {"source": {"mtime_ns": 1, "size": 1, "path": 5}},
    {"source": {"mtime_ns": 1, "size": 1, "path": "a\0b"}},
    {"raw": 5},
    {"unavailable": "yes"},
    {"records": []},
    {"fingerprint": "old"},
]


@pytest.mark.parametrize("part", STRANGE, ids=str)
def test_a_manifest_that_says_strange_things_is_no_obstacle(
    part: dict[str, object], healthy: Path, tmp_path: Path
) -> None:
    path = write_project(tmp_path / "p", names_of(2))
    config = load_config(path, environment={})
    folder = item_folder(config)
    (file,) = fill_cache(folder, healthy, 1)
    manifest = Manifest(folder)
    manifest.path.mkdir(parents=True)
    (manifest.path / "x-y-\u00b2-3.jsonl").write_text("{}\n")
    (manifest.path / "x.jsonl").write_text(json.dumps({"key": file.stem, "at": 1, **part}) + "\n")
    listing = list_cache(folder)
    assert [state.state for state in verify(listing, since_last=True)] == ["ok"]
    assert list(find_stale(folder, {})) in ([], [Stale(file.stem, None, [])])
    assert find_duplicates(manifest.read()) == []
    with pytest.raises(ConfigError, match="cannot be made again"):
        choose_evictions(listing, 0, can_be_remade=Manifests().has_source)
    assert make_plan(config).missing == 1
    ledger = Ledger(config, folder)
    ledger.clean_leftovers(names_of(2))
    assert ledger.result.raw_files_removed == 0
    manifest.compact()


def test_every_generation_of_names_is_migrated_without_recomputing(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(FIXTURES / "monai-1.5.2", folder)
    known = json.loads((folder / "facts.json").read_text())
    items = tmp_path / "items.json"
    items.write_text(json.dumps(known["items"]))
    dry = run_here("migrate", folder, "--items", items)
    assert (dry.return_value, dry.stdout.count("would move")) == (0, 10)
    assert run_here("migrate", folder, "--items", items, "--apply").return_value == 0
    stock = PersistentDataset(known["items"], Compose([Refuse()]), folder)
    assert [float(torch.as_tensor(item["image"]).double().sum()) for item in stock] == known["sums"]


def test_a_moved_prefix(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(FIXTURES / "monai-1.6.1", folder)
    known = json.loads((folder / "facts.json").read_text())
    moved = [{**item, "image": item["image"].replace("raw/", "/new/place/")} for item in known["items"]]
    items = tmp_path / "items.json"
    items.write_text(json.dumps(moved))
    options = ["--from", "sha256", "--old-prefix", "raw/", "--new-prefix", "/new/place/", "--apply"]
    done = run_here("migrate", folder, "--items", items, *options)
    assert done.return_value == 0
    assert "10 moved" in done.stdout
    stock = PersistentDataset(moved, Compose([Refuse()]), folder)
    assert [float(torch.as_tensor(item["image"]).double().sum()) for item in stock] == known["sums"]


def test_files_of_1_5_0_are_made_safe_for_stock_monai(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(FIXTURES / "monai-1.5.0", folder)
    known = json.loads((folder / "facts.json").read_text())
    dry = run_here("migrate", folder, "--make-safe")
    assert dry.stdout.count("would be converted") == 10
    done = run_here("migrate", folder, "--make-safe", "--apply")
    assert (done.return_value, done.stdout.count("converted")) == (0, 10)
    assert {state.state for state in verify(list_cache(folder))} == {"ok"}

    def md5(item: object) -> bytes:
        return monai_key(item, "md5").encode()

    stock = PersistentDataset(known["items"], Compose([Refuse()]), folder, hash_func=md5)
    assert [float(item["image"].double().sum()) for item in stock] == known["sums"]
    assert make_safe(next(folder.glob("*.pt"))) == "fine"


def test_make_safe_leaves_what_may_run(tmp_path: Path) -> None:
    torch.save({"x": os.path.join}, tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    assert make_safe(tmp_path / "a.pt").startswith("left: unsafe_globals")
    assert (tmp_path / "a.pt").read_bytes() == before


def test_a_taken_name_is_never_overwritten(healthy: Path, tmp_path: Path) -> None:
    paths = fill_cache(tmp_path / "old", healthy, 3)
    taken = tmp_path / "new" / paths[1].name
    taken.parent.mkdir()
    taken.write_bytes(b"mine")
    Manifest(tmp_path / "old").record([{"key": paths[0].stem, "volume": "v"}])
    results = [result for _, result in carry_out(plan_folder_moves(tmp_path / "old", tmp_path / "new"))]
    assert sorted(results) == ["left: the new name is taken", "moved", "moved"]
    assert taken.read_bytes() == b"mine"
    assert Manifest(tmp_path / "new").read()[paths[0].stem]["volume"] == "v"
    assert plan_renames(tmp_path / "new", [1], str, str) == []
    with pytest.raises(ConfigError):
        plan_folder_moves(tmp_path / "absent", tmp_path / "new")


def test_a_run_killed_between_link_and_unlink_is_finished(healthy: Path, tmp_path: Path) -> None:
    linked, pointed = fill_cache(tmp_path / "old", healthy, 2)
    new = tmp_path / "new"
    new.mkdir()
    os.link(linked, new / linked.name)
    (new / pointed.name).symlink_to(pointed)  # the one copy must not go
    results = {move.old: result for move, result in carry_out(plan_folder_moves(tmp_path / "old", new))}
    assert results == {linked: "moved", pointed: "left: the new name is taken"}
    assert not linked.exists()
    assert pointed.exists()
    assert (new / linked.name).is_file()


def test_parameter_differences_are_named() -> None:
    old = {"transforms": [{"class": "Spacingd", "pixdim": [1.0, 1.0, float("nan")]}, {"class": "X", "b": 1}]}
    new = {
        "transforms": [{"class": "Spacingd", "pixdim": [1.0, 2.0, float("nan")]}, {"class": "X", "b": 1.0}]
    }
    assert differences(old, new) == [
        "transforms[Spacingd].pixdim: [1.0, 1.0, NaN] -> [1.0, 2.0, NaN]",
        "transforms[X].b: 1 -> 1.0",
    ]
    assert differences(old, old) == []


def test_b13_a_stale_file_is_explained(healthy: Path, tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", names_of(2))
    config = load_config(path, environment={})
    folder = item_folder(config)
    remember_folder(config, folder)
    files = fill_cache(folder, healthy, 2)
    today = fingerprint(config)
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


def test_gc_finds_what_nobody_needs(healthy: Path, tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", names_of(2))
    config = load_config(path, environment={})
    folder = item_folder(config)
    remember_folder(config, folder)
    files = fill_cache(folder, healthy, 4)
    Manifest(folder).record([{"key": files[2].stem, "source": {"path": str(path)}}])
    dead = folder / f".x.pt.{durable.boot_id()}-999999999-1.tmp"
    dead.write_bytes(b"half")
    alive = folder / f".y.pt.{durable.boot_id()}-{os.getpid()}-1.tmp"
    alive.write_bytes(b"half")
    claim = claims.Claim.take(files[0])
    assert claim is not None
    stale = claims.Claim.path_for(files[1])
    stale.write_text(json.dumps({"pid": 999_999_999, "host": os.uname().nodename, "boot": durable.boot_id()}))
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
    assert results.pop(str(files[3])).startswith("kept: nothing says that it can be made again")
    assert results == dict.fromkeys(expected, "would be removed")
    assert all(Path(name).exists() for name in expected)
    assert run_cli("gc", "--config", path, "--apply").returncode == 3
    assert not any(Path(name).exists() for name in expected)
    assert files[3].exists()
    assert run_cli("gc", "--config", path, "--apply", "--force").returncode == 0
    assert not files[3].exists()
    assert alive.exists()
    assert fresh.exists()
    assert claim.path.exists()
    assert not list(find_garbage(folder))
    claim.release()


def test_gc_removes_folders_of_nothing_and_leftovers_of_the_hub(healthy: Path, tmp_path: Path) -> None:
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


def test_a_claim_that_was_taken_over_is_not_released_by_the_sleeper(tmp_path: Path) -> None:
    claim = claims.Claim.take(tmp_path / "a.pt")
    assert claim is not None
    claim.path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "boot": "00000000"}))
    claim.release()
    assert claim.path.exists()


def test_a_number_that_another_process_has_now_holds_no_claim(tmp_path: Path) -> None:
    """After a kill, or in a container that was started anew, the claim's number is somebody else's."""
    path = claims.Claim.path_for(tmp_path / "a.pt")
    holder = {"pid": os.getpid(), "host": os.uname().nodename, "boot": durable.boot_id(), "started": "1"}
    path.write_text(json.dumps(holder))
    claim = claims.Claim.take(tmp_path / "a.pt")
    assert claim is not None
    assert claims.claim_is_live(claim.path)
    claim.release()


@pytest.mark.parametrize("pid", [10**30, 0, -1])
def test_a_number_that_no_process_can_have_is_dead(pid: int, tmp_path: Path) -> None:
    temporary = tmp_path / f".x.pt.{durable.boot_id()}-{abs(pid)}-1.tmp"
    temporary.write_bytes(b"half")
    claim = claims.Claim.path_for(tmp_path / "a.pt")
    claim.write_text(json.dumps({"pid": pid, "host": os.uname().nodename, "boot": durable.boot_id()}))
    found = {garbage.path for garbage in find_garbage(tmp_path)}
    assert claim in found
    assert (temporary in found) == (abs(pid) != 1)


def test_a_process_that_ended_is_dead_before_anybody_asks_for_its_exit_code(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    pid = ended.pid
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.kill(pid, 0)
        assert not processes.is_alive(pid)
        path = claims.Claim.path_for(tmp_path / "a.pt")
        path.write_text(json.dumps({"pid": pid, "host": os.uname().nodename, "boot": durable.boot_id()}))
        assert not claims.claim_is_live(path)
        temporary = tmp_path / f".x.pt.{durable.boot_id()}-{pid}-1.tmp"
        temporary.write_bytes(b"half")
        assert {garbage.path for garbage in find_garbage(tmp_path)} == {path, temporary}
    finally:
        ended.wait()
    assert processes.is_alive(os.getpid())


def test_sizes_that_are_none(tmp_path: Path) -> None:
    for size in ("1.2.3GB", "many", "", "-1"):
        done = run_cli("evict", tmp_path, "--budget", size)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_a_claim_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", refuse)
    claim = claims.Claim.take(tmp_path / "a.pt")
    assert claim is not None
    assert claims.Claim.take(tmp_path / "a.pt") is None
    claim.release()
    assert list(tmp_path.iterdir()) == []


def test_eviction_refuses_what_cannot_be_made_again(healthy: Path, tmp_path: Path) -> None:
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
    assert [row["path"] for row in rows(done.stdout)] == [str(paths[1]), str(paths[2])]
    assert all(path.exists() for path in paths)
    refused = run_cli("evict", cache, "--budget", "1kB", "--apply")
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    assert all(path.exists() for path in paths)
    assert run_cli("evict", cache, "--budget", 4 * size, "--apply").returncode == 0
    assert [path.exists() for path in paths] == [True, False, False, True, True, True]
    listing = list_cache(cache)
    keep = frozenset(path.name for path in paths)
    with pytest.raises(ConfigError):
        choose_evictions(listing, 0, keep=keep, can_be_remade=lambda _: True, force=True)


def test_ls_du_and_duplicates(healthy: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for name, params in (
        ("a" * 32, {"transforms": [{"class": "X", "v": 1}]}),
        ("b" * 32, {"transforms": []}),
    ):
        fill_cache(root / name, healthy, 2)
        (root / name / "cache_params.json").write_text(json.dumps(params))
    broken = next((root / ("a" * 32)).glob("*.pt"))
    broken.write_bytes(MATRIX["cut to 50 %"][0](broken.read_bytes()))
    assert run_cli("verify", root, "--fix", "--force").returncode == 1
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
    (root / ("b" * 32) / f".x.pt.{durable.boot_id()}-999999999-1.tmp").write_bytes(b"half")
    assert run_cli("adopt", root).returncode == 0, "what a dead run left is no damage"
    (root / ("a" * 32) / "cache_params.json").write_text("[" * 100_000)
    assert [row["parameters"] for row in rows(run_cli("ls", root, "--json").stdout)] == [{}, {}]


def test_adopt_with_a_configuration(healthy: Path, tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", names_of(2))
    config = load_config(path, environment={})
    folder = item_folder(config)
    remember_folder(config, folder)
    fill_cache(folder, healthy, 2)
    raw = put_raw(tmp_path / "p", names_of(1)[0])
    assert run_cli("adopt", "--config", path, "--same-pipeline").returncode == 0
    entry = Manifest(folder).read()[item_key(names_of(1)[0])]
    assert (entry["volume"], entry["source"]["path"]) == (names_of(1)[0], str(raw))
    assert entry["fingerprint"] == fingerprint(config)
    assert run_cli("explain", "--config", path).returncode == 0


def test_a_crash_leaves_no_partial_file(tmp_path: Path) -> None:
    def fail(stream: object) -> None:
        stream.write(b"half")  # type: ignore[attr-defined]
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        durable.write_file(tmp_path / "a", fail)
    assert list(tmp_path.iterdir()) == []
    assert durable.write_file(tmp_path / "a", lambda s: None, replace=False)
    assert not durable.write_file(tmp_path / "a", lambda s: None, replace=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_stubs_of_the_core_name_their_states() -> None:
    assert {"ok", "bad_crc", "io_error"} <= set(_core.TENSOR_STATES)
