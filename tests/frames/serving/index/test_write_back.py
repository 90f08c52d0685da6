"""What is written back when some of it cannot be: the rest is written, nothing ends, the oldest give way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from support.builders import dicom, element, image, pattern
from voxtier._core import encode_rows
from voxtier.errors import BackendError, ConfigError
from voxtier.frames import FrameCache, read_table
from voxtier.frames.dicom.table import TableResult
from voxtier.frames.serving.index import write_back
from voxtier.frames.serving.index.write_back import WriteBack


class Store:
    """An index in memory that answers what a source should be answered."""

    def __init__(self) -> None:
        self.written: list[tuple[str, bytes]] = []
        self.errors: dict[str, Exception] = {}
        self.on_write: Callable[[], None] = lambda: None

    def upsert_rows(self, source: str, rows: bytes, *, by_reader: bool) -> None:
        assert by_reader
        self.on_write()
        if source in self.errors:
            raise self.errors[source]
        self.written.append((source, rows))

    def touch(self, keys: list[bytes], *_: object) -> list[bytes]:
        if "touch" in self.errors:
            raise self.errors["touch"]
        return []

    def keep_slide_maps(self, _source: str, maps: dict[str, bytes]) -> set[str]:
        if "map" in self.errors:
            raise self.errors["map"]
        self.written += list(maps.items())
        return set(maps)


def make(store: Any, sources: str = "abc", seconds: float = 3600.0) -> WriteBack:
    return WriteBack(FrameCache(1 << 20), store, list(sources), seconds)


@pytest.mark.parametrize("error", [ConfigError("no right"), BackendError("gone"), ValueError("bad row")])
def test_what_fails_for_one_source_stops_no_other(error: Exception) -> None:
    store = Store()
    writes = make(store)
    store.errors["b"] = error
    for source in "abca":
        writes.add_row(source, source.encode())
    writes.flush()
    assert store.written == [("a", b"aa"), ("c", b"c")]
    assert (writes.stats()["written_back"], writes.stats()["flush_errors"]) == (3, 1)
    store.errors.clear()
    for source in "abc":
        writes.add_row(source, b"2")
    writes.flush()
    # It is written again, with what waited for the database, unless its source was forbidden.
    of_b = {ConfigError: [], BackendError: [("b", b"b2")], ValueError: [("b", b"2")]}[type(error)]
    assert sorted(store.written[2:]) == sorted([("a", b"2"), ("c", b"2"), *of_b])


def test_a_table_and_rows_are_written_together() -> None:
    elements = [*image(frames=1), element("PixelData", pattern(16, 1))]
    result = TableResult("/data/a.dcm", read_table(dicom(elements).content), None)
    store = Store()
    writes = make(store)
    writes.add_row("a", b"row")
    writes.add_table(result)
    writes.flush()
    assert store.written == [("a", encode_rows("a", [result])[0] + b"row")]


def test_rows_that_wait_again_take_no_room_of_newer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_back, "_WAITING_AT_MOST", 3)
    store = Store()
    writes = make(store)
    store.errors["a"] = BackendError("gone")
    for number in b"123":
        writes.add_row("a", bytes([number]))
    came = iter(b"45")

    def come() -> None:
        for number in came:
            writes.add_row("a", bytes([number]))

    store.on_write = come
    writes.flush()
    store.errors.clear()
    writes.flush()
    assert store.written == [("a", b"345")]


@pytest.mark.parametrize("what", ["a", "map", "touch"])
def test_an_error_that_nobody_foresaw_does_not_end_the_thread(what: str) -> None:
    store = Store()
    writes = make(store, "a", 0.01)
    store.errors[what] = ValueError("impossible")
    writes.wake()
    writes.cache.restore_access(["/data/a.dcm"], [1], [0])
    writes.add_row("a", b"1")
    writes.add_slide_map("/data/a.dcm", b"map")
    while not writes.stats()["flush_errors"]:
        time.sleep(0.01)
    store.errors.clear()
    writes.add_row("a", b"2")
    while not any(rows.endswith(b"2") for _, rows in store.written):
        time.sleep(0.01)
    writes.close()
    assert writes.stats()["flushed"] == 1  # an access is not lost
