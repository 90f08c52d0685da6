"""Changes files under the eyes of their readers, and keeps who lay where and when."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from frames.faults.contents import content


class Placement(NamedTuple):
    """A version of an instance at a path, from the first moment at which it may be read to the last."""

    path: int
    instance: int
    version: int
    since: float
    until: float


class Changes:
    """Changes one file at a time, in ways that leave its size, its times or its name as they were.

    Parameters
    ----------
    paths : list of Path
        The files; each holds its own instance at first.
    aside : list of Path
        For each path a folder for copies, which readers do not know, on the same file system.
    seed : int
        Of the choices.
    """

    def __init__(self, paths: list[Path], aside: list[Path], seed: int) -> None:
        self.paths, self._aside = paths, aside
        self._dice = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.past: list[Placement] = []
        self._now: dict[int, tuple[int, int, float]] = {}
        self._versions = Counter(dict.fromkeys(range(len(paths)), 0))
        for number, path in enumerate(paths):
            path.write_bytes(content(number, 0))
            self._now[number] = (number, 0, time.monotonic())

    def placements(self) -> list[Placement]:
        """Return all of the past, and those that last."""
        now = [Placement(at, *what[:2], what[2], float("inf")) for at, what in self._now.items()]
        return self.past + now

    def current(self) -> dict[int, tuple[int, int]]:
        """Return instance and version at each path that has a file."""
        return {at: (instance, version) for at, (instance, version, _) in self._now.items()}

    def change(self) -> None:
        """Change one file, by a way that is chosen at random."""
        ways = (
            *(self.replace, self.copy_over, self.copy_over, self.rewrite_with_time_kept, self.swap),
            *(
                self.cut,
                self.fill_the_disk,
                self.jump_in_time,
                self.touch,
                self.move_away_and_back,
                self.delete,
            ),
        )
        way = self._dice.choice(ways)
        self.counts[way.__name__] += 1
        at = self._dice.randrange(len(self.paths))
        try:
            way(at)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self.counts["no room"] += 1
            for name in self._aside[at].glob("*.aside"):
                name.unlink()

    def settle(self) -> None:
        """Give every path a whole file again."""
        for at in range(len(self.paths)):
            self._put(at, at, self._next(at))

    def _next(self, instance: int) -> int:
        self._versions[instance] += 1
        return self._versions[instance]

    def _leave(self, at: int, now: float) -> None:
        if at in self._now:
            instance, version, since = self._now.pop(at)
            self.past.append(Placement(at, instance, version, since, now))

    def _write_aside(self, at: int, instance: int, version: int) -> Path:
        """Write a file beside; it has the modification time of the one at the path."""
        aside = self._aside[at] / f"{at}.aside"
        aside.write_bytes(content(instance, version))
        with contextlib.suppress(FileNotFoundError):
            state = self.paths[at].stat()
            os.utime(aside, ns=(state.st_atime_ns, state.st_mtime_ns))
        return aside

    def _put(self, at: int, instance: int, version: int) -> None:
        begin = time.monotonic()
        self._write_aside(at, instance, version).replace(self.paths[at])
        self._leave(at, time.monotonic())
        self._now[at] = (instance, version, begin)

    def replace(self, at: int) -> None:
        """Another version by rename, with the modification time of the old."""
        instance = self._now.get(at, (at,))[0]
        self._put(at, instance, self._next(instance))

    def copy_over(self, at: int) -> None:
        """Another version by ``cp -p`` over the file."""
        instance = self._now.get(at, (at,))[0]
        self._overwrite(at, instance, ["cp", "-p"])

    def fill_the_disk(self, at: int) -> None:
        """A copy that ends in the middle, because there is no more room."""
        instance = self._now.get(at, (at,))[0]
        whole = len(content(instance, 1))
        self._overwrite(at, instance, ["cp", "-p"], limit=self._dice.randrange(whole))

    def _overwrite(self, at: int, instance: int, command: list[str], limit: int | None = None) -> None:
        version = self._next(instance)
        begin = time.monotonic()
        aside = self._write_aside(at, instance, version)

        def no_room() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        subprocess.run(
            [*command, aside, self.paths[at]],
            check=False,  # a small disk has no room: then the file ends in the middle
            preexec_fn=None if limit is None else no_room,
            stderr=subprocess.DEVNULL,
        )
        self._leave(at, time.monotonic())
        self._now[at] = (instance, version, begin)

    def rewrite_with_time_kept(self, at: int) -> None:
        """Another version written in place, then the old times; no more bytes than the file has."""
        if at not in self._now:
            return
        instance = self._now[at][0]
        version, begin = self._next(instance), time.monotonic()
        state, written = self.paths[at].stat(), content(instance, version)
        if len(written) > state.st_size:
            return
        with self.paths[at].open("r+b") as file:
            file.write(written)
            file.truncate()
        os.utime(self.paths[at], ns=(state.st_atime_ns, state.st_mtime_ns))
        self._leave(at, time.monotonic())
        self._now[at] = (instance, version, begin)

    def swap(self, at: int) -> None:
        """Two files of one kind change places, so that each path holds another instance."""
        other = (at + 6) % len(self.paths)
        if other == at or not {at, other} <= self._now.keys() or self._aside[at] != self._aside[other]:
            return
        begin, aside = time.monotonic(), self._aside[at] / "swapped"
        self.paths[at].rename(aside)
        self.paths[other].rename(self.paths[at])
        aside.rename(self.paths[other])
        one, two, end = self._now[at], self._now[other], time.monotonic()
        self._leave(at, end)
        self._leave(other, end)
        self._now[at], self._now[other] = (*two[:2], begin), (*one[:2], begin)

    def cut(self, at: int) -> None:
        """A file that loses its end."""
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.paths[at], self._dice.randrange(self.paths[at].stat().st_size + 1))

    def jump_in_time(self, at: int) -> None:
        """A modification time of long ago, or of years to come."""
        time_ns = self._dice.choice([0, 10**18, 4 * 10**18, time.time_ns()])
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.paths[at], ns=(time_ns, time_ns))

    def touch(self, at: int) -> None:
        """Other rights, and another link: no byte changes."""
        link = self._aside[at] / f"{at}.link"
        with contextlib.suppress(FileNotFoundError):
            self.paths[at].chmod(self._dice.choice([0o600, 0o640, 0o644]))
            link.unlink(missing_ok=True)
            os.link(self.paths[at], link)

    def move_away_and_back(self, at: int) -> None:
        """A file that is not there for a moment."""
        with contextlib.suppress(FileNotFoundError):
            away = self.paths[at].rename(self._aside[at] / f"{at}.away")
            time.sleep(0.01)
            away.rename(self.paths[at])

    def delete(self, at: int) -> None:
        """A file that is gone until something is put at its path."""
        self.paths[at].unlink(missing_ok=True)
        self._leave(at, time.monotonic())
