"""Memory and processors that there are and may be used: of the machine, or of a container with a limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from voxtier.system import machine

OF_THE_MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")
    return tmp_path


def test_without_a_limit_it_is_the_machine_s(cgroup: Path) -> None:
    for limit in (None, "max\n", "many\n", str(1 << 62)):
        if limit is not None:
            (cgroup / "memory.max").write_text(limit)
            (cgroup / "memory.current").write_text("4096\n")
        assert machine.total_memory() == OF_THE_MACHINE
        assert 0 < machine.available_memory() <= OF_THE_MACHINE


@pytest.mark.parametrize(
    ("limit", "used"),
    [
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ],
)
def test_a_limit_of_the_container_counts(cgroup: Path, limit: str, used: str) -> None:
    (cgroup / "memory").mkdir()
    (cgroup / limit).write_text(f"{64 << 20}\n")
    (cgroup / used).write_text(f"{60 << 20}\n")
    assert machine.total_memory() == 64 << 20
    assert machine.available_memory() == 4 << 20
    (cgroup / used).write_text(f"{65 << 20}\n")  # reclaimed a moment later
    assert machine.available_memory() == 0


@pytest.mark.parametrize(
    ("line", "folder", "limit", "used"),
    [
        ("0::/system.slice/job:1.service", "system.slice/job:1.service", "memory.max", "memory.current"),
        ("0::/slurm/job/step", "slurm", "memory.max", "memory.current"),
        ("4:cpu,memory:/slurm/job", "memory/slurm/job", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_a_limit_of_a_job_or_service_counts_too(
    cgroup: Path, line: str, folder: str, limit: str, used: str
) -> None:
    (cgroup / "own").write_text(f"1:name=systemd:/elsewhere\n{line}\n")
    (cgroup / folder).mkdir(parents=True)
    (cgroup / folder / limit).write_text(f"{64 << 20}\n")
    (cgroup / folder / used).write_text(f"{60 << 20}\n")
    assert (machine.total_memory(), machine.available_memory()) == (64 << 20, 4 << 20)


@pytest.mark.parametrize("text", ["", "garbage\n", "0::/../..\n", "0::/not/there\n", "::\n", "\udcff"])
def test_what_is_no_group_is_passed_over(cgroup: Path, text: str) -> None:
    (cgroup / "own").write_text(text, errors="surrogateescape")
    assert machine.total_memory() == OF_THE_MACHINE


def test_processors_are_those_that_the_process_may_run_on() -> None:
    usable = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(usable)})
        assert machine.usable_processors() == 1
    finally:
        os.sched_setaffinity(0, usable)
    assert machine.usable_processors() == len(usable)


@pytest.mark.parametrize(("counted", "usable"), [(6, 6), (None, 1)])
def test_without_an_affinity_all_processors_are_usable(
    monkeypatch: pytest.MonkeyPatch, counted: int | None, usable: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    assert machine.usable_processors() == usable
