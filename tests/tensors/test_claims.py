"""Claims: taken, released and taken over; which processes count as alive."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from voxtier.system import durable, machine
from voxtier.tensors import claims
from voxtier.tensors.keeping.disk_usage import find_garbage


def test_release_leaves_a_claim_that_another_process_took_over(tmp_path: Path) -> None:
    claim = claims.Claim.take(tmp_path / "a.pt")
    assert claim is not None
    claim.path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "boot": "00000000"}))
    claim.release()
    assert claim.path.exists()


def test_a_claim_whose_process_number_was_used_again_is_dead(tmp_path: Path) -> None:
    """After a kill, or in a container that was started anew, the claim's number is somebody else's."""
    path = claims.Claim.path_for(tmp_path / "a.pt")
    holder = {"pid": os.getpid(), "host": os.uname().nodename, "boot": durable.boot_id(), "started": "1"}
    path.write_text(json.dumps(holder))
    claim = claims.Claim.take(tmp_path / "a.pt")
    assert claim is not None
    assert claims.claim_is_live(claim.path)
    claim.release()


@pytest.mark.parametrize("pid", [10**30, 0, -1])
def test_an_impossible_process_number_is_dead(pid: int, tmp_path: Path) -> None:
    temporary = tmp_path / f".x.pt.{durable.boot_id()}-{abs(pid)}-1.tmp"
    temporary.write_bytes(b"half")
    claim = claims.Claim.path_for(tmp_path / "a.pt")
    claim.write_text(json.dumps({"pid": pid, "host": os.uname().nodename, "boot": durable.boot_id()}))
    found = {garbage.path for garbage in find_garbage(tmp_path)}
    assert claim in found
    assert (temporary in found) == (abs(pid) != 1)


def test_an_ended_process_is_dead_before_its_exit_code_is_read(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    pid = ended.pid
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.kill(pid, 0)
        assert not machine.is_alive(pid)
        path = claims.Claim.path_for(tmp_path / "a.pt")
        path.write_text(json.dumps({"pid": pid, "host": os.uname().nodename, "boot": durable.boot_id()}))
        assert not claims.claim_is_live(path)
        temporary = tmp_path / f".x.pt.{durable.boot_id()}-{pid}-1.tmp"
        temporary.write_bytes(b"half")
        assert {garbage.path for garbage in find_garbage(tmp_path)} == {path, temporary}
    finally:
        ended.wait()
    assert machine.is_alive(os.getpid())


def test_claims_work_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", refuse)
    claim = claims.Claim.take(tmp_path / "a.pt")
    assert claim is not None
    assert claims.Claim.take(tmp_path / "a.pt") is None
    claim.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("ahead", "live"), [(60, True), (7200, True), (400_000, False), (4e9, False)])
def test_a_claim_or_temporary_from_the_far_future_is_dead(ahead: float, live: bool, tmp_path: Path) -> None:
    """Another machine's clock was years ahead when it died: its volumes would wait for years."""
    path = claims.Claim.path_for(tmp_path / "a.pt")
    path.write_text(json.dumps({"pid": 1, "host": "other", "boot": "other"}))
    temporary = tmp_path / ".a.pt.0123abcd-1-1.tmp"
    torn = tmp_path / ".b.pt.claim"
    for made in (temporary, torn):
        made.write_bytes(b"")
    for made in (path, temporary, torn):
        os.utime(made, (time.time() + ahead,) * 2)
    assert claims.claim_is_live(path) is claims.claim_is_live(torn) is live
    assert durable.temporary_is_live(temporary) is live
    taken = claims.Claim.take(tmp_path / "a.pt")
    assert (taken is None) is live
