"""Where voxtier keeps what is the user's."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from voxtier.errors import ConfigError, MissingExtraError


def default_home() -> Path:
    """Return voxtier's folder: ``VOXTIER_HOME``, else the user's data folder.

    Raises
    ------
    MissingExtraError
        `platformdirs`, which knows the user's data folder, is not installed.
    ConfigError
        The account has no home folder, or that of the account which ``VOXTIER_HOME`` names is not known.
    """
    try:
        if home := os.environ.get("VOXTIER_HOME"):
            folder = Path(home).expanduser()
            return folder if folder.is_absolute() else _anchored(folder)
        from platformdirs import user_data_path

        return user_data_path("voxtier")
    except ImportError:
        raise MissingExtraError("platformdirs", "frames") from None
    except RuntimeError:  # neither HOME nor an entry in the list of accounts, as in a container
        named = "the account of this process has no home folder" if not home else f"VOXTIER_HOME={home}"
        raise ConfigError(f"{named}: let VOXTIER_HOME name a folder that voxtier may write") from None


@cache
def _anchored(home: Path) -> Path:
    """Return what a relative path names when it is first asked for: the working folder may change later."""
    return home.absolute()


def home_if_any() -> Path | None:
    """Return voxtier's folder for what may be left out, or None where there is none."""
    try:
        return default_home()
    except (ConfigError, MissingExtraError):
        return None
