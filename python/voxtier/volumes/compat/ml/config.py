"""The origin's options of a dataset: ours, with the columns that its older datasets take from them."""

from __future__ import annotations

from dataclasses import dataclass

from voxtier.volumes.training import datasets
from voxtier.volumes.training.datasets import LoadingMode

__all__ = ["DatasetConfig", "LoadingMode"]


@dataclass(frozen=True, slots=True)
class DatasetConfig(datasets.DatasetConfig):
    """How volumes become items.

    Parameters
    ----------
    modalities : list of str, optional
        Collections of a `RadiObjectDataset`, by default all.
    label_column : str, optional
        Column of ``obs_meta`` that is its label.
    value_filter : str, optional
        Subjects without a label, where their row does not satisfy this.
    """

    modalities: list[str] | None = None
    label_column: str | None = None
    value_filter: str | None = None
