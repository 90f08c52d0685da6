"""The index run: what is read, what is left alone, and what every kind of trouble leaves behind."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from builders import JPEG, PIXEL_DATA, Element, Fragments, dicom, element, image, jpeg, pattern
from frames.dicom.cases import CASES, Case
from voxtier import _core
from voxtier._core import MAX_PATH_BYTES, Refusal
from voxtier.errors import BackendError
from voxtier.frames import FrameTable, read_frame, read_table
from voxtier.frames.indexing.paths import iter_files
from voxtier.frames.indexing.run import FileIndexer, FileReport, index_files
from voxtier.frames.store.store import FrameStore


@pytest.fixture
def store(dsn: str) -> Iterator[FrameStore]:
    with FrameStore(dsn) as store:
        yield store


def native(frames: int = 1, seed: int = 0) -> bytes:
    return dicom([*image(frames=frames), element("PixelData", pattern(16 * frames, seed))]).content


def written(folder: Path, count: int) -> list[str]:
    """Files with 1, 2, 3... frames."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:05}.dcm" for number in range(count)]
    for frames, path in enumerate(paths, 1):
        path.write_bytes(native(frames))
    return [str(path) for path in paths]


def linked(folder: Path, count: int) -> list[str]:
    """Many small files that share their content."""
    folder.mkdir()
    first = folder / "first"
    first.write_bytes(native())
    paths = [str(folder / f"{number:06}.dcm") for number in range(count)]
    for path in paths:
        os.link(first, path)
    return paths


def run(store: FrameStore, paths: list[str], **options: object) -> list[FileReport]:
    indexer = FileIndexer(store, **options)  # type: ignore[arg-type]
    return [report for reports in index_files(indexer, paths) for report in reports]


def statuses(reports: list[FileReport]) -> Counter[str]:
    return Counter(report.status for report in reports)


def rows_of(store: FrameStore, paths: list[str], source: str = "default") -> list[object]:
    """What the index holds, without the exceptions, which compare by identity."""
    return [
        (str(row.error), row.size, row.mtime_ns) if isinstance(row, Refusal) else row
        for row in store.get_many(source, paths)
    ]


