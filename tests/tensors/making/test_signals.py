"""SIGINT and SIGTERM: the first finishes the current volumes, the second stops at once."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tensors.cases import names_of
from tensors.making.hub_server import HubServer
from tensors.making.project import Project
from voxtier import _core
from voxtier.cli.tensors.generate import _listen
from voxtier.tensors.identity.keys import hub_path


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_the_current_volumes(
    number: signal.Signals, code: int, server: HubServer, tmp_path: Path
) -> None:
    """D6: the predecessor survived both."""
    project = Project(tmp_path / "p", names_of(12), server)
    server.held.add(hub_path(project.names[-1]))  # so that it cannot end before it is told to
    running = project.fork("--num-workers", "2")
    running.wait_until(lambda: any(project.folder.glob("*.pt")))
    running.send_signal(number)
    errors = running.wait_for_line("once more")
    server.release.set()
    returned, rest = running.wait()
    assert returned == code, errors + rest
    made = len(list(project.folder.glob("*.pt")))
    assert 1 <= made < 12
    project.assert_sound()
    assert "Traceback" not in errors + rest
    assert project.run().made == 12 - made


def test_a_second_signal_kills_and_leaves_no_partial_file(server: HubServer, tmp_path: Path) -> None:
    """As from a terminal: coordinator, fork server and workers all get both signals."""
    project = Project(tmp_path / "p", names_of(12), server)
    server.held.add(hub_path(project.names[-1]))
    running = project.fork("--num-workers", "2")
    running.wait_until(lambda: any(project.folder.glob("*.pt")))
    running.interrupt_twice()
    for path in project.folder.glob("*.pt"):
        assert _core.verify_tensor_file(path).state == "ok"


def test_a_second_signal_does_not_wait_for_a_silent_server(server: HubServer, tmp_path: Path) -> None:
    def wait_for_ever() -> None:
        from voxtier.tensors.making import hub

        hub.TIMEOUT = 100_000

    project = Project(tmp_path / "p", names_of(3), server)
    server.seconds_per_chunk = 100_000
    running = project.fork(prepare=wait_for_ever)
    running.wait_until(lambda: any(project.config.img_dir.rglob("*.part")))
    running.interrupt_twice()


@pytest.mark.timeout(60)
def test_a_signal_waits_for_no_lock() -> None:
    """One that comes while the first is being answered finds this thread inside the event's own lock."""
    run: Any = SimpleNamespace(stop=threading.Event(), abort=threading.Event())
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        received = _listen(run)
        with run.stop._cond:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        assert run.abort.wait(50)
        assert run.stop.is_set()
        assert received == [signal.SIGINT, signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
