"""Index runs: what is read again, what is left alone, how many files at once."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from frames.dicom.cases import CASES
from frames.indexing.files import link_files, native, run, set_state, statuses, write_files
from support.builders import JPEG, PIXEL_DATA, Element, Fragments, dicom, image, jpeg
from voxtier._core import Refusal
from voxtier.errors import ConfigError
from voxtier.frames import FrameReader, FrameTable, Gateway, read_table
from voxtier.frames.indexing.paths import iter_files
from voxtier.frames.indexing.run import FileIndexer, index_files
from voxtier.frames.sources.listing import ListedObject
from voxtier.frames.sources.stores import ObjectState
from voxtier.frames.store.store import FrameStore


def rows_of(store: FrameStore, paths: list[str], source: str = "default") -> list[object]:
    """What the index holds, without the exceptions, which compare by identity."""
    return [
        (str(row.error), row.size, row.mtime_ns) if isinstance(row, Refusal) else row
        for row in store.get_many(source, paths)
    ]


def test_a_second_run_opens_no_unchanged_file(store: FrameStore, tmp_path: Path) -> None:
    paths = write_files(tmp_path / "d", 5)
    first = run(store, paths)
    assert statuses(first) == {"ok": 5}
    second = run(store, paths)
    assert statuses(second) == {"unchanged": 5}
    frames = {report.path: report.frames for report in first}
    assert {report.path: report.frames for report in second} == frames
    for path in paths:  # not even opened: what is in them now would be refused
        Path(path).write_bytes(b"x" * os.stat(path).st_size)
        set_state(store, path)
    assert statuses(run(store, paths)) == {"unchanged": 5}
    assert statuses(run(store, paths, force=True)) == {"error": 5}


@pytest.mark.parametrize("size", [0, -1, 1.5, "all"])
def test_a_batch_of_no_files_is_refused(store: FrameStore, tmp_path: Path, size: object) -> None:
    with pytest.raises(ConfigError, match="batch_size must be a whole number >= 1"):
        list(index_files(FileIndexer(store), write_files(tmp_path / "d", 1), batch_size=size))  # type: ignore[arg-type]


def test_arguments_of_another_class_are_refused_at_once(store: FrameStore, tmp_path: Path) -> None:
    wrong: list[Callable[[Any], object]] = [
        lambda other: FileIndexer(other),
        lambda other: FrameReader(other, publish=False),
        lambda other: Gateway(other, store),
        lambda other: list(index_files(other, tmp_path)),
        lambda other: list(index_files(FileIndexer(store), tmp_path, shard=other)),
    ]
    for call in wrong:
        for other in ("archive", FileIndexer, 7):
            with pytest.raises(ConfigError, match=r"takes an? .*, got "):
                call(other)


@pytest.mark.parametrize("frames", [1, 9], ids=["fewer frames", "more frames"])
def test_a_changed_file_is_indexed_anew(store: FrameStore, tmp_path: Path, frames: int) -> None:
    paths = write_files(tmp_path / "d", 3)
    run(store, paths)
    Path(paths[2]).write_bytes(native(frames))
    assert statuses(run(store, paths)) == {"unchanged": 2, "ok": 1}
    table = store.get("default", paths[2])
    assert isinstance(table, FrameTable)
    assert len(table) == frames
    assert table == read_table(paths[2], verify="all")


def test_a_new_time_at_the_same_size_is_a_change(store: FrameStore, tmp_path: Path) -> None:
    """Only the grouping differs: nothing but the time tells."""
    path = tmp_path / "x.dcm"
    payloads = [jpeg(20, 0), jpeg(20, 1)]

    def content(table: tuple[int, ...]) -> bytes:
        value = Element(PIXEL_DATA, "OB", Fragments(payloads, table))
        return dicom([*image(frames=2), value], JPEG).content

    path.write_bytes(content((0, 28)))
    run(store, [str(path)])
    before = path.stat()
    path.write_bytes(content((4, 28)))
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert statuses(run(store, [str(path)])) == {"ok": 1}
    found = store.get("default", str(path))
    assert isinstance(found, FrameTable)
    assert "bot_rejected" in found.notes


def test_a_refused_file_is_read_again_whatever_its_fingerprint(store: FrameStore, tmp_path: Path) -> None:
    [path] = write_files(tmp_path / "d", 1)
    run(store, [path])
    Path(path).write_bytes(b"x" * len(native()))
    assert statuses(run(store, [path])) == {"error": 1}
    assert isinstance(store.get("default", path), Refusal)
    assert statuses(run(store, [path])) == {"error": 1}, "errors are tried again"
    before = os.stat(path)
    Path(path).write_bytes(native())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert statuses(run(store, [path])) == {"ok": 1}, "whatever the fingerprint says"
    assert isinstance(store.get("default", path), FrameTable)


def test_a_file_that_could_not_be_opened_is_read_again(store: FrameStore, tmp_path: Path) -> None:
    link = tmp_path / "link.dcm"
    link.symlink_to(tmp_path / "target")
    [report] = run(store, [str(link)])
    assert (report.status, report.error_kind) == ("error", "io_error")
    (tmp_path / "target").write_bytes(native())
    assert statuses(run(store, [str(link)])) == {"ok": 1}


def test_rows_of_another_parser_are_read_again(store: FrameStore, tmp_path: Path, dsn: str) -> None:
    paths = write_files(tmp_path / "d", 2)
    run(store, paths)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "UPDATE voxtier.file SET parser_version = parser_version - 1 WHERE path = %s", (paths[0],)
        )
    assert store.get("default", paths[0]) is None
    assert statuses(run(store, paths)) == {"ok": 1, "unchanged": 1}
    assert isinstance(store.get("default", paths[0]), FrameTable)


def test_files_and_listed_objects_may_come_mixed_and_in_many_questions(
    store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxtier.frames.indexing.run._SHARE", 7)
    paths = write_files(tmp_path, 100)
    assert statuses(run(store, paths[:80])) == {"ok": 80}
    states = {
        path: ObjectState(*state.fingerprint)
        for path, state in zip(paths, store.file_states("default", paths), strict=True)
        if state
    }
    mixed, expected = list[str](), dict[str, str]()
    for number, path in enumerate(paths):
        listed = states.get(path)
        match number % 4:
            case 0 if listed:
                mixed.append(ListedObject(path, listed))
                Path(path).unlink()  # it is not even opened
                expected[path] = "unchanged"
            case 1 if listed:
                mixed.append(ListedObject(path, listed._replace(size=listed.size + 1)))
                expected[path] = "ok"
            case _:
                mixed.append(path)
                expected[path] = "unchanged" if listed else "ok"
    random.Random(5).shuffle(mixed)
    reports = [report for part in index_files(FileIndexer(store), mixed, batch_size=60) for report in part]
    assert {report.path: report.status for report in reports} == expected
    assert len(reports) == len(paths)


def test_force_reads_unchanged_files_again(store: FrameStore, tmp_path: Path) -> None:
    paths = write_files(tmp_path / "d", 4)
    run(store, paths)
    assert statuses(run(store, paths, force=True)) == {"ok": 4}


def test_a_deleted_file_is_dropped_by_prune_alone(store: FrameStore, tmp_path: Path) -> None:
    paths = write_files(tmp_path / "d", 3)
    run(store, paths)
    Path(paths[1]).unlink()
    run(store, [paths[0], paths[2]])
    assert isinstance(store.get("default", paths[1]), FrameTable)
    assert store.prune("default", under=[str(tmp_path / "d")]) == 1
    assert [row is None for row in store.get_many("default", paths)] == [False, True, False]


@pytest.mark.parametrize("as_given", [str, Path])
def test_one_path_counts_as_one(
    store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_given: type
) -> None:
    """Not as its letters, each of which would be a row of a file that is not there."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, 1)
    indexer, given = FileIndexer(store), as_given("00000.dcm")
    [[report]] = index_files(indexer, given)
    assert (report.path, report.status) == (str(tmp_path / "00000.dcm"), "ok")
    assert [each.status for each in indexer.index_batch(given)] == ["unchanged"]
    assert store.summary("default").total.files == 1
    assert list(iter_files(as_given(tmp_path))) == [str(tmp_path / "00000.dcm")]


