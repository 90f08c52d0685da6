"""What is kept of headers of slides: a second look reads none, and never finds a tile that is another."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psycopg
import pydicom
import pytest
from highdicom.spatial import iter_tiled_full_frame_data
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from wsidicom import WsiDicom

from frames.gateway.slides import TILE, frames_of, item, scaled, sparse, write_changed
from frames.serving.images import native
from frames.store.rows.index_rows import ask
from voxtier._core import SlideHeader, file_key
from voxtier.errors import BackendError, FormatError, NotFoundError, SourceError
from voxtier.frames import FrameReader, FrameStore, LakebaseUtils, Slide, read_tables
from voxtier.frames.serving.files import open_files
from voxtier.frames.slides import Level
from voxtier.frames.store.grants import grants

SOURCE = "slides"
# A look at all tiles; printed are the bytes that the process read for the pyramid.
LOOK = """
import hashlib, json, sys
from pathlib import Path
from voxtier.frames import FrameReader, FrameStore, Slide

def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])

dsn, warm, folder = sys.argv[1:]
with FrameStore(dsn) as store, FrameReader(store, "slides", index_seconds=60, publish=False) as reader:
    Slide(warm, reader=reader)
    before, counted = bytes_read(), reader.stats()["slides"]
    slide = Slide(folder, reader=reader)
    read = bytes_read() - before
    looks = {tier: count - counted[tier] for tier, count in reader.stats()["slides"].items()}
    tiles = [
        slide.tile(number, column, row) or b""
        for number, level in enumerate(slide.levels)
        for row in range(level.grid[1])
        for column in range(level.grid[0])
    ]
