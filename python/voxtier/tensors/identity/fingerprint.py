"""The fingerprint of a tensor: everything that decides its numbers, of which the directory hash sees a part.

The hash stays the predecessor's: it sees neither the reader nor the versions nor the bytes of the source.
The ledger of `generate` records the fingerprint; ``voxtier tensors explain`` compares it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import ImageProcessing

READER = {"reader": "NibabelReader", "image_only": False, "ensure_channel_first": True}


def describe_processing(processing: ImageProcessing) -> dict[str, Any]:
    """Return everything that decides the numbers, the fingerprint: parameters, reader, versions."""
    versions = {}
    for package in ("monai", "torch", "nibabel", "numpy", "scipy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    # Through JSON, so that it equals what the manifest returns.
    return dict(json.loads(json.dumps({**asdict(processing), **READER, "versions": versions})))


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the differences of two trees of JSON.

    Parameters
    ----------
    old, new : object
        Values as `json.loads` returns them.
    path : str
        The place of the two in a larger tree.

    Returns
    -------
    list of str
        One line per difference: ``path: old -> new``.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys(), key=str):
            below = f"{path}.{key}" if path else str(key)
            lines += differences(old.get(key, "absent"), new.get(key, "absent"), below)
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        if all(not isinstance(item, dict | list) for item in [*old, *new]):
            return [] if _same(old, new) else [f"{path}: {json.dumps(old)} -> {json.dumps(new)}"]
        lines = []
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            name = left.get("class", index) if isinstance(left, dict) else index
            lines += differences(left, right, f"{path}[{name}]")
        return lines
    return [] if _same(old, new) else [f"{path}: {json.dumps(old)} -> {json.dumps(new)}"]


def _same(old: Any, new: Any) -> bool:
    return json.dumps(old) == json.dumps(new)  # 1 differs from 1.0, as in the hash; NaN equals NaN
