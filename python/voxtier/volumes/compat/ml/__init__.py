"""RadiObject's training room: its datasets and loaders over ours."""

from typing import Any

from voxtier.volumes.compat.ml import compat
from voxtier.volumes.compat.ml.compat import VolumeCollectionSubjectsDataset
from voxtier.volumes.compat.ml.config import DatasetConfig, LoadingMode
from voxtier.volumes.compat.ml.datasets import SegmentationDataset, VolumeCollectionDataset
from voxtier.volumes.compat.ml.factory import (
    create_inference_dataloader,
    create_segmentation_dataloader,
    create_training_dataloader,
    create_validation_dataloader,
)
from voxtier.volumes.compat.ml.utils import LabelSource

__all__ = [
    "Compose",
    "DatasetConfig",
    "LabelSource",
    "LoadingMode",
    "SegmentationDataset",
    "VolumeCollectionDataset",
    "VolumeCollectionSubjectsDataset",
    "create_inference_dataloader",
    "create_segmentation_dataloader",
    "create_training_dataloader",
    "create_validation_dataloader",
]


def __getattr__(name: str) -> Any:
    if name != "Compose":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return compat.Compose


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
