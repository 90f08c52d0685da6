"""What is known about the files of one cache folder: made from what, when, and found right when.

The manifest is optional (a cache is valid without it) and rebuildable (`adopt`). It lies outside the cache
folder, because `PersistentDataset.set_data` removes that folder with everything in it. Each process appends
to a file of its own, so that no lock is needed on any file system; a torn or damaged line is skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from voxtier.tensors.durable import boot_id, process_is_alive, write_text

__all__ = ["Entry", "Manifest", "known_sources"]

Entry: TypeAlias = dict[str, Any]
"""One file: ``key`` and any of volume, source, fingerprint, size, mtime_ns, ctime_ns, records, digest,
tensors, versions, created, verified, state, pinned."""


class Manifest:
    """The manifest of one cache folder.

    Parameters
    ----------
    folder : Path
        The cache folder; the manifest is ``<parent>/.voxtier/<folder name>/``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder.parent / ".voxtier" / folder.name
        self.skipped_lines = 0
        self._own: Path | None = None

    def exists(self) -> bool:
        """Whether anything was ever recorded."""
        return next(iter(self._segments()), None) is not None

    def read(self) -> dict[str, Entry]:
        """Return the newest knowledge per key; the later line adds to and overrides the earlier."""
        self.skipped_lines = 0
        entries: dict[str, Entry] = {}
        lines = sorted(self._lines(), key=lambda line: line.get("at", 0.0))
        for line in lines:
            if line.get("forgotten"):
                entries.pop(line["key"], None)
            else:
                entries.setdefault(line["key"], {}).update(line)
        return entries

    def _segments(self) -> Iterator[Path]:
        if self.path.is_dir():
            yield from sorted(self.path.glob("*.jsonl"))

    def _lines(self) -> Iterator[Entry]:
        for segment in self._segments():
            try:
                content = segment.read_bytes()
            except OSError:
                self.skipped_lines += 1
                continue
            for raw in content.splitlines():
                try:
                    line = json.loads(raw)
                except (ValueError, RecursionError):
                    self.skipped_lines += 1
                    continue
                if isinstance(line, dict) and isinstance(line.get("key"), str):
                    if not isinstance(line.get("at", 0.0), int | float):
                        line["at"] = 0.0
                    yield line
                else:
                    self.skipped_lines += 1

    def record(self, entries: list[Entry]) -> None:
        """Append knowledge; the lines are on the disk on return.

        Raises
        ------
        OSError
            The folder cannot be written. The cache itself does not depend on it.
        """
        if self._own is None or f"-{os.getpid()}-" not in self._own.name:  # a forked child writes its own
            self.path.mkdir(parents=True, exist_ok=True)
            name = f"{boot_id()}-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.jsonl"
            self._own = self.path / name
        now = time.time()
        text = "".join(json.dumps({"at": now, **entry}, separators=(",", ":")) + "\n" for entry in entries)
        with self._own.open("a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())

    def forget(self, keys: list[str]) -> None:
        """Append that the files of these keys are gone."""
        self.record([{"key": key, "forgotten": True} for key in keys])

    def compact(self) -> None:
        """Join the segments of finished processes into one file."""
        finished = [segment for segment in self._segments() if not _is_in_use(segment)]
        if len(finished) < 2:
            return
        keep = Manifest(self.folder)
        keep._segments = lambda: iter(finished)  # type: ignore[method-assign]
        entries = keep.read()
        self.path.mkdir(parents=True, exist_ok=True)
        target = self.path / "joined.jsonl"
        lines = (json.dumps(entry, separators=(",", ":")) + "\n" for _, entry in sorted(entries.items()))
        write_text(target, "".join(lines))
        for segment in finished:
            if segment != target:
                with contextlib.suppress(FileNotFoundError):
                    segment.unlink()


def _is_in_use(segment: Path) -> bool:
    boot, _, rest = segment.name.partition("-")
    parts = rest.removesuffix(".jsonl").rsplit("-", 2)
    if len(parts) != 3 or not parts[1].isdigit():
        return False
    if boot == boot_id() and parts[0] == socket.gethostname():
        return int(parts[1]) != os.getpid() and process_is_alive(int(parts[1]))
    return time.time() - segment.stat().st_mtime < 86_400


def known_sources() -> Callable[[Path], bool]:
    """Return whether, by the manifest, the source of a file lies on disk or in a repository."""
    known: dict[Path, dict[str, dict[str, Any]]] = {}

    def can_be_remade(path: Path) -> bool:
        if path.parent not in known:
            known[path.parent] = Manifest(path.parent).read()
        source = known[path.parent].get(path.stem, {}).get("source")
        if not isinstance(source, dict):
            return False
        on_hub = all(isinstance(source.get(name), str) for name in ("repo", "commit", "hub_path"))
        return on_hub or (isinstance(source.get("path"), str) and Path(source["path"]).is_file())

    return can_be_remade