class TestCases:
    def test_every_case_through_the_store_and_back(self, store: FrameStore, tmp_path: Path) -> None:
        """Ranges and bytes of every frame, those of several fragments too, after a life as a row."""
        cases = {str(tmp_path / f"{number}.dcm"): case for number, case in enumerate(CASES)}
        for path, case in cases.items():
            Path(path).write_bytes(case.content)
        reports = {report.path: report for report in run(store, list(cases))}
        assert reports.keys() == cases.keys()
        assert any(len(ranges) > 1 for case in CASES for ranges in case.ranges)
        for path, case in cases.items():
            self.check(case, path, store.get("default", path), reports[path])

    def check(self, case: Case, path: str, found: object, report: FileReport) -> None:
        if case.error:
            assert isinstance(found, Refusal)
            assert found.error.kind == report.error_kind == case.error
            assert report.status == _core.refused_status(case.error)
            assert report.error == str(found.error)
            return
        assert isinstance(found, FrameTable)
        assert found == read_table(path, verify="all")
        assert (report.status, report.frames) == (case.status, len(case.ranges))
        assert report.truncated_from == case.truncated_from
        whole = case.ranges if case.truncated_from is None else case.ranges[: case.truncated_from]
        assert [tuple(found.ranges(index)) for index in range(len(whole))] == list(whole)
        for index, pixels in enumerate(case.pixels):
            assert read_frame(path, found, index) == pixels

    @pytest.mark.parametrize("value", [b"MONO\0CHROME ", b"Doe^Jane", b"\xff\xfe\0\x1b[2J ", b"X" * 40])
    def test_text_of_a_file_cannot_fail_its_batch(
        self, store: FrameStore, tmp_path: Path, value: bytes
    ) -> None:
        """PostgreSQL takes no NUL in text, and a name in the wrong element is still a name."""
        texts = ("PhotometricInterpretation", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
        elements = [
            Element(each.tag, each.vr, value)
            if each.tag in {element(name, b"").tag for name in texts}
            else each
            for each in image()
        ]
        bad, good = tmp_path / "bad.dcm", tmp_path / "good.dcm"
        bad.write_bytes(dicom([*elements, element("PixelData", pattern(16))]).content)
        good.write_bytes(native())
        assert statuses(run(store, [str(bad), str(good)])) == {"ok": 2}
        table = store.get("default", str(bad))
        assert isinstance(table, FrameTable)
        assert table == read_table(bad, verify="all")
        assert (table.photometric_interpretation, table.sop_instance_uid, table.study_instance_uid) == (
            "", "", ""
        )  # fmt: skip


class TestRuns:
    def test_a_second_run_reads_nothing(
        self, store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = written(tmp_path / "d", 5)
        first = run(store, paths)
        assert statuses(first) == {"ok": 5}
        second = run(store, paths)
        assert statuses(second) == {"unchanged": 5}
        frames = {report.path: report.frames for report in first}
        assert {report.path: report.frames for report in second} == frames
        for path in paths:  # not even opened: what is in them now would be refused
            before = os.stat(path)
            Path(path).write_bytes(b"x" * before.st_size)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert statuses(run(store, paths)) == {"unchanged": 5}
        assert statuses(run(store, paths, force=True)) == {"error": 5}

    @pytest.mark.parametrize("frames", [1, 9], ids=["fewer frames", "more frames"])
    def test_a_changed_file_is_indexed_anew(self, store: FrameStore, tmp_path: Path, frames: int) -> None:
        paths = written(tmp_path / "d", 3)
        run(store, paths)
        Path(paths[2]).write_bytes(native(frames))
        assert statuses(run(store, paths)) == {"unchanged": 2, "ok": 1}
        table = store.get("default", paths[2])
        assert isinstance(table, FrameTable)
        assert len(table) == frames
        assert table == read_table(paths[2], verify="all")

    def test_same_size_other_time_is_a_change(self, store: FrameStore, tmp_path: Path) -> None:
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

    def test_a_file_that_becomes_an_error_and_heals(self, store: FrameStore, tmp_path: Path) -> None:
        [path] = written(tmp_path / "d", 1)
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

    def test_a_file_that_could_not_be_opened_heals(self, store: FrameStore, tmp_path: Path) -> None:
        link = tmp_path / "link.dcm"
        link.symlink_to(tmp_path / "target")
        [report] = run(store, [str(link)])
        assert (report.status, report.error_kind) == ("error", "io_error")
        (tmp_path / "target").write_bytes(native())
        assert statuses(run(store, [str(link)])) == {"ok": 1}

    def test_rows_of_another_parser_are_read_again(self, store: FrameStore, tmp_path: Path, dsn: str) -> None:
        paths = written(tmp_path / "d", 2)
        run(store, paths)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                "UPDATE voxtier.file SET parser_version = parser_version - 1 WHERE path = %s", (paths[0],)
            )
        assert store.get("default", paths[0]) is None
        assert statuses(run(store, paths)) == {"ok": 1, "unchanged": 1}
        assert isinstance(store.get("default", paths[0]), FrameTable)

    def test_force_reads_everything(self, store: FrameStore, tmp_path: Path) -> None:
        paths = written(tmp_path / "d", 4)
        run(store, paths)
        assert statuses(run(store, paths, force=True)) == {"ok": 4}

    def test_a_vanished_file_is_forgotten_on_request_only(self, store: FrameStore, tmp_path: Path) -> None:
        paths = written(tmp_path / "d", 3)
        run(store, paths)
        Path(paths[1]).unlink()
        run(store, [paths[0], paths[2]])
        assert isinstance(store.get("default", paths[1]), FrameTable)
        assert store.prune("default", under=[str(tmp_path / "d")]) == 1
        assert [row is None for row in store.get_many("default", paths)] == [False, True, False]

    def test_a_path_given_twice_is_one_file(self, store: FrameStore, tmp_path: Path) -> None:
        paths = written(tmp_path / "d", 3)
        assert statuses(run(store, paths * 4)) == {"ok": 3}
        indexer = FileIndexer(store, source="small batches")
        for _ in index_files(indexer, paths * 4, batch_size=2):
            pass
        assert store.summary("small batches").total.files == 3

    def test_sources_are_worlds(self, store: FrameStore, tmp_path: Path) -> None:
        paths = written(tmp_path / "d", 3)
        run(store, paths, source="a")
        assert statuses(run(store, paths[:2], source="b")) == {"ok": 2}
        assert statuses(run(store, paths, source="a")) == {"unchanged": 3}
        Path(paths[0]).write_bytes(native(7))
        run(store, paths, source="b")
        [in_a, in_b] = [store.get(source, paths[0]) for source in "ab"]
        assert isinstance(in_a, FrameTable)
        assert isinstance(in_b, FrameTable)
        assert (len(in_a), len(in_b)) == (1, 7)

    def test_the_order_makes_no_difference(self, store: FrameStore, tmp_path: Path) -> None:
        paths = [str(tmp_path / f"{number}.dcm") for number in range(len(CASES))]
        for path, case in zip(paths, CASES, strict=True):
            Path(path).write_bytes(case.content)
        run(store, paths, source="forward")
        shuffled = random.Random(7).sample(paths, len(paths))
        for _ in index_files(FileIndexer(store, source="shuffled", threads=3), shuffled, batch_size=17):
            pass
        assert rows_of(store, paths, "forward") == rows_of(store, paths, "shuffled")

    def test_paths_may_be_path_objects(self, store: FrameStore, tmp_path: Path) -> None:
        paths = [Path(path) for path in written(tmp_path / "d", 2)]
        indexer = FileIndexer(store)
        assert statuses(indexer.index_batch(paths)) == {"ok": 2}  # type: ignore[arg-type]
        assert statuses(indexer.index_batch(paths)) == {"unchanged": 2}  # type: ignore[arg-type]


class TestMany:
    def test_a_generator_of_any_length_in_bounded_memory(self, store: FrameStore, tmp_path: Path) -> None:
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

    def test_large_tables_end_a_batch_early(self, store: FrameStore, tmp_path: Path) -> None:
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
        assert max(len(rows) for rows, _ in parts) < 32 << 20
        # On a slow machine a part ends after a second, however small it is.
        for (rows, _), taken in list(zip(parts, seconds, strict=True))[:-1]:
            assert len(rows) > 10 << 20 or taken >= 1
        reported = [report.path for _, reports in parts for report in reports]
        assert sorted(reported) == sorted(paths)

    def test_two_runs_at_once(self, dsn: str, tmp_path: Path) -> None:
        paths = linked(tmp_path / "d", 3000)
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


class TestTrouble:
    def test_each_file_is_on_its_own(self, store: FrameStore, tmp_path: Path) -> None:
        [good] = written(tmp_path / "d", 1)
        (tmp_path / "empty").touch()
        (tmp_path / "text").write_text("no image at all" * 30)
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "fifo")
        names = ["empty", "text", "loop", "broken", "fifo", "missing", "folder"]
        reports = {Path(r.path).name: r for r in run(store, [*(str(tmp_path / n) for n in names), good])}
        assert {name: (r.status, r.error_kind) for name, r in reports.items()} == {
            "empty": ("error", "empty"),
            "text": ("error", "not_dicom"),
            **dict.fromkeys(("loop", "broken", "fifo", "missing"), ("error", "io_error")),
            "folder": ("refused", "io_error"),
            Path(good).name: ("ok", None),
        }
        assert all(str(tmp_path) not in str(report.error) for report in reports.values())
        assert {Path(error.path).name for error in store.refused_files("default")} == set(names) - {"folder"}

    @pytest.mark.parametrize(
        "name",
        ["'quoted'\"%s{}\\.dcm", "ümläut ☃ 影像.dcm", "new\nline\r\t\x1b[2J.dcm", " lead.dcm", "-o.dcm"],
    )
    def test_any_name_that_is_text(self, store: FrameStore, tmp_path: Path, name: str) -> None:
        path = str(tmp_path / name)
        Path(path).write_bytes(native(2))
        assert statuses(run(store, [path])) == {"ok": 1}
        assert statuses(run(store, [path])) == {"unchanged": 1}
        table = store.get("default", path)
        assert isinstance(table, FrameTable)
        assert len(table) == 2

    def test_names_that_cannot_be_rows_are_told(self, store: FrameStore, tmp_path: Path) -> None:
        [good] = written(tmp_path / "d", 1)
        not_text = os.fsencode(tmp_path) + b"/\xff\xfe.dcm"
        with open(not_text, "wb") as file:
            file.write(native())
        longest = "/" + "x" * (MAX_PATH_BYTES - 1)
        bad = [os.fsdecode(not_text), "/lone\ud800", "/nul\0.dcm", "", longest + "x"]
        reports = {report.path: report for report in run(store, [*bad, good, longest])}
        assert {path: reports[path].status for path in bad} == dict.fromkeys(bad, "refused")
        assert all(reports[path].error for path in bad)
        assert reports[good].status == "ok"
        assert reports[longest].status == "error", "no such file, but a row can say so"
        assert store.summary("default").total.files == 2

    def test_a_folder_in_the_place_of_a_file(self, store: FrameStore, tmp_path: Path) -> None:
        """A row would never be healed: the folder is walked on the next run, not read."""
        folder = tmp_path / "was a file.dcm"
        folder.mkdir()
        [report] = run(store, [str(folder)])
        assert (report.status, report.as_status()["status"]) == ("refused", "error")
        assert store.summary("default").total.files == 0

    def test_a_file_replaced_while_it_is_read(self, store: FrameStore, tmp_path: Path) -> None:
        """Whichever of the two files was met, its table and its fingerprint belong together."""
        path = tmp_path / "x.dcm"
        versions = [native(frames) for frames in (3, 400)]
        path.write_bytes(versions[0])
        stop = threading.Event()

        def replace() -> None:
            for number in itertools.count():
                if stop.is_set():
                    return
                fresh = tmp_path / f"fresh{number % 7}"
                fresh.write_bytes(versions[number % 2])
                fresh.replace(path)

        writer = threading.Thread(target=replace)
        writer.start()
        try:
            sizes = {len(version): frames for version, frames in zip(versions, (3, 400), strict=True)}
            for _ in range(60):
                [report] = run(store, [str(path)])
                if report.status == "ok":
                    table = store.get("default", str(path))
                    assert isinstance(table, FrameTable)
                    assert len(table) == sizes[table.size]
                else:
                    assert report.status == "unchanged" or report.error_kind == "changed_during_read"
        finally:
            stop.set()
            writer.join()
        run(store, [str(path)])
        assert store.get("default", str(path)) == read_table(path, verify="all")

    def test_what_was_yielded_is_in_the_database(self, store: FrameStore, tmp_path: Path) -> None:
        """A run that ends in mid-air, by its caller or by its paths, leaves whole rows and no lie."""
        paths = linked(tmp_path / "d", 500)

        def broken() -> Iterator[str]:
            yield from paths[:300]
            raise RuntimeError("the list ends here")

        reported: list[str] = []
        with pytest.raises(RuntimeError, match="ends here"):
            for reports in index_files(FileIndexer(store), broken(), batch_size=50):
                reported += [report.path for report in reports]
        assert None not in store.get_many("default", reported)
        for reports in index_files(FileIndexer(store, source="left"), paths, batch_size=50):
            assert None not in store.get_many("left", [report.path for report in reports])
            break
        assert statuses(run(store, paths)).keys() <= {"ok", "unchanged"}
        assert store.summary("default").total.files == 500

    def test_a_database_that_is_down(self, store: FrameStore, tmp_path: Path) -> None:
        paths = written(tmp_path / "d", 2)
        nowhere = FrameStore(f"host={tmp_path} dbname=none connect_timeout=2")
        with pytest.raises(BackendError):
            run(nowhere, paths)
        nowhere.close()


