"""A process that reads frames by path and by UID and writes down what it was given, until it is killed."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from frames.faults.contents import FRAMES, identify, uid_of
from voxtier.errors import BackendError, FormatError, NotFoundError, SourceError
from voxtier.frames import FrameReader, FrameStore

_RECORD = struct.Struct("<BBiiidd")
#: What came of a read, in the order of their codes.
OUTCOMES = (
    "frame",
    "wrong",
    "FormatError",
    "SourceError",
    "NotFoundError",
    "BackendError",
    "no file",
    "no such frame",
)
_CODES = {
    FormatError: 2, SourceError: 3, NotFoundError: 4, BackendError: 5, IndexError: 7
}  # fmt: skip


class Read(NamedTuple):
    """One read: what was asked, what came of it, and when."""

    outcome: str
    by_uid: bool
    asked: int
    instance: int
    version: int
    start: float
    end: float


def count_frames(path: Path) -> int:
    """Count the reads so far that gave frames; a process may be writing."""
    return path.read_bytes()[:: _RECORD.size].count(0)


def records(path: Path) -> Iterator[Read]:
    """Iterate over what a process has written before it ended or was killed."""
    written = path.read_bytes()
    for outcome, *rest in _RECORD.iter_unpack(written[: len(written) // _RECORD.size * _RECORD.size]):
        by_uid, asked, instance, version, start, end = rest
        yield Read(OUTCOMES[outcome], bool(by_uid), asked, instance, version, start, end)


def main(dsn: str, folder: str, out: str, seed: str) -> None:
    """Read until a file ``stop`` appears beside the record; the paths are listed in ``paths``."""
    log = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    paths = (Path(folder) / "paths").read_text().splitlines()
    stop = Path(folder) / "stop"
    with FrameStore(dsn) as store, FrameReader(store, "s", budget_bytes=1 << 16, open_files=20) as reader:

        def read(dice: random.Random) -> None:
            asked, by_uid = dice.randrange(len(paths)), dice.random() < 0.5
            frame = dice.randrange(FRAMES)
            name = uid_of(asked) if by_uid else paths[asked]
            wanted = [frame] if dice.random() < 0.7 else [frame, (frame + 1) % FRAMES]
            instance = version = -1
            start = time.monotonic()
            try:
                if dice.random() < 0.1:
                    frames = asyncio.run(reader.aframes(name, wanted))
                else:
                    frames = reader.frames(name, wanted, scan=dice.random() < 0.1)
            except (FormatError, SourceError, NotFoundError, BackendError, IndexError) as error:
                is_gone = getattr(error, "errno", None) == errno.ENOENT
                code = 6 if is_gone else next(c for kind, c in _CODES.items() if isinstance(error, kind))
            else:
                found = {identify(got, number) for got, number in zip(frames, wanted, strict=True)}
                code = 0 if len(found) == 1 and None not in found else 1
                if code == 0:
                    [(instance, version)] = found  # type: ignore[misc]
            end = time.monotonic()
            os.write(log, _RECORD.pack(code, by_uid, asked, instance, version, start, end))

        def work(number: int) -> None:
            dice = random.Random(f"{seed} {number}")
            while not stop.exists():
                for _ in range(100):
                    read(dice)
                if number == 0:
                    fork_and_read(dice)

        def fork_and_read(dice: random.Random) -> None:
            child = os.fork()
            if child == 0:
                for _ in range(20):
                    read(dice)
                os._exit(0)
            start = time.monotonic()
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.005)
            os.write(log, _RECORD.pack(6, False, -1, -1, -1, start, time.monotonic()))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
