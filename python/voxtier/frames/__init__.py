"""Where is the frame in the file? Byte ranges of every frame of every DICOM file, checked and kept.

Byte ranges are half-open ``[start, end)``; frames count from 0 here and from 1 on the command line.
"""

from typing import TYPE_CHECKING, Any

from voxtier.frames.cache import FrameCache
from voxtier.frames.priority import CachePriorityScorer, score_many, top_n
from voxtier.frames.table import (
    FrameTable,
    RangedSource,
    TableResult,
    read_frame,
    read_table,
    read_tables,
)

if TYPE_CHECKING:
    from voxtier.frames.reader import FrameReader

__all__ = [
    "CachePriorityScorer",
    "FrameCache",
    "FrameReader",
    "FrameTable",
    "RangedSource",
    "TableResult",
    "read_frame",
    "read_table",
    "read_tables",
    "score_many",
    "top_n",
]


def __getattr__(name: str) -> Any:
    """Import what needs a database driver only when it is asked for."""
    if name == "FrameReader":
        from voxtier.frames.reader import FrameReader

        return FrameReader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
