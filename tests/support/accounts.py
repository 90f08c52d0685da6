"""Folders of a test that another account shall enter."""

from __future__ import annotations

import tempfile
from pathlib import Path


def let_others_enter(folder: Path) -> None:
    """Open a folder of pytest's, and its parents below the folder of all temporary files."""
    for each in [folder, *folder.parents]:
        if each.parent.is_relative_to(tempfile.gettempdir()):
            each.chmod(0o755)
