"""Where voxtier keeps what is the user's: the embedded server and the status files of readers."""

from __future__ import annotations

import os
from pathlib import Path

from voxtier.errors import MissingExtraError


def default_home() -> Path:
    """Return voxtier's folder: ``VOXTIER_HOME``, else the user's data folder.

    Raises
    ------
    MissingExtraError
        `platformdirs`, which knows the user's data folder, is not installed.
    """
    if home := os.environ.get("VOXTIER_HOME"):
        return Path(home).expanduser().absolute()
    try:
        from platformdirs import user_data_path
    except ImportError:
        raise MissingExtraError("platformdirs", "frames") from None
    return user_data_path("voxtier")
