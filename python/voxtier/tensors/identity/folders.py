"""The cache folder of a configuration: ``<cache_dir>/<directory hash>``, remembered once it is known."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from voxtier.errors import ConfigError, MissingExtraError
from voxtier.system.durable import write_text

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import Config

_HASH = re.compile("[0-9a-f]{32}")


def item_folder(config: Config) -> Path:
    """Return ``<cache_dir>/<directory hash>``; nothing is created.

    The hash needs MONAI, which takes seconds to import. `generate` writes it to
    ``<cache_dir>/.voxtier/folders.json``, so that later commands start at once.

    Raises
    ------
    MissingExtraError
        MONAI is not installed, and the hash is not remembered.
    ConfigError
        It is installed and cannot be loaded, such as for want of memory.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        name = json.loads(_memory_path(config).read_text())[_hash_inputs(config)]
        if _HASH.fullmatch(name):  # not a path to another place
            return config.cache_dir / str(name)
    try:
        from voxtier.tensors.identity.pipeline import build_transforms, directory_hash
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "monai", "tensors") from None
    except (ImportError, OSError) as error:  # it is installed, and the system does not load it
        raise ConfigError(f"MONAI and torch cannot be loaded (is memory limited?): {error}") from None
    return config.cache_dir / directory_hash(build_transforms(config.processing))


def remember_folder(config: Config, folder: Path) -> None:
    """Write down the folder of a configuration for the next command."""
    path = _memory_path(config)
    names: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        names = dict(json.loads(path.read_text()))
    if names.get(_hash_inputs(config)) != folder.name:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(names | {_hash_inputs(config): folder.name}, indent=1))


def _memory_path(config: Config) -> Path:
    return config.cache_dir / ".voxtier" / "folders.json"


def _hash_inputs(config: Config) -> str:
    """Return all that the hash depends on: the parameters (1 is not 1.0 there) and MONAI's version."""
    try:
        monai = version("monai")
    except PackageNotFoundError:
        monai = "none"
    return json.dumps([monai, asdict(config.processing)], sort_keys=True)
