"""Claims and raw files: which raw file may be removed, who makes a volume, what the manifest learns."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tensors.cases import names_of, nifti_bytes, put_raw, rows
from tensors.making.hub_server import Fault, HubServer
from tensors.making.project import Project
from voxtier import _core
from voxtier.system import machine
from voxtier.tensors import Manifest, claims, item_key
from voxtier.tensors.engine.outcome import Outcome
from voxtier.tensors.identity.keys import hub_path
from voxtier.tensors.keeping.adopt import adopt
from voxtier.tensors.making.download import RawState, is_ours, part_paths
from voxtier.tensors.making.ledger import Ledger
from voxtier.tensors.making.worker_pool import Task, WorkerPool
from voxtier.tensors.manifest import Manifests


def facts(task: Task, state: str = "ok") -> dict[str, Any]:
    """Return what a worker says that has made a tensor of the raw file as it is now."""
    size = task.final.stat().st_size if task.final.exists() else 5
    said = {"state": state, "size": size, "seconds": 0.1, "outcome": Outcome("stock"), "made_by": {}}
    return {**said, "raw": RawState.of(task.raw)}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two volumes on disk, no hub."""
    made = Project(tmp_path / "p", names_of(2))
    made.put_raw_files()
    made.folder.mkdir()
    return made


def test_a_volume_is_claimed_once_and_released_at_the_end(project: Project) -> None:
    with Ledger(project.config, project.folder) as one, Ledger(project.config, project.folder) as two:
        first, second = map(one.task, project.names)
        assert one.claim(first) == "claimed"
        assert two.claim(first) == "taken"
        assert two.claim(second) == "claimed"
        two.release(second)
        assert one.claim(second) == "claimed"
    assert [path.name for path in project.folder.iterdir()] == []


def test_a_tensor_that_exists_is_settled_and_counted_for_others(project: Project) -> None:
    sizes: list[int] = []
    with Ledger(project.config, project.folder, on_settled=sizes.append) as ledger:
        task = ledger.task(project.names[0])
        task.final.write_bytes(b"made by another")
        assert ledger.claim(task) == "settled"
        assert (ledger.result.made_by_others, sizes) == (1, [0])
        assert not claims.Claim.path_for(task.final).exists()


def test_a_made_volume_is_recorded_with_its_report_and_source(project: Project) -> None:
    sizes: list[int] = []
    with Ledger(project.config, project.folder, on_settled=sizes.append) as ledger:
        task = ledger.task(project.names[0])
        assert ledger.claim(task) == "claimed"
        ledger.made(task, facts(task))
        assert (ledger.result.made, sizes) == (1, [5])
    entry = Manifest(project.folder).read()[task.key]
    assert (entry["volume"], entry["state"], entry["size"]) == (task.volume, "ok", 5)
    assert (entry["source"]["path"], entry["source"]["size"]) == (str(task.raw), task.raw.stat().st_size)
    assert task.raw.exists()


@pytest.mark.parametrize("state", ["ok", "bad_crc"])
def test_a_downloaded_raw_file_goes_only_when_its_tensor_is_intact(project: Project, state: str) -> None:
    with Ledger(project.config, project.folder) as ledger:
        task = ledger.task(project.names[0])
        assert ledger.claim(task) == "claimed"
        ledger.begin_download(task, task.raw.stat().st_size, {"repo": "a/b", "commit": "1" * 40})
        assert ledger.raw_bytes == task.raw.stat().st_size
        ledger.made(task, facts(task, state))
        assert ledger.raw_bytes == 0
        assert ledger.result.raw_files_removed == (state == "ok")
    assert task.raw.exists() == (state != "ok")
    entry = Manifest(project.folder).read()[task.key]
    assert (entry["source"]["repo"], bool(entry["raw"])) == ("a/b", state != "ok")


