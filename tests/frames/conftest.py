"""A store on an empty database, and a server to make sick, for every room of the frames."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from voxtier.frames.store.store import FrameStore
from voxtier.postgres.embedded import EmbeddedServer


@pytest.fixture
def store(dsn: str) -> Iterator[FrameStore]:
    with FrameStore(dsn) as store:
        yield store


@pytest.fixture
def server(tmp_path: Path, fresh_folder: Path) -> Iterator[EmbeddedServer]:
    """A server of this test alone: it is frozen and killed."""
    shutil.copytree(fresh_folder, tmp_path / "server", ignore=shutil.ignore_patterns("socket"))
    server = EmbeddedServer(tmp_path / "server")
    server.attach()
    yield server
    server.detach()
