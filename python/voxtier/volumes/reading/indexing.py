"""numpy's basic indexing, translated into the region that an array has to read."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from types import EllipsisType
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

Item: TypeAlias = "SupportsIndex | slice | EllipsisType | None"
Key: TypeAlias = "Item | tuple[Item, ...]"

_ALL = slice(None)
_REVERSED = slice(None, None, -1)


class Selection(NamedTuple):
    """One key, resolved against a shape (on the path of every read: a tuple, not a dataclass).

    Parameters
    ----------
    region : tuple
        Per axis start, count and step > 0: what is read.
    finish : tuple
        Index into the result of that read: 0 drops an axis, a reversed slice reverses it, None adds one.
        Empty when nothing is to be done.
    has_reversed : bool
        Whether ``finish`` reverses an axis.
    """

    region: tuple[tuple[int, int, int], ...]
    finish: tuple[Any, ...]
    has_reversed: bool

    def apply(self, cells: NDArray[Any]) -> NDArray[Any]:
        """Finish a read: the result has no negative strides (torch refuses them)."""
        result: NDArray[Any] = cells[self.finish] if self.finish else cells
        return result.copy(order="K") if self.has_reversed else result


def select(key: Key, shape: tuple[int, ...]) -> Selection:
    """Resolve ints, slices with any step, ``...`` and ``None``, as numpy does.

    Raises
    ------
    IndexError
        For an index outside its axis, or too many of them; the message names the axis.
    TypeError
        For arrays and lists: read the box that holds them, then index the result.
    """
    items: Sequence[Item] = key if isinstance(key, tuple) else (key,)
    if len(items) != len(shape) or any([item is None or item is Ellipsis for item in items]):  # noqa: C419
        items = _expanded(items, len(shape))
    region: list[tuple[int, int, int]] = []
    finish: list[Any] = []
    is_plain, has_reversed = True, False
    for item in items:
        if item is None:
            finish.append(None)
            is_plain = False
            continue
        axis = len(region)
        if isinstance(item, slice):
            part, is_reversed = _slice(item, shape[axis])
            region.append(part)
            finish.append(_REVERSED if is_reversed else _ALL)
            has_reversed = has_reversed or is_reversed
        else:
            region.append((_integer(item, axis, shape[axis]), 1, 1))
            finish.append(0)
            is_plain = False
    return Selection(tuple(region), () if is_plain and not has_reversed else tuple(finish), has_reversed)


def _expanded(items: Sequence[Item], ndim: int) -> list[Item]:
    count = sum(item is not None and item is not Ellipsis for item in items)
    if count > ndim:
        raise IndexError(f"{count} indices for a volume of {ndim} dimensions")
    places = [place for place, item in enumerate(items) if item is Ellipsis]
    if len(places) > 1:
        raise IndexError("an index can hold one ellipsis ('...')")
    missing: list[Item] = [slice(None)] * (ndim - count)
    if not places:
        return [*items, *missing]
    return [*items[: places[0]], *missing, *items[places[0] + 1 :]]


def _integer(item: object, axis: int, size: int) -> int:
    if type(item) is int and 0 <= item < size:
        return item
    if isinstance(item, (bool, np.bool_, np.ndarray, list)) and not (
        isinstance(item, np.ndarray) and item.ndim == 0 and item.dtype.kind in "iu"
    ):
        raise TypeError("volumes take integers, slices, '...' and None; index the result for anything else")
    try:
        index = operator.index(item)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"an index must be an integer or a slice, not {type(item).__name__}") from None
    if not -size <= index < size:
        raise IndexError(f"index {index} is outside axis {axis} ('{'xyzt'[axis]}') of {size} voxels")
    return index % size


def _slice(item: slice, size: int) -> tuple[tuple[int, int, int], bool]:
    start, stop, step = item.indices(size)
    count = max(0, stop - start) if step == 1 else len(range(start, stop, step))
    if step > 0 or count == 0:
        return (start if count else 0, count, max(step, 1)), False
    return (start + (count - 1) * step, count, -step), True
