# %% [markdown]
# # Volumes: orientations, tiles, compression, fragments
#
# Cells are separated by `# %%`; `python examples/run.py volumes` runs it.

# %%
from pathlib import Path

import numpy as np

from voxtier.volumes import (
    CompressionConfig,
    Compressor,
    SliceOrientation,
    TileConfig,
    Volume,
    configured,
)
from voxtier.volumes.reading.pictures import draw_tiles

z, y, x = np.mgrid[-1:1:48j, -1:1:96j, -1:1:96j]
ball = (1000 * np.exp(-3 * (x**2 + y**2 + z**2))).astype(np.int16).transpose(2, 1, 0)

# %% [markdown]
# A tiling is chosen for the plane that is read most: an axial slice out of axial tiles is one tile.

# %%
for orientation in (SliceOrientation.AXIAL, SliceOrientation.SAGITTAL, SliceOrientation.ISOTROPIC):
    with configured(tile=TileConfig(orientation)):
        volume = Volume.from_numpy(f"{orientation.value}.tdb", ball)
    print(orientation.value, volume.tile_extents)
    print(draw_tiles(volume).splitlines()[0])

# %% [markdown]
# Further tilings beside the first, so that any plane costs one tile; and the volume as a notebook shows it.

# %%
with configured(tile=TileConfig(SliceOrientation.AXIAL, replicas=("sagittal", "coronal"))):
    volume = Volume.from_numpy("all-planes.tdb", ball)
assert np.array_equal(volume.sagittal(48), ball[48])
volume

# %% [markdown]
# Compression: bytes on disk by compressor.

# %%
for compressor in (Compressor.ZSTD, Compressor.LZ4, Compressor.NONE):
    with configured(compression=CompressionConfig(compressor)):
        stored = Volume.from_numpy(f"{compressor.value}.tdb", ball).stored_bytes()
    print(f"{compressor.value:6} {stored:>9,} bytes, {ball.nbytes / stored:.1f}x")

# %% [markdown]
# Updates leave fragments; reads put them together, consolidation merges them.

# %%
volume = Volume.from_numpy("updated.tdb", ball)
volume.update((0, 0, 0), np.zeros((8, 8, 8), np.int16))
print(len(volume.fragments()), "fragments")
volume.consolidate()
print(len(volume.fragments()), "fragment;", volume[0, 0, 0], "where it was written")
Path("done").touch()
