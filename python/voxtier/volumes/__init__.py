"""Room 2: where is the slice? Radiology volumes in TileDB, the right patient's voxels at tile speed.

>>> from voxtier.volumes import RadiObject, Volume, configure  # doctest: +SKIP
>>> radi = RadiObject.from_niftis("cohort", images={"T1w": "scans/*_T1w.nii.gz"})  # doctest: +SKIP
>>> radi.T1w.iloc[0].axial(77)  # doctest: +SKIP
"""

from voxtier.errors import IngestError, ViewError
from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.cohort.index import Index, align
from voxtier.volumes.cohort.queries.eager import EagerQuery
from voxtier.volumes.cohort.queries.lazy import CollectionQuery, Query
from voxtier.volumes.cohort.radi_object import RadiObject
from voxtier.volumes.cohort.streaming import RadiObjectWriter, StreamingWriter
from voxtier.volumes.config import (
    CompressionConfig,
    Compressor,
    Config,
    IOConfig,
    OrientationConfig,
    ReadConfig,
    S3Config,
    SliceOrientation,
    TileConfig,
    WriteConfig,
    configure,
    configured,
    get_config,
    reset_config,
)
from voxtier.volumes.tiledb.columns import Table
from voxtier.volumes.tiledb.format.direct import cache_stats, clear_cache
from voxtier.volumes.tiledb.tables import Dataframe
from voxtier.volumes.volume import Volume

__all__ = [
    "CollectionQuery",
    "CompressionConfig",
    "Compressor",
    "Config",
    "Dataframe",
    "EagerQuery",
    "IOConfig",
    "Index",
    "IngestError",
    "OrientationConfig",
    "Query",
    "RadiObject",
    "RadiObjectWriter",
    "ReadConfig",
    "S3Config",
    "SliceOrientation",
    "StreamingWriter",
    "Table",
    "TileConfig",
    "ViewError",
    "Volume",
    "VolumeCollection",
    "WriteConfig",
    "align",
    "cache_stats",
    "clear_cache",
    "configure",
    "configured",
    "get_config",
    "reset_config",
]
