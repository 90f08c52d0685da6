"""The embedded server under everything that happens to servers: races, kill -9, stale files, full disks."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from voxtier.errors import BackendError, ConfigError, MissingExtraError
from voxtier.postgres.embedded import EmbeddedServer
from voxtier.postgres.embedded import programs as programs_module
from voxtier.postgres.embedded.programs import Account, find_account, find_programs
from voxtier.system.locks import release, take

# Uses the server of the home in argv[1]: answers one question, then waits until its stdin ends.
USER = """
import sys
from pathlib import Path
import psycopg
from voxtier.postgres.embedded import embedded_server
server = embedded_server(Path(sys.argv[1]))
server.attach()
with psycopg.connect(server.conninfo()) as connection:
    print(connection.execute("SELECT 6 * 7").fetchone()[0], flush=True)
    sys.stdin.read()
"""

# Says when initdb begins and when it has ended, and never gives the finished folder its name.
MAKER = """
import subprocess, sys, time
from pathlib import Path
from voxtier.postgres.embedded import embedded_server
run = subprocess.run
def run_and_say(command, **options):
    if any("initdb" in str(part) for part in command):
        print("making", flush=True)
    return run(command, **options)
def never(*_):
    print("made", flush=True)
    time.sleep(1000)
subprocess.run, Path.rename = run_and_say, never
embedded_server(Path(sys.argv[1])).attach()
"""


@pytest.fixture(scope="session")
def fresh_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database folder as initdb leaves it, to be copied: no test waits for another initdb."""
    home = tmp_path_factory.mktemp("fresh")
    server = EmbeddedServer(home)
    server.attach()
    server.detach()
    return home


@pytest.fixture
def home(tmp_path: Path, fresh_folder: Path) -> Iterator[Path]:
    """A home whose server has run before and is stopped; nothing of it is left running after the test."""
    home = tmp_path / "home"
    shutil.copytree(fresh_folder, home, ignore=shutil.ignore_patterns("socket"))
    yield home
    with contextlib.suppress(BackendError):
        EmbeddedServer(home).stop(force=True)


def start_user(home: Path, script: str = USER) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@contextlib.contextmanager
def user(home: Path) -> Iterator[subprocess.Popen[str]]:
    process = start_user(home)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "42\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def leave(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=200)
    assert process.returncode == 0


def answer(server: EmbeddedServer) -> object:
    with psycopg.connect(server.conninfo()) as connection:
        row = connection.execute("SELECT 6 * 7").fetchone()
        return row and row[0]


def state_of(server: EmbeddedServer, backend: int) -> object:
    with psycopg.connect(server.conninfo()) as connection:
        row = connection.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", [backend]).fetchone()
        return row and row[0]


def server_pid(home: Path) -> int:
    pid = EmbeddedServer(home).status().pid
    assert pid is not None
    return pid


def keeper_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def lock_is_free(home: Path, name: str = "server.lock") -> bool:
    lock = take(home / "postgres" / name)
    release(lock)
    return lock is not None


def eventually(condition: Callable[[], bool], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def modes(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mode, path.stat().st_uid) for path in (folder, *folder.parents)}


