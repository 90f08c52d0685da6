"""Index runs over files, names and databases that fail: each fault stays with its file."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from frames.indexing.files import link_files, native, run, statuses, write_files
from voxtier._core import MAX_PATH_BYTES
from voxtier.errors import BackendError
from voxtier.frames import FrameTable, read_table
from voxtier.frames.indexing.run import FileIndexer, index_files
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.embedded import embedded_server


def test_a_file_that_fails_leaves_the_others_indexed(store: FrameStore, tmp_path: Path) -> None:
    [good] = write_files(tmp_path / "d", 1)
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
def test_any_name_that_is_text_is_indexed(store: FrameStore, tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    Path(path).write_bytes(native(2))
    assert statuses(run(store, [path])) == {"ok": 1}
    assert statuses(run(store, [path])) == {"unchanged": 1}
    table = store.get("default", path)
    assert isinstance(table, FrameTable)
    assert len(table) == 2


def test_names_that_cannot_be_stored_are_refused_in_the_report(store: FrameStore, tmp_path: Path) -> None:
    [good] = write_files(tmp_path / "d", 1)
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


def test_a_folder_in_the_place_of_a_file_gets_no_row(store: FrameStore, tmp_path: Path) -> None:
    """A row would never be healed: the folder is walked on the next run, not read."""
    folder = tmp_path / "was a file.dcm"
    folder.mkdir()
    [report] = run(store, [str(folder)])
    assert (report.status, report.as_status()["status"]) == ("refused", "error")
    assert store.summary("default").total.files == 0


def test_a_file_replaced_while_it_is_read_is_never_mixed(store: FrameStore, tmp_path: Path) -> None:
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


def test_an_abandoned_run_has_stored_what_it_reported(store: FrameStore, tmp_path: Path) -> None:
    """A run that ends in mid-air, by its caller or by its paths, leaves whole rows and no lie."""
    paths = link_files(tmp_path / "d", 500)

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


def test_a_run_that_outlives_crashes_of_its_server_has_stored_what_it_reported(tmp_path: Path) -> None:
    paths = link_files(tmp_path / "d", 400)
    reported: list[str] = []
    with FrameStore() as store:
        for number, reports in enumerate(index_files(FileIndexer(store), paths, batch_size=50)):
            assert statuses(reports) == {"ok": len(reports)}
            reported += [report.path for report in reports]
            if number in (0, 3, 6):
                pid = embedded_server().status().pid
                assert pid is not None
                os.kill(pid, signal.SIGQUIT)  # it stops at once, with nothing more written
        assert sorted(reported) == sorted(paths)
        assert None not in store.get_many("default", paths)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_cannot_be_read_keeps_its_row_until_it_can(
    store: FrameStore, tmp_path: Path, *, force: bool
) -> None:
    paths = write_files(tmp_path / "d", 4)
    text = tmp_path / "text"
    text.write_text("no image at all" * 30)
    run(store, [*paths, str(text)])
    before = store.get_many("default", paths)
    away = tmp_path / "away"
    (tmp_path / "d").rename(away)
    text.rename(tmp_path / "text away")
    (tmp_path / "d").mkdir()
    Path(paths[0]).symlink_to(paths[0])
    Path(paths[1]).symlink_to(tmp_path / "nowhere")
    reports = run(store, [*paths, str(text)], force=force)
    assert {(report.status, report.error_kind) for report in reports} == {("error", "io_error")}
    assert store.get_many("default", paths) == before
    assert [(each.path, each.kind) for each in store.refused_files("default")] == [(str(text), "not_dicom")]
    for path in paths[:2]:
        Path(path).unlink()
    (tmp_path / "d").rmdir()
    away.rename(tmp_path / "d")
    Path(paths[3]).write_bytes(native(9))
    expected = {"ok": 4} if force else {"unchanged": 3, "ok": 1}
    assert statuses(run(store, paths, force=force)) == expected
    assert store.get("default", paths[3]) == read_table(paths[3], verify="all")
    Path(paths[0]).unlink()
    run(store, paths)
    assert store.prune("default", under=[str(tmp_path / "d")]) == 1


def test_a_database_that_is_down_is_a_backend_error(store: FrameStore, tmp_path: Path) -> None:
    paths = write_files(tmp_path / "d", 2)
    nowhere = FrameStore(f"host={tmp_path} dbname=none connect_timeout=2")
    with pytest.raises(BackendError):
        run(nowhere, paths)
    nowhere.close()
