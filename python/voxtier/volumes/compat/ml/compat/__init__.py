"""Transforms of MONAI and TorchIO."""

from voxtier.volumes.compat.ml.compat.torchio import VolumeCollectionSubjectsDataset

try:
    from monai.transforms import Compose
except ImportError:
    from torchio import Compose

__all__ = ["Compose", "VolumeCollectionSubjectsDataset"]
