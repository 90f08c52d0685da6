"""Every test starts from the default configuration and an empty decoded cache."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tiledb")

from voxtier.volumes import clear_cache, reset_config


def pytest_configure() -> None:
    """Let the fork server import torch once instead of each of its workers, and choose a place for files."""
    multiprocessing.set_forkserver_preload(["torch.utils.data", "voxtier.volumes"])
    _make_files_in_memory()


def _make_files_in_memory() -> None:
    """Make temporary files in memory where there is room: a volume is dozens of small ones.

    On a disk these tests take a fifth more of CPU. TMPDIR says another place, as in `make soak`.
    """
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 8 << 30
    if "TMPDIR" in os.environ or not has_room:
        return
    folder = memory / f"tests-of-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    if folder.lstat().st_uid == os.getuid() and not folder.is_symlink():  # anybody may write to its parent
        folder.chmod(0o711)  # some tests read as another user
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None


@pytest.fixture
def disk_path() -> Iterator[Path]:
    """Return an empty folder that is not in memory, for tests that hide what is."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    reset_config()
    clear_cache()
    yield
    reset_config()
    clear_cache()
