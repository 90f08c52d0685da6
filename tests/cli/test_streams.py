"""Output that nobody reads: listings end quietly, all else goes on and ends with its own exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.running import OK, PARTIAL, USAGE, Cli, Done, finish, native, start
from cli.test_help import COMMANDS
from voxtier.cli.commands import _LISTINGS


def run_unread(*arguments: object) -> Done:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        return finish(start(*arguments, stdout=write_end))
    finally:
        os.close(write_end)


def shell(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell, in which ``$@`` is voxtier with these arguments."""
    words = [sys.executable, "-m", "voxtier", *map(str, arguments)]
    return subprocess.run(["bash", "-c", command, "bash", *words], capture_output=True, text=True)


def test_every_listing_is_a_command() -> None:
    assert set(COMMANDS) >= _LISTINGS


@pytest.mark.parametrize(
    "words", ["--help", "--version", "frames table --help", "tensors init", "doctor --help"]
)
def test_help_that_nobody_reads_exits_0(words: str) -> None:
    done = run_unread(*words.split())
    assert (done.code, done.err) == (OK, "")


@pytest.mark.parametrize("spelling", ["frames top", "top"])
def test_a_listing_without_end_ends_with_its_reader(spelling: str) -> None:
    done = run_unread(*spelling.split(), "--interval", 0.1)
    assert (done.code, done.err) == (OK, "")


def test_what_acts_acts_to_its_end(voxtier: Cli, tmp_path: Path, dsn: str) -> None:
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / name).write_bytes(native())
    assert run_unread("index", tmp_path, "--dsn", dsn, "--json").code == PARTIAL
    assert voxtier("index", tmp_path, "--dsn", dsn).code == OK
    out = tmp_path / "index.parquet"
    assert run_unread("frames", "export", out, "--dsn", dsn).code == OK
    assert out.stat().st_size > 0
    absent = run_unread("explain", tmp_path / "absent")
    assert absent.code == USAGE
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"no image at all, but long enough to hold one" * 10)
    assert run_unread("explain", bad).code == voxtier("explain", bad).code == 1


def test_messages_that_nobody_takes_change_no_exit_code(tmp_path: Path) -> None:
    csv = tmp_path / "train.csv"
    csv.write_text("VolumeName\ntrain_1_a_1.nii.gz\n")
    arguments = ("tensors", "map", "--csv-path", csv, "--output-path", tmp_path / "map.json")
    for streams in ("2>&-", "2>/dev/full", ">&-", ">&- 2>&-", "<&- >&- 2>&-"):
        done = shell(f'"$@" {streams}', *arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (OK, False), streams
    absent = ("tensors", "map", "--csv-path", tmp_path / "absent.csv")
    for streams in ("2>&-", "2>/dev/full"):
        assert shell(f'"$@" {streams}', *absent).returncode == USAGE, streams
    assert shell('"$@" >/dev/full', "tensors", "init").returncode == PARTIAL
    assert shell('"$@" <&-', "tensors", "generate", "--config", tmp_path / "absent").returncode == USAGE
