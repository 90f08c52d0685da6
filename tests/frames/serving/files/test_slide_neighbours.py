"""What lies beside the levels of a slide: maps of parameters and segmentations, made by highdicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from wsidicom import WsiDicom

from frames.gateway.slides import TILE, write_changed
from voxtier.errors import FormatError
from voxtier.frames import Slide

_WRITER: dict[str, Any] = {
    "manufacturer": "m",
    "manufacturer_model_name": "mm",
    "software_versions": "1",
    "device_serial_number": "sn",
}


def heatmap(folder: Path, source: pydicom.Dataset, voxels: NDArray[np.float32]) -> Path:
    """Write a map of probabilities of a slide, with the matrix that the voxels have."""
    mapping = hd.pm.RealWorldValueMapping(
        "p", "tumour probability", codes.UCUM.NoUnits, [0.0, 1.0], slope=1, intercept=0
    )
    step = 0.0005 * 4 * TILE / voxels.shape[2]
    written = hd.pm.ParametricMap(
        [source],
        voxels,
        hd.UID(),
        5,
        hd.UID(),
        1,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        pixel_measures=hd.PixelMeasuresSequence((step, step), 0.001),
        plane_orientation=hd.PlaneOrientationSequence("SLIDE", (0, -1, 0, -1, 0, 0)),
        plane_positions=[hd.PlanePositionSequence("SLIDE", (0, 0, 0), (1, 1))],
        **_WRITER,
    )
    path = folder / "heatmap.dcm"
    written.save_as(path)
    return path


def segmentation(folder: Path, source: pydicom.Dataset, *places: tuple[int, int, int]) -> Path:
    """Write a segmentation without its empty tiles, with one tile of a segment at each column and row."""
    mask = np.zeros((1, 3 * TILE, 4 * TILE, max(segment for segment, _, _ in places)), np.uint8)
    for segment, column, row in places:
        top, left = row * TILE, column * TILE
        mask[0, top : top + TILE, left : left + TILE, segment - 1] = 1
    algorithm = hd.AlgorithmIdentificationSequence("a", codes.cid7162.ArtificialIntelligence, "1")
    tissue = codes.SCT.Tissue
    described = [
        hd.seg.SegmentDescription(number + 1, f"s{number}", tissue, tissue, "AUTOMATIC", algorithm)
        for number in range(mask.shape[3])
    ]
    written = hd.seg.Segmentation(
        [source], mask, "BINARY", described, hd.UID(), 1, hd.UID(), 1, tile_pixel_array=True, **_WRITER
    )
    path = folder / "segmentation.dcm"
    written.save_as(path)
    return path


@pytest.mark.parametrize("shape", [(1, 12, 16), (1, 3 * TILE, 4 * TILE), (1, TILE, TILE)])
def test_a_map_of_parameters_is_no_level(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Whatever its matrix: smaller than a level, that of a level, or a tile of one."""
    level = Path(write_changed(tmp_path, "level", 4, 3))
    path = heatmap(tmp_path, pydicom.dcmread(level), np.full(shape, 0.5, np.float32))
    assert pydicom.dcmread(path, stop_before_pixels=True).ImageType[2] == "VOLUME"
    slide = Slide(tmp_path)
    assert [each.files for each in slide.levels] == [(str(level),)]
    assert set(slide.others) == {str(path)}
    with WsiDicom.open(tmp_path) as other:
        assert [(each.size.width, each.size.height) for each in other.levels] == [slide.levels[0].size]
    alone = Slide(path)
    assert alone.levels[0].size == (shape[2], shape[1])
    assert np.frombuffer(alone.tile(0, 0, 0) or b"", "<f4")[0] == 0.5


def test_a_segmentation_beside_a_slide_is_no_level(tmp_path: Path) -> None:
    level = Path(write_changed(tmp_path, "level", 4, 3))
    path = segmentation(tmp_path, pydicom.dcmread(level), (1, 0, 0), (2, 0, 0), (2, 1, 1))
    slide = Slide(tmp_path)
    assert [each.files for each in slide.levels] == [(str(level),)]
    assert set(slide.others) == {str(path)}


@pytest.mark.parametrize("places", [((1, 0, 0), (2, 1, 1)), ((1, 0, 0), (2, 0, 0)), ((1, 0, 0), (3, 3, 2))])
def test_several_segments_are_no_tiles_of_one_image(
    tmp_path: Path, places: tuple[tuple[int, int, int], ...]
) -> None:
    """Whether they meet in a tile or not: the answer must not hang on the data."""
    (tmp_path / "source").mkdir()
    source = pydicom.dcmread(write_changed(tmp_path / "source", "level", 4, 3))
    with pytest.raises(FormatError, match="several segments"):
        Slide(segmentation(tmp_path, source, *places))


@pytest.mark.parametrize("segment", [1, 2])
def test_one_segment_is_a_level(tmp_path: Path, segment: int) -> None:
    (tmp_path / "source").mkdir()
    source = pydicom.dcmread(write_changed(tmp_path / "source", "level", 4, 3))
    slide = Slide(segmentation(tmp_path, source, (segment, 1, 2), (segment, 3, 0)))
    found = {(column, row) for column in range(4) for row in range(3) if slide.tile(0, column, row)}
    assert found == {(1, 2), (3, 0)}


def test_a_region_outside_of_a_level_has_no_tiles(tmp_path: Path) -> None:
    """The grid of tiles may reach beyond the last column and row of pixels."""

    def small(dataset: pydicom.Dataset) -> None:
        dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = 10, 7

    level = Slide(write_changed(tmp_path, "one", 1, 1, small)).levels[0]
    assert level.size == (10, 7)
    inside = {(9, 6), (0, 0), (-5, -5)}
    for left, top in [*inside, (10, 0), (0, 7), (11, 8), (-5, 9)]:
        assert len(level.region(left, top, 6, 6)) == ((left, top) in inside), (left, top)