class TestLife:
    def test_the_first_user_starts_it_and_the_last_one_stops_it(self, home: Path) -> None:
        server = EmbeddedServer(home)
        server.attach()
        server.attach()
        with user(home) as other:
            assert answer(server) == 42
            assert other.pid in server.status().users
            server.detach()
            server.detach()
            assert server.status().running
            leave(other)
        assert not server.status().running
        assert lock_is_free(home)

    def test_processes_share_one_server(self, home: Path) -> None:
        with user(home):
            pid = server_pid(home)
            with user(home):
                assert server_pid(home) == pid

    def test_a_fresh_folder_and_eight_processes_at_once(self, tmp_path: Path) -> None:
        home = tmp_path / "not" / "yet" / "there"
        processes = [start_user(home) for _ in range(8)]
        answers = [process.communicate(timeout=250)[0] for process in processes]
        assert answers == ["42\n"] * 8
        assert {process.returncode for process in processes} == {0}
        assert lock_is_free(home)
        assert not (home / "postgres" / "data.tmp").exists()

    def test_coming_and_leaving_at_once(self, home: Path) -> None:
        coming = """
            import sys, random, time
            from pathlib import Path
            import psycopg
            from voxtier.postgres.embedded import embedded_server
            server = embedded_server(Path(sys.argv[1]))
            for _ in range(6):
                server.attach()
                with psycopg.connect(server.conninfo()) as connection:
                    connection.execute("SELECT 1")
                time.sleep(random.random() * 0.02)
                server.detach()
        """
        command = [sys.executable, "-c", textwrap.dedent(coming), str(home)]
        processes = [subprocess.Popen(command) for _ in range(4)]
        assert [process.wait(250) for process in processes] == [0] * 4
        assert lock_is_free(home)

    def test_kept_until_it_is_stopped(self, home: Path) -> None:
        server = EmbeddedServer(home)
        server.keep()
        assert server.status().running
        assert server.status().kept
        with user(home) as other:
            leave(other)
        assert server.status().running
        assert server.stop()
        assert not server.status().running
        assert not server.stop()
        with user(home):  # the wish to keep it ended with that run
            assert not server.status().kept

    def test_a_server_in_use_is_stopped_by_force_alone(self, home: Path) -> None:
        server = EmbeddedServer(home)
        with user(home) as other:
            with pytest.raises(ConfigError, match=f"in use .*{other.pid}"):
                server.stop()
            assert server.status().running
            assert server.stop(force=True)
            assert lock_is_free(home)

    def test_status_starts_nothing(self, tmp_path: Path) -> None:
        status = EmbeddedServer(tmp_path / "nothing").status()
        assert (status.running, status.pid, status.version, status.users) == (False, None, None, ())
        assert not (tmp_path / "nothing").exists()
        assert not EmbeddedServer(tmp_path / "nothing").stop()

    def test_a_forked_child_holds_nothing_of_its_parent(self, home: Path) -> None:
        forking = """
            import os, sys
            from pathlib import Path
            import psycopg
            from voxtier.postgres.embedded import embedded_server
            server = embedded_server(Path(sys.argv[1]))
            server.attach()
            if os.fork() == 0:  # keeps its stderr open until it ends
                os.close(1)
                sys.stdin.read()
                server.attach()  # the parent has gone and taken the server along: the child starts its own
                with psycopg.connect(server.conninfo()) as connection:
                    connection.execute("CREATE TABLE child()")
                server.detach()
                os._exit(0)
        """
        parent = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(forking), str(home)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert parent.stdout is not None
        parent.stdout.read()
        assert parent.wait(60) == 0
        assert lock_is_free(home)
        _, complaints = parent.communicate(timeout=200)  # until the child has ended, too
        assert complaints == b""
        assert lock_is_free(home)
        server = EmbeddedServer(home)
        server.attach()
        with psycopg.connect(server.conninfo()) as connection:
            assert connection.execute("SELECT to_regclass('child')").fetchone() == ("child",)
        server.detach()