def test_a_path_given_twice_is_one_file(store: FrameStore, tmp_path: Path) -> None:
    paths = write_files(tmp_path / "d", 3)
    assert statuses(run(store, paths * 4)) == {"ok": 3}
    indexer = FileIndexer(store, source="small batches")
    for _ in index_files(indexer, paths * 4, batch_size=2):
        pass
    assert store.summary("small batches").total.files == 3


def test_a_path_of_bytes_is_indexed_as_its_text(store: FrameStore, tmp_path: Path) -> None:
    paths = write_files(tmp_path / "d", 2)
    asked: list[object] = [paths[0].encode(), Path(paths[1])]
    assert statuses(FileIndexer(store).index_batch(asked)) == {"ok": 2}  # type: ignore[arg-type]
    assert statuses(run(store, paths)) == {"unchanged": 2}


def test_runs_of_two_sources_do_not_touch_each_other(store: FrameStore, tmp_path: Path) -> None:
    paths = write_files(tmp_path / "d", 3)
    run(store, paths, source="a")
    assert statuses(run(store, paths[:2], source="b")) == {"ok": 2}
    assert statuses(run(store, paths, source="a")) == {"unchanged": 3}
    Path(paths[0]).write_bytes(native(7))
    run(store, paths, source="b")
    [in_a, in_b] = [store.get(source, paths[0]) for source in "ab"]
    assert isinstance(in_a, FrameTable)
    assert isinstance(in_b, FrameTable)
    assert (len(in_a), len(in_b)) == (1, 7)


