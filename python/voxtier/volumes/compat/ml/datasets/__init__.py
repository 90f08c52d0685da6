"""The origin's datasets."""

from voxtier.volumes.compat.ml.datasets.collection_dataset import VolumeCollectionDataset
from voxtier.volumes.compat.ml.datasets.patch_dataset import GridPatchDataset, PatchVolumeDataset
from voxtier.volumes.compat.ml.datasets.segmentation_dataset import SegmentationDataset

__all__ = ["GridPatchDataset", "PatchVolumeDataset", "SegmentationDataset", "VolumeCollectionDataset"]
