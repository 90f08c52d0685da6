"""`voxtier frames priority | preload | simulate`: scores, what would fit, and replayed traces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.builders import dicom, element, image, pattern
from voxtier import _core
from voxtier.frames import read_tables
from voxtier.frames.store.store import FrameStore


def voxtier(*arguments: str, dsn: str = "", stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "voxtier", *arguments],
        env={**os.environ, "VOXTIER_DSN": dsn},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def indexed(dsn: str, tmp_path: Path) -> str:
    paths = []
    for number in range(4):
        path = tmp_path / f"{number}.dcm"
        pixels = element("PixelData", pattern(32, number))
        path.write_bytes(dicom([*image(frames=2), pixels]).content)
        paths.append(str(path))
    with FrameStore(dsn) as store:
        store.upsert("default", read_tables(paths))
    return dsn


def test_priority_lists_scores_and_the_cut(indexed: str) -> None:
    done = voxtier("frames", "priority", "--budget", "300", dsn=indexed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(".dcm") == 4
    assert "fresh" in done.stdout
    assert "300 B are full here" in done.stdout
    rows = [
        json.loads(line) for line in voxtier("frames", "priority", "--json", dsn=indexed).stdout.splitlines()
    ]
    assert [row["label"] for row in rows] == ["fresh"] * 4
    assert rows[0]["score"] == pytest.approx(0.2, abs=1e-3)


def test_preload_says_what_would_fit(indexed: str) -> None:
    done = voxtier("frames", "preload", "--budget", "1MiB", "--dry-run", "--json", dsn=indexed)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["state"], found["loaded"], found["damaged"]) == ("done", 4, 0)
    assert 0 < found["bytes"] < 2000
    assert voxtier("frames", "preload", "--budget", "many", dsn=indexed).returncode == 2
    assert voxtier("frames", "preload", dsn="host=127.0.0.1 port=1 connect_timeout=1").returncode == 4


def test_simulate_replays_a_trace() -> None:
    trace = "".join(f"file {number % 10} 100 scan\n" for number in range(200))
    done = voxtier("frames", "simulate", "-", "--budgets", "500,2kB", "--json", stdin=trace)
    assert done.returncode == 0, done.stderr
    ratios = {
        (row["policy"], row["budget"]): row["hit_ratio"] for row in map(json.loads, done.stdout.splitlines())
    }
    assert ratios["lru", 500] == 0
    assert ratios["scan_aware", 500] == pytest.approx(0.475)
    assert ratios["lru", 2000] == ratios["belady", 2000] == pytest.approx(0.95)
    assert voxtier("frames", "simulate", "-", "--budgets", "1", stdin="nonsense\n").returncode == 2
    assert voxtier("frames", "simulate", "-", stdin="").returncode == 1


def test_simulate_draws_one_curve_a_policy(tmp_path: Path) -> None:
    trace = "".join(f"file {number % 10} 100\n" for number in range(200))
    page = tmp_path / "curves.html"
    done = voxtier("frames", "simulate", "-", "--html", str(page), stdin=trace)
    assert done.returncode == 0, done.stderr
    about, head, *lines = done.stdout.splitlines()
    assert about == "hit ratio of 200 requests for 10 files"
    assert [line.split()[0] for line in lines] == ["lru", "scan_aware", "fifo", "belady"]
    for line in lines:
        ratios = [float(word.rstrip("%")) for word in line.partition("|")[0].split()[1:]]
        assert ratios == sorted(ratios)
        assert len(ratios) == len(head.split()) // 2
        assert ratios[-1] == 95.0, "the last budget holds every file"
        assert len(line.rpartition("  |")[2]) == 2 * len(ratios) + 1
    drawn = page.read_text()
    assert drawn.count("<polyline") == 4
    assert drawn.count("<td>95.0%</td>") >= 4
    assert "<script" not in drawn


def test_simulate_refuses_what_it_cannot_replay() -> None:
    keys, scans = np.array([0, 1], np.uint32), np.zeros(2, np.bool_)
    with pytest.raises(ValueError, match="policy"):
        _core.simulate(keys, keys, scans, "magic", [1])
    with pytest.raises(ValueError, match="length"):
        _core.simulate(keys, keys, scans[:1], "lru", [1])
    with pytest.raises(ValueError, match="densely"):
        _core.simulate(np.array([9, 1], np.uint32), keys, scans, "lru", [1])


def test_simulate_takes_any_name_and_refuses_numbers_that_no_table_has(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_bytes(b"\xff\xfe.dcm 300\ncaf\xc3\xa9.dcm 300\n\xff\xfe.dcm 300\n")
    done = voxtier("frames", "simulate", str(trace), "--budgets", "1MB", "--policy", "lru", "--json")
    [row] = map(json.loads, done.stdout.splitlines())
    assert (row["requests"], row["hit_ratio"]) == (3, pytest.approx(1 / 3))
    for digits in (11, 20, 21, 5_000):
        done = voxtier("frames", "simulate", "-", stdin=f"a {'9' * digits}\n")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "line 1 of the trace" in done.stderr
