"""What is known about the files of one cache folder: made from what, when, and found right when.

The manifest is optional (a cache is valid without it) and rebuildable (`adopt`). It lies outside the cache
folder, because `PersistentDataset.set_data` removes that folder with everything in it. Each process appends
to a file of its own, so that writing needs no lock on any file system; a torn or damaged line is skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from voxtier.system.durable import boot_id, write_text
from voxtier.system.processes import is_alive
from voxtier.tensors.claims import Claim

__all__ = ["Entry", "Manifest", "known_sources"]

Entry: TypeAlias = dict[str, Any]
"""One file: ``key`` and any of volume, source, fingerprint, size, mtime_ns, ctime_ns, records, digest,
tensors, seconds, created, state, pinned, raw, unavailable."""

_KINDS: dict[str, Any] = {
    **dict.fromkeys(("key", "volume", "state", "digest"), str),
    **dict.fromkeys(("at", "size", "mtime_ns", "ctime_ns", "seconds", "created"), float),
    **dict.fromkeys(("records", "fingerprint"), dict),
    "tensors": list,
    "source": {
        **dict.fromkeys(("path", "repo", "commit", "hub_path", "sha256"), str),
        **dict.fromkeys(("size", "mtime_ns"), float),
    },
    "raw": {"path": str, "size": float},
    "unavailable": {"reason": str, "commit": str},
}
"""What the known parts of a line are; ``float`` is any number that fits 64 bits, and all may be null."""


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
        segments = list(self._segments())
        while True:
            entries = self._join(segments)
            found = list(self._segments())
            if set(segments) <= set(found):
                return entries
            segments = found  # another process joined some of them meanwhile

    def _join(self, segments: Iterable[Path]) -> dict[str, Entry]:
        self.skipped_lines = 0
        entries: dict[str, Entry] = {}
        for line in sorted(self._lines(segments), key=lambda line: line.get("at") or 0.0):
            if line.get("forgotten"):
                entries.pop(line["key"], None)
            else:
                entries.setdefault(line["key"], {}).update(line)
        return entries

    def _segments(self) -> Iterator[Path]:
        if self.path.is_dir():
            yield from sorted(self.path.glob("*.jsonl"))

    def _lines(self, segments: Iterable[Path]) -> Iterator[Entry]:
        for segment in segments:
            try:
                content = segment.read_bytes()
            except OSError:
                self.skipped_lines += 1
                continue
            for raw in content.splitlines():
                try:
                    line = json.loads(raw)
                except (ValueError, RecursionError):
                    line = None
                if isinstance(line, dict) and line.get("key") is not None and _fits(line, _KINDS):
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
        """Join the segments of finished processes into one file, unless another process is at it."""
        target = self.path / "joined.jsonl"
        if len(self._finished()) < 2 or (claim := Claim.take(target)) is None:
            return
        with claim.held():
            finished = self._finished()  # as it is now that nobody else joins
            entries = self._join(finished)
            lines = (json.dumps(entry, separators=(",", ":")) + "\n" for _, entry in sorted(entries.items()))
            write_text(target, "".join(lines))
            for segment in finished:
                if segment != target:
                    with contextlib.suppress(FileNotFoundError):
                        segment.unlink()

    def _finished(self) -> list[Path]:
        return [segment for segment in self._segments() if not _is_in_use(segment)]


def _fits(value: Any, kind: Any) -> bool:
    """Whether a part of a line is what its readers take it for: a hand or a disk may have changed it."""
    if value is None:
        return True
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(_fits(value.get(name), part) for name, part in kind.items())
    if kind is float:
        return isinstance(value, int | float) and -(2**63) <= value < 2**63
    return isinstance(value, kind)


def _is_in_use(segment: Path) -> bool:
    boot, _, rest = segment.name.partition("-")
    parts = rest.removesuffix(".jsonl").rsplit("-", 2)
    if len(parts) != 3 or not parts[1].isdecimal():
        return False
    if boot == boot_id() and parts[0] == socket.gethostname():
        return int(parts[1]) != os.getpid() and is_alive(int(parts[1]))
    try:
        return time.time() - segment.stat().st_mtime < 86_400
    except OSError:  # joined by another machine
        return True


def known_sources() -> Callable[[Path], bool]:
    """Return whether, by the manifest, the source of a file lies on disk or in a repository."""
    known: dict[Path, dict[str, dict[str, Any]]] = {}

    def can_be_remade(path: Path) -> bool:
        if path.parent not in known:
            known[path.parent] = Manifest(path.parent).read()
        source = known[path.parent].get(path.stem, {}).get("source")
        if source is None:
            return False
        on_hub = all(source.get(name) for name in ("repo", "commit", "hub_path"))
        return on_hub or (source.get("path") is not None and Path(source["path"]).is_file())

    return can_be_remade