@pytest.mark.parametrize("is_download", [False, True], ids=["mine", "downloaded"])
def test_a_raw_file_goes_with_the_last_tensor_of_it(is_download: bool, healthy: Path, tmp_path: Path) -> None:
    """A list holds a volume with and without .nii.gz: the second tensor could not be made any more."""
    project = Project(tmp_path / "p", ["train_1_a_1", "train_1_a_1.nii.gz", "train_2_a_1"])
    project.folder.mkdir()
    raw, _, _ = project.put_raw_files()
    plan = project.generator(num_shards=3, shard_id=1).plan()  # the other spelling is another shard's
    assert plan.names == project.names[1:2]
    ledger = Ledger(project.config, project.folder, clean_raw=not is_download, spellings=plan.spellings)
    first, second = map(ledger.task, project.names[:2])
    if is_download:
        ledger.begin_download(first, raw.stat().st_size, {"repo": "a/b"})
    shutil.copy(healthy, first.final)
    ledger.made(first, facts(first))
    assert raw.exists()
    ledger.clean_leftovers(project.names)
    assert raw.exists()
    second.final.write_bytes(healthy.read_bytes()[:-200])
    ledger.clean_leftovers(project.names[:1])
    assert raw.exists()
    shutil.copy(healthy, second.final)
    ledger.made(second, facts(second))
    assert (raw.exists(), ledger.result.raw_files_removed) == (False, 1)
    rows = Manifest(project.folder).read()
    assert [rows[task.key]["source"].get("repo") for task in (first, second)] == [
        "a/b" if is_download else None
    ] * 2
    assert [rows[task.key].get("raw") for task in (first, second)] == [None, None]


def test_a_failed_download_is_nobody_s_and_a_missing_file_is_remembered(project: Project) -> None:
    with Ledger(project.config, project.folder) as ledger:
        task = ledger.task(project.names[0])
        assert ledger.claim(task) == "claimed"
        ledger.begin_download(task, 7, {})
        ledger.fail_download(task, "404", missing_at="1" * 40)
        assert ledger.result.failed == {task.volume: "download: 404"}
        ledger.record_unavailable(project.names[1:], "gone", missing_at="2" * 40)
        assert list(ledger.result.failed) == project.names
    entries = Manifest(project.folder).read()
    commits = [entries[item_key(name)]["unavailable"]["commit"] for name in project.names]
    assert (commits, entries[task.key]["raw"]) == (["1" * 40, "2" * 40], None)


def test_a_manifest_that_cannot_be_written_stops_nothing(project: Project) -> None:
    (project.folder.parent / ".voxtier" / project.folder.name).write_text("no folder")
    with Ledger(project.config, project.folder) as ledger:
        task = ledger.task(project.names[0])
        assert ledger.claim(task) == "claimed"
        ledger.made(task, facts(task))
        assert ledger.result.made == 1


def test_a_made_file_is_verified_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from voxtier.tensors.identity.pipeline import build_transforms
    from voxtier.tensors.making.worker import make_tensor

    verified: list[Path] = []
    verify = _core.verify_tensor_file

    def count(path: Path, **options: bool) -> _core.TensorReport:
        verified.append(path)
        return verify(path, **options)

    monkeypatch.setattr(_core, "verify_tensor_file", count)
    transforms = build_transforms(project.config.processing)
    with Ledger(project.config, project.folder, clean_raw=True) as ledger:
        task = ledger.task(project.names[0])
        assert ledger.claim(task) == "claimed"
        shape = project.config.processing.target_shape_dhw
        ledger.made(task, make_tensor(transforms, task.raw, task.volume, task.final, shape=shape))
    assert len(verified) == 1
    assert not task.raw.exists()
    entry = Manifest(project.folder).read()[task.key]
    report = verify(task.final)
    assert report.state == entry["state"] == "ok"
    for name in ("size", "mtime_ns", "ctime_ns"):
        assert entry[name] == getattr(report, name)
    assert entry["records"] == {name: crc for name, _, crc in report.records}


def test_a_raw_file_stays_when_its_tensor_is_broken(tmp_path: Path) -> None:
    """D2: the mere existence of a tensor file proves nothing."""
    project = Project(tmp_path / "p", names_of(10))
    raw_files = project.put_raw_files()
    assert project.run().made == 10
    assert all(raw.exists() for raw in raw_files), "the user's raw files are untouched without the option"
    broken = project.final(project.names[4])
    broken.write_bytes(broken.read_bytes()[:-500])
    assert project.run(clean_raw=True).raw_files_removed == 9
    assert [raw.exists() for raw in raw_files] == [number == 4 for number in range(10)]


def test_a_corrected_raw_file_stays_beside_the_tensor_of_the_earlier_one(tmp_path: Path) -> None:
    """No tensor is made of it, so that none can stand for it; the next run makes what its tensor lacks."""
    project = Project(tmp_path / "p", names_of(3))
    kept, corrected, unrecorded = project.put_raw_files()
    assert project.run().made == 3
    mine = put_raw(project.base, project.names[1], 99).read_bytes()
    Manifest(project.folder).record(
        [{"key": item_key(project.names[2]), "source": {"path": str(unrecorded)}}]
    )
    assert project.run(clean_raw=True).raw_files_removed == 1
    assert (kept.exists(), corrected.read_bytes(), unrecorded.exists()) == (False, mine, True)
    assert "2 raw files stay" in project.log()
    project.final(project.names[1]).unlink()
    assert project.run(clean_raw=True).raw_files_removed == 1
    assert not corrected.exists()


