"""The origin's dataset over collections: ours, whose items hold tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.compat._types import LabelSource
from voxtier.volumes.compat.ml.config import DatasetConfig
from voxtier.volumes.compat.ml.datasets.items import as_label, as_origin, named
from voxtier.volumes.compat.ml.utils.labels import load_labels
from voxtier.volumes.compat.ml.utils.validation import (
    validate_collection_alignment,
    validate_uniform_shapes,
)
from voxtier.volumes.training import datasets


class VolumeCollectionDataset(datasets.VolumeCollectionDataset, Dataset[Any]):
    """Items of one collection, or of several that become channels (matched by subject).

    Parameters
    ----------
    collections : VolumeCollection or sequence of them
        Collections or views.
    config : DatasetConfig, optional
        How volumes become items, by default whole.
    labels : str, DataFrame, dict or callable, optional
        See `load_labels`.
    transform : callable, optional
        Applied to the item (MONAI dictionary transforms work).
    """

    def __init__(
        self,
        collections: VolumeCollection | Sequence[VolumeCollection],
        config: datasets.DatasetConfig | None = None,
        labels: LabelSource = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self._views = named(collections)
        validate_collection_alignment(self._views)
        self._shape = validate_uniform_shapes(self._views)
        views = list(self._views.values())
        super().__init__(views, config or DatasetConfig())
        self._by_place = load_labels(views[0], labels)
        self._item_transform = transform

    def __getitem__(self, idx: int) -> Any:
        item = as_origin(super().__getitem__(idx), operator.index(idx) % len(self), self.config)
        if self._by_place is not None and item["idx"] in self._by_place:
            item["label"] = as_label(self._by_place[item["idx"]])
        return item if self._item_transform is None else self.apply(self._item_transform, item, idx)

    @property
    def collection_names(self) -> list[str]:
        """Names of the collections, in the order of the channels."""
        return list(self._views)

    @property
    def volume_shape(self) -> tuple[int, ...]:
        """Voxels of each volume along x, y, z."""
        return self._shape
