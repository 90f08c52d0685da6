"""Where is the frame in the file? Byte ranges of every frame of every DICOM file, checked and kept.

Byte ranges are half-open ``[start, end)``; frames count from 0 here and from 1 on the command line. Names
that need a database, Spark or Databricks are imported on first use, so that this import stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

from voxtier.frames.cache import FrameCache
from voxtier.frames.priority import CachePriorityScorer, score_many, top_n
from voxtier.frames.ranges import compute_bot_from_local_path
from voxtier.frames.table import (
    FrameTable,
    RangedSource,
    TableResult,
    read_frame,
    read_table,
    read_tables,
)

if TYPE_CHECKING:
    from voxtier.frames.lakebase import LakebaseUtils
    from voxtier.frames.reader import FrameReader
    from voxtier.frames.spark import BOTCacheBuilder

__all__ = [
    "BOTCacheBuilder",
    "CachePriorityScorer",
    "FrameCache",
    "FrameReader",
    "FrameTable",
    "LakebaseUtils",
    "RangedSource",
    "TableResult",
    "compute_bot_from_local_path",
    "read_frame",
    "read_table",
    "read_tables",
    "score_many",
    "top_n",
]

_ON_FIRST_USE = {
    "BOTCacheBuilder": "voxtier.frames.spark",
    "FrameReader": "voxtier.frames.reader",
    "LakebaseUtils": "voxtier.frames.lakebase",
}


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return getattr(importlib.import_module(_ON_FIRST_USE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
