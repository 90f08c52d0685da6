"""Files that appear whole or not at all, and what a kill in mid-write leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from voxtier.system import durable, machine
from voxtier.system.durable import (
    TEMPORARY,
    remove_leftovers,
    temporary_is_live,
    temporary_path,
    write_file,
    write_output,
    write_text,
)

STOP_IN_MID_WRITE = """
import sys, time
from pathlib import Path
from voxtier.system.durable import write_file

def write(file):
    file.write(b"half")
    print("half", flush=True)
    time.sleep(120)

write_file(Path(sys.argv[1]), write)
"""


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "a.json"
    write_text(final, "old")

    def write(file: durable.EagerFile) -> None:
        file.write(b"new")
        assert final.read_text() == "old"

    assert write_file(final, write, check=lambda written: None)
    assert final.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("step", ["write", "check", "rename"])
def test_a_failure_at_any_step_leaves_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "rename":
        monkeypatch.setattr(durable, "appear", fail)
    with pytest.raises(OSError, match="No space left"):
        write_file(
            tmp_path / "a",
            fail if step == "write" else lambda file: file.write(b"x"),
            check=fail if step == "check" else lambda _: None,
        )
    assert os.listdir(tmp_path) == []


def test_an_existing_file_wins_where_it_shall(tmp_path: Path) -> None:
    final = tmp_path / "a"
    assert write_file(final, lambda file: file.write(b"first"), replace=False)
    assert not write_file(final, lambda file: file.write(b"second"), replace=False)
    assert final.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(("sync", "flushes"), [(True, 2), (False, 0)])
def test_the_disk_is_waited_for_unless_told_otherwise(
    sync: bool, flushes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file and its folder: without the latter a power cut takes the name."""
    seen: list[int] = []
    monkeypatch.setattr(durable.os, "fsync", seen.append)
    write_file(tmp_path / "a", lambda file: file.write(b"x"), sync=sync)
    assert len(seen) == flushes


def test_what_a_killed_writer_left_is_told_from_what_a_living_one_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOP_IN_MID_WRITE, str(tmp_path / "frame.jpg")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        (left,) = tmp_path.iterdir()
        assert temporary_is_live(left)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert left.exists()
    assert not temporary_is_live(left)
    own = temporary_path(tmp_path / "frame.jpg")
    others = [
        tmp_path / name for name in ("frame.jpg", ".frame.jpg.tmp", left.name.replace("frame", "other"))
    ]
    for path in (own, *others):
        path.touch()
    remove_leftovers(tmp_path / "frame.jpg")
    assert sorted(tmp_path.iterdir()) == sorted([own, *others])


def test_a_temporary_of_a_process_whose_number_was_used_again_is_left_over(tmp_path: Path) -> None:
    """A container that is started anew gives the same numbers, and maybe has the same namespace."""
    own = temporary_path(tmp_path / "a")
    own.write_bytes(b"half")
    started = machine.start_ticks(os.getpid())
    assert temporary_is_live(own)
    other = own.rename(own.with_name(own.name.replace(f"-{started}-", f"-{int(started) - 1}-")))
    assert other != own
    assert not temporary_is_live(other)


@pytest.mark.parametrize("name", ["a.pt", "x" * 255, "ü" * 127])
def test_a_temporary_name_fits_beside_any_name(name: str, tmp_path: Path) -> None:
    path = temporary_path(tmp_path / name)
    match = TEMPORARY.fullmatch(path.name)
    assert match is not None
    assert int(match["pid"]) == os.getpid()
    write_text(tmp_path / name, "whole")
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_what_a_user_names_is_replaced_only_if_it_is_a_file(tmp_path: Path) -> None:
    """A device that became a file would be lost to all other programs."""
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    file.write_bytes(b"old")
    link.symlink_to(file)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_output(pipe, lambda stream: stream.write(b"new"))
        assert os.read(reader, 9) == b"new"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    write_output(link, lambda stream: stream.write(b"new"))
    assert (link.is_symlink(), file.read_bytes()) == (True, b"new")
    with pytest.raises(OSError, match="absent"):
        write_output(tmp_path / "absent" / "file", lambda stream: stream.write(b"new"))
    assert sorted(tmp_path.iterdir()) == [file, link, pipe]
