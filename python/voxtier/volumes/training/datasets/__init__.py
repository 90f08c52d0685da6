"""Map-style datasets: numpy in, numpy out, no torch needed; picklable, with the same items in any process.

An item is a dict: ``image`` (C, x, y, z), ``mask``, ``label``, ``idx``, ``obs_id``, ``obs_subject_id``,
``patch_start`` and ``affine`` (of the patch). Arrays are contiguous and writable.
"""

from voxtier.volumes.training.datasets.config import DatasetConfig, LoadingMode
from voxtier.volumes.training.datasets.grid import GridPatchDataset
from voxtier.volumes.training.datasets.matched import SegmentationDataset, Transform, VolumeCollectionDataset

__all__ = [
    "DatasetConfig",
    "GridPatchDataset",
    "LoadingMode",
    "SegmentationDataset",
    "Transform",
    "VolumeCollectionDataset",
]