class TestWalk:
    def test_what_is_found(self, tmp_path: Path) -> None:
        names = ["b/2.dcm", "b/10.DCM", "b/deep/er/x.dcm", "a/1.dcm", "a/readme.txt", "z.dcm", "no_extension"]
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "empty").mkdir()

        def found(extension: str | None = ".dcm") -> list[str]:
            root = str(tmp_path)
            return [path.removeprefix(root + "/") for path in iter_files([root], extension=extension)]

        assert found() == ["z.dcm", "a/1.dcm", "b/10.DCM", "b/2.dcm", "b/deep/er/x.dcm"]
        assert sorted(found(None)) == sorted(names)

    def test_links_to_folders_are_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "x.dcm").touch()
        (tmp_path / "real" / "up").symlink_to(tmp_path)
        (tmp_path / "link.dcm").symlink_to(tmp_path / "real")
        (tmp_path / "file.dcm").symlink_to(tmp_path / "real" / "x.dcm")
        (tmp_path / "loop.dcm").symlink_to(tmp_path / "loop.dcm")
        found = [Path(path).name for path in iter_files([str(tmp_path)], extension=None)]
        assert sorted(found) == ["file.dcm", "loop.dcm", "x.dcm"]
        assert list(iter_files([str(tmp_path / "link.dcm")])) == [str(tmp_path / "link.dcm" / "x.dcm")]

    def test_a_named_file_needs_no_extension(self, tmp_path: Path) -> None:
        (tmp_path / "IM0001").touch()
        named = [str(tmp_path / "IM0001"), str(tmp_path / "missing")]
        assert list(iter_files(named)) == named

    def test_a_large_folder_is_taken_in_parts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("voxtier.frames.indexing.paths._SORTED", 7)
        for number in range(50):
            (tmp_path / f"{number}.dcm").touch()
            (tmp_path / f"folder{number}").mkdir()
            (tmp_path / f"folder{number}" / "x.dcm").touch()
        found = list(iter_files([str(tmp_path)]))
        assert len(found) == len(set(found)) == 100

    def test_a_folder_that_vanishes_while_it_is_walked(self, tmp_path: Path) -> None:
        for name in "abc":
            (tmp_path / name).mkdir()
            (tmp_path / name / "x.dcm").touch()
        walk = iter_files([str(tmp_path)])
        assert next(walk) == str(tmp_path / "a" / "x.dcm")
        (tmp_path / "b" / "x.dcm").unlink()
        (tmp_path / "b").rmdir()
        assert list(walk) == [str(tmp_path / "b"), str(tmp_path / "c" / "x.dcm")]


