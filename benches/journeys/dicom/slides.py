"""Journey: 8,000 or 100,000 frames with no offset table, a basic or an extended one; second looks."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.encaps import generate_fragments, parse_basic_offsets, parse_fragments

from benches.inputs.files import Slide, slide, sparse_slide
from benches.measure import Goal, Lap, Result, Way, dropped_from_cache, elsewhere, floor_binary, race, timed
from voxtier.frames import FrameReader, FrameStore, read_frame, read_table, read_tables
from voxtier.frames import Slide as Pyramid
from voxtier.postgres.embedded import EmbeddedServer

PIXEL_HEADER = 12  # tag, VR, two reserved bytes, length
TABLES = {"none": "no offset table", "bot": "a Basic Offset Table", "eot": "an Extended Offset Table"}

DICOMSDL = """
import json, sys, time, dicomsdl
start = time.perf_counter()
dataset = dicomsdl.open_file(sys.argv[1])
frames = dataset["PixelData"].numberOfFrames()
print(time.perf_counter() - start, json.dumps([frames, None]))
"""


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Race both slides with three tables each; the walk also from storage."""
    shapes = [(20_000, 10_000), (400, 520_000)] if quick else [(100_000, 10_000), (2_000, 520_000)]
    for frames, mean in shapes:
        for table in TABLES:
            made = slide(folder / f"{table}.dcm", frames, mean, table)
            check(made)
            yield warm(made, mean, table, rounds)
            if table == "none":
                yield cold(made, mean, min(rounds, 3))
            made.path.unlink()
    yield looks(folder, 5_000 if quick else 50_000, rounds)


def looks(folder: Path, frames: int, rounds: int) -> Result:
    """Race the first look at a slide against later ones, by what index or memory have of its header."""
    path = sparse_slide(folder / "sparse.dcm", frames)
    result = Result(
        "slides",
        f"A slide of {frames:,} TILED_SPARSE frames, opened",
        "From a path to the pyramid and one tile's place. Memory and index have what the header says.",
        "slide",
        1,
    )
    server = EmbeddedServer(folder / "postgres")
    server.attach()
    try:
        with FrameStore(server.conninfo()) as store:
            return race_of_looks(result, path, store, rounds)
    finally:
        server.detach()


def race_of_looks(result: Result, path: Path, store: FrameStore, rounds: int) -> Result:
    store.upsert("s", read_tables([path]))
    readers: list[FrameReader] = []

    def new_reader() -> None:
        while readers:
            readers.pop().close()
        readers.append(FrameReader(store, "s", publish=False, index_seconds=60))

    def place(slide: Pyramid) -> list[int]:
        [level] = slide.levels
        return [*level.grid, *(tile.frame for tile in level.region(0, 0, 10**6, 10**6)[::1000])]

    def look(tier: str) -> Lap:
        [reader] = readers
        before = reader.stats()["slides"][tier]
        seconds, answer = timed(lambda: place_of(Pyramid(path, reader=reader)))()
        assert reader.stats()["slides"][tier] == before + 1
        return seconds, answer

    def place_of(slide: Pyramid) -> Pyramid:
        slide.levels[0].find(0, 0)
        return slide

    def by_index() -> Lap:
        new_reader()
        return look("index")

    new_reader()
    look("file")
    new_reader()
    [(size,)] = store.query("SELECT octet_length(map) FROM voxtier.slide_map", ())
    header = read_table(path).pixel_data_pos
    assert header is not None
    result.facts.append(
        f"Header {header / 1e6:.1f} MB; kept {size:,} bytes, {size / len(read_table(path)):.2f} a frame."
    )
    ways = [
        Way("memory of the process", lambda: look("memory"), "voxtier"),
        Way("index, another process", by_index, "voxtier", note="a new reader each time"),
        Way("header, first look", timed(lambda: place_of(Pyramid(path))), "voxtier"),
    ]
    look("index")
    goals = [
        Goal("memory of the process", "header, first look", 5),
        Goal("index, another process", "header, first look", 3),
    ]
    try:
        return race(result, ways, goals, rounds=max(rounds, 5), same=place)
    finally:
        readers.pop().close()


def check(made: Slide) -> None:
    """Check that frames read by the table equal the payloads that pydicom cuts out of the whole value."""
    table = read_table(made.path)
    assert len(table) == made.frames
    chosen = set(random.Random(1).sample(range(made.frames), 20))
    with made.path.open("rb") as file:
        file.seek(made.first_item)
        for index, payload in enumerate(generate_fragments(file)):
            if index in chosen:
                assert read_frame(made.path, table, index) == payload
            if index >= max(chosen):
                break


def answer_of(offsets: Any) -> list[int]:
    return [len(offsets), int(np.asarray(offsets, dtype=np.uint64).sum())]


def with_voxtier(path: Path, verify: Any = "ends") -> Callable[[], list[int]]:
    return lambda: answer_of(read_table(path, verify=verify).offsets)


def with_pydicom(path: Path) -> list[int]:
    """Read with pydicom's fastest way: stop at the pixels, then walk the open file without loading it."""
    with path.open("rb") as file:
        pydicom.dcmread(file, stop_before_pixels=True)
        file.seek(PIXEL_HEADER, io.SEEK_CUR)
        parse_basic_offsets(file)
        _, items = parse_fragments(file)
        return answer_of(np.asarray(items, np.uint64) + np.uint64(8))


