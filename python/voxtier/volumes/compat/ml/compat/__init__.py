"""Transforms of MONAI and TorchIO."""

from typing import Any

from voxtier.volumes.compat.ml.compat.torchio import VolumeCollectionSubjectsDataset

__all__ = ["Compose", "VolumeCollectionSubjectsDataset"]


def __getattr__(name: str) -> Any:
    """``Compose`` when it is asked for: an import of MONAI takes seconds."""
    if name != "Compose":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from monai.transforms import Compose
    except ImportError:
        from torchio import Compose
    globals()[name] = Compose
    return Compose


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
