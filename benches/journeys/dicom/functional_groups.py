"""Journey: the tables of enhanced multi-frame objects, whose headers hold one item per frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom

from benches.inputs.files import functional_groups
from benches.measure import Goal, Result, Way, elsewhere, race, timed
from voxtier.frames import read_frame, read_table

DICOMSDL = """
import json, sys, time, dicomsdl
start = time.perf_counter()
frames = int(dicomsdl.open_file(sys.argv[1], 0x7FDFFFFF).NumberOfFrames)
print(time.perf_counter() - start, json.dumps(frames))
"""


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Race items of defined length, which are jumped over, and of undefined length, which must be walked."""
    count = 4_000 if quick else 20_000
    for undefined, at_least in ((False, 10), (True, 350)):
        path = functional_groups(folder / "enhanced.dcm", count, undefined=undefined)
        assert read_frame(path, read_table(path), count - 1) == pydicom.dcmread(path).PixelData[-16:]
        word = "undefined" if undefined else "defined"
        result = Result(
            "functional_groups",
            f"{count:,} per-frame functional groups of {word} length",
            "From a path to the place of every frame, past a header that grows with the number of frames.",
            "group",
            count,
        )
        ways = [
            Way("voxtier", timed(lambda path=path: read_table(path).number_of_frames), "voxtier"),
            Way(
                "pydicom stop_before_pixels",
                timed(lambda path=path: int(pydicom.dcmread(path, stop_before_pixels=True).NumberOfFrames)),
                rounds=2,
            ),
            Way(
                "dicomsdl until the pixels", elsewhere([str(path)], DICOMSDL), note="in a process of its own"
            ),
        ]
        goals = [Goal("voxtier", "pydicom stop_before_pixels", at_least)]
        yield race(result, ways, goals, rounds=rounds)
