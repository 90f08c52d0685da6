"""Subjects of TorchIO: one image for each collection, with its place in the world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.compat._types import LabelSource
from voxtier.volumes.compat.ml.datasets.items import named, tensor
from voxtier.volumes.compat.ml.utils.labels import load_labels
from voxtier.volumes.training.loaders import import_torchio
from voxtier.volumes.training.matching import match_volumes


class VolumeCollectionSubjectsDataset(Dataset[Any]):
    """Subjects of TorchIO, for its transforms and its `Queue`.

    Parameters
    ----------
    collections : VolumeCollection or sequence of them
        Each becomes an image of the subject, by its name; matched by subject.
    labels : str, DataFrame, dict or callable, optional
        See `load_labels`.
    transform : callable, optional
        Applied to the subject.
    """

    def __init__(
        self,
        collections: VolumeCollection | Sequence[VolumeCollection],
        labels: LabelSource = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        views = named(collections)
        first = next(iter(views.values()))
        self._subjects, self._transform = first.obs_subject_ids, transform
        self._labels = load_labels(first, labels)
        self._volumes = {
            name: list(view) if view is first else match_volumes(view, first) for name, view in views.items()
        }

    def __len__(self) -> int:
        return len(self._subjects)

    def __getitem__(self, idx: int) -> Any:
        torchio = import_torchio()
        parts: dict[str, Any] = {}
        for name, volumes in self._volumes.items():
            volume = volumes[idx]
            parts[name] = torchio.ScalarImage(
                tensor=tensor(volume.to_numpy()[None]).float(), affine=volume.affine
            )
        if self._labels is not None and idx in self._labels:
            parts["label"] = self._labels[idx]
        subject = torchio.Subject(**parts)
        return subject if self._transform is None else self._transform(subject)

    def dry_iter(self) -> list[str]:
        """Return the subjects without their images, which TorchIO's `Queue` counts."""
        return list(self._subjects)

    @property
    def collection_names(self) -> list[str]:
        """Names of the images."""
        return list(self._volumes)