@pytest.mark.parametrize(
    ("report", "status"),
    [
        (FileReport("/x", "ok", 7, None, None, None), {"status": "cached", "num_frames": 7}),
        (
            FileReport("/x", "unchanged", 7, None, None, None),
            {"status": "skipped", "reason": "already_cached", "num_frames": 7},
        ),
        (
            FileReport("/x", "no_pixels", 0, None, None, None),
            {"status": "skipped", "reason": "no_pixels", "num_frames": 0},
        ),
        (
            FileReport("/x", "truncated", 7, 3, None, None),
            {"status": "partial", "num_frames": 7, "truncated_from": 3},
        ),
        (
            FileReport("/x", "error", 0, None, "empty", "e" * 600),
            {"status": "error", "error": "e" * 500},
        ),
    ],
    ids=lambda value: value.status if isinstance(value, FileReport) else "",
)
def test_status_objects_are_the_origins(report: FileReport, status: dict[str, object]) -> None:
    assert report.as_status() == status


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: _core.Indexer("s", threads=0, verify="all"),
        lambda: _core.Indexer("s", threads=2, verify="much"),  # type: ignore[arg-type]
        lambda: _core.Indexer("s", threads=2, verify="all").read(["/a"], []),
        lambda: _core.refused_status("no such kind"),
    ],
    ids=["no threads", "unknown depth", "lists of two lengths", "unknown kind"],
)
def test_arguments_outside_their_domain(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        wrong()
