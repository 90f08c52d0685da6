"""Ordered names: which place a name has, and how the names of several collections compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from voxtier.arguments import several
from voxtier.errors import ConfigError

Names: TypeAlias = "Index | str | Iterable[str]"
"""What an index is compared with: another one, names, or one name."""


# Of whoever looks a name up that is not here.
_WHAT = {
    "obs_id": "volumes here",
    "obs_subject_id": "subjects here (a collection is an attribute, as in radi.CT)",
}


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Index:
    """Ordered names, found by name in constant time; combining two keeps the order of the first.

    Parameters
    ----------
    keys : sequence of str
        The names. A view may show one twice; `build` refuses that.
    name : str
        What the names are: ``obs_id`` or ``obs_subject_id``.
    """

    keys: tuple[str, ...]
    name: str = ""
    _places: dict[str, int] = field(init=False)

    def __init__(self, keys: Iterable[str], name: str = "") -> None:
        object.__setattr__(self, "keys", tuple(several(keys)))
        object.__setattr__(self, "name", name)
        places: dict[str, int] = {}
        for place, key in enumerate(self.keys):
            places.setdefault(key, place)
        object.__setattr__(self, "_places", places)

    @classmethod
    def build(cls, keys: Iterable[str], name: str = "") -> Index:
        """Return the index of names that are all different.

        Raises
        ------
        ConfigError
            When a name stands twice.
        """
        index = cls(keys, name)
        if len(index._places) < len(index.keys):
            twice = [key for key, count in Counter(index.keys).items() if count > 1]
            raise ConfigError(f"names that stand twice: {', '.join(twice[:5])}")
        return index

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and (other.keys, other.name) == (self.keys, self.name)

    def __hash__(self) -> int:
        return hash((self.keys, self.name))

    def __repr__(self) -> str:
        shown = [*map(repr, self.keys[:5]), *(["..."] if len(self) > 5 else [])]
        return f"Index([{', '.join(shown)}], {len(self)} names{self.name and f', {self.name}'})"

    @property
    def key_to_idx(self) -> dict[str, int]:
        """Name -> its first place (a copy)."""
        return dict(self._places)

    def get_index(self, key: str) -> int:
        """Return the first place of a name.

        Raises
        ------
        KeyError
            When the name is not here.
        """
        if key not in self._places:
            raise KeyError(f"{key!r} is none of the {len(self)} {_WHAT.get(self.name, 'names here')}")
        return self._places[key]

    def get_key(self, idx: int) -> str:
        """Return the name at a place.

        Raises
        ------
        IndexError
            When there is no such place.
        """
        if not 0 <= idx < len(self):
            raise IndexError(f"place {idx} is outside 0 to {len(self) - 1}")
        return self.keys[idx]

    def take(self, indices: Iterable[int]) -> Index:
        """Return the names at some places, in their order.

        Raises
        ------
        IndexError
            When there is no such place.
        """
        return Index([self.get_key(place) for place in indices], self.name)

    def mask(self, bool_array: NDArray[np.bool_] | Sequence[bool]) -> Index:
        """Return the names where the mask is true.

        Raises
        ------
        ConfigError
            When the mask has another length.
        """
        chosen = np.asarray(bool_array, dtype=bool)
        if chosen.shape != (len(self),):
            raise ConfigError(f"a mask of shape {chosen.shape} for {len(self)} names")
        return self.take(int(place) for place in np.flatnonzero(chosen))

    def intersection(self, other: Names) -> Index:
        """Return the names that are in both."""
        names = _set_of(other)
        return Index([key for key in self.keys if key in names], self.name)

    def union(self, other: Names) -> Index:
        """Return the names of this one, then those that only the other has."""
        return Index([*self.keys, *self._only_in(other)], self.name)

    def difference(self, other: Names) -> Index:
        """Return the names that the other lacks."""
        names = _set_of(other)
        return Index([key for key in self.keys if key not in names], self.name)

    def symmetric_difference(self, other: Names) -> Index:
        """Return the names that are in one of both only, those of this one first."""
        names = _set_of(other)
        return Index([*self.difference(names), *self._only_in(names)], self.name)

    def _only_in(self, other: Names) -> list[str]:
        names = other if isinstance(other, Index) else sorted(_set_of(other))  # a set has no order of its own
        return [key for key in dict.fromkeys(names) if key not in self]

    __and__ = intersection
    __or__ = union
    __sub__ = difference
    __xor__ = symmetric_difference

    def is_aligned(self, other: Index) -> bool:
        """Return whether both have the same names in the same order."""
        return self.keys == other.keys

    def __le__(self, other: Names) -> bool:
        names = _set_of(other)
        return all(key in names for key in self.keys)

    def __ge__(self, other: Names) -> bool:
        return all(key in self for key in _set_of(other))

    def to_list(self) -> list[str]:
        """Return the names as a list."""
        return list(self.keys)

    def to_set(self) -> frozenset[str]:
        """Return the names as a set."""
        return frozenset(self.keys)


def _set_of(names: Names) -> Index | frozenset[str]:
    return names if isinstance(names, (Index, frozenset)) else frozenset(several(names))


def align(*indexes: Index) -> Index:
    """Return the names that all of the indexes have, in the order of the first; empty without indexes."""
    if not indexes:
        return Index(())
    common, *others = indexes
    for other in others:
        common = common.intersection(other)
    return common
