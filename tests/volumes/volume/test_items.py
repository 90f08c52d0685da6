"""Patches that go back into a volume."""

from __future__ import annotations

import numpy as np

from voxtier.volumes.training.sampling import GridAggregator


def test_what_lies_outside_a_volume_is_dropped() -> None:
    rng = np.random.default_rng(0)
    for start in np.ndindex(6, 6, 6):
        corner = [(-9, -4, -1, 2, 5, 7)[place] for place in start]
        patch, whole = rng.random((4, 4, 4)), GridAggregator((5, 6, 7))
        whole.add(np.ones((5, 6, 7)), (0, 0, 0))
        whole.add(patch, corner)
        wanted = np.ones((5, 6, 7))  # voxel by voxel
        for place in np.ndindex(wanted.shape):
            inside = [index - first for index, first in zip(place, corner, strict=True)]
            if all(0 <= index < 4 for index in inside):
                wanted[place] = (1 + patch[tuple(inside)]) / 2
        assert np.array_equal(whole.result(), wanted), corner
