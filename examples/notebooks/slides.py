# %% [markdown]
# # Slides: levels, tiles, a region on screen
#
# Cells are separated by `# %%`; `python examples/run.py slides` runs it. pydicom writes a small slide of two
# levels first, of native tiles; with real ones begin at `Slide(...)`.

# %%
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

from voxtier.frames import Slide, read_table
from voxtier.volumes.reading.pictures import encode_png

TILE = 128


def write_level(path: Path, image: np.ndarray, spacing: float) -> None:
    rows, columns = (-(-size // TILE) for size in image.shape)
    padded = np.zeros((rows * TILE, columns * TILE), np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    tiles = padded.reshape(rows, TILE, columns, TILE).swapaxes(1, 2)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    slide = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    slide.SOPClassUID, slide.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    slide.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    slide.DimensionOrganizationType = "TILED_FULL"
    slide.Rows = slide.Columns = TILE
    slide.TotalPixelMatrixRows, slide.TotalPixelMatrixColumns = image.shape
    slide.NumberOfFrames = rows * columns
    slide.SamplesPerPixel, slide.PhotometricInterpretation = 1, "MONOCHROME2"
    slide.BitsAllocated = slide.BitsStored = 8
    slide.HighBit, slide.PixelRepresentation = 7, 0
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [spacing, spacing]
    shared.PixelMeasuresSequence = Sequence([measures])
    slide.SharedFunctionalGroupsSequence = Sequence([shared])
    slide.PixelData = tiles.tobytes()
    slide.save_as(path, enforce_file_format=True)


y, x = np.mgrid[0:700, 0:1000]
tissue = (127 + 60 * np.sin(x / 25) + 60 * np.cos(y / 18)).astype(np.uint8)
Path("slide").mkdir(exist_ok=True)
write_level(Path("slide/40x.dcm"), tissue, 0.00025)
write_level(Path("slide/20x.dcm"), tissue[::2, ::2], 0.0005)

# %% [markdown]
# The pyramid, from headers alone.

# %%
slide = Slide("slide")
print(slide.describe())
print(slide.levels[0].draw())

# %% [markdown]
# The bytes of a tile, as the file holds them: here pixels, of a scanner usually a JPEG.

# %%
tile = np.frombuffer(slide.tile(0, 3, 2), np.uint8).reshape(TILE, TILE)
assert np.array_equal(tile, tissue[2 * TILE : 3 * TILE, 3 * TILE : 4 * TILE])
read_table("slide/40x.dcm")

# %% [markdown]
# A region is a list of tiles; the caller decodes and cuts them.

# %%
left, top, size = 200, 150, 300
region = np.zeros((size, size), np.uint8)
for each in slide.levels[0].region(left, top, size, size):
    pixels = np.frombuffer(slide.tile(0, each.column, each.row), np.uint8).reshape(TILE, TILE)
    across, down = max(each.left, left), max(each.top, top)
    cut = pixels[down - each.top : top + size - each.top, across - each.left : left + size - each.left]
    region[down - top : down - top + cut.shape[0], across - left : across - left + cut.shape[1]] = cut
assert np.array_equal(region, tissue[top : top + size, left : left + size])
Path("region.png").write_bytes(encode_png(region))
