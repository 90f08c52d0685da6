"""What a batch holds beside voxels: which patches of which subjects, where they lie, how numbers scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from voxtier.volumes import geometry
from voxtier.volumes.training.augmenting import View, place_matrix
from voxtier.volumes.training.datasets import VolumeCollectionDataset
from voxtier.volumes.training.workers.filling import scales


class Facts:
    """The facts of a dataset's items; what volumes say of themselves is asked for once.

    Parameters
    ----------
    dataset : VolumeCollectionDataset
        Of patches.
    is_stored : bool
        Images are the stored numbers: slope and intercept belong to the facts.
    """

    def __init__(self, dataset: VolumeCollectionDataset, *, is_stored: bool) -> None:
        self._dataset, self._is_stored = dataset, is_stored
        self._geometries: dict[int, tuple[geometry.Affine | None, list[tuple[float, float]]]] = {}

    def geometry_of(self, place: int) -> tuple[geometry.Affine | None, list[tuple[float, float]]]:
        """Return the affine of an image, and slope and intercept of its channels."""
        found = self._geometries.get(place)
        if found is None:
            volumes = self._dataset.volumes(place)[0]
            found = self._geometries[place] = volumes[0].affine, scales(volumes)
        return found

    def of(
        self, places: Sequence[int], starts: Sequence[tuple[int, ...]], views: Sequence[View | None]
    ) -> dict[str, Any]:
        """Return the facts of one batch.

        Parameters
        ----------
        places : sequence of int
            Of each patch the place of its image in the dataset.
        starts : sequence of tuple of int
            The voxel at which each patch was cut out.
        views : sequence of View or None
            How each was turned, scaled and mirrored.

        Returns
        -------
        dict
            ``idx``, ``obs_id``, ``obs_subject_id`` and ``patch_start``; ``affine``, ``label``, ``slope`` and
            ``inter`` where there are any.
        """
        dataset = self._dataset
        facts: dict[str, Any] = {
            "idx": np.array(places, np.int64),
            "obs_id": [dataset.obs_ids[place] for place in places],
            "obs_subject_id": [dataset.obs_subject_ids[place] for place in places],
            "patch_start": np.array(starts, np.int64),
        }
        geometries = [self.geometry_of(place) for place in places]
        affines = [affine for affine, _ in geometries]
        if all(affine is not None for affine in affines):
            facts["affine"] = np.stack(
                [
                    self._affine(affine, start, view)
                    for affine, start, view in zip(affines, starts, views, strict=True)
                    if affine is not None
                ]
            )
        labels = dataset.labels_of(places)
        if labels is not None:
            facts["label"] = labels
        if self._is_stored:
            scaling = np.array([scaling for _, scaling in geometries], np.float32)
            facts["slope"], facts["inter"] = scaling[..., 0].copy(), scaling[..., 1].copy()
        return facts

    def _affine(self, affine: geometry.Affine, start: tuple[int, ...], view: View | None) -> geometry.Affine:
        """Return the affine of a patch as it is handed out: turned, scaled and mirrored."""
        crop = geometry.crop_affine(affine, start)
        return crop if view is None else crop @ place_matrix(view, self._dataset.config.size)
