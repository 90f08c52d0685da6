"""`voxtier frames stats` and `voxtier frames top`: what running readers say of themselves."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.builders import dicom, element, image, pattern
from voxtier.frames.serving.reader import FrameReader
from voxtier.frames.serving.status_files import read_statuses, readers_folder
from voxtier.system.durable import temporary_path
from voxtier.system.machine import numbering


def voxtier(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "voxtier", *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom([*image(frames=2), element("PixelData", pattern(32))]).content)
    return str(path)


def wait_for(count: int, requests: int = 0) -> list[Any]:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = list(read_statuses(readers_folder()))
        if len(found) == count and all(r.content["stats"]["requests"] >= requests for r in found):
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def test_a_reader_is_seen_from_its_first_request_until_it_closes(path: str) -> None:
    with (
        FrameReader(None, "archive", budget_bytes=1 << 20) as reader,
        FrameReader(None, publish=False) as dumb,
    ):
        assert list(read_statuses(readers_folder())) == []
        for _ in range(4):
            reader.frame(path, 1)
            dumb.frame(path, 1)
        [seen] = wait_for(1, 4)
        assert (seen.pid, seen.content["source"]) == (os.getpid(), "archive")
        assert readers_folder().stat().st_mode & 0o077 == 0
        shown = voxtier("frames", "stats")
        assert shown.returncode == 0, shown.stderr
        row = shown.stdout.splitlines()[1].split()
        assert row[:3] == [str(os.getpid()), "archive", "4"]
        assert row[4:7] == ["75.0%", "0.0%", "25.0%"]
        assert row[-1] == "ready"
        [line] = voxtier("frames", "stats", "--json").stdout.splitlines()
        assert json.loads(line)["stats"]["cache"]["entries"] == 1
        pages = voxtier("frames", "top", "--count", "2", "--interval", "0.1")
        assert pages.returncode == 0, pages.stderr
        assert pages.stdout.count("archive") == 2
        assert "\x1b" not in pages.stdout
        assert (
            len(voxtier("frames", "top", "--count", "2", "--interval", "0.1", "--json").stdout.splitlines())
            == 2
        )
    assert list(read_statuses(readers_folder())) == []
    nobody = voxtier("frames", "stats")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert "no reader runs" in nobody.stderr


def test_a_reader_never_closed_is_gone_with_its_last_reference(path: str) -> None:
    reader = FrameReader(None)
    reader.frame(path, 0)
    wait_for(1)
    del reader
    gc.collect()
    wait_for(0)


def _serve(path: str) -> None:
    FrameReader(None, "killed").frame(path, 0)
    reader = FrameReader(None, "killed")
    reader.frame(path, 0)
    time.sleep(60)


def test_a_killed_readers_file_is_removed_and_a_damaged_one_skipped(path: str) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_serve, args=(path,))
    child.start()
    wait_for(1)
    child.kill()
    child.join()
    # Killed between writing and renaming; and a living process that is there just now.
    (readers_folder() / f".{child.pid}-7.json.{numbering()}-{child.pid}-1.tmp").write_text("{")
    own = temporary_path(readers_folder() / f"{os.getpid()}-999.json")
    own.write_text("{")
    assert list(read_statuses(readers_folder())) == []
    assert os.listdir(readers_folder()) == [own.name]
    own.unlink()
    good = {"source": "s", "program": "p", "started": 1.0, "written": 1.0}
    stats = {"requests": 1, "tier1": 1, "tier2": 0, "tier3": 0, "degraded": False}
    stats |= {"cache": {"used": 1, "budget": 2, "dirty": 0}, "preload": {"seen": 0, "state": "idle"}}
    for number, text in enumerate(
        ["", "{", "[]", json.dumps(good), json.dumps({**good, "stats": {**stats, "tier1": "x"}}), "\0" * 99]
    ):
        (readers_folder() / f"{os.getpid()}-{number}.json").write_text(text)
    (readers_folder() / "0-1.json").write_text("no process has this number")
    (readers_folder() / "99999999999-1.json").write_text("too long a number")
    (readers_folder() / "notes.json").write_text("{}")
    assert voxtier("frames", "stats").returncode == 1
    assert list(read_statuses(readers_folder())) == []
    silent = {**good, "source": "\x1b[2J", "stats": {**stats, "degraded": True}}
    (readers_folder() / f"{os.getpid()}-9.json").write_text(json.dumps(silent))
    shown = voxtier("frames", "stats").stdout
    assert "\x1b" not in shown
    assert "silent" in shown
    assert "no database" in shown
    assert (readers_folder() / "notes.json").exists()


def test_a_process_id_used_again_is_not_the_reader(path: str) -> None:
    with FrameReader(None) as reader:
        reader.frame(path, 0)
        [seen] = wait_for(1)
        old = readers_folder() / seen.name.replace(".json", "7.json")
        old.write_bytes((readers_folder() / seen.name).read_bytes())
        os.utime(old, (1, 1))
        wait_for(1)
        assert not old.exists()


def test_readers_of_another_container_are_left_alone(path: str) -> None:
    """Two containers share the folder, and the numbers of their processes are the same."""
    with FrameReader(None) as reader:
        reader.frame(path, 0)
        [own] = wait_for(1)
        here, _, rest = own.name.partition("-")
        unused = next(number for number in range(2, 30_000) if not Path(f"/proc/{number}").exists())
        theirs = [readers_folder() / f"0123abcd-{name}" for name in (rest, f"{unused}-1.json")]
        for each in theirs:
            each.write_bytes((readers_folder() / own.name).read_bytes())
        wait_for(1)
        assert {own.name, *(each.name for each in theirs)} == set(os.listdir(readers_folder()))
        for each in theirs:
            os.utime(each, (1, 1))
        wait_for(1)
        assert os.listdir(readers_folder()) == [own.name]
        assert here == numbering()


def test_a_reader_is_seen_at_the_first_look(path: str) -> None:
    """However long it runs: the times that /proc shows of a process are those of the first look at it."""
    with FrameReader(None) as reader:
        reader.frame(path, 0)
        [seen] = wait_for(1)
    other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        told = readers_folder() / f"{other.pid}-0.json"
        told.write_text(json.dumps(seen.content))
        time.sleep(1.5)
        [again] = read_statuses(readers_folder())
        assert (again.pid, again.content) == (other.pid, seen.content)
        os.utime(told, (1, 1))
        assert list(read_statuses(readers_folder())) == []
        assert not told.exists()
    finally:
        other.communicate()


def test_a_folder_that_cannot_be_written_does_not_stop_the_reader(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOXTIER_HOME", str(tmp_path / "voxtier-home"))
    (tmp_path / "voxtier-home").write_text("a file")
    with FrameReader(None) as reader:
        assert reader.frame(path, 0)
        time.sleep(0.2)
        assert reader.frame(path, 1)
    assert voxtier("frames", "stats").returncode in (1, 2)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_writes_a_file_of_its_own(path: str) -> None:
    with FrameReader(None) as reader:
        reader.frame(path, 0)
        wait_for(1)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                reader.frame(path, 1)
                os.write(write, b"x" if len(wait_for(2)) == 2 else b"-")
                reader.close()
            finally:
                os._exit(0)
        os.close(write)
        assert os.read(read, 1) == b"x"
        os.close(read)
        os.waitpid(pid, 0)
        [left] = wait_for(1)
        assert left.pid == os.getpid()
