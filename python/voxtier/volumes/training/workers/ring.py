"""The memory of batches: allocated once, handed out as tensors, used again when they are gone."""

from __future__ import annotations

import math
import mmap
import sys
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError
from voxtier.volumes.config import ReadConfig
from voxtier.volumes.tiledb.format.direct import reserve

_LINE = 64
_BESIDE = 2  # slots beside those that are filled ahead: one with the caller, one on its way back


class Form:
    """Where the patches of a batch lie in its memory.

    Parameters
    ----------
    rows : int
        Patches of a batch.
    image : tuple of int
        Channels and voxels of an image: (C, x, y, z[, t]).
    dtype : numpy.dtype
        Of the image.
    mask : numpy.dtype or None
        Of the mask; None where there is none.
    is_view : bool
        Whether z is the slowest axis in memory.
    """

    def __init__(
        self,
        rows: int,
        image: tuple[int, ...],
        dtype: np.dtype[Any],
        mask: np.dtype[Any] | None,
        *,
        is_view: bool,
    ) -> None:
        self.rows, self.dtype, self.mask_dtype = rows, dtype, mask
        self.channels, self.box = image[0], image[1:]
        x, y, z, *times = self.box
        self.is_view = is_view and not times
        self.steps = (1, x, x * y) if self.is_view else (y * z, z, 1)  # numbers from voxel to voxel
        voxels = math.prod(self.box)
        self.image_bytes = rows * self.channels * voxels * dtype.itemsize
        self.mask_offset = -(-self.image_bytes // _LINE) * _LINE
        self.bytes = self.mask_offset + (0 if mask is None else rows * voxels * mask.itemsize)

    def arrays(self, memory: NDArray[np.uint8], rows: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return the image (rows, C, ...) and the mask (rows, 1, ...) in a memory, which they keep."""
        image = self._array(memory, 0, (rows, self.channels), self.dtype)
        if self.mask_dtype is None:
            return image, None
        return image, self._array(memory, self.mask_offset, (rows, 1), self.mask_dtype)

    def _array(
        self, memory: NDArray[np.uint8], offset: int, lead: tuple[int, int], dtype: np.dtype[Any]
    ) -> NDArray[Any]:
        box = self.box[::-1] if self.is_view else self.box
        array: NDArray[Any] = np.ndarray((*lead, *box), dtype, memory, offset)
        return array.transpose(0, 1, 4, 3, 2) if self.is_view else array


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """Memory of one batch: free again when neither the slot nor an array of it is left.

    Parameters
    ----------
    form : Form
        Of the batch.
    memory : numpy.ndarray of uint8
        The bytes.
    """

    form: Form
    memory: NDArray[np.uint8]

    def arrays(self, rows: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return the image and the mask of ``rows`` patches."""
        return self.form.arrays(self.memory, rows)


class Ring:
    """Slots of one form. What they take counts into the memory budget, beside decoded blocks.

    Parameters
    ----------
    form : Form
        Of the batches.
    prefetch : int
        Batches that are filled ahead; fewer where half the budget has no room.
    read : ReadConfig
        The budget.
    allocate : callable
        Takes bytes and gives page-locked memory; None takes plain memory.

    Raises
    ------
    ConfigError
        When the budget has no room for three batches.
    """

    def __init__(self, form: Form, prefetch: int, read: ReadConfig, allocate: Any = None) -> None:
        self.form, self._allocate = form, allocate
        budget = read.memory_budget_mb << 20
        if form.bytes * (1 + _BESIDE) > budget:
            raise ConfigError(
                f"one batch takes {form.bytes / 2**20:.0f} MB, three are in memory at a time, the budget is"
                f" {read.memory_budget_mb} MB: choose smaller batches, or configure(read=ReadConfig("
                "memory_budget_mb=...))"
            )
        self.prefetch = max(1, min(prefetch, budget // 2 // form.bytes - _BESIDE))
        self.most_bytes = form.bytes * (self.prefetch + _BESIDE)
        self._memories: list[NDArray[np.uint8]] = []
        reserve(self.most_bytes)
        weakref.finalize(self, reserve, -self.most_bytes)

    def take(self) -> Slot:
        """Return a slot; a new one where all are in use.

        Which ones are is told by who refers to them. A destructor that gave them back would be run by Python
        at any place, where a Ctrl-C that comes meanwhile is printed and forgotten.
        """
        for number in range(len(self._memories)):
            if _references(self._memories, number) == _UNUSED:
                return Slot(self.form, self._memories[number])
        memory = self._allocate(self.form.bytes) if self._allocate else _map(self.form.bytes)
        if len(self._memories) < self.prefetch + _BESIDE:
            self._memories.append(memory)
        return Slot(self.form, memory)


def _references(things: list[Any], number: int) -> int:
    return sys.getrefcount(things[number])


# Of a thing that nobody uses but its list: how often that counts differs between versions of Python.
_UNUSED = _references([object()], 0)


def _map(size: int) -> NDArray[np.uint8]:
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)