@pytest.mark.parametrize("is_adopted", [False, True])
def test_a_corrected_raw_file_stays_beside_an_earlier_tensor_that_was_laid_back(
    is_adopted: bool, tmp_path: Path
) -> None:
    """The row is of the tensor that was made of the correction; a backup has replaced that one since."""
    project = Project(tmp_path / "p", names_of(2))
    project.put_raw_files()
    assert project.run().made == 2
    first, second = map(project.final, project.names)
    backup = shutil.copy2(first, tmp_path / "backup.pt")
    raw = put_raw(project.base, project.names[0], 99)
    first.unlink()
    assert project.run().made == 1
    corrected = shutil.copy2(first, tmp_path / "corrected.pt")
    shutil.copy2(backup, first)
    shutil.copy(second, second.with_suffix(".new"))
    second.with_suffix(".new").replace(second)  # the same tensor, of another time
    if is_adopted:
        sources = {item_key(name): project.raw(name) for name in project.names}
        assert {state.state for state in adopt(project.folder, sources=sources)} == {"ok"}
    assert project.run(clean_raw=True).raw_files_removed == 1
    assert (raw.exists(), project.raw(project.names[1]).exists()) == (True, False)
    assert "1 raw file stays" in project.log()
    assert Manifests().has_source(first)
    shutil.copy2(corrected, first)
    assert project.run(clean_raw=True).raw_files_removed == (not is_adopted)


def test_a_corrected_raw_file_stays_when_one_of_its_two_tensors_is_made_of_it(
    healthy: Path, tmp_path: Path
) -> None:
    project = Project(tmp_path / "p", ["train_1_a_1", "train_1_a_1.nii.gz"])
    project.folder.mkdir()
    project.put_raw_files()
    ledger = Ledger(project.config, project.folder, spellings=dict.fromkeys(project.names, project.names))
    first, second = map(ledger.task, project.names)
    shutil.copy(healthy, first.final)
    ledger.made(first, facts(first))
    ledger = Ledger(project.config, project.folder, clean_raw=True, spellings=ledger._spellings)
    raw = put_raw(project.base, project.names[0], 99)
    shutil.copy(healthy, second.final)
    ledger.made(second, facts(second))
    ledger.clean_leftovers(project.names)
    assert (raw.exists(), ledger.result.raw_files_removed) == (True, 0)


@pytest.mark.parametrize("way", ["replaced", "written over", "gone"])
@pytest.mark.parametrize("is_download", [False, True], ids=["mine", "downloaded"])
def test_a_raw_file_that_changes_while_its_tensor_is_made_stays(
    way: str, is_download: bool, project: Project
) -> None:
    """And the manifest names the one that the worker began to read, so that the other one is seen."""
    with Ledger(project.config, project.folder, clean_raw=not is_download) as ledger:
        task = ledger.task(project.names[0])
        assert ledger.claim(task) == "claimed"
        content, before = task.raw.read_bytes(), task.raw.stat()
        if is_download:
            ledger.begin_download(task, before.st_size, {"repo": "a/b"})
        said = facts(task)
        if way == "replaced":
            shutil.copy2(task.raw, task.raw.with_name("new"))  # of the same size and time
            task.raw.with_name("new").replace(task.raw)
        elif way == "written over":
            task.raw.write_bytes(content[::-1])
            os.utime(task.raw, ns=(before.st_atime_ns, before.st_mtime_ns))
        else:
            task.raw.unlink()
        ledger.made(task, said)
        assert (task.raw.exists(), ledger.result.raw_files_removed) == (way != "gone", 0)
    entry = Manifest(project.folder).read()[task.key]
    source = entry["source"]
    assert (source["size"], source["mtime_ns"]) == (before.st_size, before.st_mtime_ns)
    assert not entry.get("raw"), "what lies there is nobody's download"


def test_a_worker_notes_the_raw_file_before_it_reads_it(project: Project) -> None:
    from voxtier.tensors.identity.pipeline import build_transforms
    from voxtier.tensors.making.worker import make_tensor

    task = Task(project.names[0], project.raw(project.names[0]), project.final(project.names[0]))
    before = RawState.of(task.raw)
    transforms = build_transforms(project.config.processing)
    load = transforms.transforms[0]

    def load_and_replace(item: Any) -> Any:
        loaded = load(item)
        put_raw(project.base, task.volume, 99)
        return loaded

    transforms.transforms = (load_and_replace, *transforms.transforms[1:])
    shape = project.config.processing.target_shape_dhw
    assert make_tensor(transforms, task.raw, task.volume, task.final, shape=shape)["raw"] == before
    assert RawState.of(task.raw) != before


