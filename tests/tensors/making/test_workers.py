"""Worker processes: their number, their deaths, and that no tensor travels through shared memory."""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
from collections import Counter
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from tensors.cases import constant_volume, names_of, nifti_bytes, put_raw
from tensors.making.hub_server import Fault, HubServer
from tensors.making.project import Project
from voxtier.errors import BackendError, ConfigError
from voxtier.tensors.identity.keys import hub_path
from voxtier.tensors.making import resources, worker
from voxtier.tensors.making.download import RemoteFile
from voxtier.tensors.making.hub import Hub
from voxtier.tensors.making.ledger import Ledger
from voxtier.tensors.making.policies import ChangePolicy, DeathPolicy, HubPolicy
from voxtier.tensors.making.resources import affordable_workers
from voxtier.tensors.making.worker_pool import Task, WorkerPool
from voxtier.tensors.manifest import Manifests


def test_a_death_halves_the_pool_down_to_one_worker() -> None:
    assert [DeathPolicy.next_size(size) for size in (8, 5, 2, 1)] == [4, 2, 1, 1]


def test_a_volume_is_tried_again_after_its_first_death_only() -> None:
    policy = DeathPolicy()
    assert [policy.try_again(key) for key in ("a", "b", "a", "b", "a")] == [True, True, False, False, False]


def test_a_killed_worker_halves_the_pool_and_only_its_volume_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path / "p", names_of(8))
    project.put_raw_files(shape=(48, 48, 30))
    killed: list[str] = []
    submit = WorkerPool.submit

    def submit_and_kill(pool: WorkerPool, task: Task, mode: str = "stock") -> None:
        submit(pool, task, mode)
        busy = [worker for worker in pool._workers if worker.task is not None]
        if len(busy) == 4 and not killed:
            assert busy[2].task is not None
            busy[2].process.kill()
            killed.append(busy[2].task.volume)

    monkeypatch.setattr(WorkerPool, "submit", submit_and_kill)
    result = project.run(workers=4)
    assert killed
    assert (result.made, result.failed, result.workers) == (8, {}, 2)
    made = [line.split(" made ")[0].split()[-1] for line in project.log().splitlines() if " made " in line]
    assert sorted(made) == sorted(f"{name}:" for name in project.names)
    project.assert_sound()


def test_a_volume_that_kills_its_workers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path / "p", names_of(3))
    project.put_raw_files()
    victim = project.names[1]
    submit = WorkerPool.submit

    def submit_and_kill(pool: WorkerPool, task: Task, mode: str = "stock") -> None:
        submit(pool, task, mode)
        if task.volume == victim:
            next(worker for worker in pool._workers if worker.task == task).process.kill()

    monkeypatch.setattr(WorkerPool, "submit", submit_and_kill)
    result = project.run(workers=1)
    assert result.made == 2
    assert "signal 9" in result.failed[victim]


