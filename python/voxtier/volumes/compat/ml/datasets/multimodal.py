"""The origin's dataset of whole volumes of several collections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from voxtier.arguments import several
from voxtier.errors import ConfigError
from voxtier.volumes.cohort.radi_object import RadiObject
from voxtier.volumes.compat.ml.config import DatasetConfig
from voxtier.volumes.compat.ml.datasets.volume_dataset import RadiObjectDataset


class MultiModalDataset(RadiObjectDataset):
    """Whole volumes of some collections of a cohort.

    Parameters
    ----------
    radi_object : RadiObject
        The cohort, or a view of it.
    modalities : list of str
        Its collections.
    label_column : str, optional
        Column of ``obs_meta`` that is the label.
    value_filter : str, optional
        Subjects without a label, where their row does not satisfy this.
    transform : callable, optional
        Applied to the item.

    Raises
    ------
    ConfigError
        Without a collection.
    """

    def __init__(
        self,
        radi_object: RadiObject,
        modalities: list[str],
        label_column: str | None = None,
        value_filter: str | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        if not modalities:
            raise ConfigError("a dataset needs at least one collection")
        config = DatasetConfig(
            modalities=several(modalities), label_column=label_column, value_filter=value_filter
        )
        super().__init__(radi_object, config, transform)
