"""The embedded server takes the memory for pages that the machine, or its limit, can spare."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import psycopg
import pytest

from voxtier.postgres.embedded import EmbeddedServer


@pytest.mark.parametrize(
    ("memory", "buffers"), [(1 << 30, "128MB"), (8 << 30, "512MB"), (1 << 40, "2GB")], ids=str
)
def test_a_sixteenth_of_the_memory_within_bounds(
    home: Path, monkeypatch: pytest.MonkeyPatch, memory: int, buffers: str
) -> None:
    monkeypatch.setattr("voxtier.postgres.embedded.start.total_memory", lambda: memory)
    server = EmbeddedServer(home)
    server.attach()
    try:
        with psycopg.connect(server.conninfo()) as connection:
            assert connection.execute("SHOW shared_buffers").fetchone() == (buffers,)
    finally:
        server.detach()


def test_with_a_limit_of_address_space_it_starts_with_less(home: Path) -> None:
    limited = """
        import resource, sys
        from pathlib import Path
        import psycopg
        from voxtier.postgres.embedded import EmbeddedServer, start
        start.total_memory = lambda: 1 << 40
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (800 << 20),) * 2)
        server = EmbeddedServer(Path(sys.argv[1]))
        server.attach()
        with psycopg.connect(server.conninfo()) as connection:
            print(*connection.execute("SHOW shared_buffers").fetchone())
        server.detach()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(limited), str(home)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("128MB\n", "")
