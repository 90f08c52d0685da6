"""Another account: folders of a test that it shall enter, and work done in its rights."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def let_others_enter(folder: Path) -> None:
    """Open a folder of pytest's, and its parents below the folder of all temporary files."""
    for each in [folder, *folder.parents]:
        if each.parent.is_relative_to(tempfile.gettempdir()):
            each.chmod(0o755)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Lose the rights of root, to which every folder is open."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)
