"""Where the classes of a segmentation lie: voxels counted in blocks of 16 cubed when it is ingested.

A sampler draws a block by its count and then reads that block alone, so that no worker has to read a mask to
know where its foreground is. The counts name the fragments that were counted: any later write makes them
invalid, and the mask is counted anew.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier.volumes.tiledb.arrays import write_meta
from voxtier.volumes.tiledb.format.folders import fragment_names
from voxtier.volumes.tiledb.session import Session

BLOCK = 16
META_KEY = "voxtier_foreground"

_MOST_CLASSES = 16  # an image of more values is no segmentation, or its counts are too long
_LONGEST = 1 << 18  # characters of the counts
_FEWEST_VOXELS = 32**3  # a smaller mask is counted faster than its counts are read

Counts = NDArray[np.int64]
"""Voxels of a class in each block, (x, y, z) blocks."""


def count_blocks(inside: NDArray[np.bool_]) -> Counts:
    """Return how many voxels (x, y, z) of each block are inside."""
    shape = tuple(-(-n // BLOCK) for n in inside.shape)
    padded = np.zeros([n * BLOCK for n in shape], np.bool_)
    padded[tuple(slice(n) for n in inside.shape)] = inside
    x, y, z = shape
    counts: Counts = padded.reshape(x, BLOCK, y, BLOCK, z, BLOCK).sum(axis=(1, 3, 5), dtype=np.int64)
    return counts


def _labels(image: NDArray[Any]) -> list[int]:
    """Return the classes beside 0 of an image that looks like a segmentation; none for any other."""
    if image.ndim != 3 or image.dtype.kind not in "iub" or image.size < _FEWEST_VOXELS:
        return []
    if len(np.unique(image[::7, ::5, ::3])) > _MOST_CLASSES + 1:  # most images end here, after a glance
        return []
    if int(image.min()) < 0 or int(image.max()) > 255:
        return []
    values: set[int] = set()
    for z in range(image.shape[2]):
        values.update(int(value) for value in np.flatnonzero(np.bincount(image[:, :, z].ravel("K"))))
        if len(values) > _MOST_CLASSES + 1:
            return []
    return sorted(values - {0})


def write_counts(uri: str, image: NDArray[Any], session: Session) -> None:
    """Count the classes of a segmentation that was just written into its metadata; ignore other images.

    Parameters
    ----------
    uri : str
        Address of the volume.
    image : numpy.ndarray
        Its voxels, (x, y, z[, t]).
    session : Session
        How it is reached.
    """
    labels = _labels(image)
    if not labels:
        return
    counts = np.zeros((len(labels), *(-(-n // BLOCK) for n in image.shape)), "<u2")
    for slab in range(counts.shape[3]):  # one slab in memory at a time
        part = image[:, :, slab * BLOCK : (slab + 1) * BLOCK]
        for place, label in enumerate(labels):
            counts[place, :, :, slab] = count_blocks(part == label)[:, :, 0]
    packed = base64.b64encode(zlib.compress(counts.tobytes(), 6)).decode()
    if len(packed) <= _LONGEST:
        content = {"of": _fragments_digest(uri, session), "labels": labels, "counts": packed}
        write_meta(uri, {META_KEY: json.dumps(content)}, session)


def read_counts(
    uri: str, meta: Mapping[str, Any], shape: tuple[int, ...], label: int | None, session: Session
) -> Counts | None:
    """Return the counts of one class that were stored at ingest.

    Parameters
    ----------
    uri : str
        Address of the volume.
    meta : mapping
        Its metadata.
    shape : tuple of int
        Its voxels along x, y, z[, t].
    label : int or None
        The class; None means all but 0.
    session : Session
        How it is reached.

    Returns
    -------
    numpy.ndarray of int64 or None
        Voxels of the class in each block; None where none are stored for the volume as it is now.
    """
    try:
        content = json.loads(str(meta[META_KEY]))
        blocks = tuple(-(-n // BLOCK) for n in shape[:3])
        labels = [int(value) for value in content["labels"]]
        limit = 2 * len(labels) * int(np.prod(blocks))
        packed = zlib.decompressobj().decompress(base64.b64decode(content["counts"]), limit + 1)
        counts = np.frombuffer(packed, "<u2").reshape(len(labels), *blocks)
        if content["of"] != _fragments_digest(uri, session):
            return None
    except (KeyError, ValueError, TypeError, zlib.error):
        return None
    chosen = [place for place, value in enumerate(labels) if label in (None, value)]
    total: Counts = counts[chosen].sum(axis=0, dtype=np.int64)
    return total


def _fragments_digest(uri: str, session: Session) -> str:
    return hashlib.blake2b("\n".join(fragment_names(uri, session)).encode(), digest_size=16).hexdigest()
