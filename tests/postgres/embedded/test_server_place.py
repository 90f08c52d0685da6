"""Where the embedded server lives: awkward paths, folders that cannot hold it, disks too full."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from postgres.servers import answer, leave, lock_is_free, socket_folder, user
from voxtier.errors import BackendError, MissingExtraError
from voxtier.postgres.embedded import EmbeddedServer
from voxtier.postgres.embedded import programs as programs_module
from voxtier.postgres.embedded.programs import Account
from voxtier.postgres.embedded.start import _make_socket_folder as make_socket_folder


def modes(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mode, path.stat().st_uid) for path in (folder, *folder.parents)}


def test_a_long_path_gets_a_short_socket(tmp_path: Path, fresh_folder: Path) -> None:
    home = tmp_path / ("deep" * 20) / ("folder" * 10)
    shutil.copytree(fresh_folder, home, ignore=shutil.ignore_patterns("socket"))
    with user(home) as other:
        folder = socket_folder(home)
        assert len(str(folder)) < 90
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        leave(other)
    folder.rmdir()


def test_a_home_whose_name_is_not_utf_8_works(tmp_path: Path, fresh_folder: Path) -> None:
    home = tmp_path / os.fsdecode(b"h\xff")
    shutil.copytree(fresh_folder, home, ignore=shutil.ignore_patterns("socket"))
    with user(home) as other:
        assert answer(EmbeddedServer(home)) == 42
        folder = socket_folder(home)
        folder.name.encode()
        leave(other)
    assert lock_is_free(home)
    folder.rmdir()


def test_a_socket_folder_that_cannot_be_made_gives_way_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / ("deep" * 25)
    home.mkdir()
    account = Account((), os.geteuid(), os.getegid())
    # In /proc nobody makes a folder, whatever the rights.
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc/self")
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    found = make_socket_folder(home, account)
    assert found.parent == Path("/tmp")
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    found.chmod(0o755)
    with pytest.raises(BackendError) as caught:
        make_socket_folder(home, account)
    found.rmdir()
    told = str(caught.value)
    assert f"{home}/socket: too long" in told
    assert re.search(r"/proc/self/voxtier-\S+: No such file or directory, ", told)
    assert f"{found}: is not a folder of this account alone" in told


def test_a_full_disk_of_the_socket_counts_where_it_is_that_of_the_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    account, made = Account((), os.geteuid(), os.getegid()), Path.mkdir
    full: list[Path] = []

    def mkdir(path: Path, mode: int = 0o777) -> None:
        if path.parent in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        made(path, mode)

    with tempfile.TemporaryDirectory(dir="/tmp") as runtime:  # a short path
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        monkeypatch.setattr(Path, "mkdir", mkdir)
        first = make_socket_folder(Path("/x" * 60), account)
        assert first.parent == Path(runtime)
        first.rmdir()
        full.append(first.parent)
        second = make_socket_folder(Path("/x" * 60), account)
        assert second.parent != first.parent
        second.rmdir()
        with pytest.raises(OSError, match="No space left"):
            make_socket_folder(Path(runtime), account)


@pytest.mark.parametrize("name", ["with space", "quo'te", 'dou"ble', "com,ma", "$HOME `x` \\ü"])
def test_a_home_with_special_characters_in_its_name_works(
    tmp_path: Path, fresh_folder: Path, name: str
) -> None:
    shutil.copytree(fresh_folder, tmp_path / name, ignore=shutil.ignore_patterns("socket"))
    with user(tmp_path / name) as other:
        leave(other)
    assert lock_is_free(tmp_path / name)


def test_no_other_folder_changes_its_mode_or_owner(tmp_path: Path) -> None:
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


def test_the_server_listens_on_its_socket_alone(home: Path) -> None:
    with user(home):
        server = EmbeddedServer(home)
        with psycopg.connect(server.conninfo()) as connection:
            names = ("listen_addresses", "fsync", "unix_socket_permissions")
            found = [connection.execute("SELECT current_setting(%s)", [n]).fetchone() for n in names]
        assert found == [("",), ("on",), ("0700",)]
        assert stat.S_IMODE(socket_folder(home).stat().st_mode) == 0o700


QUESTION = b"""
SELECT current_setting('default_transaction_read_only'), current_setting('client_encoding'),
    current_setting('application_name'), current_setting('unix_socket_directories')