def test_order_threads_and_batch_size_change_no_row(store: FrameStore, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.dcm") for number in range(len(CASES))]
    for path, case in zip(paths, CASES, strict=True):
        Path(path).write_bytes(case.content)
    run(store, paths, source="forward")
    shuffled = random.Random(7).sample(paths, len(paths))
    for _ in index_files(FileIndexer(store, source="shuffled", threads=3), shuffled, batch_size=17):
        pass
    assert rows_of(store, paths, "forward") == rows_of(store, paths, "shuffled")


def test_path_objects_are_indexed_like_text(store: FrameStore, tmp_path: Path) -> None:
    paths = [Path(path) for path in write_files(tmp_path / "d", 2)]
    indexer = FileIndexer(store)
    assert statuses(indexer.index_batch(paths)) == {"ok": 2}  # type: ignore[arg-type]
    assert statuses(indexer.index_batch(paths)) == {"unchanged": 2}  # type: ignore[arg-type]


def test_paths_of_a_generator_are_taken_a_few_batches_ahead(store: FrameStore, tmp_path: Path) -> None:
    """The generator is never further ahead of the reports than a few batches."""
    batch, total = 1000, 100_000
    taken = 0

    def paths() -> Iterator[str]:
        nonlocal taken
        for number in range(total):
            taken += 1
            yield f"{tmp_path}/{number}.dcm"

    seen, ahead = 0, 0
    for reports in index_files(FileIndexer(store), paths(), batch_size=batch):
        seen += len(reports)
        ahead = max(ahead, taken - seen)
    assert (seen, taken) == (total, total)
    assert ahead <= 4 * batch
    assert store.summary("default").total.files == total


def test_what_was_listed_before_a_listing_broke_off_is_indexed(store: FrameStore, tmp_path: Path) -> None:
    paths = write_files(tmp_path / "d", 10)

    def listing() -> Iterator[str]:
        yield from paths
        raise OSError("the disk is gone")

    found: list[str] = []
    with pytest.raises(OSError, match="the disk is gone"):
        for reports in index_files(FileIndexer(store), listing(), batch_size=5):
            found += [report.path for report in reports]
    assert sorted(found) == sorted(paths)
    assert None not in store.file_states("default", paths)


def test_large_tables_end_a_part_early(store: FrameStore, tmp_path: Path) -> None:
    """Slides with a large table each: parts stay small, and nothing is lost between them."""
    lengths = [2 * random.Random(index).randrange(1, 9) for index in range(40_000)]
    table = tuple(itertools.accumulate((8 + length for length in lengths[:-1]), initial=0))
    value = Element(PIXEL_DATA, "OB", Fragments([bytes(length) for length in lengths], table))
    content = dicom([*image(frames=len(lengths)), value], JPEG).content
    first = tmp_path / "first"
    first.write_bytes(content)
    paths = [str(tmp_path / f"{number}.dcm") for number in range(250)]
    for path in paths:
        os.link(first, path)
    parts, seconds, began = [], [], time.monotonic()
    for part in FileIndexer(store, threads=2, verify="none").read(paths):
        parts.append(part)
        seconds.append(time.monotonic() - began)
        began = time.monotonic()
    assert len(parts) > 1
    assert max(len(part.rows) for part in parts) < 32 << 20
    # On a slow machine a part ends after a second, however small it is.
    for part, taken in list(zip(parts, seconds, strict=True))[:-1]:
        assert len(part.rows) > 10 << 20 or taken >= 1
    reported = [report.path for part in parts for report in part.reports]
    assert sorted(reported) == sorted(paths)


def test_two_runs_at_once_index_every_file_once(dsn: str, tmp_path: Path) -> None:
    paths = link_files(tmp_path / "d", 3000)
    found: list[Counter[str]] = []

    def work(seed: int) -> None:
        with FrameStore(dsn) as own:
            mine = random.Random(seed).sample(paths, len(paths))
            indexer = FileIndexer(own, threads=4)
            reports = itertools.chain.from_iterable(index_files(indexer, mine, batch_size=250))
            found.append(statuses(list(reports)))

    with FrameStore(dsn) as store:
        store.sources()
        runs = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
        for each in runs:
            each.start()
        for each in runs:
            each.join()
        assert [sum(counts.values()) for counts in found] == [3000, 3000]
        assert all(counts.keys() <= {"ok", "unchanged"} for counts in found)
        assert store.summary("default").total.files == 3000
        assert statuses(run(store, paths)) == {"unchanged": 3000}


def test_a_batch_has_one_row_for_a_file_however_it_is_named(
    store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [path] = write_files(tmp_path / "d", 1)
    monkeypatch.chdir(tmp_path)
    spellings = ["d/" + Path(path).name, f"./d/../d/{Path(path).name}", f"{tmp_path}//d/{Path(path).name}"]
    for name in [*spellings, path, f"dbfs:{path}"]:
        [report] = FileIndexer(store).index_batch([name])
        assert report.path == path
    assert len(FileIndexer(store).index_batch(spellings)) == 1
    assert store.summary("default").total.files == 1
