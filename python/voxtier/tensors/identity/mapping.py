"""The map from the keys of cache files to volume names, for ``voxtier tensors map``.

File names are pseudonyms, and the map undoes them: it is written for its owner alone (mode 0600).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from voxtier.errors import ConfigError
from voxtier.system.durable import write_text
from voxtier.tensors.identity.keys import item_key, legacy_hex


def hash_to_volume(names: Sequence[str], *, legacy: bool = False, redact: bool = False) -> dict[str, str]:
    """Return ``{key: volume name}``; every key is the stem of that volume's file in the cache.

    Parameters
    ----------
    names : sequence of str
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
    width = len(str(len(names)))
    mapping = {}
    for number, name in enumerate(names, 1):
        key = item_key(name)
        mapping[legacy_hex(key) if legacy else key] = f"volume_{number:0{width}}" if redact else name
    return mapping


def write_map(path: str | os.PathLike[str], mapping: dict[str, str]) -> None:
    """Write the map as JSON with an indent of 4, readable by its owner only; make its folder.

    Raises
    ------
    ConfigError
        The file cannot be written.
    """
    path = Path(path).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(mapping, indent=4), mode=0o600)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