def test_raw_files_of_an_interrupted_run_are_removed_by_the_next(server: HubServer, tmp_path: Path) -> None:
    """D8: and so are the folders of the patients."""
    project = Project(tmp_path / "p", names_of(2), server)
    assert project.run().made == 2
    first = project.names[0]
    raw = put_raw(project.base, first, 0)
    Manifest(project.folder).record([{"key": item_key(first), "raw": {"path": str(raw), "ours": True}}])
    assert project.run().raw_files_removed == 1
    assert list((project.base / "images").iterdir()) == []


def test_a_tensor_made_of_an_interrupted_runs_download_knows_its_repository(
    server: HubServer, tmp_path: Path
) -> None:
    project = Project(tmp_path / "p", names_of(2), server)
    first, second = project.names
    ledger = Ledger(project.config, project.folder)
    content = server.files[hub_path(first)]
    where = {"repo": "some/CT-RATE", "commit": "0" * 40, "hub_path": hub_path(first), "sha256": None}
    ledger.begin_download(ledger.task(first), len(content), where)
    raw = ledger.task(first).raw
    raw.parent.mkdir(parents=True)
    raw.write_bytes(content)  # and killed
    result = project.run()
    assert (result.made, result.raw_files_removed) == (2, 2)
    source = Manifest(project.folder).read()[item_key(first)]["source"]
    assert where.items() <= source.items()
    assert source["size"] == len(content)
    assert Manifests().has_source(project.final(first))
    assert Manifests().has_source(project.final(second))


@pytest.mark.parametrize("part", [False, True], ids=["given up", "interrupted"])
def test_a_file_of_the_user_in_the_place_of_a_failed_download_stays(
    part: bool, server: HubServer, tmp_path: Path
) -> None:
    project = Project(tmp_path / "p", names_of(1), server)
    (name,) = project.names
    if part:  # a run that was killed leaves this
        ledger = Ledger(project.config, project.folder)
        task = ledger.task(name)
        ledger.begin_download(task, len(server.files[hub_path(name)]), {})
        task.raw.parent.mkdir(parents=True)
        part_paths(task.raw)[0].write_bytes(b"half")
    else:
        server.faults[hub_path(name)] = [Fault("corrupt", at=1)] * 3
        assert project.run().exit_code() == 3
    mine = put_raw(project.base, name, 7)
    result = project.run()
    assert (result.made, result.raw_files_removed, mine.exists()) == (1, 0, True)
    assert project.run().raw_files_removed == 0
    assert mine.exists()


@pytest.mark.parametrize("way", ["refused", "killed", "killed, outside LFS"])
def test_a_file_of_the_user_of_the_size_of_an_earlier_download_stays(
    way: str, server: HubServer, tmp_path: Path
) -> None:
    """Though the repository moves to another commit, and where its file makes a tensor."""
    project = Project(tmp_path / "p", names_of(1), server)
    (name,) = project.names
    content = nifti_bytes(5)
    raw = project.raw(name)
    if way.startswith("killed"):  # before the time of the file was recorded
        is_plain = "LFS" in way
        sha256 = None if is_plain else hashlib.sha256(content).hexdigest()
        git_oid = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest() if is_plain else None
        source = {"repo": "some/CT-RATE", "commit": "1" * 40, "sha256": sha256}
        ledger = Ledger(project.config, project.folder)
        ledger.begin_download(ledger.task(name), len(content), source, git_oid=git_oid)
        raw.parent.mkdir(parents=True)
        raw.write_bytes(content)
        assert is_ours(Manifest(project.folder).read()[item_key(name)], raw)
    else:
        server.files[hub_path(name)] = content[:-1] + bytes([content[-1] ^ 1])  # the length that gzip notes
        assert list(project.run().failed) == [name]
        os.utime(raw, (1, 1))
    mine = bytearray(content)
    mine[4] ^= 1  # gzip's time
    raw.write_bytes(mine)
    server.commit = "2" * 40
    server.files[hub_path(name)] = nifti_bytes(6)
    result = project.run()
    assert (result.made, result.raw_files_removed) == (1, 0)
    assert raw.read_bytes() == mine


