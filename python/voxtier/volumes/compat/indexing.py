"""The origin's module of this name."""

from voxtier.volumes.cohort.index import Index, align

__all__ = ["Index", "align"]
