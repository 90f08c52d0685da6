"""Paths, sources and rows that are wrong on purpose: no injection, no failed batch, no stale answer."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from frames.dicom.cases import CASES
from frames.store.rows.index_rows import ask, result, table_of
from voxtier._core import MAX_PATH_BYTES
from voxtier.errors import BackendError, ConfigError, FormatError
from voxtier.frames import FrameTable
from voxtier.frames.store.store import FrameStore

PATHS = (
    "/quo'te",
    '/dou"ble',
    "/back\\slash",
    "/per%cent%s",
    "/ü/☃/𝄞",
    "/new\nline\ttab",
    "/;DROP TABLE x",
)


def test_paths_with_sql_and_quotes_are_bound_as_values(store: FrameStore) -> None:
    assert store.upsert("s", [result(path) for path in PATHS]).inserted == len(PATHS)
    for path in PATHS:
        assert isinstance(store.get("s", path), FrameTable)
    assert store.delete("s", PATHS) == len(PATHS)


@pytest.mark.parametrize("path", ["", "/nul\0", "/not-utf8-\udcff", "/" + "x" * 5000])
def test_look_ups_of_unstorable_paths_find_nothing(store: FrameStore, path: str) -> None:
    store.upsert("s", [result("/a")])
    assert store.get("s", path) is None
    assert store.get_many("s", [path, "/a"])[0] is None
    assert store.file_states("s", [path]) == [None]
    assert store.delete("s", [path]) == 0


def test_unstorable_paths_are_refused_and_the_batch_is_written(store: FrameStore) -> None:
    longest = "/" + "x" * (MAX_PATH_BYTES - 1)
    bad = ["", "/nul\0", "/not-utf8-\udcff", longest + "x", "/" + "ü" * (MAX_PATH_BYTES // 2)]
    counts = store.upsert("s", [result(path) for path in ["/good", *bad, longest]])
    assert counts.inserted == 2
    assert [path for path, _ in counts.refused] == bad
    assert all(reason for _, reason in counts.refused)
    assert isinstance(store.get("s", longest), FrameTable)


def test_a_refusal_of_the_longest_path_cuts_its_detail(store: FrameStore) -> None:
    path = "/" + os.urandom(MAX_PATH_BYTES // 2).hex()[: MAX_PATH_BYTES - 1]
    store.upsert("s", [result(path, error=FormatError("not_dicom", None, "\0" + "x" * 10_000))])
    [found] = store.refused_files("s")
    assert found.path == path
    assert len(found.detail) == 500


@pytest.mark.parametrize(
    "source", ['x"; DROP SCHEMA voxtier CASCADE; --', "cat.schema.täble", "%s", "x" * 300]
)
def test_sources_with_sql_are_bound_as_values(store: FrameStore, source: str) -> None:
    store.upsert(source, [result("/a")])
    assert store.sources() == [source]
    assert isinstance(store.get(source, "/a"), FrameTable)


@pytest.mark.parametrize("source", ["", "x" * 301, "nul\0", "line\nbreak", "\udcff"])
def test_sources_that_are_no_names_are_config_errors(store: FrameStore, source: str) -> None:
    for work in (
        lambda: store.upsert(source, [result("/a")]),
        lambda: store.upsert_rows(source, b""),
        lambda: store.get(source, "/a"),
        lambda: store.file_states(source, ["/a"]),
    ):
        with pytest.raises(ConfigError, match="source"):
            work()


def test_a_row_of_another_path_under_the_same_key_is_unknown(store: FrameStore, dsn: str) -> None:
    store.upsert("s", [result("/a")])
    ask(dsn, "UPDATE voxtier.file SET path = '/b'")
    assert store.get("s", "/a") is None
    assert store.get_many("s", ["/a"]) == [None]
    assert store.file_states("s", ["/a"]) == [None]
    assert store.delete("s", ["/a"]) == 0


@pytest.mark.parametrize(
    "damage",
    [
        "frames = set_byte(frames, 20, get_byte(frames, 20) # 1)",
        "frames = substring(frames for 31)",
        "frames = frames || '\\x00'",
        "frames = '\\xff'",
        "size = 10",  # the frames lie beyond that
        "parser_version = parser_version + 1",
        "notes = '{no_such_note}'",
        "bits_allocated = -1",
        "pixel_data_pos = -1",
    ],
)
def test_a_damaged_row_is_unknown(store: FrameStore, dsn: str, damage: str) -> None:
    content = next(case for case in CASES if case.name == "e04_bot_multifrag").content
    store.upsert("s", [result("/a", table_of(content))])
    assert isinstance(store.get("s", "/a"), FrameTable)
    ask(dsn, f"UPDATE voxtier.file SET {damage}")
    assert store.get("s", "/a") is None


def test_paths_and_values_stay_out_of_messages_and_logs(
    store: FrameStore, dsn: str, postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "DOE^JANE-4711"
    ask(dsn, "SELECT 1")
    store.upsert("s", [result("/a")])
    ask(dsn, "ALTER TABLE voxtier.file ADD CHECK (path NOT LIKE '%JANE%')")
    with pytest.raises(BackendError) as raised:
        store.upsert("s", [result(f"/{secret}.dcm")])
    store.file_states("s", [f"/{secret}.dcm"])
    [(folder,)] = ask(postgres, "SHOW data_directory")
    log = Path(folder).parent / "server.log"
    assert "check constraint" in log.read_text()
    for text in (str(raised.value), caplog.text, log.read_text()):
        assert "JANE" not in text