"""
# Each would lead elsewhere, or keep libpq from this server.
ELSEWHERE = {
    "PGHOST": "/nowhere",
    "PGHOSTADDR": "127.0.0.1",
    "PGPORT": "1",
    "PGUSER": "nobody",
    "PGDATABASE": "nothing",
    "PGTARGETSESSIONATTRS": "standby",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGREQUIREPEER": "nobody",
    "PGCHANNELBINDING": "require",
    "PGSSLMODE": "verify-full",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLCERTMODE": "require",
    "PGSSLROOTCERT": "system",
    "PGSSLMINPROTOCOLVERSION": "none",
    "PGGSSENCMODE": "require",
    "PGMINPROTOCOLVERSION": "9",
    "PGMAXPROTOCOLVERSION": "none",
    "PGLOADBALANCEHOSTS": "none",
    "PGCONNECT_TIMEOUT": "soon",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGCLIENTENCODING": "LATIN1",
}


def test_no_variable_of_libpq_leads_elsewhere(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from voxtier.postgres.database import Database

    def answered() -> object:
        database = Database()
        try:
            return database.run(lambda connection: connection.execute(QUESTION).fetchone())
        finally:
            database.close()

    monkeypatch.setenv("VOXTIER_HOME", str(home))
    with user(home):
        socket = str(socket_folder(home))
        for name, value in ELSEWHERE.items():
            with monkeypatch.context() as one:
                one.setenv(name, value)
                assert answered() == ("off", "UTF8", "voxtier", socket), name
        for name, value in ELSEWHERE.items():
            monkeypatch.setenv(name, value)
        assert answered() == ("off", "UTF8", "voxtier", socket)


def test_a_service_leads_nowhere_else_and_one_that_is_not_there_is_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from voxtier.postgres.database import Database

    monkeypatch.setenv("VOXTIER_HOME", str(home))
    services = tmp_path / "services"
    services.write_text("[elsewhere]\nhostaddr=127.0.0.1\nport=1\ntarget_session_attrs=standby\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    with user(home):
        monkeypatch.setenv("PGSERVICE", "elsewhere")
        database = Database()
        assert database.run(lambda connection: connection.execute("SELECT 42").fetchone()) == (42,)
        database.close()
        monkeypatch.setenv("PGSERVICE", "missing")
        with pytest.raises(BackendError, match='"missing" not found; unset PGSERVICE'):
            database.run(lambda connection: connection.execute("SELECT 42").fetchone())


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(BackendError, match=r"cannot hold the database.*VOXTIER_HOME"):
        EmbeddedServer(tmp_path / "home").attach()


def test_without_postgresql_the_missing_extra_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs_module, "_folders", lambda: [home])
    with pytest.raises(MissingExtraError, match=r"voxtier\[frames\]"):
        EmbeddedServer(home).attach()


def test_a_broken_database_folder_names_the_file_and_the_log(home: Path) -> None:
    (home / "postgres" / "data" / "global" / "pg_control").unlink()
    with pytest.raises(BackendError, match=r"did not start: .*pg_control.*server\.log"):
        EmbeddedServer(home).attach()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=72m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_too_full_for_initdb_is_named_and_a_later_start_works(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(60 << 20))
    server = EmbeddedServer(small_disk / "home")
    with pytest.raises(BackendError, match="No space left on device; free some space"):
        server.attach()
    (small_disk / "filler").unlink()
    server.attach()
    assert answer(server) == 42
    server.detach()


def test_a_disk_that_fills_up_fails_the_statement_and_the_server_recovers(small_disk: Path) -> None:
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
