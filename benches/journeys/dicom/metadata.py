"""Journey: the attributes of a series and of a slide as DICOM JSON, which viewers ask for first."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pydicom

from benches.inputs.files import ct_series, slide_header
from benches.measure import Goal, Lap, Limit, Result, Way, race, timed
from frames.dicom.metadata.differences import by_the_standard
from frames.dicom.metadata.reading import as_numbers, read_exactly
from voxtier.frames import read_metadata, read_metadata_json

Attributes = dict[str, Any]


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Race the instances of a series, one after the other, and one header that grows with its tiles."""
    count = 200 if quick else 2_000
    paths = ct_series(folder / "series", count)
    result = Result(
        "metadata",
        f"DICOM JSON of {count:,} CT slices, one thread",
        "From paths to the attributes of every instance, as WADO-RS has them; files in the page cache.",
        "instance",
        count,
    )
    goals = [Limit("voxtier, text", 0.3 / 2_000)]
    yield against_pydicom(result, paths, count_attributes, goals, rounds)
    tiles = 2_000 if quick else 50_000
    path = slide_header(folder / "slide.dcm", tiles)
    text = len(read_metadata_json(path))
    result = Result(
        "metadata",
        f"DICOM JSON of a slide with {tiles:,} per-frame Items",
        f"{path.stat().st_size / 1e6:.1f} MB of header, {text / 1e6:.1f} MB of text.",
        "Item",
        tiles,
    )
    yield against_pydicom(result, [path], list_places, [], rounds)


def against_pydicom(
    result: Result,
    paths: list[Path],
    answer: Callable[[Iterable[Attributes]], Any],
    limits: list[Limit],
    rounds: int,
) -> Result:
    """Race voxtier's text and its dict against pydicom's dict; `answer` is what is compared."""
    check(paths[-1])

    def text_alone() -> Lap:
        start = time.perf_counter()
        texts = [read_metadata_json(path) for path in paths]
        seconds = time.perf_counter() - start
        return seconds, answer(map(json.loads, texts))

    ways = [
        Way("voxtier, text", text_alone, "voxtier", note="what a server sends"),
        Way("voxtier, dict", timed(lambda: answer(map(read_metadata, paths))), "voxtier"),
        Way("pydicom to_json_dict", timed(lambda: answer(map(with_pydicom, paths))), rounds=1),
    ]
    goals = [
        Goal("voxtier, text", "pydicom to_json_dict", 30),
        Goal("voxtier, dict", "pydicom to_json_dict", 10),
        *limits,
    ]
    return race(result, ways, goals, rounds=rounds)


def check(path: Path) -> None:
    """Compare every attribute and digit of one file."""
    assert as_numbers(read_exactly(path)) == by_the_standard(pydicom.dcmread(path, stop_before_pixels=True))


def with_pydicom(path: Path) -> Attributes:
    return pydicom.dcmread(path, stop_before_pixels=True).to_json_dict()


def count_attributes(instances: Iterable[Attributes]) -> list[tuple[str, int]]:
    """Return the UID of every instance and how many attributes it has."""
    return [(each["00080018"]["Value"][0], len(each)) for each in instances]


def list_places(instances: Iterable[Attributes]) -> list[tuple[int, int]]:
    """Return column and row of every tile."""
    groups = [item for each in instances for item in each["52009230"]["Value"]]
    positions = [group["0048021A"]["Value"][0] for group in groups]
    return [(each["0048021E"]["Value"][0], each["0048021F"]["Value"][0]) for each in positions]
