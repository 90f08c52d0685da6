"""Journey: a frame table packed, unpacked, asked for a frame; and its size."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import pydicom

from benches.inputs.files import slide
from benches.measure import Goal, Result, Way, race, timed
from support.builders import EXPLICIT_LE, dicom, element, image
from voxtier.frames import FrameReader, FrameTable, read_frame, read_table

LOOK_UPS = 10_000
SIDE, IMAGES = 3072, 8  # pixels; files


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Race a table of many frames against the row-per-frame lists that others keep."""
    made = slide(folder / "slide.dcm", 10_000 if quick else 100_000, 10_000, "none")
    table = read_table(made.path, verify="all")
    yield unpacking(table, rounds)
    yield asking(table, rounds)
    yield reading(made.path, table, rounds)
    yield large_frames(folder, rounds)


def rows_of(table: FrameTable) -> list[dict[str, int]]:
    """Return one dict per frame, as the predecessor keeps them."""
    return [
        {"frame_number": index, "start_pos": start, "end_pos": end - 1}
        for index in range(len(table))
        for start, end in table.ranges(index)
    ]


def unpacking(table: FrameTable, rounds: int) -> Result:
    rows, record = rows_of(table), table.to_bytes()
    as_json, as_pickle = json.dumps(rows), pickle.dumps(rows)
    frames = len(table)
    result = Result(
        "tables",
        f"A stored table of {frames:,} frames, made ready to serve",
        "From the bytes that a store holds to something that answers for any frame; the checksum is tested.",
        "table",
        1,
    )
    result.facts += [
        f"Bytes a frame: packed {len(table.packed) / frames:.2f}, whole record {len(record) / frames:.2f}, "
        f"pickled rows {len(as_pickle) / frames:.0f}, JSON {len(as_json) / frames:.0f}.",
    ]
    assert FrameTable.from_bytes(record) == table
    ways = [
        Way("voxtier FrameTable.from_bytes", timed(lambda: len(FrameTable.from_bytes(record))), "voxtier"),
        Way("rows from pickle", timed(lambda: len(pickle.loads(as_pickle)))),
        Way("rows from JSON", timed(lambda: len(json.loads(as_json)))),
    ]
    return race(
        result, ways, [Goal("voxtier FrameTable.from_bytes", "rows from JSON", 20)], rounds=max(rounds, 5)
    )


def asking(table: FrameTable, rounds: int) -> Result:
    rows = rows_of(table)
    chosen = random.Random(3).choices(range(len(table)), k=LOOK_UPS)
    result = Result(
        "tables",
        f"{LOOK_UPS:,} frames asked of a table in memory",
        "The byte ranges of one frame after the other, at random.",
        "frame",
        LOOK_UPS,
    )
    ways = [
        Way(
            "voxtier FrameTable.ranges",
            timed(lambda: sum(table.ranges(index)[0][0] for index in chosen)),
            "voxtier",
        ),
        Way("list of dicts", timed(lambda: sum(rows[index]["start_pos"] for index in chosen))),
    ]
    return race(result, ways, [], rounds=max(rounds, 5))


def reading(path: Path, table: FrameTable, rounds: int) -> Result:
    chosen = random.Random(4).sample(range(len(table)), 500)
    lengths = table.lengths
    result = Result(
        "tables",
        "500 frames of a slide read by path, at random",
        "Each call opens the file, holds its size and time against the table, reads, and closes.",
        "frame",
        len(chosen),
    )

    def bare() -> int:
        total = 0
        for index in chosen:
            start, end = table.ranges(index)[0]
            with path.open("rb", buffering=0) as file:
                file.seek(start)
                total += len(file.read(end - start))
        return total

    ways = [
        Way(
            "voxtier read_frame",
            timed(lambda: sum(len(read_frame(path, table, index)) for index in chosen)),
            "voxtier",
        ),
        Way("Python open, seek, read", timed(bare), "floor", "no check whether the file has changed"),
    ]
    assert sum(int(lengths[index]) for index in chosen) == bare()
    return race(result, ways, [], rounds=max(rounds, 5))


def large_frames(folder: Path, rounds: int) -> Result:
    """Race radiographs, one frame of 18 MB each, against reads that check nothing."""
    paths, some = [], random.Random(5)
    for number in range(IMAGES):
        pixels = some.randbytes(1 << 16) * (2 * SIDE * SIDE >> 16)
        attributes = image(rows=SIDE, columns=SIDE, bits=16)
        path = folder / f"radiograph-{number}.dcm"
        path.write_bytes(dicom([*attributes, element("PixelData", pixels, "OW")], EXPLICIT_LE).content)
        paths.append(path)
    places = {path: read_table(path).ranges(0)[0] for path in paths}
    reader = FrameReader(publish=False)
    result = Result(
        "tables",
        f"Radiographs of {2 * SIDE * SIDE / 1e6:.0f} MB, their tables in memory",
        "The pixels of one image after the other, out of the page cache.",
        "frame",
        IMAGES,
    )

    def mark(pixels: bytes) -> tuple[int, bytes]:
        return len(pixels), pixels[:: 1 << 20]

    def bare() -> list[tuple[int, bytes]]:
        found = []
        for path, (start, end) in places.items():
            with path.open("rb", buffering=0) as file:
                file.seek(start)
                found.append(mark(file.read(end - start)))
        return found

    ways = [
        Way(
            "voxtier FrameReader",
            timed(lambda: [mark(reader.frame(str(path), 0)) for path in paths]),
            "voxtier",
        ),
        Way("Python open, seek, read", timed(bare), "floor", "no check whether the file has changed"),
        Way("pydicom dcmread", timed(lambda: [mark(pydicom.dcmread(path).PixelData) for path in paths])),
    ]
    goals = [
        Goal("voxtier FrameReader", "Python open, seek, read", 0.8),
        Goal("voxtier FrameReader", "pydicom dcmread", 1),
    ]
    try:
        return race(result, ways, goals, rounds=max(rounds, 5))
    finally:
        reader.close()
