"""The origin's older dataset over a cohort: its collections as channels, a column of subjects as label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from voxtier.arguments import several
from voxtier.errors import ConfigError
from voxtier.volumes.cohort.radi_object import RadiObject
from voxtier.volumes.compat.ml.config import DatasetConfig
from voxtier.volumes.compat.ml.datasets.collection_dataset import VolumeCollectionDataset
from voxtier.volumes.training import datasets

Transform = Callable[[dict[str, Any]], Any]
"""Takes an item and gives one."""


class RadiObjectDataset(VolumeCollectionDataset):
    """Items of some collections of a cohort.

    Parameters
    ----------
    radi_object : RadiObject
        The cohort, or a view of it.
    config : DatasetConfig
        How volumes become items; its ``modalities``, ``label_column`` and ``value_filter`` count too.
    transform : callable, optional
        Applied to the item.

    Raises
    ------
    ConfigError
        When the cohort has no collection, or no such column.
    """

    def __init__(
        self, radi_object: RadiObject, config: datasets.DatasetConfig, transform: Transform | None = None
    ) -> None:
        chosen = config if isinstance(config, DatasetConfig) else DatasetConfig()
        names = several(chosen.modalities or radi_object.collection_names)
        if not names:
            raise ConfigError("the cohort has no collection")
        views = [radi_object.collection(name) for name in names]
        labels: dict[str, Any] | None = None
        if chosen.label_column:
            by_subject = _labels_of(radi_object, chosen.label_column, chosen.value_filter)
            owners = zip(views[0].obs_ids, views[0].obs_subject_ids, strict=True)
            labels = {obs_id: by_subject[subject] for obs_id, subject in owners if subject in by_subject}
        super().__init__(views, config, labels, transform)

    @property
    def modalities(self) -> list[str]:
        """Names of the collections, in the order of the channels."""
        return self.collection_names


def _labels_of(radi: RadiObject, column: str, value_filter: str | None) -> dict[str, Any]:
    table = radi._table if value_filter is None else radi._table.filter(value_filter)
    if column not in table:
        raise ConfigError(f"obs_meta has no column {column!r}; there are {', '.join(table.columns)}")
    return {row["obs_subject_id"]: row[column] for row in table.rows()}