print(json.dumps([read, looks, hashlib.sha256(b"|".join(tiles)).hexdigest()]))
"""


def index(store: FrameStore, *paths: Path) -> None:
    store.upsert(SOURCE, read_tables(paths))


def open_reader(store: FrameStore | None) -> FrameReader:
    return FrameReader(store, SOURCE, publish=False)


def kept(dsn: str) -> set[bytes]:
    return {key.bytes for (key,) in ask(dsn, "SELECT key FROM voxtier.slide_map")}


def places_of(level: Level) -> dict[tuple[int, int, int, int], tuple[str, int]]:
    """Return file and frame of every tile that a level has, by column, row, plane and path."""
    return {
        (column, row, plane, path): (tile.file, tile.frame)
        for column in range(level.grid[0])
        for row in range(level.grid[1])
        for plane in range(len(level.focal_planes))
        for path in range(len(level.optical_paths))
        if (tile := level.find(column, row, plane=plane, path=path)) is not None
    }


def several_paths(dataset: Dataset) -> None:
    dataset.NumberOfOpticalPaths, dataset.TotalPixelMatrixFocalPlanes = 2, 3
    dataset.TotalPixelMatrixRows = 2 * TILE - 5
    dataset.OpticalPathSequence = Sequence([item(OpticalPathIdentifier=name) for name in ("x", "y")])


def write_full(folder: Path) -> None:
    write_changed(folder, "full", 3, 12, several_paths)


def write_sparse(folder: Path) -> None:
    places = [(2, 1), (0, 0), (2, 1), (0, 2), (2, 1), (1, 1)]
    z = ["0.002", "0.001", "0.001", "0.001", "0.001", "0.002"]
    names = ["b", "a", "b", "a", "a", "b"]
    write_changed(folder, "sparse", 3, 2, sparse(places, (4, 3), z=z, path=names))


def write_concatenation(folder: Path) -> None:
    frames = frames_of(write_changed(folder.parent, "whole", 3, 4))
    for name, first, count in (("a", 5, 7), ("b", 0, 5)):

        def change(dataset: Dataset, first: int = first, count: int = count) -> None:
            dataset.ConcatenationUID, dataset.ConcatenationFrameOffsetNumber = "1.2.9", first
            dataset.NumberOfFrames = count
            dataset.PixelData = pydicom.encaps.encapsulate(frames[first : first + count], has_bot=True)

        write_changed(folder, name, 3, 4, change)


def write_paths_in_instances(folder: Path) -> None:
    for name in ("r", "g"):

        def change(dataset: Dataset, name: str = name) -> None:
            dataset.OpticalPathSequence = Sequence([item(OpticalPathIdentifier=name)])

        write_changed(folder, f"path-{name}", 3, 2, change)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "slide").mkdir()
    return tmp_path / "slide"


@pytest.mark.parametrize(
    "write_slide", [write_full, write_sparse, write_concatenation, write_paths_in_instances]
)
def test_the_next_reader_finds_every_tile_without_a_header(
    folder: Path, store: FrameStore, write_slide: Callable[[Path], None]
) -> None:
    write_slide(folder)
    files = sorted(folder.iterdir())
    index(store, *files)
    by_files = Slide(folder)
    wanted = [places_of(level) for level in by_files.levels]
    for tier in ("file", "index"):
        with open_reader(store) as reader:
            slide = Slide(folder, reader=reader)
            assert reader.stats()["slides"] == {"memory": 0, "index": 0, "file": 0} | {tier: len(files)}
            assert [places_of(level) for level in slide.levels] == wanted
            [level] = slide.levels
            frames = {str(file): frames_of(file) for file in files}
            for (column, row, plane, path), (file, frame) in wanted[0].items():
                assert slide.tile(0, column, row, plane=plane, path=path) == frames[file][frame]
            assert slide.describe() == by_files.describe()
            assert (level.optical_paths, level.focal_planes) == (
                by_files.levels[0].optical_paths,
                by_files.levels[0].focal_planes,
            )


def test_a_kept_full_map_is_in_the_order_of_highdicom(folder: Path, store: FrameStore) -> None:
    write_full(folder)
    [path] = folder.iterdir()
    index(store, path)
    with open_reader(store) as reader:
        Slide(path, reader=reader)
    with open_reader(store) as reader:
        [level] = Slide(path, reader=reader).levels
        assert reader.stats()["slides"]["index"] == 1
    places = places_of(level)
    order = list(iter_tiled_full_frame_data(pydicom.dcmread(path)))
    for frame, (channel, plane, column, row, *_) in enumerate(order):
        assert channel is not None
        place = (column - 1) // TILE, (row - 1) // TILE, plane - 1, channel - 1
        assert places.pop(place) == (str(path), frame)
    assert places == {}
    assert len(order) == 36


def test_kept_levels_give_the_tiles_of_wsidicom(folder: Path, store: FrameStore) -> None:
    for factor, columns, rows in ((1, 8, 6), (2, 4, 3)):
        write_changed(folder, f"level{factor}", columns, rows, scaled(factor))
    files = sorted(folder.iterdir())
    index(store, *files)
    with open_reader(store) as reader:
        Slide(folder, reader=reader)
    with warnings.catch_warnings(), open_reader(store) as reader:
        warnings.simplefilter("ignore")
        slide = Slide(folder, reader=reader)
        with WsiDicom.open(files) as other:
            for number, level in enumerate(slide.levels):
                for column, row, _, _ in places_of(level):
                    assert slide.tile(number, column, row) == other.read_encoded_tile(number, (column, row))
        assert reader.stats()["slides"] == {"memory": 0, "index": 2, "file": 0}


def test_another_process_reads_no_byte_of_the_headers(tmp_path: Path, dsn: str) -> None:
    places = [(n % 40, n // 40) for n in range(600) if n % 7]
    folder, warm = tmp_path / "slide", tmp_path / "warm"
    folder.mkdir(), warm.mkdir()
    write_changed(folder, "big", len(places), 1, sparse(places, (40, 20)))
    write_changed(folder, "small", 4, 3, scaled(2))
    write_changed(warm, "other", 2, 2)
    with FrameStore(dsn) as store:
        index(store, *folder.iterdir(), *warm.iterdir())

    def look() -> tuple[int, dict[str, int], str]:
        command = [sys.executable, "-c", LOOK, dsn, str(warm), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        read, looks, tiles = json.loads(done.stdout)
        return read, looks, tiles

    first, second = look(), look()
    # The header of the large level is read the first time: the measure sees what is read of a file.
    assert first[0] > 100 * len(places)
    assert second[0] < 1000
    assert (first[1], second[1]) == (
        {"memory": 0, "index": 0, "file": 2},
        {"memory": 0, "index": 2, "file": 0},
    )
    slide = Slide(folder)
    tiles = [
        slide.tile(number, column, row) or b""
        for number, level in enumerate(slide.levels)
        for row in range(level.grid[1])
        for column in range(level.grid[0])
    ]
    assert first[2] == second[2] == hashlib.sha256(b"|".join(tiles)).hexdigest()


def test_memory_answers_the_second_look_of_a_process_without_an_index(folder: Path) -> None:
    write_sparse(folder)
    with open_reader(None) as reader:
        first, second = Slide(folder, reader=reader), Slide(folder, reader=reader)
        assert reader.stats()["slides"] == {"memory": 1, "index": 0, "file": 1}
    assert places_of(first.levels[0]) == places_of(second.levels[0])


def by_content(other: Path, path: Path) -> None:
    """Write over the same file, and set size and modification time back."""
    state = path.stat()
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def by_rename(other: Path, path: Path) -> None:
    state = path.stat()
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize("replace", [by_content, by_rename])
@pytest.mark.parametrize("in_memory", [False, True], ids=["index", "memory"])
def test_a_replaced_slide_is_read_anew(
    tmp_path: Path,
    store: FrameStore,
    monkeypatch: pytest.MonkeyPatch,
    replace: Callable[[Path, Path], None],
    in_memory: bool,
) -> None:
    places = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    monkeypatch.setattr(open_files, "_RECHECK_SECONDS", 0.0)
    path = write_changed(tmp_path, "slide", 3, 2, sparse(places, (3, 2)))
    other = write_changed(tmp_path, "ldise", 3, 2, sparse(places[::-1], (3, 2)))
    assert path.stat().st_size == other.stat().st_size
    frames = frames_of(other)
    index(store, path)
    with open_reader(store) as reader:
        slide = Slide(path, reader=reader)
        assert slide.tile(0, 2, 1) == frames[5]
    with open_reader(store) as reader:
        old = Slide(path, reader=reader)
        assert reader.stats()["slides"]["index"] == 1
        replace(other, path)
        if in_memory:
            again = Slide(path, reader=reader)
        else:
            reader.close()
            reader = open_reader(store)
            again = Slide(path, reader=reader)
        assert reader.stats()["slides"]["file"] == 1
        assert [again.tile(0, *place) for place in places] == frames[::-1]
        if in_memory:
            assert [old.tile(0, *place) for place in places] == frames[::-1]
        reader.close()
    with open_reader(store) as reader:  # the new map took the place of the old one
        slide = Slide(path, reader=reader)
        assert [slide.tile(0, *place) for place in places] == frames[::-1]
        assert reader.stats()["slides"] == {"memory": 0, "index": 1, "file": 0}


@pytest.mark.parametrize("with_reader", [False, True])
def test_an_open_slide_follows_its_files_or_says_that_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_reader: bool
) -> None:
    monkeypatch.setattr(open_files, "_RECHECK_SECONDS", 0.0)
    places = [(0, 0), (1, 0)]
    path = write_changed(tmp_path, "slide", 2, 1, sparse(places, (2, 1)))
    other = write_changed(tmp_path, "ldise", 2, 1, sparse(places[::-1], (2, 1)))
    wide = write_changed(tmp_path, "wide", 2, 1, sparse(places, (3, 1)))
    frames = frames_of(path)
    with open_reader(None) as reader:
        slide = Slide(path, reader=reader if with_reader else None)
        assert slide.tile(0, 0, 0) == frames[0]
        path.chmod(0o600)  # another state of the same bytes
        assert [slide.tile(0, *place) for place in places] == frames
        by_rename(other, path)
        assert [slide.tile(0, *place) for place in places] == frames[::-1]
        write_changed(tmp_path, "slide", 1, 1, sparse(places[:1], (2, 1)))  # its second tile is gone
        assert (slide.tile(0, 1, 0), slide.tile(0, 0, 0)) == (None, frames[0])
        wide.rename(path)
        with pytest.raises(SourceError, match="open the slide again"):
            slide.tile(0, 0, 0)


def test_a_file_that_is_replaced_before_its_first_tile_gives_the_tile_that_it_has(tmp_path: Path) -> None:
    places = [(0, 0), (1, 0)]
    path = write_changed(tmp_path, "slide", 2, 1, sparse(places, (2, 1)))
    other = write_changed(tmp_path, "ldise", 2, 1, sparse(places[::-1], (2, 1)))
    frames = frames_of(other)
    for reader in (None, open_reader(None)):
        slide = Slide(path, reader=reader)
        if other.exists():
            by_rename(other, path)
        assert [slide.tile(0, *place) for place in places] == frames[::-1]
        if reader is not None:
            reader.close()


def damaged(stored: bytes, foreign: bytes) -> dict[str, bytes]:
    middle = len(stored) // 2
    return {
        "empty": b"",
        "cut": stored[:-3],
        "longer": stored + b"\0",
        "bit": stored[:middle] + bytes([stored[middle] ^ 4]) + stored[middle + 1 :],
        "version": b"\1" + stored[1:],
        "noise": bytes(np.random.default_rng(1).integers(0, 256, 500, np.uint8)),
        "another file's": foreign,
    }


@pytest.mark.parametrize("kind", ["empty", "cut", "longer", "bit", "version", "noise", "another file's"])
def test_a_damaged_map_is_read_anew_and_repaired(
    tmp_path: Path, store: FrameStore, dsn: str, kind: str
) -> None:
    places = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    path = write_changed(tmp_path, "slide", 3, 2, sparse(places, (3, 2)))
    other = write_changed(tmp_path, "other", 3, 2, sparse(places[::-1], (3, 2)))
    index(store, path)
    with open_reader(store) as reader:
        Slide(path, reader=reader)
    [(stored,)] = ask(dsn, "SELECT map FROM voxtier.slide_map")
    assert isinstance(stored, bytes)
    foreign = SlideHeader.read(str(other)).to_bytes()
    assert foreign is not None
    wrong = damaged(stored, foreign)[kind]
    if kind != "another file's":
        with pytest.raises(FormatError, match="map of a slide"):
            SlideHeader.from_bytes(wrong)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("UPDATE voxtier.slide_map SET map = %s", (wrong,))
    with open_reader(store) as reader:
        slide = Slide(path, reader=reader)
        assert [slide.tile(0, *place) for place in places] == frames_of(path)
        assert reader.stats()["slides"] == {"memory": 0, "index": 0, "file": 1}
    assert ask(dsn, "SELECT map FROM voxtier.slide_map") == [(stored,)]


def test_a_map_goes_with_the_row_of_its_file(folder: Path, store: FrameStore, dsn: str) -> None:
    write_paths_in_instances(folder)
    one, other = sorted(folder.iterdir())
    index(store, one, other)
    with open_reader(store) as reader:
        Slide(folder, reader=reader)
    keys = {path: file_key(SOURCE, str(path)) for path in (one, other)}
    assert kept(dsn) == set(keys.values())
    store.delete(SOURCE, [str(one)])
    assert kept(dsn) == {keys[other]}
    other.unlink()
    assert store.prune(SOURCE, force=True) == 1
    assert kept(dsn) == set()


def test_images_without_tiles_are_not_kept(folder: Path, store: FrameStore, dsn: str) -> None:
    write_full(folder)
    (folder / "ct.dcm").write_bytes(native(3, 0))
    index(store, *folder.iterdir())
    with open_reader(store) as reader:
        Slide(folder, reader=reader)
    assert kept(dsn) == {file_key(SOURCE, str(folder / "full.dcm"))}


def test_the_map_of_a_file_that_is_not_indexed_waits_for_its_row(
    folder: Path, store: FrameStore, dsn: str
) -> None:
    write_full(folder)
    with open_reader(store) as reader:
        slide = Slide(folder, reader=reader)
        reader.flush()
        assert kept(dsn) == set()
        assert slide.tile(0, 0, 0) is not None  # its table is written back
    assert kept(dsn) == {file_key(SOURCE, str(folder / "full.dcm"))}


@pytest.fixture
def role(dsn: str, postgres: str) -> object:
    """A connection string of a role that may do nothing but connect."""
    ask(postgres, "CREATE ROLE pathologist LOGIN")
    yield psycopg.conninfo.make_conninfo(dsn, user="pathologist")
    ask(dsn, "DROP OWNED BY pathologist")
    ask(postgres, "DROP ROLE pathologist")


def test_a_role_that_may_not_write_reads_headers_and_goes_on(
    folder: Path, store: FrameStore, dsn: str, role: str
) -> None:
    write_full(folder)
    index(store, *folder.iterdir())
    ask(dsn, "".join(grants("pathologist", "reader")))
    for _ in range(2):
        with FrameStore(role) as theirs, open_reader(theirs) as reader:
            assert Slide(folder, reader=reader).tile(0, 0, 0) is not None
            reader.flush()
            stats = reader.stats()
            assert (stats["slides"]["file"], stats["tier2"], stats["degraded"]) == (1, 1, False)
    assert kept(dsn) == set()
    with open_reader(store) as reader:
        Slide(folder, reader=reader)
    with FrameStore(role) as theirs, open_reader(theirs) as reader:
        Slide(folder, reader=reader)
        assert reader.stats()["slides"] == {"memory": 0, "index": 1, "file": 0}


def test_a_role_with_the_rights_of_an_older_version_goes_on(
    folder: Path, store: FrameStore, dsn: str, role: str
) -> None:
    write_full(folder)
    index(store, *folder.iterdir())
    ask(dsn, "".join(grants("pathologist", "builder")))
    ask(dsn, "REVOKE ALL ON voxtier.slide_map FROM pathologist")
    with open_reader(store) as reader:
        Slide(folder, reader=reader)
    with FrameStore(role) as theirs:
        with open_reader(theirs) as reader:
            assert Slide(folder, reader=reader).tile(0, 0, 0) is not None
            reader.flush()
            stats = reader.stats()
            assert (stats["slides"]["file"], stats["tier2"], stats["degraded"]) == (1, 1, False)
        assert theirs.delete(SOURCE, [str(folder / "full.dcm")]) == 1
    assert kept(dsn) == set()


def test_a_builder_keeps_maps(folder: Path, store: FrameStore, dsn: str, role: str) -> None:
    write_full(folder)
    index(store, *folder.iterdir())
    ask(dsn, "".join(grants("pathologist", "builder")))
    with FrameStore(role) as theirs, open_reader(theirs) as reader:
        Slide(folder, reader=reader)
    assert len(kept(dsn)) == 1


def test_groups_see_the_maps_of_their_files_alone(folder: Path, dsn: str, role: str) -> None:
    write_full(folder)
    with LakebaseUtils(dsn=dsn, uc_table_name=SOURCE) as lakebase:
        index(lakebase.store, *folder.iterdir())
        lakebase.upsert_access_rule(SOURCE, "staff")
        ask(dsn, "".join(grants("pathologist", "reader")))
        with open_reader(lakebase.store) as reader:
            Slide(folder, reader=reader)
        with FrameStore(role) as theirs:
            assert theirs.slide_maps(SOURCE, [str(folder / "full.dcm")]) == {}
            with FrameReader(theirs, SOURCE, publish=False, user_groups=["staff"]) as reader:
                assert Slide(folder, reader=reader).tile(0, 0, 0) is not None
                assert reader.stats()["slides"]["index"] == 1
            with (
                FrameReader(theirs, SOURCE, publish=False, user_groups=["others"]) as reader,
                pytest.raises(NotFoundError),
            ):
                Slide(folder, reader=reader)


def test_headers_that_take_longer_than_the_index_may_do_not_end_its_use(
    folder: Path, store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_paths_in_instances(folder)
    index(store, *folder.iterdir())

    class Slow:
        from_bytes = SlideHeader.from_bytes

        @staticmethod
        def read(source: object) -> SlideHeader:
            time.sleep(3)
            return SlideHeader.read(source)

    monkeypatch.setattr("voxtier.frames.serving.files.slide_headers.SlideHeader", Slow)
    with FrameReader(store, SOURCE, publish=False, user_groups=["all"], index_seconds=2) as reader:
        assert Slide(folder, reader=reader).tile(0, 0, 0, path=1) is not None
        assert (reader.stats()["slides"]["file"], reader.stats()["degraded"]) == (2, False)


def test_without_an_answer_of_the_index_groups_see_nothing_and_others_read_headers(
    folder: Path, store: FrameStore
) -> None:
    write_full(folder)
    index(store, *folder.iterdir())
    with (
        FrameReader(store, SOURCE, publish=False, user_groups=["all"]) as theirs,
        open_reader(store) as reader,
    ):
        for each in (theirs, reader):
            assert each.index is not None
            each.index._is_open = True
        with pytest.raises(BackendError):
            Slide(folder, reader=theirs)
        assert Slide(folder, reader=reader).tile(0, 0, 0) is not None


def test_what_is_not_there_is_a_source_error(tmp_path: Path, store: FrameStore) -> None:
    with open_reader(store) as reader, pytest.raises(SourceError, match="No such file"):
        Slide(tmp_path / "absent.dcm", reader=reader)


def test_memory_of_headers_is_bounded(
    folder: Path, store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_paths_in_instances(folder)
    monkeypatch.setattr("voxtier.frames.serving.files.slide_headers._MEMORY_BYTES", 300)
    with open_reader(None) as reader:
        for _ in range(3):
            Slide(folder, reader=reader)
        memory = reader._slides
        assert memory._bytes == sum(map(len, memory._memory.values()))
        assert 0 < memory._bytes <= 300
