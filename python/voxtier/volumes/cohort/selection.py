"""Selection by place and by name: what ``iloc``, ``loc``, ``head`` and ``sample`` have in common."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import numpy as np

from voxtier.volumes.cohort.index import Index


def _place(key: object, count: int) -> int:
    """Return an integer as a place in 0..count-1; negatives count from the end."""
    index = operator.index(key)  # type: ignore[arg-type]
    if not -count <= index < count:
        raise IndexError(f"position {index} is outside {count} entries")
    return index % count


def _places(key: Any, count: int) -> list[int]:
    """Return the places of a slice, a list (order and duplicates kept) or a boolean mask."""
    if isinstance(key, slice):
        return list(range(*key.indices(count)))
    array = np.asarray(key)
    if array.dtype == np.bool_:
        if array.shape != (count,):
            raise IndexError(f"a mask of shape {array.shape} for {count} entries")
        return [int(place) for place in np.flatnonzero(array)]
    if array.size and (array.dtype.kind not in "iu" or array.ndim != 1):
        raise TypeError("iloc takes an integer, a slice, a list of integers or a boolean mask")
    return [_place(item, count) for item in array.tolist()]


class ILoc:
    """Selection by position.

    Parameters
    ----------
    count : int
        Number of entries.
    one, many : callable
        Give the entry at a place, and the view of several places.
    """

    def __init__(self, count: int, one: Callable[[int], Any], many: Callable[[list[int]], Any]) -> None:
        self._count, self._one, self._many = count, one, many

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, np.integer)) and not isinstance(key, (bool, np.bool_)):
            return self._one(_place(key, self._count))
        return self._many(_places(key, self._count))


class Loc:
    """Selection by name; a name that is not here (or filtered out) is a KeyError.

    Parameters
    ----------
    index : Index
        Names of the entries.
    one, many : callable
        Give the entry at a place, and the view of several places.
    """

    def __init__(self, index: Index, one: Callable[[int], Any], many: Callable[[list[int]], Any]) -> None:
        self._index, self._one, self._many = index, one, many

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self._one(self._index.get_index(key))
        names = list(key)
        if not all(isinstance(name, str) for name in names):
            raise TypeError("loc takes an id or a list of ids")
        return self._many([self._index.get_index(name) for name in names])


class Sliceable:
    """Selection by place and by name, for whatever has an index."""

    @property
    def index(self) -> Index:
        """Names by place."""
        raise NotImplementedError

    def _one(self, place: int) -> Any:
        raise NotImplementedError

    def _select(self, places: Sequence[int]) -> Self:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, name: object) -> bool:
        return name in self.index

    @property
    def iloc(self) -> ILoc:
        """Select by position: an integer, or a slice, list or mask for a view (order is kept)."""
        return ILoc(len(self), self._one, self._select)

    @property
    def loc(self) -> Loc:
        """Select by id, or by several for a view; an id outside this view is a KeyError."""
        return Loc(self.index, self._one, self._select)

    def head(self, n: int = 5) -> Self:
        """Return the first entries."""
        return self._select(range(len(self))[: max(0, n)])

    def tail(self, n: int = 5) -> Self:
        """Return the last entries."""
        return self._select(range(len(self))[max(0, len(self) - n) :])

    def sample(self, n: int = 5, seed: int | None = None) -> Self:
        """Return random entries, each at most once."""
        picked = np.random.default_rng(seed).permutation(len(self))[: max(0, n)]
        return self._select([int(place) for place in picked])


def group_places(names: Iterable[str]) -> dict[str, list[int]]:
    """Return the places of each name."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(str(name), []).append(place)
    return places