@pytest.mark.parametrize("is_same", [False, True], ids=["another", "the same"])
def test_a_file_that_the_user_lays_during_its_download_is_used_and_stays(
    is_same: bool, server: HubServer, tmp_path: Path
) -> None:
    """Nor does the manifest say that the tensor is of the repository, unless it is."""
    project = Project(tmp_path / "p", names_of(1), server)
    (name,) = project.names
    mine = server.files[hub_path(name)] if is_same else nifti_bytes(777)
    server.held.add(hub_path(name))
    generator = project.generator()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(generator.run, generator.plan())
        while not (part_paths(project.raw(name))[1].exists() or running.done()):
            time.sleep(0.01)
        project.raw(name).write_bytes(mine)
        server.release.set()
        result = running.result()
    assert (result.made, result.raw_files_removed) == (1, 0)
    assert project.raw(name).read_bytes() == mine
    entry = Manifest(project.folder).read()[item_key(name)]
    assert (entry["source"]["size"], entry["raw"]) == (len(mine), None)
    assert entry["source"].get("repo") == ("some/CT-RATE" if is_same else None)
    assert project.run().raw_files_removed == 0


def test_a_file_that_the_user_lays_in_the_place_of_a_finished_download_is_used_and_stays(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size, before a worker has read the downloaded one."""
    project = Project(tmp_path / "p", names_of(1), server)
    (name,) = project.names
    mine = bytearray(server.files[hub_path(name)])
    mine[4] ^= 1  # gzip's time
    submit = WorkerPool.submit

    def replace_and_submit(pool: WorkerPool, task: Task, mode: str = "stock") -> None:
        task.raw.write_bytes(mine)
        os.utime(task.raw, (1, 1))
        submit(pool, task, mode)

    monkeypatch.setattr(WorkerPool, "submit", replace_and_submit)
    result = project.run()
    assert (result.made, result.raw_files_removed) == (1, 0)
    assert project.raw(name).read_bytes() == mine
    assert Manifest(project.folder).read()[item_key(name)]["source"].get("repo") is None


def test_a_link_to_an_unmounted_disk_is_not_replaced_by_a_download(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(1), server)
    raw = project.raw(project.names[0])
    raw.parent.mkdir(parents=True)
    raw.symlink_to("/not/mounted.nii.gz")
    result = project.run()
    assert list(result.failed.values()) == [f"{raw}: a link without a target, or no file"]
    assert raw.is_symlink()
    assert server.sent == {}


def test_a_download_that_was_killed_between_its_two_names_is_removed(project: Project, healthy: Path) -> None:
    """The file has its own name already, and still that of the part."""
    ledger = Ledger(project.config, project.folder)
    task = ledger.task(project.names[0])
    ledger.begin_download(task, task.raw.stat().st_size, {})
    os.link(task.raw, part_paths(task.raw)[0])
    shutil.copy(healthy, task.final)
    ledger.clean_leftovers(project.names)
    assert ledger.result.raw_files_removed == 1
    assert not task.raw.parent.exists()


def test_four_coordinators_share_sixteen_volumes_without_repeating_one(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(16))
    project.put_raw_files()
    generators = [project.generator(workers=1) for _ in range(4)]
    plans = [generator.plan() for generator in generators]
    threads = [
        threading.Thread(target=generator.run, args=[plan])
        for generator, plan in zip(generators, plans, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(generator.result.made for generator in generators) == 16
    assert sum(generator.result.made_by_others for generator in generators) == 48
    assert all(generator.result.exit_code() == 0 for generator in generators)
    project.assert_sound()


@pytest.mark.soak
def test_four_processes_share_sixteen_volumes_without_repeating_one(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(16))
    project.put_raw_files()
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: project.cli("--yes", "--num-workers", "1", "--json"), range(4)))
    assert [run.returncode for run in done] == [0] * 4, [run.stderr for run in done]
    assert sum(rows(run.stdout)[-1]["result"]["made"] for run in done) == 16
    project.assert_sound()


def test_a_claim_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(1))
    project.put_raw_files()
    project.folder.mkdir(parents=True)
    path = claims.Claim.path_for(project.final(project.names[0]))
    holder = {"pid": 999_999_999, "host": os.uname().nodename, "boot": machine.numbering()}
    path.write_text(json.dumps(holder))
    assert project.run().made == 1
    assert not path.exists()
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "boot": "00000000"}))
    assert claims.Claim.take(project.final(project.names[0])) is None
    os.utime(path, (1, 1))  # no heartbeat for decades
    assert claims.Claim.take(project.final(project.names[0])) is not None
