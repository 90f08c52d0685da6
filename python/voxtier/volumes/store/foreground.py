"""Where the classes of a segmentation lie: voxels counted in blocks of 16 cubed when it is ingested.

A sampler draws a block by its count and then reads that block alone, so that no worker has to read a mask to
know where its foreground is. The counts name the fragments that were counted: any later write makes them
invalid, and the mask is counted anew. Connected components (lesions) are noted the same way, by the parts
that they have in each block. Stored numbers are counted: the notes of a mask that is scaled are not used.
"""

from __future__ import annotations

import base64
import hashlib
import json
import weakref
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from voxtier import _core
from voxtier.volumes.tiledb.arrays import VoxelArray, write_meta
from voxtier.volumes.tiledb.format.folders import fragment_names
from voxtier.volumes.tiledb.session import Session

_T = TypeVar("_T")

BLOCK = 16
COUNTS_KEY = "voxtier_foreground"
LESIONS_KEY = "voxtier_lesions"
META_KEYS = (COUNTS_KEY, LESIONS_KEY)
"""Metadata of a segmentation that tell of its own voxels: no copy and no result of a transform takes them."""

_MOST_CLASSES = 16  # an image of more values is no segmentation, or its counts are too long
_LONGEST = 1 << 18  # characters of the counts
_OUTSIDE = -1  # what nnU-Net stores outside of the body
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
    lowest, highest = int(image.min()), int(image.max())
    if lowest < _OUTSIDE or highest > 255 or highest < 1:
        return []
    values: set[int] = set()
    for z in range(image.shape[2]):
        plane = image[:, :, z].ravel("K")
        counts = np.bincount(plane if lowest == 0 else plane.astype(np.int64) - lowest)
        values.update(int(value) + lowest for value in np.flatnonzero(counts))
        if len(values) > _MOST_CLASSES + 1:
            return []
    return sorted(values - {0})


def write_counts(uri: str, image: NDArray[Any], session: Session) -> None:
    """Note classes and lesions of a segmentation that was just written in its metadata; ignore other images.

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
    notes: dict[str, Any] = {}
    of = _fragments_digest(uri, session)
    if len(packed) <= _LONGEST:
        notes[COUNTS_KEY] = json.dumps({"of": of, "labels": labels, "counts": packed})
    lesions = find_lesions(image)
    if lesions is not None and len(lesions.parts) <= _LONGEST:
        packed = _pack(lesions.classes, lesions.parts)
        if len(packed) <= _LONGEST:
            size = [len(lesions.classes), len(lesions.parts)]
            notes[LESIONS_KEY] = json.dumps({"of": of, "size": size, "lesions": packed})
    if notes:
        write_meta(uri, notes, session)


@dataclass(frozen=True, slots=True)
class Lesions:
    """Connected components of a segmentation: voxels of one class that touch, be it by a corner.

    Parameters
    ----------
    classes : numpy.ndarray of uint8
        Of each lesion.
    parts : numpy.ndarray of uint32, (N, 4)
        Lesion, block, number of the part among those that the block alone falls into, voxels; sorted.
    """

    classes: NDArray[np.uint8]
    parts: NDArray[np.uint32]


def find_lesions(image: NDArray[Any]) -> Lesions | None:
    """Return the lesions of classes 1 to 255; None for an image of millions of pieces."""
    labels = as_classes(image)
    found = _core.find_components(labels.reshape(-1), labels.shape, BLOCK)
    return None if found is None else Lesions(found[0], found[1].reshape(-1, 4))


def as_classes(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return classes 1 to 255 of a mask, and 0 for all else, C-contiguous."""
    inside = (image >= 1) & (image <= 255)
    return np.ascontiguousarray(np.where(inside, image, 0), dtype=np.uint8)


def read_lesions(
    uri: str, meta: Mapping[str, Any], shape: tuple[int, ...], session: Session
) -> Lesions | None:
    """Return the lesions that were noted at ingest.

    Parameters
    ----------
    uri : str
        Address of the volume.
    meta : mapping
        Its metadata.
    shape : tuple of int
        Its voxels along x, y, z[, t].
    session : Session
        How it is reached.

    Returns
    -------
    Lesions or None
        None where none are noted for the volume as it is now: of stores of version 0.1, and of masks of many
        pieces.
    """
    try:
        content = json.loads(str(meta[LESIONS_KEY]))
        count, rows = (int(number) for number in content["size"])
        limit = count + 16 * rows
        if not 0 <= count <= rows <= _LONGEST:
            return None
        packed = zlib.decompressobj().decompress(base64.b64decode(content["lesions"]), limit + 1)
        parts = (
            np.frombuffer(packed[count:], "<u4")
            .reshape(4, rows)
            .T.astype(np.uint32)
            .cumsum(axis=0, dtype=np.uint32)
        )
        lesions = Lesions(np.frombuffer(packed[:count], np.uint8), parts)
        if content["of"] != _fragments_digest(uri, session) or not _is_sound(lesions, shape):
            return None
    except (KeyError, ValueError, TypeError, zlib.error):
        return None
    return lesions


def _pack(classes: NDArray[np.uint8], parts: NDArray[np.uint32]) -> str:
    """Return lesions as text: classes, then the columns of the parts as differences from row to row."""
    first = np.zeros((1, 4), np.uint32)
    steps = np.diff(parts, axis=0, prepend=first).astype("<u4")
    return base64.b64encode(zlib.compress(classes.tobytes() + steps.T.tobytes(), 6)).decode()


def _is_sound(lesions: Lesions, shape: tuple[int, ...]) -> bool:
    blocks = int(np.prod([-(-n // BLOCK) for n in shape[:3]]))
    lesion, block, _, voxels = lesions.parts.T
    numbers = np.unique(lesion)
    is_complete = len(numbers) == len(lesions.classes) and bool((numbers == np.arange(len(numbers))).all())
    return is_complete and bool((block < blocks).all() and (voxels > 0).all() and (voxels <= BLOCK**3).all())


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
        content = json.loads(str(meta[COUNTS_KEY]))
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


class Findings(Generic[_T]):
    """What was found in the voxels of each volume of this process, found again once these have changed.

    Pickles and deep copies begin empty: the other process has volumes of its own.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, int | None], tuple[weakref.ref[VoxelArray], str, _T]] = {}

    def __reduce__(self) -> tuple[type[Findings[_T]], tuple[()]]:
        return type(self), ()

    def get(self, array: VoxelArray, label: int | None, find: Callable[[], _T]) -> _T:
        """Return what was found in a volume.

        Parameters
        ----------
        array : VoxelArray
            The volume as it is now: opened anew after a write, or because others took its place.
        label : int or None
            The class that is looked for; None means any.
        find : callable
            Reads it.

        Returns
        -------
        object
            Of ``find``.
        """
        known = self._found.get((array.uri, label))
        if known is not None and known[0]() is array:
            return known[2]
        digest = _fragments_digest(array.uri, array.session)
        found = known[2] if known is not None and known[1] == digest else find()
        self._found[array.uri, label] = weakref.ref(array), digest, found
        return found


def _fragments_digest(uri: str, session: Session) -> str:
    return hashlib.blake2b("\n".join(fragment_names(uri, session)).encode(), digest_size=16).hexdigest()
