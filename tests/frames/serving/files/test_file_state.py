"""The state of a file: other bytes of one size and time are noticed, the same bytes are never refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from frames.dicom.cases.model import Case, encapsulated
from frames.dicom.cases.model import native as native_case
from frames.indexing.files import run, set_state, statuses
from frames.serving.images import frame_of, native
from support.builders import RLE, dicom, element, image, pattern
from voxtier._core import Refusal
from voxtier.errors import FormatError, SourceError
from voxtier.frames import FrameReader, FrameStore, FrameTable, read_frame, read_table, read_tables
from voxtier.frames.dicom.table import Verify


@pytest.fixture
def store(dsn: str) -> Iterator[FrameStore]:
    with FrameStore(dsn) as store:
        yield store


def shifted(frames: int = 3, seed: int = 9) -> bytes:
    """A file of the size of `native`, whose pixels lie elsewhere: one attribute more, fewer pixels behind."""
    content = native(frames, seed)
    extra = element("PatientName", "X" * 8)
    elements = [e for e in image(frames=frames) if e.tag != 0x00080018]
    elements.insert(1, element("SOPInstanceUID", "2.25.1"))
    shorter = dicom([*elements, extra, element("PixelData", pattern(16 * frames - 16, seed))]).content
    assert len(shorter) == len(content)
    return shorter


def by_cp(source: Path, path: Path) -> None:
    subprocess.run(["cp", "-p", source, path], check=True)


def by_cp_and_rename(source: Path, path: Path) -> None:
    aside = path.with_suffix(".aside")
    subprocess.run(["cp", "-p", source, aside], check=True)
    aside.rename(path)


def by_touch(source: Path, path: Path) -> None:
    path.write_bytes(source.read_bytes())
    subprocess.run(["touch", "-r", source, path], check=True)


def by_utime(source: Path, path: Path) -> None:
    state = source.stat()
    with path.open("r+b") as file:
        file.write(source.read_bytes())
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def by_link(source: Path, path: Path) -> None:
    path.unlink()
    os.link(source, path)


WAYS = [by_cp, by_cp_and_rename, by_touch, by_utime, by_link]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Other bytes, of the size and the modification time that the image will have."""
    path = tmp_path / "other"
    path.write_bytes(native(3, 5))
    os.utime(path, ns=(10**18, 10**18))
    return path


@pytest.fixture
def path(tmp_path: Path, other: Path) -> Path:
    path = tmp_path / "image.dcm"
    path.write_bytes(native(3, 1))
    os.utime(path, ns=(10**18, 10**18))
    assert path.stat().st_size == other.stat().st_size
    return path


@pytest.mark.parametrize("way", WAYS)
def test_index_run_reads_a_file_whose_size_and_time_were_kept(
    store: FrameStore, path: Path, other: Path, way: Callable[[Path, Path], None]
) -> None:
    other.write_bytes(native(3, 5)[:-48] + bytes(48))
    os.utime(other, ns=(10**18, 10**18))
    run(store, [str(path)])
    before = store.get("default", str(path))
    way(other, path)
    state = path.stat()
    assert (state.st_size, state.st_mtime_ns) == (len(native(3)), 10**18)
    assert statuses(run(store, [str(path)])) == {"ok": 1}
    after = store.get("default", str(path))
    assert isinstance(before, FrameTable)
    assert isinstance(after, FrameTable)
    assert not before.describes(path)
    assert after.describes(path)
    assert (after.ctime_ns, after.inode) == (state.st_ctime_ns, state.st_ino)
    assert statuses(run(store, [str(path)])) == {"unchanged": 1}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("has_index", [True, False])
def test_reader_gives_the_new_bytes_of_a_file_whose_size_and_time_were_kept(
    store: FrameStore, path: Path, other: Path, way: Callable[[Path, Path], None], *, has_index: bool
) -> None:
    if has_index:
        store.upsert("s", read_tables([path], verify="all"))
    with FrameReader(store if has_index else None, "s", publish=False) as reader:
        assert reader.frame(str(path), 2) == frame_of(2, seed=1)
        way(other, path)
        reader._files.forget(str(path))  # what a second of time does
        assert reader.frames(str(path), [2, 0]) == [frame_of(2, seed=5), frame_of(0, seed=5)]
        assert reader.table(str(path)).describes(path)
        reader.flush()
    if has_index:
        found = store.get("s", str(path))
        assert isinstance(found, FrameTable)
        assert found.describes(path)


@pytest.mark.parametrize("way", WAYS)
def test_frame_of_a_stale_table_is_refused_when_its_place_has_moved(
    path: Path, other: Path, way: Callable[[Path, Path], None]
) -> None:
    table = read_table(path)
    other.write_bytes(shifted())
    os.utime(other, ns=(10**18, 10**18))
    way(other, path)
    for index in range(3):
        with pytest.raises(SourceError, match="changed_during_read"):
            read_frame(path, table, index)
    assert read_frame(path, read_table(path), 1) == pattern(32, 9)[16:]


