"""Which folder of the cache belongs to a configuration."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from voxtier.errors import MissingExtraError
from voxtier.system.durable import write_text

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import Config

__all__ = ["item_folder", "remember_folder"]

_HASH = re.compile("[0-9a-f]{32}")


def item_folder(config: Config) -> Path:
    """Return ``<cache_dir>/<directory hash>``; nothing is created.

    The hash needs MONAI, which takes seconds to import; a folder that `generate` has made remembers it, so
    that `verify` starts at once.

    Raises
    ------
    MissingExtraError
        MONAI is not installed, and the hash is not remembered.
    """
    remembered = _memory(config)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        name = json.loads(remembered.read_text())[_question(config)]
        if _HASH.fullmatch(name):  # and not a path to somewhere else
            return config.cache_dir / str(name)
    try:
        from voxtier.tensors.identity.pipeline import build_transforms, directory_hash
    except ImportError as error:
        raise MissingExtraError(error.name or "monai", "tensors") from None
    return config.cache_dir / directory_hash(build_transforms(config.processing))


def remember_folder(config: Config, folder: Path) -> None:
    """Note the folder of a configuration for the next start."""
    path = _memory(config)
    known = {}
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        known = dict(json.loads(path.read_text()))
    if known.get(_question(config)) != folder.name:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(known | {_question(config): folder.name}, indent=1))


def _memory(config: Config) -> Path:
    return config.cache_dir / ".voxtier" / "folders.json"


def _question(config: Config) -> str:
    """Everything that the hash depends on: the parameters (an int is not its float) and MONAI's version."""
    try:
        monai = version("monai")
    except PackageNotFoundError:
        monai = "none"
    return json.dumps([monai, asdict(config.processing)], sort_keys=True)