@pytest.mark.parametrize("was_downloaded", [True, False])
def test_a_raw_file_that_another_run_removes_from_the_queue_is_fetched_again(
    was_downloaded: bool, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for another configuration, with the same folder of images: it had downloaded the file itself."""
    project = Project(tmp_path / "p", names_of(3), server)
    if not was_downloaded:
        put_raw(project.base, project.names[1], 1)
    removed: list[str] = []
    submit = WorkerPool.submit

    def remove_and_submit(pool: WorkerPool, task: Task, mode: str = "stock") -> None:
        if task.volume == project.names[1] and not removed:
            task.raw.unlink()
            removed.append(task.volume)
        submit(pool, task, mode)

    monkeypatch.setattr(WorkerPool, "submit", remove_and_submit)
    result = project.run()
    assert (len(removed), result.made, result.failed, result.exit_code()) == (1, 3, {}, 0)
    assert not project.raw(project.names[1]).exists()
    assert Manifests().has_source(project.final(project.names[1]))


def test_a_raw_file_that_is_fetched_again_keeps_the_bound_on_downloads(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their sizes are known only after the plan, which had them on disk."""
    project = Project(tmp_path / "p", names_of(3), server)
    project.put_raw_files()
    submit, removed = WorkerPool.submit, []
    begin, at_once = Ledger.begin_download, []

    def remove_and_submit(pool: WorkerPool, task: Task, mode: str = "stock") -> None:
        if task.volume not in removed:
            removed.append(task.volume)
            task.raw.unlink()
        submit(pool, task, mode)

    def count_and_begin(ledger: Ledger, *arguments: Any, **options: Any) -> None:
        begin(ledger, *arguments, **options)
        at_once.append(len(ledger._downloads))

    monkeypatch.setattr(WorkerPool, "submit", remove_and_submit)
    monkeypatch.setattr(Ledger, "begin_download", count_and_begin)
    server.seconds_per_chunk = 0.2
    result = project.run(max_raw_bytes=len(nifti_bytes(0)) * 3 // 2)
    assert (len(removed), result.made, result.failed) == (3, 3, {})
    assert at_once == [1, 1, 1]


@pytest.mark.parametrize("was_downloaded", [True, False])
def test_raw_files_that_are_gone_after_the_plan_are_fetched_only_if_a_run_had_fetched_them(
    was_downloaded: bool, server: HubServer, tmp_path: Path
) -> None:
    """The disk of the images is not mounted any more: the plan announced no download."""
    project = Project(tmp_path / "p", names_of(2), server)
    if was_downloaded:  # and refused, so that they stayed
        server.files |= dict.fromkeys(map(hub_path, project.names), constant_volume())
        assert len(project.run().failed) == 2
    else:
        project.put_raw_files()
    before = server.sent.copy()
    generator = project.generator()
    plan = generator.plan()
    assert (plan.local_raw_files, plan.to_download) == (2, 0)
    images = project.config.img_dir
    images.rename(images.with_name("unmounted"))
    images.mkdir()
    result = generator.run(plan)
    assert (result.made, len(result.failed)) == (0, 2)
    if was_downloaded:
        assert (server.sent - before).keys() == set(map(hub_path, project.names))
    else:
        assert not server.sent
        for name in project.names:
            where = f"{project.raw(name)}: not on disk any more"
            assert result.failed[name] == f"{where}, as it was when the run was planned"


@pytest.mark.parametrize("outcome", ["same", "other"])
def test_a_file_that_others_laid_does_not_say_that_the_hub_answers(
    outcome: str, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path / "p", names_of(HubPolicy.FAILURES_IN_A_ROW + 1), server)
    one_thread = dataclasses.replace(project.config.downloads, max_workers=1)
    project.config = dataclasses.replace(project.config, downloads=one_thread)
    laid = project.raw(project.names[3])

    def fetch(_: Hub, remote: RemoteFile, final: Path) -> str:
        if final != laid:
            raise BackendError(f"{remote.path}: 503")
        put_raw(project.base, project.names[3])
        return outcome

    monkeypatch.setattr(Hub, "fetch", fetch)
    result = project.run()
    assert (result.made, result.hub_down, laid.exists()) == (1, True, True)


def test_a_raw_file_that_is_removed_for_good_is_named(
    tmp_path: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a hub, or where the hub does not have it, or where it is removed again and again."""
    project = Project(tmp_path / "p", names_of(2), server)
    first, second = project.names
    submits: list[str] = []
    submit = WorkerPool.submit

    def remove_and_submit(pool: WorkerPool, task: Task, mode: str = "stock") -> None:
        task.raw.unlink()
        submits.append(task.volume)
        submit(pool, task, mode)

    monkeypatch.setattr(WorkerPool, "submit", remove_and_submit)
    put_raw(project.base, first)
    del server.files[hub_path(first)]
    result = project.run()
    assert result.failed[first] == "not on disk any more, and not in the repository"
    assert "no file, or none that can be seen" in result.failed[second]
    assert Counter(submits) == {first: 1, second: ChangePolicy.CHANGES_PER_VOLUME}
    alone = Project(tmp_path / "q", names_of(1))
    alone.put_raw_files()
    assert list(alone.run().failed.values()) == ["not on disk, and no repository to download it from"]
    project.assert_sound()


def test_a_raw_file_that_cannot_be_asked_for_again_fails_with_the_hub(
    tmp_path: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path / "p", names_of(1), server)
    put_raw(project.base, project.names[0])
    submit = WorkerPool.submit

    def remove_and_submit(pool: WorkerPool, task: Task, mode: str = "stock") -> None:
        task.raw.unlink()
        server.api_faults = [Fault("status", at=500)] * 10
        submit(pool, task, mode)

    monkeypatch.setattr(WorkerPool, "submit", remove_and_submit)
    result = project.run()
    assert "gave up after 6 attempts" in result.failed[project.names[0]]
    assert result.exit_code() == 3


def test_a_worker_tells_a_failure_from_a_raw_file_that_changed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path / "p", names_of(2))
    raws = project.put_raw_files()
    project.folder.mkdir()

    def fail(_: object, raw: Path, *arguments: object, **options: object) -> None:
        if raw == raws[1]:
            put_raw(project.base, project.names[1], 99)
        raise ConfigError("no suitable reader")

    monkeypatch.setattr(worker, "make_tensor", fail)
    for module, name in ((worker.signal, "signal"), (worker.gc, "freeze")):  # this process is no worker
        monkeypatch.setattr(module, name, lambda *_: None)
    ours, theirs = Pipe()
    for name, raw in zip(project.names, raws, strict=True):
        ours.send((raw, name, project.final(name), "stock"))
    ours.send(None)
    worker.serve(theirs, project.config.processing, project.folder, frozenset(), is_proved=True)
    assert [ours.recv()[0] for _ in range(3)] == ["ready", "failed", "changed"]


def test_tensors_do_not_travel_through_shared_memory(tmp_path: Path) -> None:
    """D13: the predecessor sent finished tensors to the coordinator, which dropped them."""
    project = Project(tmp_path / "p", names_of(3))
    project.put_raw_files()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", "/dev/shm"]
    if subprocess.run(["unshare", "--mount", *mount], capture_output=True).returncode:
        pytest.skip("a file system of one's own needs privileges")

    def shrink() -> None:
        assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS
        for command in (["mount", "--make-rprivate", "/"], mount):
            subprocess.run(command, check=True)

    code, errors = project.fork("--num-workers", "2", prepare=shrink).wait()
    assert code == 0, errors
    assert len(list(project.folder.glob("*.pt"))) == 3


@pytest.mark.parametrize("memory", [1 << 28, 1 << 30, 3 << 30, 8 << 30, 1 << 37])
def test_workers_fit_into_memory(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "available_memory", lambda: memory)  # other processes change it
    assert affordable_workers(8, 10**12) == 1
    room = (memory - resources.RESERVE) // (resources.WORKER_BASE + 10 * resources.BYTES_PER_VOXEL)
    assert affordable_workers(3, 10) == min(3, max(1, room))
    assert affordable_workers(10**6, None) * 51 * 512 * 512 * 240 < memory + 4e9
