"""Ten minutes of mixed load: within the budget, every byte compared, a restart that is warm in seconds."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from support.builders import JPEG, Fragments, dicom, element, image, jpeg, pattern
from voxtier import _core
from voxtier.frames import FrameCache, read_table
from voxtier.frames.dicom.table import TableResult
from voxtier.frames.serving.reader import FrameReader
from voxtier.frames.store.store import FrameStore

SECONDS = float(os.environ.get("VOXTIER_SOAK_SECONDS", "600"))
FILES = int(os.environ.get("VOXTIER_SOAK_FILES", "100000"))
CONTENTS = 200
SERIES = 0x0020000E


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def content(number: int) -> tuple[bytes, list[bytes]]:
    """A file and its frames: single slices, volumes, and slides whose tiles differ in length."""
    count = (1, 1, 30, 300, 12_000)[number % 5]
    attributes = [each for each in image(frames=count) if each.tag != SERIES]
    if count < 300:
        pixels = pattern(16 * count, number)
        attributes.append(element("SeriesInstanceUID", f"2.25.{1000 + number}"))
        attributes.sort(key=lambda each: each.tag)
        frames = [pixels[16 * at : 16 * at + 16] for at in range(count)]
        return dicom([*attributes, element("PixelData", pixels)]).content, frames
    dice = random.Random(number)
    frames = [jpeg(dice.randrange(10, 60) * 2, at + number) for at in range(count)]
    return dicom([*attributes, element("PixelData", Fragments(frames), "OB")], JPEG).content, frames


def write_files(folder: Path) -> tuple[list[str], list[list[bytes]]]:
    """Many names of a few contents (hard links): 100,000 files in seconds."""
    frames: list[list[bytes]] = []
    originals = []
    for number in range(CONTENTS):
        path = folder / f"original{number}"
        written, read = content(number)
        path.write_bytes(written)
        frames.append(read)
        originals.append(path)
    paths = []
    for number in range(FILES):
        path = folder / f"{number:06}.dcm"
        os.link(originals[number % CONTENTS], path)
        paths.append(str(path))
    return paths, frames


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ten_minutes_of_mixed_load_stay_within_the_budget_and_right(
    tmp_path: Path, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths, frames = write_files(tmp_path)
    with FrameStore(dsn) as store:
        tables = [read_table(path, verify="all") for path in paths[:CONTENTS]]
        store.upsert("s", (TableResult(path, tables[at % CONTENTS], None) for at, path in enumerate(paths)))
        weigh = FrameCache(1 << 40)
        for path, table in zip(paths, tables, strict=False):
            weigh.put_table(path, table)
        budget = weigh.counters()["used"] * FILES // CONTENTS // 3
        wrong: list[str] = []
        over = [0]

        def load(reader: FrameReader, kind: int, until: float, asked: list[int]) -> None:
            dice = random.Random(kind + int(until * 1000))
            cursor = dice.randrange(FILES)
            while time.monotonic() < until:
                match kind % 3:
                    case 0:  # a viewer: a series, then another
                        cursor = (
                            int(FILES * dice.paretovariate(1.2)) % FILES
                            if dice.random() < 0.02
                            else cursor + 1
                        )
                    case 1:  # a slide: many frames of one file
                        cursor = cursor if dice.random() < 0.97 else int(dice.paretovariate(0.6)) % FILES
                    case _:  # training: everything once, in order
                        cursor += 1
                at = cursor % FILES
                truth = frames[at % CONTENTS]
                index = dice.randrange(len(truth))
                if reader.frame(paths[at], index, scan=kind % 3 == 2) != truth[index]:
                    wrong.append(paths[at])
                asked[0] += 1
                counters = reader.cache.counters()
                over[0] = max(over[0], counters["used"] - counters["budget"])

        def drive(reader: FrameReader, seconds: float) -> tuple[int, float]:
            asked = [[0] for _ in range(6)]
            before = reader.stats()
            until = time.monotonic() + seconds
            threads = [
                threading.Thread(target=load, args=(reader, kind, until, asked[kind])) for kind in range(6)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            after = reader.stats()
            requests = after["requests"] - before["requests"]
            return requests, (after["tier1"] - before["tier1"]) / max(requests, 1)

        figures: dict[str, Any] = {}
        # Threads, connections, descriptors and buffers are there before memory is weighed.
        with FrameReader(store, "s", budget_bytes=0, flush_seconds=5) as reader:
            drive(reader, SECONDS * 0.05)
        start = resident()
        with FrameReader(store, "s", budget_bytes=budget, flush_seconds=5) as reader:
            requests, ratio = drive(reader, SECONDS * 0.85)
            used = reader.cache.counters()["used"]
            figures |= {"requests": requests, "hit_ratio": ratio, "used": used}
            grown = resident() - start
            figures |= {"grown": grown, "resident_over_accounted": grown / used, "stats": reader.stats()}
            reader.cache.validate()
        began = time.monotonic()
        with FrameReader(store, "s", budget_bytes=budget) as reader:
            reader.preload.start()
            assert reader.preload.wait(120)
            figures["preload_seconds"] = time.monotonic() - began
            figures["ratio_after_restart"] = drive(reader, SECONDS * 0.02)[1]
    with capsys.disabled():
        print(figures)
    assert wrong == []
    assert over[0] <= 0
    assert figures["stats"]["tier3"] == 0
    assert figures["stats"]["cache"]["evicted"]["capacity"] > 0
    assert figures["used"] > 0.9 * budget
    assert figures["resident_over_accounted"] <= 1.25
    assert figures["stats"]["cache"]["access_dropped"] == 0
    assert figures["ratio_after_restart"] >= 0.8 * figures["hit_ratio"]
    assert figures["preload_seconds"] < 30
    assert _core.DEBUG_BUILD is False
