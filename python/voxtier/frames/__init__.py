"""Where is the frame in the file? Byte ranges of every frame of every DICOM file, checked and kept.

Byte ranges are half-open ``[start, end)``; frames count from 0 here and from 1 on the command line. Names
that need a database, Spark or Databricks are imported on first use, so that this import stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

from voxtier.frames.dicom.metadata import read_metadata, read_metadata_json
from voxtier.frames.dicom.table import (
    FrameTable,
    RangedSource,
    TableResult,
    read_frames,
    read_table,
    read_tables,
)
from voxtier.frames.exchange.dataset import FrameDataset
from voxtier.frames.exchange.decoding import generate_frames, read_frame
from voxtier.frames.memory.cache import FrameCache
from voxtier.frames.memory.priority import score_many, top_n
from voxtier.frames.memory.scorer import CachePriorityScorer
from voxtier.frames.slides import Slide

if TYPE_CHECKING:
    from voxtier.frames.databricks.frame_dicts import compute_bot_from_local_path
    from voxtier.frames.databricks.lakebase import RLS_ENABLED, LakebaseUtils
    from voxtier.frames.databricks.spark import BOTCacheBuilder
    from voxtier.frames.databricks.table_names import parse_uc_table_name
    from voxtier.frames.exchange.arrow import export_index, import_index, to_arrow
    from voxtier.frames.exchange.zarr_references import write_zarr_references, zarr_references
    from voxtier.frames.gateway.gateway import Gateway
    from voxtier.frames.indexing.run import FileIndexer, index_files
    from voxtier.frames.serving.many import read_many
    from voxtier.frames.serving.reader import FrameReader
    from voxtier.frames.store.store import FrameStore

__all__ = [
    "RLS_ENABLED",
    "BOTCacheBuilder",
    "CachePriorityScorer",
    "FileIndexer",
    "FrameCache",
    "FrameDataset",
    "FrameReader",
    "FrameStore",
    "FrameTable",
    "Gateway",
    "LakebaseUtils",
    "RangedSource",
    "Slide",
    "TableResult",
    "compute_bot_from_local_path",
    "export_index",
    "generate_frames",
    "import_index",
    "index_files",
    "parse_uc_table_name",
    "read_frame",
    "read_frames",
    "read_many",
    "read_metadata",
    "read_metadata_json",
    "read_table",
    "read_tables",
    "score_many",
    "to_arrow",
    "top_n",
    "write_zarr_references",
    "zarr_references",
]

_ON_FIRST_USE = {
    "RLS_ENABLED": "voxtier.frames.databricks.lakebase",
    "BOTCacheBuilder": "voxtier.frames.databricks.spark",
    "FileIndexer": "voxtier.frames.indexing.run",
    "FrameReader": "voxtier.frames.serving.reader",
    "FrameStore": "voxtier.frames.store.store",
    "Gateway": "voxtier.frames.gateway.gateway",
    "LakebaseUtils": "voxtier.frames.databricks.lakebase",
    "compute_bot_from_local_path": "voxtier.frames.databricks.frame_dicts",
    "export_index": "voxtier.frames.exchange.arrow",
    "import_index": "voxtier.frames.exchange.arrow",
    "index_files": "voxtier.frames.indexing.run",
    "read_many": "voxtier.frames.serving.many",
    "parse_uc_table_name": "voxtier.frames.databricks.table_names",
    "to_arrow": "voxtier.frames.exchange.arrow",
    "write_zarr_references": "voxtier.frames.exchange.zarr_references",
    "zarr_references": "voxtier.frames.exchange.zarr_references",
}


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return getattr(importlib.import_module(_ON_FIRST_USE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
