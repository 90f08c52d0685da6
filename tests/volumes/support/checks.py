"""What every store has to answer right, whatever happened to it before."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from volumes.support.images import code_of
from voxtier.volumes import Volume, VolumeCollection
from voxtier.volumes.tiledb.session import LOCK_NAME
from voxtier.volumes.training.datasets import VolumeCollectionDataset

names_oblique_axes = pytest.mark.skipif(
    tuple(map(int, nib.__version__.split(".")[:2])) < (5, 4),
    reason="nibabel before 5.4 names the axes of oblique images by their order, not the clearest first",
)


def first_voxel(volume: Volume) -> int:
    """Return the first voxel of a volume."""
    return int(np.asarray(volume[0, 0, 0]))


def check_identity(collection: VolumeCollection, series: str = "T1w") -> None:
    """Every way to a volume gives the voxels of the subject that its row names."""
    subjects = collection.obs_subject_ids
    assert collection.obs_ids == [f"{subject}_{series}" for subject in subjects]
    dataset = VolumeCollectionDataset(
        collection, labels=lambda obs_id: code_of(obs_id.rsplit("_", 1)[0], series)
    )
    for place, (obs_id, subject, volume) in enumerate(
        zip(collection.obs_ids, subjects, collection, strict=True)
    ):
        wanted = code_of(subject, series)
        item = dataset[place]
        ways = (volume, collection.loc[obs_id], collection.iloc[place], collection[obs_id])
        assert {first_voxel(way) for way in ways} == {wanted}
        found = (item["obs_subject_id"], item["label"], int(item["image"].flat[0]))
        assert found == (subject, wanted, wanted)
        assert volume.obs_id == obs_id


def files_below(root: Path) -> dict[str, bytes | None] | None:
    """Return every folder (None) and file with its content; None where there is no folder."""
    if not root.exists():
        return None
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
        if path.name != LOCK_NAME
    }
