"""Claims: taken, released and taken over; which processes count as alive."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from voxtier.system import durable, machine
from voxtier.tensors import claims
from voxtier.tensors.keeping.disk_usage import find_garbage
from voxtier.tensors.manifest import Manifest

CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
# As the process of that number, takes a claim, records two segments, and stops in the middle of a file.
MAKES = """
import os, sys, time
from pathlib import Path
from voxtier.system.durable import write_file
from voxtier.tensors.claims import Claim
from voxtier.tensors.manifest import Manifest

def half(stream):
    stream.write(b"half")
    stream.flush()
    print("made", flush=True)
    time.sleep(3600)  # the end of a pipe would let it finish before it is killed

folder, number = Path(sys.argv[1]), int(sys.argv[2])
while (child := os.fork()) not in (0, number):
    os.waitpid(child, 0)
if child == 0:
    if os.getpid() != number:
        os._exit(0)
    assert Claim.take(folder / "a.pt")
    for name in "ab":
        Manifest(folder).record([{"key": name}])
    write_file(folder / "b.pt", half)
os.wait()
"""


def test_release_leaves_a_claim_that_another_process_took_over(tmp_path: Path) -> None:
    claim = claims.Claim.take(tmp_path / "a.pt")
    assert claim is not None
    claim.path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "boot": "00000000"}))
    claim.release()
    assert claim.path.exists()


def test_a_claim_whose_process_number_was_used_again_is_dead(tmp_path: Path) -> None:
    """After a kill, or in a container that was started anew, the claim's number is somebody else's."""
    path = claims.Claim.path_for(tmp_path / "a.pt")
    holder = {"pid": os.getpid(), "host": os.uname().nodename, "boot": machine.numbering(), "started": "1"}
    path.write_text(json.dumps(holder))
    claim = claims.Claim.take(tmp_path / "a.pt")
    assert claim is not None
    assert claims.claim_is_live(claim.path)
    claim.release()


@pytest.mark.parametrize("pid", [10**30, 0, -1])
def test_an_impossible_process_number_is_dead(pid: int, tmp_path: Path) -> None:
    temporary = tmp_path / f".x.pt.{machine.numbering()}-{abs(pid)}-1.tmp"
    temporary.write_bytes(b"half")
    claim = claims.Claim.path_for(tmp_path / "a.pt")
    claim.write_text(json.dumps({"pid": pid, "host": os.uname().nodename, "boot": machine.numbering()}))
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
        path.write_text(json.dumps({"pid": pid, "host": os.uname().nodename, "boot": machine.numbering()}))
        assert not claims.claim_is_live(path)
        temporary = tmp_path / f".x.pt.{machine.numbering()}-{pid}-1.tmp"
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


def test_what_another_container_of_this_machine_makes_is_in_use(tmp_path: Path) -> None:
    """Its process has a number that nobody has here; of what it leaves, only the age tells."""
    if subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no further numbering of processes is allowed here")
    unused = next(number for number in range(2, 30_000) if not Path(f"/proc/{number}").exists())
    folder = tmp_path / "c"
    folder.mkdir()
    command = [*CONTAINER, sys.executable, "-c", MAKES, str(folder), str(unused)]
    manifest, claim = Manifest(folder), claims.Claim.path_for(folder / "a.pt")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as making:
        assert making.stdout is not None
        assert making.stdout.readline() == b"made\n"
        [temporary] = folder.glob(".b.pt.*.tmp")
        segments = sorted(manifest.path.iterdir())
        assert list(find_garbage(folder)) == []
        assert claims.Claim.take(folder / "a.pt") is None
        manifest.compact()
        assert sorted(manifest.path.iterdir()) == segments
        making.kill()
    assert list(find_garbage(folder)) == []  # it may live, for all that can be known here
    for left in (temporary, claim, *segments):
        os.utime(left, (0, 0))
    assert {garbage.path for garbage in find_garbage(folder)} == {temporary, claim}
    manifest.compact()
    assert [path.name for path in manifest.path.iterdir()] == ["joined.jsonl"]


def test_names_that_older_versions_wrote_are_understood(tmp_path: Path) -> None:
    """They name the boot alone: their number may be of another container, and age decides."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    temporary = tmp_path / f".x.pt.{boot}-999999999-1.tmp"
    temporary.write_bytes(b"half")
    claim = claims.Claim.path_for(tmp_path / "a.pt")
    claim.write_text(json.dumps({"pid": 999_999_999, "host": os.uname().nodename, "boot": boot}))
    assert list(find_garbage(tmp_path)) == []
    for left in (temporary, claim):
        os.utime(left, (0, 0))
    assert {garbage.path for garbage in find_garbage(tmp_path)} == {temporary, claim}
