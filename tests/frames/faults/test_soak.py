"""200,000 reads by path and by UID while files, processes and the database fail: no wrong byte, no stall."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from frames.faults.changes import Changes
from frames.faults.contents import FRAMES, identify, uid_of
from frames.faults.reader_process import Read, count_frames, records
from frames.indexing.files import run, statuses
from voxtier.frames import FrameReader, FrameStore

READS = int(os.environ.get("VOXTIER_SOAK_READS", "200000"))
FILES = 48
# A path is taken to name the file that it named a second ago; the rest is for a busy machine.
STALE_SECONDS = 2.0
STALL_SECONDS = 20.0
TESTS = Path(__file__).parents[2]


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system with hardly any room, where one can be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    is_mounted = bool(shutil.which("mount")) and not subprocess.run(mount, capture_output=True).returncode
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


class Processes:
    """Two reading processes and one that indexes, each killed now and then and started again."""

    def __init__(self, folder: Path, dsn: str, paths: list[Path]) -> None:
        self.folder, self.dsn = folder, dsn
        self.counts: Counter[str] = Counter()
        self._environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"}
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._indexing: subprocess.Popen[bytes] | None = None
        self._number = 0
        (folder / "paths").write_text("\n".join(map(str, paths)))

    def tend(self, dice: random.Random) -> None:
        """Start what does not run, kill what has run long enough."""
        for place in (0, 1):
            process = self._running.get(place)
            if process is not None and process.poll() is not None:
                assert process.returncode == -signal.SIGKILL, (
                    f"a reader ended by itself: {process.returncode}"
                )
            if process is None or process.poll() is not None:
                self._number += 1
                out = self.folder / f"{self._number}.records"
                module = ["-m", "frames.faults.reader_process"]
                arguments = [self.dsn, str(self.folder), str(out), str(self._number)]
                self._running[place] = subprocess.Popen(
                    [sys.executable, *module, *arguments], env=self._environment
                )
            elif dice.random() < 0.01:
                process.kill()
                process.wait()
                self.counts["readers killed"] += 1
        if self._indexing is not None and self._indexing.poll() is None and dice.random() < 0.02:
            self._indexing.kill()
            self._indexing.wait()
            self.counts["index runs killed"] += 1
        if self._indexing is None or self._indexing.poll() is not None:
            self.counts["index runs"] += 1
            with (self.folder / "paths").open("rb") as listed:
                self._indexing = subprocess.Popen(
                    [sys.executable, "-m", "voxtier", "index", "-", "--source", "s", "--dsn", self.dsn],
                    stdin=listed,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=self._environment,
                )

    def frames(self) -> int:
        """Count the reads so far that gave frames."""
        return sum(map(count_frames, self.folder.glob("*.records")))

    def stop(self) -> None:
        """Let the readers come to their end, which they must within a minute."""
        (self.folder / "stop").touch()
        for process in self._running.values():
            assert process.wait(60) in (0, -signal.SIGKILL)
        if self._indexing is not None:
            self._indexing.kill()
            self._indexing.wait()


def trouble_database(dsn: str, dice: random.Random, counts: Counter[str]) -> None:
    """End every connection, or hold a lock that nobody waits for."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        if dice.random() < 0.5:
            counts["connections ended"] += 1
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        else:
            counts["tables locked"] += 1
            with connection.transaction():
                connection.execute("LOCK TABLE voxtier.file IN ACCESS EXCLUSIVE MODE")
                time.sleep(dice.random())


