"""RadiObject's names over our classes: its users change the import line and nothing else.

>>> from voxtier.volumes.compat import RadiObject, configure  # doctest: +SKIP
>>> from voxtier.volumes.compat.ml import create_training_dataloader  # doctest: +SKIP

Where it is wrong, we differ: docs/differences-radiobject.md. Each module is an import path of the origin, so
that they lie side by side (docs/decisions/090-compat-room.md):

- the cohort: ``radi_object``, ``volume_collection``, ``volume``, ``query``, ``indexing``, ``dataframe``
- ingest: ``ingest``, ``streaming``, ``writers``, ``parallel``, ``utils``
- what headers say: ``imaging_metadata``, ``orientation``
- settings and counters: ``ctx``, ``stats``
- names alone: ``exceptions``, ``_types``
- training: ``ml``
"""

from voxtier.volumes.compat._types import AttrValue, BatchTransformFn, LabelSource, TransformFn
from voxtier.volumes.compat.ctx import (
    CompressionConfig,
    Compressor,
    IOConfig,
    OrientationConfig,
    RadiObjectConfig,
    ReadConfig,
    S3Config,
    SliceOrientation,
    TileConfig,
    WriteConfig,
    configure,
    ctx,
    get_config,
    get_radiobject_config,
    get_tiledb_config,
    get_tiledb_ctx,
    reset_radiobject_config,
    tdb_ctx,
)
from voxtier.volumes.compat.dataframe import Dataframe
from voxtier.volumes.compat.exceptions import (
    AlignmentError,
    ConfigurationError,
    IngestError,
    RadiObjectError,
    SchemaError,
    ShapeError,
    StorageError,
    ViewError,
)
from voxtier.volumes.compat.indexing import Index, align
from voxtier.volumes.compat.ingest import ImageFormat
from voxtier.volumes.compat.query import CollectionQuery, EagerQuery, LazyQuery, Query
from voxtier.volumes.compat.radi_object import RadiObject
from voxtier.volumes.compat.stats import CacheStats, S3Stats, TileDBStats
from voxtier.volumes.compat.streaming import RadiObjectWriter, StreamingWriter
from voxtier.volumes.compat.utils import delete_tiledb_uri, uri_exists
from voxtier.volumes.compat.volume import Volume
from voxtier.volumes.compat.volume_collection import VolumeCollection

__all__ = [
    "AlignmentError",
    "AttrValue",
    "BatchTransformFn",
    "CacheStats",
    "CollectionQuery",
    "CompressionConfig",
    "Compressor",
    "ConfigurationError",
    "Dataframe",
    "EagerQuery",
    "IOConfig",
    "ImageFormat",
    "Index",
    "IngestError",
    "LabelSource",
    "LazyQuery",
    "OrientationConfig",
    "Query",
    "RadiObject",
    "RadiObjectConfig",
    "RadiObjectError",
    "RadiObjectWriter",
    "ReadConfig",
    "S3Config",
    "S3Stats",
    "SchemaError",
    "ShapeError",
    "SliceOrientation",
    "StorageError",
    "StreamingWriter",
    "TileConfig",
    "TileDBStats",
    "TransformFn",
    "ViewError",
    "Volume",
    "VolumeCollection",
    "WriteConfig",
    "align",
    "configure",
    "ctx",
    "delete_tiledb_uri",
    "get_config",
    "get_radiobject_config",
    "get_tiledb_config",
    "get_tiledb_ctx",
    "reset_radiobject_config",
    "tdb_ctx",
    "uri_exists",
]