def rename(path: Path) -> Path:
    return path.rename(path.with_suffix(".moved"))


def link(path: Path) -> Path:
    os.link(path, path.with_suffix(".linked"))
    return path


def chmod(path: Path) -> Path:
    path.chmod(0o640)
    return path


def restore(path: Path) -> Path:
    backup = path.with_suffix(".backup")
    shutil.copy2(path, backup)
    path.unlink()
    return backup.rename(path)


HARMLESS = [rename, link, chmod, restore]


@pytest.mark.parametrize("change", HARMLESS)
def test_harmless_change_of_state_refuses_nothing(path: Path, change: Callable[[Path], Path]) -> None:
    table = read_table(path)
    with FrameReader(None, publish=False) as reader:
        assert reader.frame(str(path), 1) == frame_of(1, seed=1)
        now = change(path)
        assert not table.describes(now)
        assert read_frame(now, table, 1) == frame_of(1, seed=1)
        reader._files.forget(str(now))
        assert reader.frame(str(now), 1) == frame_of(1, seed=1)


@pytest.mark.parametrize("change", HARMLESS)
def test_harmless_change_of_state_is_read_once_more_and_then_known(
    store: FrameStore, path: Path, change: Callable[[Path], Path]
) -> None:
    run(store, [str(path)])
    now = str(change(path))
    assert statuses(run(store, [now])) == {"ok": 1}
    for _ in range(3):
        assert statuses(run(store, [now])) == {"unchanged": 1}


