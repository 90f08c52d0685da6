"""The map from the keys of cache files to volume names, for ``voxtier tensors map``.

File names are pseudonyms, and the map undoes them: it is written for its owner alone (mode 0600).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from voxtier.arguments import as_several
from voxtier.errors import ConfigError
from voxtier.system.durable import write_text
from voxtier.tensors.identity.keys import item_key, legacy_hex

_KEY = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")


def hash_to_volume(
    names: str | Iterable[str], *, legacy: bool = False, redact: bool = False
) -> dict[str, str]:
    """Return ``{key: volume name}``; every key is the stem of that volume's file in the cache.

    Parameters
    ----------
    names : str or iterable of str
        Distinct volume names.
    legacy : bool
        Use the 64-digit keys of the predecessor's map, which name no file.
    redact : bool
        Number the volumes instead of naming them.

    Returns
    -------
    dict
        In the order of the names.
    """
    volumes = list(as_several(names))
    width = len(str(len(volumes)))
    mapping = {}
    for number, name in enumerate(volumes, 1):
        key = item_key(name)
        mapping[legacy_hex(key) if legacy else key] = f"volume_{number:0{width}}" if redact else name
    return mapping


def write_map(path: str | os.PathLike[str], mapping: dict[str, str]) -> None:
    """Write the map as JSON with an indent of 4, readable by its owner only; make its folder.

    Raises
    ------
    ConfigError
        The file cannot be written, or its place is taken by a file that is no such map.
    """
    path = Path(path).absolute()
    try:
        if not _is_free(path):
            raise ConfigError(f"{path}: is there already, and is no map: choose another name or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(mapping, indent=4), mode=0o600)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _is_free(path: Path) -> bool:
    """Return whether nothing is lost when a map takes this place: nothing, no bytes, or a map is there."""
    if not os.path.lexists(path):
        return True
    if not path.is_file():
        return False
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return False
    return isinstance(tree, dict) and all(_KEY.fullmatch(key) for key in tree)
