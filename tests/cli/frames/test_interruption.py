"""Signals, closed pipes, killed servers, full disks: a clear exit code, and a second run heals."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from cli.running import DOWN, OK, PARTIAL, Cli, finish, linked, native, start
from support.peak import PEAK_KIB
from voxtier.frames import FrameTable
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.embedded import EmbeddedServer


def rows(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        [(found,)] = connection.execute(
            "SELECT coalesce(to_regclass('voxtier.file')::text, '') <> ''"
        ).fetchall()
        if not found:
            return 0
        [(count,)] = connection.execute("SELECT count(*) FROM voxtier.file").fetchall()
        return int(count)


def in_mid_run(process: subprocess.Popen[bytes], listed: bytes, conninfo: Callable[[], str]) -> int:
    """Feed what makes one batch, and wait until it is in the database; the run then waits for more."""
    assert process.stdin is not None
    process.stdin.write(listed)
    process.stdin.flush()
    while process.poll() is None:
        with contextlib.suppress(psycopg.Error):
            if (count := rows(conninfo())) >= 5000:
                return count
        time.sleep(0.02)
    raise AssertionError("it ended before a batch was written")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_an_index_run_stopped_by_a_signal_is_finished_by_the_next(
    voxtier: Cli, tmp_path: Path, dsn: str, number: signal.Signals, code: int
) -> None:
    listed = linked(tmp_path / "many", 6000)
    process = start("index", "-", "--dsn", dsn)
    kept = in_mid_run(process, listed, lambda: dsn)
    process.send_signal(number)
    done = finish(process)
    assert done.code == code
    assert ("run again" in done.err) == (code > 0)
    with FrameStore(dsn) as store:
        paths = listed.decode().split()
        found = [table for table in store.get_many("default", paths) if table is not None]
        assert len(found) == kept
        assert all(isinstance(table, FrameTable) and len(table) == 1 for table in found)
    again = voxtier("index", "-", "--dsn", dsn, "--json", stdin=listed).rows[-1]["summary"]
    assert again["statuses"] == {"unchanged": kept, "ok": 6000 - kept}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_voxtier_table_stopped_by_a_signal_exits_with_its_code(
    folder: Path, number: signal.Signals, code: int
) -> None:
    """It has much more to say than a pipe takes, so it is in the middle of it."""
    (folder / "list").write_bytes(b"%s\n" % bytes(folder / "ok.dcm") * 20_000)
    with open(folder / "list", "rb") as listed:
        process = start("frames", "table", "-", "--json", stdin=listed)
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, b"Traceback" in err) == (code, False)
    assert out.count(b"\n") < 20_000


@pytest.mark.soak
@pytest.mark.parametrize("command", ["frames table", "index"])
def test_a_million_paths_need_less_than_200_mb(tmp_path: Path, dsn: str, command: str) -> None:
    """Whatever the number of files, less than 200 MB."""
    (tmp_path / "list").write_bytes(linked(tmp_path / "many", 50_000) * 20)
    options = ["--dsn", dsn] if command == "index" else []
    told = f"{PEAK_KIB}\nimport atexit, sys; atexit.register(lambda: print(peak_kib(), file=sys.stderr))"
    with open(tmp_path / "list", "rb") as listed, open(tmp_path / "out", "wb") as out:
        process = start(*command.split(), "-", "--json", *options, first=told, stdin=listed, stdout=out)
        _, err = process.communicate()
    assert process.returncode == OK
    with open(tmp_path / "out") as out_again:
        assert sum(1 for _ in out_again) == 1_000_000 + (command == "index")
    assert int(err.split()[-1]) < 200 * 1024


def test_an_index_run_outlives_its_server_or_exits_4(voxtier: Cli, tmp_path: Path) -> None:
    listed = linked(tmp_path / "many", 12_000)
    server = EmbeddedServer(Path(os.environ["VOXTIER_HOME"]))
    half = len(listed) // 2
    process = start("index", "-")
    in_mid_run(process, listed[:half], server.conninfo)
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    done = finish(process, listed[half:])
    assert done.code in (OK, DOWN)
    assert done.code == DOWN or "12,000 files" in done.out
    assert voxtier("index", "-", stdin=listed).code == OK
    again = voxtier("index", "-", "--json", stdin=listed).rows[-1]["summary"]
    assert again["statuses"] == {"unchanged": 12_000}


def test_a_full_disk_exits_4_and_the_next_run_finishes(
    voxtier: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=72m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        disk.chmod(0o755)
        monkeypatch.setenv("VOXTIER_HOME", str(disk / "home"))
        small = tmp_path / "small.dcm"
        small.write_bytes(native())
        assert voxtier("index", small).code == OK
        with open(disk / "filler", "wb") as filler:
            free = os.statvfs(disk)
            filler.write(bytes(free.f_bavail * free.f_frsize - (2 << 20)))
        listed = linked(tmp_path / "many", 20_000)
        done = voxtier("index", tmp_path / "many")
        assert done.code == DOWN
        assert "space" in done.err
        (disk / "filler").unlink()
        assert voxtier("index", tmp_path / "many").code == OK
        again = voxtier("index", "-", "--json", stdin=listed).rows[-1]["summary"]
        assert again["statuses"] == {"unchanged": 20_000}
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


def head(*arguments: object) -> int:
    with start(*arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        # On a slow machine a run tells every ten seconds how far it is.
        assert [line for line in process.stderr.read().splitlines() if b" files, " not in line] == []
        return process.wait(timeout=60)


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["people", "json"])
def test_a_table_read_by_head_exits_0(tmp_path: Path, form: list[str]) -> None:
    linked(tmp_path / "many", 5000)
    assert head("frames", "table", tmp_path / "many", *form) == OK


def test_an_index_run_read_by_head_exits_3_and_is_finished_by_the_next(
    voxtier: Cli, tmp_path: Path, dsn: str
) -> None:
    """The run is cut short, and says so: at most four batches of 5,000 are written ahead of the reports."""
    listed = linked(tmp_path / "many", 30_000)
    assert head("index", tmp_path / "many", "--json", "--dsn", dsn) == PARTIAL
    again = voxtier("index", "-", "--dsn", dsn, "--json", stdin=listed).rows[-1]["summary"]
    assert again["statuses"].keys() == {"ok", "unchanged"}
