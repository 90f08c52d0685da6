"""Worker processes: their number, their deaths, and that no tensor travels through shared memory."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from tensors.cases import names_of
from tensors.making.project import Project
from voxtier.tensors.making import resources
from voxtier.tensors.making.policies import DeathPolicy
from voxtier.tensors.making.resources import affordable_workers
from voxtier.tensors.making.worker_pool import Task, WorkerPool


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
