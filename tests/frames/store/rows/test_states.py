"""What rows say of files without their tables: as SQL reads it, and of no use where it is damaged."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frames.store.rows.index_rows import ct
from voxtier import _core
from voxtier.errors import FormatError
from voxtier.frames import FileIndexer
from voxtier.frames.store.row import FileState
from voxtier.frames.store.store import FrameStore

INT8, INT4, INT2, TEXT = 20, 23, 21, 25


KINDS = (TEXT, *[INT8] * 4, TEXT, INT2, TEXT, INT4, INT4)


def record(*values: int | str | None) -> bytes:
    """Return what ``record_send`` makes of a state."""
    parts = [struct.pack(">I", len(values))]
    for kind, value in zip(KINDS, values, strict=True):
        if value is None:
            parts.append(struct.pack(">Ii", kind, -1))
            continue
        size = {INT8: 8, INT4: 4, INT2: 2}.get(kind)
        sent = str(value).encode() if size is None else int(value).to_bytes(size, "big", signed=True)
        parts.append(struct.pack(">Ii", kind, len(sent)) + sent)
    return b"".join(parts)


def state(path: str = "/a", **changed: int | str | None) -> bytes:
    values: dict[str, int | str | None] = {
        "path": path, "size": 10, "mtime_ns": 11, "ctime_ns": 12, "inode": 13, "etag": None,
        "parser_version": _core.PARSER_VERSION, "error_kind": None, "frames": 7, "truncated_from": None,
    }  # fmt: skip
    return record(*(values | changed).values())


def test_states_are_those_that_sql_reads(store: FrameStore, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number} \N{SNOWMAN}.dcm") for number in range(60)]
    for number, path in enumerate(paths):
        Path(path).write_bytes(b"no image" if number % 7 == 0 else ct() + bytes(2 * number))
    FileIndexer(store).index_batch(paths)
    store.query("UPDATE voxtier.file SET inode = -inode WHERE size %% 4 = 0 RETURNING 1", ())
    asked = ["/none", *paths[::-1], "/none too", os.fsdecode(b"/\xff"), paths[0]]
    columns = ", ".join(FileState._fields)
    rows = store.query(f"SELECT path, {columns} FROM voxtier.file", ())
    expected = {
        path: FileState(size, mtime, ctime, inode % 2**64, *rest)
        for path, size, mtime, ctime, inode, *rest in rows
    }
    assert len(expected) == 60
    assert store.file_states("default", asked) == [expected.get(path) for path in asked]
    assert store.file_states("another", paths) == [None] * 60


def test_files_in_the_state_of_their_rows_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(ct())
    path = str(tmp_path / "a")
    now = (tmp_path / "a").stat()
    known = {
        "size": now.st_size,
        "mtime_ns": now.st_mtime_ns,
        "ctime_ns": now.st_ctime_ns,
        "inode": now.st_ino,
    }
    indexer = _core.Indexer("s", threads=1, verify="all")

    def status(states: bytes) -> tuple[str, int]:
        [report] = indexer.read([path], states)[1]
        return report[1:3]

    assert status(state(path, **known)) == ("unchanged", 7)
    for changed in (
        {"parser_version": 0},
        {"error_kind": "io_error"},
        {"size": -1},
        {"frames": -1},
        {"inode": 3},
        {"size": None},
    ):
        assert status(state(path, **known | changed)) == ("ok", 1), changed
    for other in (state("/b", **known), state(f"{path}/", **known), b""):
        assert status(other) == ("ok", 1)
    assert status(state("/b") + state(path, **known) + state("/c")) == ("unchanged", 7)
    damaged = state(path, **known | {"size": -1})
    assert status(damaged + state(path, **known)) == ("unchanged", 7)


def test_what_is_no_states_is_refused() -> None:
    whole = state()
    for length in range(1, len(whole)):
        with pytest.raises(FormatError, match="index the file again"):
            _core.decode_states(whole[:length], ["/a"])
    with pytest.raises(FormatError, match="8 columns"):
        _core.decode_states(struct.pack(">I", 8) + whole[4:], ["/a"])


@given(st.binary(max_size=80) | st.tuples(st.integers(0, 150), st.binary(min_size=1, max_size=4)))
def test_any_bytes_are_states_or_refused(damage: bytes | tuple[int, bytes]) -> None:
    if isinstance(damage, tuple):
        at, new = damage
        damage = state()[:at] + new + state()[at + len(new) :]
    try:
        [found] = _core.decode_states(damage, ["/a"])
    except FormatError:
        return
    assert found is None or len(found) == len(FileState._fields)


def test_only_objects_in_the_state_of_their_rows_are_taken_out() -> None:
    now = (10, 11, 12, 13, None)
    listed = {
        "/same": now,
        "/none of it": now,
        "/other size": (9, *now[1:]),
        "/other time": (10, 10, *now[2:]),
        "/refused before": now,
        "/file": None,
        "/new file": None,
    }
    states = {
        path: state(path, **({"error_kind": "io_error"} if "refused" in path else {}))
        for path in listed
        if path not in {"/none of it", "/new file"}
    }
    unchanged, left, of_files = _core.take_unchanged(
        list(listed), b"".join(states.values()), list(listed.values())
    )
    assert unchanged == [("/same", "unchanged", 7, None, None, None, None, None)]
    assert left == [path for path in listed if path != "/same"]
    assert of_files == states["/file"]
