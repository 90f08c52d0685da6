"""A home with a database folder that initdb made before."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from voxtier.errors import BackendError
from voxtier.postgres.embedded import EmbeddedServer


@pytest.fixture
def home(tmp_path: Path, fresh_folder: Path) -> Iterator[Path]:
    """A home whose server has run before and is stopped; nothing of it is left running after the test."""
    home = tmp_path / "home"
    shutil.copytree(fresh_folder, home, ignore=shutil.ignore_patterns("socket"))
    yield home
    with contextlib.suppress(BackendError):
        EmbeddedServer(home).stop(force=True)