class TestKilled:
    def test_the_last_user(self, home: Path) -> None:
        with user(home) as other:
            os.kill(other.pid, signal.SIGKILL)
            eventually(lambda: lock_is_free(home))  # the keeper has noticed
        with user(home):
            pass

    def test_the_last_user_and_the_keeper(self, home: Path) -> None:
        with user(home) as other:
            pid = server_pid(home)
            os.kill(keeper_of(pid), signal.SIGKILL)
            os.kill(other.pid, signal.SIGKILL)
            other.wait()
        with user(home) as other:
            assert server_pid(home) == pid  # found, and taken over
            leave(other)
        assert lock_is_free(home)

    def test_one_of_two_users(self, home: Path) -> None:
        with user(home) as first, user(home):
            pid = server_pid(home)
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            time.sleep(2.5)  # longer than the keeper waits between two looks
            assert server_pid(home) == pid

    def test_the_server_under_its_users(self, home: Path) -> None:
        server = EmbeddedServer(home)
        server.attach()
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute("CREATE TABLE survivor AS SELECT 1")
            os.kill(server_pid(home), signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError):
                while True:  # the session lives a little longer than its server
                    connection.execute("SELECT 1")
        server.ensure_running()
        with psycopg.connect(server.conninfo()) as connection:
            assert connection.execute("SELECT count(*) FROM survivor").fetchone() == (1,)
        server.detach()
        assert lock_is_free(home)

    def test_the_server_in_the_middle_of_a_long_statement(self, home: Path) -> None:
        server = EmbeddedServer(home)
        server.attach()
        with psycopg.connect(server.conninfo()) as busy:
            # Computes without ever looking whether its server still lives.
            with busy.cursor() as cursor:
                cursor.connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 100000000000)")
                eventually(lambda: state_of(server, busy.info.backend_pid) == "active")
                os.kill(server_pid(home), signal.SIGKILL)
                eventually(lambda: server.status().pid is None)
                assert not lock_is_free(home)
                server.ensure_running()
                assert answer(server) == 42
            busy.close()
        server.detach()
        assert lock_is_free(home)

    def test_while_the_folder_is_made(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        for pause in (0.0, 0.05, 0.2, None):
            process = start_user(home, MAKER)
            assert process.stdout is not None
            assert process.stdout.readline() == "making\n"
            if pause is None:
                assert process.stdout.readline() == "made\n"
            else:
                time.sleep(pause)
            process.kill()
            process.communicate()
            assert (home / "postgres" / "data.tmp").exists()
            assert not (home / "postgres" / "data").exists()
        with user(home):
            assert not (home / "postgres" / "data.tmp").exists()

    def test_while_it_starts(self, home: Path) -> None:
        for pause in (0.0, 0.01, 0.02, 0.04):
            process = start_user(home)
            eventually(lambda: not lock_is_free(home), within=60)
            time.sleep(pause)
            process.kill()
            process.communicate()
        with user(home) as other:
            leave(other)
        eventually(lambda: lock_is_free(home))

    @pytest.mark.soak
    def test_by_the_hundred(self, home: Path) -> None:
        for number in range(300):
            process = start_user(home)
            time.sleep(0.25 * (number % 20) / 20)
            process.kill()
            process.communicate()
            if number % 7 == 0 and (pid := EmbeddedServer(home).status().pid):
                with contextlib.suppress(ProcessLookupError):  # its keeper may have stopped it just now
                    os.kill(pid, signal.SIGKILL)
        with user(home) as other:
            leave(other)
        eventually(lambda: lock_is_free(home))


class TestStale:
    @pytest.mark.parametrize("pid", ["1", "own", "999999999", "", "garbage", "-1"])
    def test_postmaster_pid_of_somebody_else(self, home: Path, pid: str) -> None:
        pid = str(os.getpid()) if pid == "own" else pid
        lines = [pid, str(home / "postgres" / "data"), "0", "5432", "/nowhere", "", "", "ready"]
        (home / "postgres" / "data" / "postmaster.pid").write_text("\n".join(lines))
        with user(home):
            assert server_pid(home) != os.getpid()

    def test_a_server_that_somebody_started_by_hand_is_used(self, home: Path) -> None:
        server = EmbeddedServer(home)
        programs = find_programs()
        account = find_account(programs, server.folder)
        socket_folder = server.folder / "socket"
        socket_folder.mkdir(mode=0o700)
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={socket_folder}"]
        command = [*account.prefix, programs.postgres, "-D", str(server.folder / "data"), *options]
        by_hand = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: server.status().running)
            with user(home):
                assert server_pid(home) == by_hand.pid
        finally:
            by_hand.send_signal(signal.SIGINT)
            by_hand.wait(120)

    def test_the_folder_of_another_version(self, home: Path) -> None:
        (home / "postgres" / "data" / "PG_VERSION").write_text("9\n")
        with pytest.raises(BackendError, match=r"written by PostgreSQL 9, installed is .*VOXTIER_DSN"):
            EmbeddedServer(home).attach()


