"""Several processes at one index: batches that overlap, a writer that is killed, a fork."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

from frames.dicom.cases import CASES
from frames.store.rows.index_rows import ask
from voxtier.frames import FrameTable
from voxtier.frames.store.store import FrameStore

# Upserts batches of /0 ... /N-1 in an order of its own, while seven others do the same.
WRITER = """
import random, sys
from datetime import UTC, datetime
from voxtier import _core
from voxtier.frames import TableResult, read_table
from voxtier.frames.store.store import FrameStore
dsn, content, seed = sys.argv[1], open(sys.argv[2], "rb").read(), int(sys.argv[3])
numbers = random.Random(seed)
table = read_table(content, verify="all")
inserted = 0
with FrameStore(dsn) as store:
    for _ in range(12):
        first = numbers.randrange(0, 1500)
        paths = [f"/{n}" for n in range(first, first + 500)]
        numbers.shuffle(paths)
        force = numbers.random() < 0.5
        batch = [TableResult(path, table, None) for path in paths]
        inserted += store.upsert("s", batch, force=force).inserted
        keys = [_core.file_key("s", path) for path in paths]
        assert store.touch(keys, [1] * 500, [datetime.now(UTC)] * 500) == []
        store.delete("gone", paths[:10])
print(inserted)
"""


def test_eight_writers_of_overlapping_batches_lose_nothing_and_never_deadlock(
    dsn: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(CASES[0].content)
    with FrameStore(dsn) as store:
        store.sources()
    command = [sys.executable, "-c", WRITER, dsn, str(tmp_path / "file")]
    processes = [
        subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in range(8)
    ]
    answers = [process.communicate(timeout=250) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, answers
    [(files, distinct)] = ask(dsn, "SELECT count(*), count(DISTINCT path) FROM voxtier.file")
    assert files == distinct == sum(int(out) for out, _ in answers)
    [(touches, unknown)] = ask(
        dsn, "SELECT sum(access_count), count(*) FILTER (WHERE f.key IS NULL) "
        "FROM voxtier.file_stats LEFT JOIN voxtier.file f USING (key)",
    )  # fmt: skip
    assert (touches, unknown) == (8 * 12 * 500, 0)
    # Retries would hide them: batches sorted by key never wait for each other in a circle.
    assert ask(dsn, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]
    with FrameStore(dsn) as store:
        assert isinstance(store.get("s", "/700"), FrameTable)


def test_a_killed_writer_leaves_whole_batches(dsn: str, tmp_path: Path) -> None:
    endless = """
        import sys
        from voxtier.frames import TableResult, read_table
        from voxtier.frames.store.store import FrameStore
        table = read_table(open(sys.argv[2], "rb").read(), verify="all")
        with FrameStore(sys.argv[1]) as store:
            for batch in range(10_000):
                store.upsert("s", [TableResult(f"/{batch}/{n}", table, None) for n in range(250)])
                print(batch, flush=True)
    """
    (tmp_path / "file").write_bytes(CASES[0].content)
    command = [sys.executable, "-c", textwrap.dedent(endless), dsn, str(tmp_path / "file")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    time.sleep(0.01)
    process.kill()
    process.communicate()
    counts = "SELECT count(*) FROM voxtier.file GROUP BY split_part(path, '/', 2)"
    found = ask(dsn, counts)
    assert len(found) >= 3
    assert set(found) == {(250,)}


def test_a_forked_child_opens_its_own_connections(dsn: str) -> None:
    forking = """
        import os, sys
        from voxtier.frames import TableResult
        from voxtier.frames.store.store import FrameStore
        store = FrameStore(sys.argv[1])
        question = b"SELECT pg_backend_pid()"
        mine = store.database.run(lambda c: c.execute(question).fetchone())
        children = []
        for _ in range(3):
            if (pid := os.fork()) == 0:
                other = store.database.run(lambda c: c.execute(question).fetchone())
                store.sources()
                store.close()
                os._exit(0 if other != mine else 1)
            children.append(pid)
        status = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        assert status == [0, 0, 0], status
        alive = b"SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        assert store.database.run(lambda c: c.execute(alive, mine).fetchone()) == (1,)
        store.close()
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(forking), dsn]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
