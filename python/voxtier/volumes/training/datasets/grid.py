"""Every patch of one volume, for inference."""

from __future__ import annotations

from typing import Any

import numpy as np

from voxtier.arguments import check_kind
from voxtier.volumes import geometry
from voxtier.volumes.config import as_dtype
from voxtier.volumes.training.datasets.matched import read_patches, share_budget_of_worker
from voxtier.volumes.training.sampling import Size, as_size, grid_starts
from voxtier.volumes.volume import Volume


class GridPatchDataset:
    """Every patch of a regular grid over one volume, for inference.

    Items also hold ``location`` (i0, j0, k0, i1, j1, k1), as TorchIO's GridAggregator takes it. Patches of a
    4-D volume have all its points in time: ``image`` is (1, x, y, z, t).

    Parameters
    ----------
    volume : Volume
        The volume.
    patch_size : int or sequence of int
        (x, y, z), or one number for a cube.
    stride : int or sequence of int, optional
        Voxels from patch to patch, by default the size.
    fill : float
        Stored number outside a volume that is smaller than the patch.
    dtype : str or None
        Type of ``image``; None keeps the volume's. Numbers that it cannot hold are refused: out of its range,
        or fractions where it is an integer.
    """

    def __init__(
        self,
        volume: Volume,
        patch_size: Size,
        stride: Size | None = None,
        *,
        fill: float = 0.0,
        dtype: str | None = "float32",
    ) -> None:
        check_kind("volume", volume, Volume, "a Volume, such as radi.CT.iloc[0]")
        if dtype is not None:
            as_dtype("dtype", dtype)
        self.volume, self.patch_size, self.fill, self.dtype = volume, as_size(patch_size), fill, dtype
        self.starts = grid_starts(volume.shape[:3], self.patch_size, stride)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        share_budget_of_worker()
        start = self.starts[index]
        image = read_patches([self.volume], start, self.patch_size, self.dtype, self.fill)
        sample: dict[str, Any] = {
            "image": image,
            "idx": int(index),
            "patch_start": np.array(start, dtype=np.int64),
            "location": np.array([*start, *(s + n for s, n in zip(start, self.patch_size, strict=True))]),
        }
        affine = self.volume.affine
        if affine is not None:
            sample["affine"] = geometry.crop_affine(affine, start)
        return sample