def with_pydicom_table(path: Path) -> list[int]:
    """Read pydicom's offset table: where frames begin, not where they end, nothing checked."""
    with path.open("rb") as file:
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        file.seek(PIXEL_HEADER, io.SEEK_CUR)
        offsets = parse_basic_offsets(file)
        if "ExtendedOffsetTable" in dataset:
            offsets = np.frombuffer(dataset.ExtendedOffsetTable, np.uint64)
        return answer_of(np.asarray(offsets, np.uint64) + np.uint64(file.tell() + 8))


def with_highdicom(path: Path) -> list[int]:
    from highdicom.io import ImageFileReader

    with ImageFileReader(path) as reader:
        assert reader.number_of_frames > 0  # reads the header and the table, which are otherwise read late
        offsets = np.asarray(reader._offset_table, np.uint64) + np.uint64(reader._first_frame_offset + 8)
        return answer_of(offsets)


def with_wsidicom(path: Path) -> list[int]:
    """Read with wsidicom's parsers of the three tables, given the offset of the pixels."""
    from upath import UPath
    from wsidicom.file.io import WsiDicomReadIO
    from wsidicom.file.io.frame_index.basic import (
        BasicOffsetTableFrameIndexParser,
        EmptyBasicTableOffsetException,
    )
    from wsidicom.file.io.frame_index.extended import ExtendedOffsetFrameIndexParser
    from wsidicom.file.io.frame_index.pixel_data import PixelDataFrameIndexParser

    with path.open("rb") as file:
        stream = WsiDicomReadIO(file, UPath(path))
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        frames, start = int(dataset.NumberOfFrames), file.tell()
        if "ExtendedOffsetTable" in dataset:
            start = dataset.get_item("ExtendedOffsetTable").value_tell - 12
            index = ExtendedOffsetFrameIndexParser(stream, start, frames).parse_frame_index()
        else:
            try:
                index = BasicOffsetTableFrameIndexParser(stream, start, frames).parse_frame_index()
            except EmptyBasicTableOffsetException:
                index = PixelDataFrameIndexParser(stream, start, frames).parse_frame_index()
        return answer_of([position for position, _ in index])


def floor(made: Slide, how: str, before: Callable[[], object] | None = None) -> Callable[[], Lap]:
    return elsewhere([floor_binary(), "walk", str(made.path), str(made.first_item), how], before=before)


def warm(made: Slide, mean: int, table: str, rounds: int) -> Result:
    result = Result(
        "slides",
        f"{made.frames:,} frames of {mean // 1000} KB, {TABLES[table]}",
        "From a path to the place of every frame. "
        + (
            "Without a table each Item header must be visited; the floors visit them and do nothing else."
            if table == "none"
            else "The table is read in one go and held against both ends of the pixels; `all` also walks."
        ),
        "frame",
        made.frames,
    )
    path = made.path
    ways = [
        Way("voxtier", timed(with_voxtier(path)), "voxtier", "verify='ends', the default"),
        Way(
            "pydicom parse_fragments",
            timed(lambda: with_pydicom(path)),
            note="offset and length of every frame",
            rounds=3,
        ),
        Way("highdicom ImageFileReader", timed(lambda: with_highdicom(path)), rounds=2),
        Way("wsidicom", timed(lambda: with_wsidicom(path)), rounds=3),
    ]
    if table == "none":
        ways.append(
            Way("dicomsdl", elsewhere([str(path)], DICOMSDL), note="merges all frames into one", rounds=1)
        )
        ways.append(Way("walk by mmap in Rust", floor(made, "mmap"), "floor"))
        ways.append(Way("walk by pread in Rust", floor(made, "pread"), "floor"))
        goals = [
            Goal("voxtier", "pydicom parse_fragments", 8 if mean < 100_000 else 3),
            Goal("voxtier", "walk by mmap in Rust", 1 / 1.3),
        ]
    else:
        ways[1:1] = [
            Way("voxtier, every entry walked", timed(with_voxtier(path, "all")), "voxtier", "verify='all'"),
            Way(
                "pydicom, table as it is",
                timed(lambda: with_pydicom_table(path)),
                note="begins only, unchecked",
            ),
        ]
        goals = [Goal("voxtier", "pydicom parse_fragments", 400)] if mean < 100_000 else []
    return race(result, ways, goals, rounds=rounds)


def cold(made: Slide, mean: int, rounds: int) -> Result:
    result = Result(
        "slides",
        f"{made.frames:,} frames of {mean // 1000} KB, no offset table, out of the page cache",
        "Close items are streamed over, distant ones visited: the wrong choice costs up to 30 times.",
        "frame",
        made.frames,
    )

    def drop() -> None:
        dropped_from_cache([made.path])

    ways = [
        Way("voxtier", timed(with_voxtier(made.path), drop), "voxtier"),
        Way("pydicom parse_fragments", timed(lambda: with_pydicom(made.path), drop), rounds=1),
        Way("walk by mmap in Rust", floor(made, "mmap", drop), "floor"),
        Way("walk by pread in Rust", floor(made, "pread", drop), "floor"),
    ]
    return race(result, ways, [], rounds=rounds)
