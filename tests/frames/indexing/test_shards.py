"""Several runs over one source: every file indexed once, none left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frames.indexing.files import native, run, statuses
from frames.store.rows.index_rows import ask
from voxtier.errors import ConfigError
from voxtier.frames.indexing.paths import Shard
from voxtier.frames.indexing.run import FileIndexer, index_files
from voxtier.frames.store.store import FrameStore


@given(st.text(min_size=1).filter(lambda name: "\0" not in name), st.integers(1, 65_536))
def test_each_path_is_in_exactly_one_share(path: str, count: int) -> None:
    few = {1, count, count // 2 + 1}
    holders = [number for number in few if Shard(number, count).holds("s", path)]
    assert len(holders) <= 1
    if count < 20:
        assert sum(Shard(number, count).holds("s", path) for number in range(1, count + 1)) == 1


def test_shares_are_of_one_size() -> None:
    paths = [f"/archive/{number // 100:06}/{number:08}.dcm" for number in range(12_000)]
    for count in (2, 3, 7):
        sizes = Counter(
            number
            for path in paths
            for number in range(1, count + 1)
            if Shard(number, count).holds("s", path)
        )
        assert sum(sizes.values()) == len(paths)
        assert max(sizes.values()) - min(sizes.values()) < len(paths) / count / 5


@pytest.mark.parametrize(
    "text", ["", "4", "0/4", "5/4", "1/0", "-1/4", "1/4/2", "a/b", "1.0/2", "1/65537", "１/2"]
)
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no share: give I/N"):
        Shard.parse(text)


def test_four_processes_index_one_source_together(dsn: str, tmp_path: Path) -> None:
    paths = set()
    for number in range(240):
        path = tmp_path / "d" / f"{number % 7}" / f"ä {number:03}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(native(1 + number % 3))
        paths.add(str(path))
    (tmp_path / "d" / "0" / "damaged.dcm").write_bytes(b"no image")
    paths.add(str(tmp_path / "d" / "0" / "damaged.dcm"))

    def index(*options: str) -> list[subprocess.Popen[str]]:
        # One of them names the folder in another way: a share is of absolute paths.
        folders = [str(tmp_path / "d"), "d", f"{tmp_path}/./d", f"{tmp_path}/d/../d"]
        command = [sys.executable, "-m", "voxtier", "index", "--dsn", dsn, "--json", *options]
        return [
            subprocess.Popen(
                [*command, "--shard", f"{number}/4", folders[number - 1]],
                stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=os.environ,
            )
            for number in range(1, 5)
        ]  # fmt: skip

    for again in (False, True):
        seen: Counter[str] = Counter()
        words: Counter[str] = Counter()
        for process in index():
            lines = [json.loads(line) for line in process.communicate(timeout=120)[0].splitlines()]
            assert process.returncode in (0, 3)
            assert len(lines) > 30  # each had a part of the work
            seen.update(line["path"] for line in lines if "path" in line)
            words.update(line["status"] for line in lines if "path" in line)
        assert seen == Counter(paths)
        assert words == {"unchanged" if again else "ok": 240, "refused": 1}
    assert {path for (path,) in ask(dsn, "SELECT path FROM voxtier.file")} == paths
    assert ask(dsn, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]
    with FrameStore(dsn) as store:  # one run without shares finds nothing to do
        assert statuses(run(store, sorted(paths))) == {"unchanged": 240, "error": 1}


def test_a_share_of_a_small_folder_may_be_empty(store: FrameStore, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.dcm") for number in range(3)]
    for path in paths:
        Path(path).write_bytes(native(1))
    indexer = FileIndexer(store)
    done = [
        report.path
        for number in range(1, 51)
        for reports in index_files(indexer, paths, shard=Shard(number, 50))
        for report in reports
    ]
    assert sorted(done) == paths