def faults(reads: list[Read], changes: Changes) -> list[str]:
    """Return what was not right to answer: other frames, other instances, those that were not there then."""
    placed = defaultdict(list)
    at_path = defaultdict(list)
    for each in changes.placements():
        placed[each.instance, each.version].append(each)
        at_path[each.path].append(each)
    found = []
    for read in reads:
        if read.outcome == "wrong":
            found.append(f"no whole frame: {read}")
        if read.outcome != "frame":
            continue
        since = read.start - STALE_SECONDS
        overlaps = [
            each
            for each in placed[read.instance, read.version]
            if each.since <= read.end and each.until >= since
        ]
        if read.by_uid and read.instance != read.asked:
            found.append(f"another instance: {read}")
        elif not overlaps:
            found.append(f"a version that was not there: {read}")
        elif not read.by_uid and not any(
            each.instance == read.instance and each.since <= read.end and each.until >= since
            for each in at_path[read.asked]
        ):
            found.append(f"another file: {read}")
    return found


def check_at_rest(reader: FrameReader, paths: list[Path], changes: Changes) -> None:
    """When nothing changes any more, every path and every UID gives its file."""
    for at, (instance, version) in changes.current().items():
        for name in (str(paths[at]), uid_of(instance)):
            frames = reader.frames(name, range(FRAMES))
            assert {identify(frame, number) for number, frame in enumerate(frames)} == {(instance, version)}


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_faults_give_no_wrong_byte_and_no_stall(
    tmp_path: Path, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = random.Random(11)
    large, small, run_folder = (tmp_path / name for name in ("large", "small", "run"))
    for folder in (large, small, run_folder):
        folder.mkdir()
    with small_disk(small) as is_small, FrameStore(dsn) as store:
        places = [small if number % 4 == 0 else large for number in range(FILES)]
        paths = [place / f"{number}.dcm" for number, place in enumerate(places)]
        changes = Changes(paths, places, seed=12)
        run(store, [str(path) for path in paths], source="s")
        witness = FrameReader(store, "s", publish=False)
        check_at_rest(witness, paths, changes)
        processes = Processes(run_folder, dsn, paths)
        began = time.monotonic()
        over = threading.Event()

        def change() -> None:
            while not over.is_set():
                changes.change()
                time.sleep(0.004 * dice.random())

        changing = threading.Thread(target=change)
        changing.start()
        try:
            quiet_since, last = time.monotonic(), 0
            while (reads := processes.frames()) < READS:
                processes.tend(dice)
                if dice.random() < 0.03:
                    trouble_database(dsn, dice, processes.counts)
                if reads > last:
                    quiet_since, last = time.monotonic(), reads
                assert time.monotonic() - quiet_since < 60, "no reader reads any more"
                assert changing.is_alive()
                time.sleep(0.2)
        finally:
            over.set()
            changing.join()
            processes.stop()
        seconds = time.monotonic() - began
        changes.settle()
        time.sleep(STALE_SECONDS)
        assert set(statuses(run(store, [str(path) for path in paths], source="s"))) <= {"ok", "unchanged"}
        check_at_rest(witness, paths, changes)
        witness.close()
        with FrameReader(store, "s", publish=False) as fresh:
            check_at_rest(fresh, paths, changes)
    read = [each for path in sorted(run_folder.glob("*.records")) for each in records(path)]
    outcomes = Counter(("uid" if each.by_uid else "path", each.outcome) for each in read)
    slowest = max(each.end - each.start for each in read)
    stalls = [each for each in read if each.end - each.start > STALL_SECONDS]
    wrong = faults(read, changes)
    with capsys.disabled():
        print(f"\n{len(read):,} reads in {seconds:.0f} s, slowest {slowest:.2f} s")
        print(f"{len(wrong)} wrong, {len(stalls)} stalls, small disk: {is_small}")
        print(dict(changes.counts), dict(processes.counts), sep="\n")
        print({" ".join(key): count for key, count in sorted(outcomes.items())})
    assert wrong == []
    assert stalls == []
    assert outcomes["uid", "frame"] + outcomes["path", "frame"] >= READS
    assert min(outcomes["uid", "frame"], outcomes["path", "frame"]) >= READS / 10
    assert set(changes.counts) >= {"copy_over", "fill_the_disk", "swap", "cut", "rewrite_with_time_kept"}
