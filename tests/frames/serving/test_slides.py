"""Slides: levels and tiles against wsidicom and highdicom, and what is contradictory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from highdicom.spatial import iter_tiled_full_frame_data
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from wsidicom import WsiDicom

from frames.gateway.slides import TILE, frames_of, item, scaled, sparse, write_changed
from voxtier.errors import FormatError, SourceError
from voxtier.frames import FrameReader, Slide


def test_a_pyramid_has_the_levels_and_tiles_of_wsidicom(tmp_path: Path) -> None:
    for factor, columns, rows in ((4, 2, 2), (1, 8, 6), (2, 4, 3)):
        write_changed(tmp_path, f"level{factor}", columns, rows, scaled(factor))

    def as_label(dataset: Dataset) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]

    label = write_changed(tmp_path, "label", 1, 1, as_label)
    slide = Slide(tmp_path)
    assert [level.grid for level in slide.levels] == [(8, 6), (4, 3), (2, 2)]
    assert [level.spacing for level in slide.levels] == [(0.0005, 0.0005), (0.001, 0.001), (0.002, 0.002)]
    assert slide.others == {str(label): "ORIGINAL\\PRIMARY\\LABEL\\NONE"}
    assert slide.describe().splitlines()[0].split()[:2] == ["level", "0"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with WsiDicom.open([tmp_path / f"level{factor}.dcm" for factor in (1, 2, 4)]) as other:
            for number, level in enumerate(slide.levels[:2]):
                for column in range(level.grid[0]):
                    for row in range(level.grid[1]):
                        found = slide.tile(number, column, row)
                        assert found == other.read_encoded_tile(number, (column, row))


def test_a_region_is_the_tiles_that_it_touches(tmp_path: Path) -> None:
    slide = Slide(write_changed(tmp_path, "one", 4, 3))
    [level] = slide.levels

    def naive(left: int, top: int, width: int, height: int) -> set[tuple[int, int]]:
        pixels = [(x, y) for x in (left, left + width - 1) for y in (top, top + height - 1)]
        columns, rows = ({place[axis] // TILE for place in pixels} for axis in (0, 1))
        return {
            (column, row)
            for column in range(min(columns), max(columns) + 1)
            for row in range(min(rows), max(rows) + 1)
            if 0 <= column < 4 and 0 <= row < 3
        }

    for rectangle in ((0, 0, 1, 1), (63, 63, 2, 2), (-200, -200, 900, 900), (70, 10, 64, 64), (256, 0, 9, 9)):
        tiles = level.region(*rectangle)
        assert {(tile.column, tile.row) for tile in tiles} == naive(*rectangle)
        assert all((tile.left, tile.top) == (tile.column * TILE, tile.row * TILE) for tile in tiles)
    assert level.region(0, 0, 0, 5) == []


@pytest.mark.parametrize(("paths", "planes"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_full_tiles_are_in_the_order_of_highdicom(tmp_path: Path, paths: int, planes: int) -> None:
    def change(dataset: Dataset) -> None:
        dataset.TotalPixelMatrixRows = 2 * TILE - 5  # the last tiles reach past the matrix
        dataset.NumberOfOpticalPaths, dataset.TotalPixelMatrixFocalPlanes = paths, planes
        dataset.OpticalPathSequence = Sequence([item(OpticalPathIdentifier=str(n)) for n in range(paths)])

    path = write_changed(tmp_path, "full", 3, 2 * paths * planes, change)
    [level] = Slide(path).levels
    frames = 0
    for frame, (channel, plane, column, row, *_) in enumerate(
        iter_tiled_full_frame_data(pydicom.dcmread(path))
    ):
        assert channel is not None
        found = level.find((column - 1) // TILE, (row - 1) // TILE, plane=plane - 1, path=channel - 1)
        assert found is not None
        assert found.frame == frame
        frames += 1
    assert frames == 6 * paths * planes
    assert (len(level.optical_paths), len(level.focal_planes)) == (paths, planes)


def test_sparse_tiles_are_found_by_place_plane_and_path(tmp_path: Path) -> None:
    places = [(2, 1), (0, 0), (2, 1), (0, 2), (2, 1), (1, 1)]
    z = ["0.002", "0.001", "0.001", "0.001", "0.001", "0.002"]
    names = ["b", "a", "b", "a", "a", "b"]
    path = write_changed(tmp_path, "sparse", 3, 2, sparse(places, (4, 3), z=z, path=names))
    slide = Slide(path)
    [level] = slide.levels
    assert (level.grid, level.focal_planes, level.optical_paths) == ((4, 3), [0.001, 0.002], ["a", "b"])
    frames = frames_of(path)
    wanted = {
        (*place, level.focal_planes.index(float(each)), level.optical_paths.index(name)): frame
        for place, each, name, frame in zip(places, z, names, frames, strict=True)
    }
    assert len(wanted) == 6
    for column in range(4):
        for row in range(3):
            for plane in range(2):
                for optical in range(2):
                    found = slide.tile(0, column, row, plane=plane, path=optical)
                    assert found == wanted.get((column, row, plane, optical))


def test_the_grid_is_drawn_with_its_gaps(tmp_path: Path) -> None:
    full = Slide(write_changed(tmp_path, "full", 5, 2)).levels[0]
    assert full.draw().splitlines() == ["#####", "#####"]
    places = [(2, 1), (0, 0), (0, 2), (1, 1)]
    [level] = Slide(write_changed(tmp_path, "sparse", 2, 2, sparse(places, (4, 3)))).levels
    assert level.draw().splitlines() == ["#...", ".##.", "#..."]
    [wide] = Slide(write_changed(tmp_path, "wide", 2, 1, sparse([(0, 0), (1, 0)], (200, 100)))).levels
    assert [len(line) for line in wide.draw().splitlines()] == [48] * 12
    assert wide.draw()[0] == "+"


def test_parts_of_a_concatenation_are_one_level(tmp_path: Path) -> None:
    whole = write_changed(tmp_path / "..", "whole", 3, 4)
    frames = frames_of(whole)

    def part(first: int, count: int) -> Callable[[Dataset], None]:
        def change(dataset: Dataset) -> None:
            dataset.ConcatenationUID, dataset.ConcatenationFrameOffsetNumber = "1.2.9", first
            dataset.NumberOfFrames = count
            dataset.PixelData = pydicom.encaps.encapsulate(frames[first : first + count], has_bot=True)

        return change

    write_changed(tmp_path, "a", 3, 4, part(5, 7))
    write_changed(tmp_path, "b", 3, 4, part(0, 5))
    slide = Slide(tmp_path)
    assert [slide.tile(0, n % 3, n // 3) for n in range(12)] == frames
    (tmp_path / "b.dcm").unlink()
    cut = Slide(tmp_path)
    assert [cut.tile(0, n % 3, n // 3) for n in range(12)] == [None] * 5 + frames[5:]
    write_changed(tmp_path, "b", 3, 4, part(0, 6))
    with pytest.raises(FormatError, match="same frames"):
        Slide(tmp_path)


def test_a_reader_serves_the_tiles(tmp_path: Path) -> None:
    path = write_changed(tmp_path, "one", 3, 2)
    with FrameReader(None, publish=False) as reader:
        slide = Slide([path], reader=reader)
        assert [slide.tile(0, n % 3, n // 3) for n in range(6)] == frames_of(path)
        assert reader.stats()["requests"] == 6


def test_places_outside_are_an_index_error(tmp_path: Path) -> None:
    slide = Slide(write_changed(tmp_path, "one", 3, 2))
    for place in ((0, 3, 0), (0, 0, 2), (0, -1, 0), (1, 0, 0), (-1, 0, 0)):
        with pytest.raises(IndexError):
            slide.tile(*place)
    for wrong in ({"plane": 1}, {"path": 1}, {"path": -1}):
        with pytest.raises(IndexError):
            slide.tile(0, 0, 0, **wrong)


def _count(dataset: Dataset) -> None:
    dataset.TotalPixelMatrixRows = 9 * TILE


def _huge(dataset: Dataset) -> None:
    dataset.TotalPixelMatrixRows = dataset.TotalPixelMatrixColumns = 0xFFFF_FFFF


def _off_grid(dataset: Dataset) -> None:
    sparse([(0, 0), (1, 0)], (3, 2))(dataset)
    place = dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSlideSequence[0]
    place.ColumnPositionInTotalImagePixelMatrix = 7
    dataset.NumberOfFrames = 2


def _no_matrix(dataset: Dataset) -> None:
    del dataset.TotalPixelMatrixRows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_count, "TILED_FULL of 3 by 9 tiles"),
        (_huge, "TILED_FULL of"),
        (_off_grid, "off the grid"),
        (sparse([(0, 0)] * 6, (3, 2)), "lies where another frame does"),
        (sparse([(0, 0)], (3, 2)), "1 positions for 6 frames"),
        (sparse([(n, 0) for n in range(6)], (3, 2)), "outside of the total pixel matrix"),
        (_no_matrix, "total pixel matrix"),
    ],
    ids=["count", "huge", "off-grid", "twice", "few", "outside", "no-matrix"],
)
def test_what_is_contradictory_is_refused(
    tmp_path: Path, change: Callable[[Dataset], None], words: str
) -> None:
    path = write_changed(tmp_path, "wrong", 3, 2, change)
    with pytest.raises(FormatError, match=words):
        Slide(path)


def test_what_is_no_slide_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        Slide(tmp_path / "absent.dcm")
    with pytest.raises(FormatError, match="no file"):
        Slide(tmp_path)
    (tmp_path / "text").write_bytes(b"no image at all" * 30)
    with pytest.raises(FormatError):
        Slide(tmp_path)