def test_thousand_restored_files_are_read_once_and_then_unchanged(store: FrameStore, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    paths = [folder / f"{number:04}.dcm" for number in range(1000)]
    for number, path in enumerate(paths):
        path.write_bytes(native(1, number))
    names = [str(path) for path in paths]
    run(store, names)
    for path in paths:
        restore(path)
    assert statuses(run(store, names)) == {"ok": 1000}
    assert statuses(run(store, names)) == {"unchanged": 1000}


def test_file_whose_rights_change_all_the_time_is_read(path: Path) -> None:
    """A backup that links or marks files changes their ctime while they are read, and not their content."""
    stop = threading.Event()

    def touch() -> None:
        while not stop.wait(0.0005):
            path.chmod(0o640)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        table = read_table(path)
        with FrameReader(None, publish=False) as reader:
            for turn in range(500):
                assert read_frame(path, table, turn % 3) == frame_of(turn % 3, seed=1)
                assert len(read_table(path, verify="all")) == 3
                assert reader.frame(str(path), turn % 3) == frame_of(turn % 3, seed=1)
    finally:
        stop.set()
        thread.join()


def test_rows_of_an_older_version_serve_and_are_read_anew_by_the_next_run(
    store: FrameStore, path: Path
) -> None:
    run(store, [str(path)])
    forget = "UPDATE voxtier.file SET ctime_ns = NULL, inode = NULL RETURNING 1"
    assert store.query(forget, ()) == [(1,)]
    with FrameReader(store, "default", publish=False) as reader:
        assert reader.frame(str(path), 1) == frame_of(1, seed=1)
        assert reader.stats()["tier2"] == 1
    assert statuses(run(store, [str(path)])) == {"ok": 1}
    found = store.get("default", str(path))
    assert isinstance(found, FrameTable)
    assert (found.ctime_ns, found.inode) == (path.stat().st_ctime_ns, path.stat().st_ino)
    assert statuses(run(store, [str(path)])) == {"unchanged": 1}


def test_preloaded_table_is_dropped_when_the_file_was_rewritten_with_its_time_kept(
    store: FrameStore, path: Path, other: Path
) -> None:
    store.upsert("s", read_tables([path]))
    by_cp(other, path)
    with FrameReader(store, "s", publish=False) as reader:
        reader.preload.start()
        assert reader.preload.wait(60)
        assert len(reader.cache) == 1
        assert reader.frame(str(path), 0) == frame_of(0, seed=5)
        assert reader.stats()["stale_misses"] >= 1


def test_record_keeps_the_whole_state(path: Path) -> None:
    table = read_table(path)
    state = path.stat()
    assert (table.ctime_ns, table.inode) == (state.st_ctime_ns, state.st_ino)
    assert FrameTable.from_bytes(table.to_bytes()) == table
    assert FrameTable.from_bytes(table.to_bytes()).describes(path)
    assert read_table(path.read_bytes()).describes(path), "bytes have neither times nor number"


def test_refusal_from_the_index_holds_for_the_state_of_its_file(
    store: FrameStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written through `upsert`, as an index run does: no look-up parses the file again."""
    path.write_bytes(b"not an image at all, but as long as many of them are" * 9)
    [result] = read_tables([path])
    state = path.stat()
    assert result.fingerprint == (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, None)
    store.upsert("s", [result])
    found = store.get("s", str(path))
    assert isinstance(found, Refusal)
    assert found.describes(path)

    def parse(*_: object, **__: object) -> FrameTable:
        raise AssertionError("the file was parsed again")

    with FrameReader(store, "s", publish=False) as reader:
        with monkeypatch.context() as patch:
            patch.setattr("voxtier.frames.serving.table_loader.read_table", parse)
            for _ in range(2):
                with pytest.raises(FormatError, match="not_dicom"):
                    reader.frame(str(path), 0)
        path.write_bytes(native(3, 1))
        assert reader.frame(str(path), 0) == frame_of(0, seed=1)


def test_file_that_the_disk_refused_is_asked_again(store: FrameStore, path: Path) -> None:
    state = path.stat()
    known = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, None)
    [result] = read_tables([path])
    failed = result._replace(table=None, error=SourceError("io_error", 5, "I/O error", 5), fingerprint=known)
    store.upsert("s", [failed])
    with FrameReader(store, "s", publish=False) as reader:
        assert reader.frame(str(path), 0) == frame_of(0, seed=1)


LONG = [pattern(20 + 2 * n, n) for n in range(4)]
SHORT = [pattern(26 - 2 * n, 9 + n) for n in range(4)]


def offsets(payloads: list[bytes]) -> list[int]:
    return [sum(len(payload) + 8 for payload in payloads[:number]) for number in range(len(payloads))]


# Two files of one size whose frames lie at other places.
PAIRS = {
    "fragments": [encapsulated("a", frames, syntax=RLE) for frames in (LONG, SHORT)],
    "bot": [encapsulated("a", frames, syntax=RLE, bot=offsets(frames)) for frames in (LONG, SHORT)],
    "eot": [
        encapsulated("a", frames, syntax=RLE, eot=(offsets(frames), [len(frame) for frame in frames]))
        for frames in (LONG, SHORT)
    ],
    "several fragments": [
        encapsulated("a", frames, syntax=RLE, groups=[[0, 1, 2, 3]]) for frames in (LONG, SHORT)
    ],
    "native": [
        native_case("a", frame_bytes=32, attributes={"columns": 8, "rows": 4}),
        native_case("a", before=[element("PatientName", "X" * 8)]),
    ],
}


@pytest.mark.parametrize("has_memory", [True, False], ids=["kept in memory", "no memory"])
@pytest.mark.parametrize("verify", ["all", "ends"])
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_row_of_other_bytes_in_the_state_of_the_file_is_found_out_by_the_header(
    store: FrameStore, tmp_path: Path, pair: list[Case], verify: Verify, *, has_memory: bool
) -> None:
    """As if two files had one size, one time and one number: a walk puts the row right."""
    old, new = pair
    assert len(old.content) == len(new.content)
    path = tmp_path / "a.dcm"
    path.write_bytes(old.content)
    store.upsert("s", read_tables([path], verify=verify))
    path.write_bytes(new.content)
    set_state(store, str(path))
    with FrameReader(store, "s", budget_bytes=1 << 20 if has_memory else 0, publish=False) as reader:
        for index in [*range(len(new.pixels)), *reversed(range(len(new.pixels)))]:
            assert reader.frame(str(path), index) == new.pixels[index]
        assert reader.frames(str(path), [0] * 3) == [new.pixels[0]] * 3
        reader.flush()
    with FrameReader(store, "s", publish=False) as reader:
        assert reader.frames(str(path), range(len(new.pixels))) == list(new.pixels)
        if has_memory or verify == "all":  # else each read walks by itself, and tells nobody
            assert reader.stats()["tier2"] == 1
            assert reader.stats()["stale_misses"] == 0


def test_many_threads_agree_on_a_file_whose_row_describes_other_bytes(
    store: FrameStore, tmp_path: Path
) -> None:
    old, new = PAIRS["fragments"]
    path = tmp_path / "a.dcm"
    path.write_bytes(old.content)
    store.upsert("s", read_tables([path], verify="all"))
    path.write_bytes(new.content)
    set_state(store, str(path))
    with FrameReader(store, "s", publish=False) as reader, ThreadPoolExecutor(16) as threads:
        asked = [number % 4 for number in range(400)]
        read = list(threads.map(lambda index: reader.frame(str(path), index), asked))
    assert read == [new.pixels[index] for index in asked]


def test_file_that_replaced_an_open_one_in_the_same_instant_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the clock is coarse and files keep no number, the path still tells that it is another file."""
    old, new = PAIRS["native"]
    path, aside = tmp_path / "a.dcm", tmp_path / "aside"
    path.write_bytes(old.content)
    aside.write_bytes(new.content)
    monkeypatch.setattr("voxtier.frames.serving.files.open_files._RECHECK_SECONDS", 0.0)
    with FrameReader(None, publish=False) as reader:
        reader.frame(str(path), 0)
        forgotten: list[str] = []
        monkeypatch.setattr(reader._files, "on_replaced", forgotten.append)
        reader.frame(str(path), 0)
        assert forgotten == []
        aside.replace(path)
        assert reader.frame(str(path), 0) == new.pixels[0]
        assert forgotten == [str(path)]
