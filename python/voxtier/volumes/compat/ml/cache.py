"""The origin's interface of a cache of items; blocks are cached below, by voxtier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class BaseCache(ABC):
    """Keeps items, and counts how often one was at hand."""

    def __init__(self) -> None:
        self._hits = self._misses = 0

    @property
    def hits(self) -> int:
        """How often an item was at hand."""
        return self._hits

    @property
    def misses(self) -> int:
        """How often it was not."""
        return self._misses

    @abstractmethod
    def get(self, key: int) -> Any | None:
        """Return an item, None where it is not at hand."""

    @abstractmethod
    def set(self, key: int, value: Any) -> None:
        """Keep an item."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all items."""


class NoOpCache(BaseCache):
    """Keeps nothing."""

    def get(self, key: int) -> Any | None:
        """Return None, and count a miss."""
        self._misses += 1
        return None

    def set(self, key: int, value: Any) -> None:
        """Keep nothing."""

    def clear(self) -> None:
        """Forget nothing."""
