"""Slides: levels and tiles against wsidicom and highdicom, and what is contradictory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
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


def in_own_instances(folder: Path, images: list[tuple[str, list[str], float | None]]) -> None:
    """Write images of one plane of 3 x 2 tiles: name, optical paths, Z Offset."""
    for name, paths, z in images:

        def change(dataset: Dataset, paths: list[str] = paths, z: float | None = z) -> None:
            dataset.OpticalPathSequence = Sequence([item(OpticalPathIdentifier=path) for path in paths])
            if z is not None:
                dataset.TotalPixelMatrixOriginSequence[0].ZOffsetInSlideCoordinateSystem = z
            dataset.TotalPixelMatrixRows = 2 * TILE

        write_changed(folder, name, 3, 2 * len(paths), change)


@pytest.mark.parametrize("place", ["origin", "shared"])
def test_focal_planes_in_instances_of_their_own_are_planes_of_a_level(tmp_path: Path, place: str) -> None:
    """In the order of Z Offset; with a path that has one plane alone, and an image of two paths."""
    images = [("c", ["r", "g"], 1.5), ("a", ["r"], 3.0), ("b", ["g"], 0.5)]
    in_own_instances(tmp_path, [(name, paths, z) for name, paths, z in images if place == "origin"])
    if place == "shared":
        in_own_instances(tmp_path, [(name, paths, None) for name, paths, _ in images])
        for name, _, z in images:
            dataset = pydicom.dcmread(tmp_path / f"{name}.dcm")
            shared = item(ZOffsetInSlideCoordinateSystem=z)
            dataset.SharedFunctionalGroupsSequence[0].PlanePositionSlideSequence = Sequence([shared])
            dataset.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
    slide = Slide(tmp_path)
    [level] = slide.levels
    assert (level.optical_paths, level.focal_planes) == (["r", "g"], [0.5, 1.5, 3.0])
    frames = {name: frames_of(tmp_path / f"{name}.dcm") for name, _, _ in images}
    for number in range(6):
        column, row = number % 3, number // 3
        found = [
            [slide.tile(0, column, row, plane=plane, path=path) for plane in range(3)] for path in range(2)
        ]
        assert found == [
            [None, frames["c"][number], frames["a"][number]],
            [frames["b"][number], frames["c"][6 + number], None],
        ]


def test_optical_paths_in_concatenations_of_their_own_are_one_level(tmp_path: Path) -> None:
    wanted = []
    for path in ("r", "g"):
        frames = frames_of(write_changed(tmp_path / "..", f"whole-{path}", 3, 4))
        for first, count in ((5, 7), (0, 5)):
            part = pydicom.encaps.encapsulate(frames[first : first + count], has_bot=True)

            def change(dataset: Dataset, path: str = path, first: int = first, part: bytes = part) -> None:
                dataset.OpticalPathSequence = Sequence([item(OpticalPathIdentifier=path)])
                dataset.ConcatenationUID = f"1.2.9.{ord(path)}"
                dataset.ConcatenationFrameOffsetNumber = first
                dataset.NumberOfFrames, dataset.PixelData = 7 if first else 5, part

            write_changed(tmp_path, f"{path}{first}", 3, 4, change)
        wanted.append(frames)
    slide = Slide(tmp_path)
    places = [slide.levels[0].optical_paths.index(path) for path in ("r", "g")]
    for place, frames in zip(places, wanted, strict=True):
        assert [slide.tile(0, n % 3, n // 3, path=place) for n in range(12)] == frames


def test_optical_paths_that_are_focused_apart_stay_on_one_plane(tmp_path: Path) -> None:
    in_own_instances(tmp_path, [("a", ["r"], 1.0), ("b", ["g"], 2.0)])
    slide = Slide(tmp_path)
    assert slide.levels[0].focal_planes == [0.0]
    for path, name in enumerate("ab"):
        assert slide.tile(0, 0, 0, path=path) == frames_of(tmp_path / f"{name}.dcm")[0]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([("a", ["r"], 1.0), ("b", ["r"], 1.0)], "the same optical path on the same focal plane"),
        ([("a", ["r", "g"], 1.0), ("b", ["g"], 1.0)], "the same optical path on the same focal plane"),
        ([("a", ["r"], None), ("b", ["r"], 0.0)], "the same optical path on the same focal plane"),
        ([("a", ["r"], 1.0), ("b", ["r"], 2.0), ("c", [], 3.0)], "has none"),
    ],
    ids=["twice", "in-both", "unsaid", "nameless"],
)
def test_instances_of_the_same_tiles_are_refused(
    tmp_path: Path, images: list[tuple[str, list[str], float | None]], words: str
) -> None:
    in_own_instances(tmp_path, [(name, paths or ["x"], z) for name, paths, z in images])
    for name, paths, _ in images:
        if not paths:
            dataset = pydicom.dcmread(tmp_path / f"{name}.dcm")
            del dataset.OpticalPathSequence
            dataset.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
    with pytest.raises(FormatError, match=words):
        Slide(tmp_path)


def test_instances_that_differ_in_their_number_of_planes_are_refused(tmp_path: Path) -> None:
    in_own_instances(tmp_path, [("a", ["r"], None)])

    def change(dataset: Dataset) -> None:
        dataset.TotalPixelMatrixFocalPlanes, dataset.TotalPixelMatrixRows = 2, 2 * TILE

    write_changed(tmp_path, "b", 3, 4, change)
    with pytest.raises(FormatError, match="differ in Total Pixel Matrix Focal Planes"):
        Slide(tmp_path)


IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PyramidUID")


@pytest.mark.parametrize(
    ("changed", "is_one"),
    [
        ((), True),
        (("SeriesInstanceUID",), True),
        (("FrameOfReferenceUID",), True),
        (("StudyInstanceUID",), False),
        (("SeriesInstanceUID", "FrameOfReferenceUID"), False),
        (("PyramidUID",), False),
        (IDENTITY, False),
    ],
)
@pytest.mark.parametrize("with_reader", [False, True])
def test_levels_are_of_one_slide(
    tmp_path: Path, changed: tuple[str, ...], is_one: bool, with_reader: bool
) -> None:
    def own(dataset: Dataset) -> None:
        scaled(2)(dataset)
        for name in changed:
            setattr(dataset, name, dataset.get(name, "1.2") + ".7")

    def as_pyramid(dataset: Dataset) -> None:
        dataset.PyramidUID = "1.2"

    write_changed(tmp_path, "one", 4, 2, as_pyramid)
    other = write_changed(tmp_path, "other", 2, 1, own)
    unsaid = write_changed(tmp_path, "unsaid", 1, 1)
    dataset = pydicom.dcmread(unsaid)
    for name in IDENTITY[:1] + IDENTITY[2:3]:
        delattr(dataset, name)
    dataset.save_as(unsaid, enforce_file_format=True)
    with FrameReader(None, publish=False) as reader:
        for _ in range(2):  # the second look is at what memory keeps
            if is_one:
                assert len(Slide(tmp_path, reader=reader if with_reader else None).levels) == 3
            else:
                with pytest.raises(FormatError, match=r"one\.dcm and .*other\.dcm are of different slides"):
                    Slide(tmp_path, reader=reader if with_reader else None)
        assert len(Slide([other, unsaid], reader=reader).levels) == 2


def test_a_slide_whose_file_is_replaced_by_that_of_another_must_be_opened_again(tmp_path: Path) -> None:
    path = write_changed(tmp_path, "one", 2, 2)
    slide = Slide(path)
    dataset = pydicom.dcmread(path)
    dataset.StudyInstanceUID = "1.2.3.4"
    path.unlink()
    dataset.save_as(path, enforce_file_format=True)
    with pytest.raises(SourceError, match="open the slide again"):
        slide.tile(0, 0, 0)


def test_a_reader_serves_the_tiles(tmp_path: Path) -> None:
    path = write_changed(tmp_path, "one", 3, 2)
    with FrameReader(None, publish=False) as reader:
        slide = Slide([path], reader=reader)
        assert [slide.tile(0, n % 3, n // 3) for n in range(6)] == frames_of(path)
        assert reader.stats()["requests"] == 6


def test_places_outside_are_an_index_error(tmp_path: Path) -> None:
    slide = Slide(write_changed(tmp_path, "one", 3, 2))
    for level in (1, -1, 2**70):
        with pytest.raises(IndexError, match=f"level {level} of 1, counted from 0"):
            slide.tile(level, 0, 0)
    for place in ((3, 0), (0, 2), (-1, 0), (2**64, 0), (0, -(2**70))):
        with pytest.raises(
            IndexError, match="the level has 3 by 2 tiles, 1 planes and 1 paths, counted from 0"
        ):
            slide.tile(0, *place)
    for wrong in ({"plane": 1}, {"path": 1}, {"path": -1}, {"plane": 2**63}):
        with pytest.raises(IndexError, match="1 planes and 1 paths"):
            slide.tile(0, 0, 0, **wrong)
    for kind in ("0", 0.0):
        with pytest.raises(TypeError, match="as an integer"):
            slide.tile(kind, 0, 0)  # type: ignore[arg-type]
    assert slide.tile(*np.array([0, 2, 1], np.uint8)) == slide.tile(0, 2, 1)


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
