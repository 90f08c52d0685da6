"""A synthetic archive: rows of the index for any number of files that do not exist, in microseconds each.

Paths of 55 and UIDs of 45 characters, 100 files a series, three series a study. Of a thousand files 960 are
CT and MR slices, 39 ultrasound clips of 40 frames, and one is a slide of 2,000.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from benches.inputs.files import slide
from support.builders import dicom, element, image, pattern
from voxtier._core import encode_rows, file_key
from voxtier.frames import TableResult, read_table

SOURCE = "archive"
_KINDS = (("slice", 960), ("clip", 39), ("slide", 1))
_FILES_OF_SERIES = 100  # on average
_PATH = "/archive/2024/{study:08d}/{series:010d}/IM{number:015d}.dcm"
_STUDY, _SERIES, _INSTANCE = (f"1.2.826.0.1.3680043.8.498.{kind}.9{{:016d}}" for kind in (1, 2, 3))


class Archive:
    """Makes the paths and the rows of numbered files; the same number gives the same file always.

    Parameters
    ----------
    folder : Path
        Where the three files lie whose tables the rows have; made when absent.
    prefix : str
        Stands before each path.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.prefix = prefix
        folder.mkdir(parents=True, exist_ok=True)
        self._templates = {kind: _template(_file_of(folder, kind)) for kind, _ in _KINDS}

    def path(self, number: int) -> str:
        series = number // _FILES_OF_SERIES
        return self.prefix + _PATH.format(study=series // 3, series=series, number=number)

    def instance_uid(self, number: int) -> str:
        return _INSTANCE.format(number)

    def series_uid(self, number: int) -> str:
        return _SERIES.format(number // _FILES_OF_SERIES)

    def key(self, number: int) -> bytes:
        return file_key(SOURCE, self.path(number))

    def rows(self, first: int, past: int) -> bytes:
        """Return the rows of the files from `first` to before `past`, for `FrameStore.upsert_rows`."""
        parts: list[bytes] = []
        for number in range(first, past):
            path = self.path(number)
            head, to_instance, to_series, to_study, tail = self._templates[_kind(number)]
            series = number // _FILES_OF_SERIES
            parts += (
                head,
                file_key(SOURCE, path),
                len(path).to_bytes(4, "big"),
                path.encode(),
                to_instance,
                _INSTANCE.format(number).encode(),
                to_series,
                _SERIES.format(series).encode(),
                to_study,
                _STUDY.format(series // 3).encode(),
                tail,
            )
        return b"".join(parts)

    def paths(self, first: int, past: int) -> list[str]:
        return [self.path(number) for number in range(first, past)]

    def accesses(self, first: int, past: int, now: datetime) -> Iterator[tuple[bytes, int, datetime]]:
        """Yield key, loads and last use of the files that somebody has read: every second one."""
        for number in range(first, past, 2):
            dice = random.Random(number)
            age = timedelta(hours=dice.expovariate(1 / 1500))
            yield self.key(number), 1 + int(dice.expovariate(1 / 3)), now - age


def _kind(number: int) -> str:
    place = number * 2_654_435_761 % 2**32 * 1000 >> 32
    return "slice" if place < 960 else "clip" if place < 999 else "slide"


def _file_of(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.dcm"
    if not path.exists():
        if kind == "slice":
            pixels = element("PixelData", pattern(2 * 512 * 512), "OW")
            path.write_bytes(dicom([*image(rows=512, columns=512, bits=16), pixels]).content)
        else:
            slide(path, 40 if kind == "clip" else 2000, 10_000, "bot")
    return path


def _template(path: Path) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """Return what stands in a row before the key and between path, instance, series, study and the end."""
    table = read_table(path, verify="all")
    own = (table.sop_instance_uid, table.series_instance_uid, table.study_instance_uid)
    row, _ = encode_rows("x", [TableResult("/p", table, None)])
    head, rest = row[:6], row[6 + 16 + 4 + 2 :]
    pieces = []
    for uid in own:
        field = len(uid).to_bytes(4, "big") + uid.encode()
        before, rest = rest.split(field, 1)
        pieces.append(before + len(_INSTANCE.format(0)).to_bytes(4, "big"))
    return head, pieces[0], pieces[1], pieces[2], rest
