"""RadiObject's training room: its datasets and loaders over ours."""

from voxtier.volumes.compat.ml.compat import Compose, VolumeCollectionSubjectsDataset
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
