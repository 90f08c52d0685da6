"""Room 2: where is the slice? Radiology volumes in TileDB, the right patient's voxels at tile speed.

>>> from voxtier.volumes import RadiObject, Volume, configure  # doctest: +SKIP
>>> radi = RadiObject.from_niftis("cohort", images={"T1w": "scans/*_T1w.nii.gz"})  # doctest: +SKIP
>>> radi.T1w.iloc[0].axial(77)  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from voxtier.errors import IngestError, ViewError
from voxtier.system.s3_config import S3Config
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
    SliceOrientation,
    TileConfig,
    WriteConfig,
    configure,
    configured,
    get_config,
    reset_config,
)
from voxtier.volumes.tiledb.format.direct import cache_stats, clear_cache
from voxtier.volumes.tiledb.scaling import Normalize
from voxtier.volumes.tiledb.tables.columns import Table
from voxtier.volumes.tiledb.tables.dataframe import Dataframe
from voxtier.volumes.volume import Volume

if TYPE_CHECKING:
    from voxtier.volumes.training.augmenting import Augmentation
    from voxtier.volumes.training.batches import Batches, batches
    from voxtier.volumes.training.classes import ClassSampler, LesionSampler
    from voxtier.volumes.training.datasets import (
        DatasetConfig,
        GridPatchDataset,
        LoadingMode,
        SegmentationDataset,
        VolumeCollectionDataset,
    )
    from voxtier.volumes.training.epochs import EpochSampler
    from voxtier.volumes.training.loaders import (
        ToMetaTensor,
        as_torchio_subject,
        create_distributed_dataloader,
        create_inference_dataloader,
        create_segmentation_dataloader,
        create_training_dataloader,
        create_validation_dataloader,
        data_loader,
    )
    from voxtier.volumes.training.nnunet.importing import import_nnunet
    from voxtier.volumes.training.nnunet.trainer import BatchesMixin
    from voxtier.volumes.training.sampling import (
        ForegroundSampler,
        GridAggregator,
        RandomSampler,
        WeightedSampler,
    )

__all__ = [
    "Augmentation",
    "Batches",
    "BatchesMixin",
    "ClassSampler",
    "CollectionQuery",
    "CompressionConfig",
    "Compressor",
    "Config",
    "Dataframe",
    "DatasetConfig",
    "EagerQuery",
    "EpochSampler",
    "ForegroundSampler",
    "GridAggregator",
    "GridPatchDataset",
    "IOConfig",
    "Index",
    "IngestError",
    "LesionSampler",
    "LoadingMode",
    "Normalize",
    "OrientationConfig",
    "Query",
    "RadiObject",
    "RadiObjectWriter",
    "RandomSampler",
    "ReadConfig",
    "S3Config",
    "SegmentationDataset",
    "SliceOrientation",
    "StreamingWriter",
    "Table",
    "TileConfig",
    "ToMetaTensor",
    "ViewError",
    "Volume",
    "VolumeCollection",
    "VolumeCollectionDataset",
    "WeightedSampler",
    "WriteConfig",
    "align",
    "as_torchio_subject",
    "batches",
    "cache_stats",
    "clear_cache",
    "configure",
    "configured",
    "create_distributed_dataloader",
    "create_inference_dataloader",
    "create_segmentation_dataloader",
    "create_training_dataloader",
    "create_validation_dataloader",
    "data_loader",
    "get_config",
    "import_nnunet",
    "reset_config",
]

# Loaded when they are asked for: a reader of volumes needs none of them.
_TRAINING = {
    "Augmentation": "augmenting",
    "Batches": "batches",
    "batches": "batches",
    "ClassSampler": "classes",
    "LesionSampler": "classes",
    "import_nnunet": "nnunet.importing",
    "BatchesMixin": "nnunet.trainer",
    "DatasetConfig": "datasets",
    "GridPatchDataset": "datasets",
    "LoadingMode": "datasets",
    "SegmentationDataset": "datasets",
    "VolumeCollectionDataset": "datasets",
    "ToMetaTensor": "loaders",
    "as_torchio_subject": "loaders",
    "create_distributed_dataloader": "loaders",
    "create_inference_dataloader": "loaders",
    "create_segmentation_dataloader": "loaders",
    "create_training_dataloader": "loaders",
    "create_validation_dataloader": "loaders",
    "data_loader": "loaders",
    "EpochSampler": "epochs",
    "ForegroundSampler": "sampling",
    "GridAggregator": "sampling",
    "RandomSampler": "sampling",
    "WeightedSampler": "sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _TRAINING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.training.{_TRAINING[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
