"""Where the classes of a segmentation lie: counts in blocks of 16 voxels cubed, noted when it is ingested.

A sampler draws a block by its count and then reads that block alone, so that no worker has to read a mask to
know where its foreground is. The note names the fragments that were counted: after any later write it counts
for nothing, and the mask is counted anew.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from voxtier.volumes.tiledb import arrays as voxels
from voxtier.volumes.tiledb import session as engine
from voxtier.volumes.tiledb.session import Session

BLOCK: Final = 16
META_KEY: Final = "voxtier_foreground"
_MOST_CLASSES: Final = 16  # more of them are no labels, or too long a note
_LONGEST: Final = 1 << 18
_SMALL: Final = 32**3  # voxels; what is smaller is counted in no time

Counts = NDArray[np.int64]


def block_counts(inside: NDArray[np.bool_]) -> Counts:
    """Return how many voxels (x, y, z) of each block are inside."""
    shape = tuple(-(-n // BLOCK) for n in inside.shape)
    padded = np.zeros([n * BLOCK for n in shape], np.bool_)
    padded[tuple(slice(n) for n in inside.shape)] = inside
    x, y, z = shape
    counts: Counts = padded.reshape(x, BLOCK, y, BLOCK, z, BLOCK).sum(axis=(1, 3, 5), dtype=np.int64)
    return counts


def _labels(image: NDArray[Any]) -> list[int]:
    """Return the classes beside 0 of an image that looks like a segmentation; none for any other."""
    if image.ndim != 3 or image.dtype.kind not in "iub" or image.size < _SMALL:
        return []
    if len(np.unique(image[::7, ::5, ::3])) > _MOST_CLASSES + 1:  # most images end here, after a glance
        return []
    if int(image.min()) < 0 or int(image.max()) > 255:
        return []
    found: set[int] = set()
    for z in range(image.shape[2]):
        found.update(int(value) for value in np.flatnonzero(np.bincount(image[:, :, z].ravel("K"))))
        if len(found) > _MOST_CLASSES + 1:
            return []
    return sorted(found - {0})


def note(uri: str, image: NDArray[Any], session: Session) -> None:
    """Count the classes of a segmentation that was just written, into its metadata; other images are left."""
    labels = _labels(image)
    if not labels:
        return
    counts = np.zeros((len(labels), *(-(-n // BLOCK) for n in image.shape)), "<u2")
    for slab in range(counts.shape[3]):  # one slab in memory at a time
        part = image[:, :, slab * BLOCK : (slab + 1) * BLOCK]
        for place, label in enumerate(labels):
            counts[place, :, :, slab] = block_counts(part == label)[:, :, 0]
    packed = base64.b64encode(zlib.compress(counts.tobytes(), 6)).decode()
    if len(packed) <= _LONGEST:
        content = {"of": _fragments(uri, session), "labels": labels, "counts": packed}
        voxels.write_meta(uri, {META_KEY: json.dumps(content)}, session)


def noted(
    uri: str, meta: Mapping[str, Any], shape: tuple[int, ...], label: int | None, session: Session
) -> Counts | None:
    """Return the noted counts of one class (None: of all but 0), or None without a note."""
    try:
        content = json.loads(str(meta[META_KEY]))
        blocks = tuple(-(-n // BLOCK) for n in shape[:3])
        labels = [int(value) for value in content["labels"]]
        limit = 2 * len(labels) * int(np.prod(blocks))
        packed = zlib.decompressobj().decompress(base64.b64decode(content["counts"]), limit + 1)
        counts = np.frombuffer(packed, "<u2").reshape(len(labels), *blocks)
        if content["of"] != _fragments(uri, session):
            return None
    except (KeyError, ValueError, TypeError, zlib.error):
        return None
    chosen = [place for place, value in enumerate(labels) if label in (None, value)]
    total: Counts = counts[chosen].sum(axis=0, dtype=np.int64)
    return total


def _fragments(uri: str, session: Session) -> str:
    names = engine.subfolders(f"{uri}/__fragments", session)
    return hashlib.blake2b("\n".join(names).encode(), digest_size=16).hexdigest()