class TestPlace:
    def test_a_long_path_gets_a_short_socket(self, tmp_path: Path, fresh_folder: Path) -> None:
        home = tmp_path / ("deep" * 20) / ("folder" * 10)
        shutil.copytree(fresh_folder, home, ignore=shutil.ignore_patterns("socket"))
        with user(home) as other:
            folder = Path(EmbeddedServer(home).status().socket_folder or "")
            assert len(str(folder)) < 90
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            leave(other)
        folder.rmdir()

    @pytest.mark.parametrize("name", ["with space", "quo'te", 'dou"ble', "com,ma", "$HOME `x` \\ü"])
    def test_awkward_names(self, tmp_path: Path, fresh_folder: Path, name: str) -> None:
        shutil.copytree(fresh_folder, tmp_path / name, ignore=shutil.ignore_patterns("socket"))
        with user(tmp_path / name) as other:
            leave(other)
        assert lock_is_free(tmp_path / name)

    def test_nobody_elses_folder_mode_or_owner_changes(self, tmp_path: Path) -> None:
        parent = tmp_path / "private"
        parent.mkdir(mode=0o700)
        before, accounts = modes(parent), Path("/etc/passwd").read_bytes()
        server = EmbeddedServer(parent / "home")
        server.attach()
        assert answer(server) == 42
        server.detach()
        assert modes(parent) == before
        assert Path("/etc/passwd").read_bytes() == accounts
        for path in (parent / "home").rglob("*"):
            assert path.stat().st_uid == os.geteuid()
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0

    def test_the_server_listens_on_its_socket_alone(self, home: Path) -> None:
        with user(home):
            server = EmbeddedServer(home)
            with psycopg.connect(server.conninfo()) as connection:
                names = ("listen_addresses", "fsync", "unix_socket_permissions")
                found = [connection.execute("SELECT current_setting(%s)", [n]).fetchone() for n in names]
            assert found == [("",), ("on",), ("0700",)]
            assert stat.S_IMODE(Path(server.status().socket_folder or "").stat().st_mode) == 0o700

    def test_a_home_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "home").write_text("")
        with pytest.raises(BackendError, match=r"cannot hold the database.*VOXTIER_HOME"):
            EmbeddedServer(tmp_path / "home").attach()

    def test_no_postgresql_anywhere(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(programs_module, "_folders", lambda: [home])
        with pytest.raises(MissingExtraError, match=r"voxtier\[frames\]"):
            EmbeddedServer(home).attach()

    def test_a_broken_database_folder(self, home: Path) -> None:
        (home / "postgres" / "data" / "global" / "pg_control").unlink()
        with pytest.raises(BackendError, match=r"did not start: .*pg_control.*server\.log"):
            EmbeddedServer(home).attach()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by PostgreSQL")
class TestRoot:
    def test_a_user_namespace_needs_no_account(self, home: Path) -> None:
        probe = "unshare --user --map-user=1 --map-group=1 true"
        if subprocess.run(["sh", "-c", probe], capture_output=True, check=False).returncode != 0:
            pytest.skip("user namespaces are forbidden here")
        account = find_account(find_programs(), home / "postgres")
        assert account.prefix[0] == "unshare"
        assert account.uid == 0

    @pytest.fixture
    def no_namespaces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = programs_module._can_run

        def can_run(account: Account, *rest: object) -> bool:
            return "unshare" not in account.prefix and real(account, *rest)

        monkeypatch.setattr(programs_module, "_can_run", can_run)

    @pytest.mark.usefixtures("no_namespaces")
    def test_without_namespaces_an_account_that_exists(self) -> None:
        home = Path(f"/tmp/voxtier-test-{os.getpid()}")
        home.mkdir(mode=0o755)
        (home / "postgres").mkdir(mode=0o755)
        server = EmbeddedServer(home)
        try:
            server.attach()
            assert answer(server) == 42
            owner = (home / "postgres" / "data").stat().st_uid
            assert owner != 0
            assert pwd.getpwuid(owner).pw_name in {"postgres", "nobody"}
            server.detach()
            assert lock_is_free(home)
            server.attach()  # the owner of the folder serves it again
            server.detach()
        except BackendError as error:
            pytest.skip(f"the programs are in a folder that no ordinary account can enter: {error}")
        finally:
            server.stop(force=True)
            shutil.rmtree(home)

    @pytest.mark.usefixtures("no_namespaces")
    def test_without_namespaces_in_a_private_folder(self, tmp_path: Path) -> None:
        (tmp_path / "private").mkdir(mode=0o700)
        with pytest.raises(BackendError, match=r"root.*VOXTIER_HOME.*VOXTIER_DSN"):
            EmbeddedServer(tmp_path / "private").attach()

    @pytest.mark.parametrize("uid", [65534, 54321], ids=["nobody", "without-a-name"])
    def test_as_an_ordinary_user(self, uid: int) -> None:
        """Without privileges files are one's own; `docker run --user 54321` has not even a name."""
        home = Path(f"/tmp/voxtier-test-user-{uid}-{os.getpid()}")
        home.mkdir()
        os.chown(home, uid, uid)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        as_user: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": []}
        try:
            for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
                with contextlib.suppress(OSError):
                    process = subprocess.run(
                        [python, "-c", USER, str(home)], stdin=subprocess.DEVNULL, capture_output=True,
                        text=True, cwd="/", env=environment, check=False, **as_user,
                    )  # fmt: skip
                    break
            else:
                pytest.skip("no Python of this version that an ordinary account may run")
            assert process.stdout == "42\n", process.stderr
            assert {path.stat().st_uid for path in home.rglob("*")} == {uid}
        finally:
            shutil.rmtree(home)

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=72m", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("no file system can be mounted here")
        yield disk
        subprocess.run(["umount", "--lazy", str(disk)], check=True)

    def test_a_disk_too_full_to_begin(self, small_disk: Path) -> None:
        (small_disk / "filler").write_bytes(bytes(60 << 20))
        server = EmbeddedServer(small_disk / "home")
        with pytest.raises(BackendError, match="No space left on device; free some space"):
            server.attach()
        (small_disk / "filler").unlink()
        server.attach()
        assert answer(server) == 42
        server.detach()

    def test_a_disk_that_fills_up(self, small_disk: Path) -> None:
        from voxtier.postgres.database import Database

        server = EmbeddedServer(small_disk)
        server.attach()
        database = Database(server.conninfo())
        fill = b"CREATE TABLE filler AS SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 200000) i"
        with pytest.raises(BackendError, match="space"):
            database.run(lambda connection: connection.execute(fill))
        database.close()
        server.ensure_running()
        assert answer(server) == 42
        server.detach()
