"""The manifest of a cache folder: what each file was made from, and when it was found intact.

`generate`, `verify` and `adopt` write it; it is optional (a cache is valid without it) and can be rebuilt by
`adopt`. It lies outside the cache folder, because `PersistentDataset.set_data` removes that folder with
everything in it. Each process appends to a file of its own, a segment, so that writing needs no lock on any
file system; a damaged line is skipped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from voxtier.system.durable import write_text
from voxtier.system.machine import is_running, numbering
from voxtier.tensors.claims import Claim

if TYPE_CHECKING:
    from voxtier._core import TensorReport

log = logging.getLogger("voxtier.tensors.manifest")

Entry: TypeAlias = dict[str, Any]
"""One file: ``key`` and any of volume, source, fingerprint, size, mtime_ns, ctime_ns, content_ctime_ns,
records, digest, tensors, seconds, created, state, engine, pinned, raw, unavailable."""

HUB_FIELDS = ("repo", "commit", "hub_path", "sha256")
"""Of a source: where a volume was downloaded from."""
_SOURCE = {**dict.fromkeys(("path", *HUB_FIELDS), str), **dict.fromkeys(("size", "mtime_ns"), float)}
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("key", "volume", "state", "digest", "engine"), str),
    **dict.fromkeys(("at", "size", "mtime_ns", "ctime_ns", "content_ctime_ns", "seconds", "created"), float),
    **dict.fromkeys(("records", "fingerprint"), dict),
    "tensors": list,
    "source": _SOURCE,
    "raw": {"path": str, "size": float, "mtime_ns": float, "git_oid": str, "source": _SOURCE},
    "unavailable": {"reason": str, "commit": str},
}
"""The types of a line's values; ``float`` stands for any number of 64 bits, and each value may be null."""


class Manifest:
    """The manifest of one cache folder.

    Parameters
    ----------
    folder : Path
        The cache folder; the manifest is ``<parent>/.voxtier/<folder name>/``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100 - of ".." the name is needed
        self.path = self.folder.parent / ".voxtier" / self.folder.name
        self._own_segment: Path | None = None

    def exists(self) -> bool:
        """Whether anything was ever recorded."""
        return next(self._segments(), None) is not None

    def read(self, *, strict: bool = False) -> dict[str, Entry]:
        """Return an entry per key; a later line adds to an earlier one and overrides its values.

        Parameters
        ----------
        strict : bool
            Raise where something cannot be read. By default it is left out with a warning: a cache is valid
            without its manifest.

        Raises
        ------
        OSError
            With ``strict``: the folder or a segment cannot be read.
        """
        segments = list(self._segments())
        while True:
            failures: list[OSError] = []
            entries = self._merge(segments, failures.append)
            present = list(self._segments(failures.append))
            if set(segments) <= set(present):
                break
            segments = present  # another process has joined some of them meanwhile
        if failures and strict:
            raise failures[0]
        if failures:
            log.warning("%s: the manifest cannot be read, so it is left out: %s", self.path, failures[0])
        return entries

    def _merge(self, segments: Iterable[Path], on_error: Callable[[OSError], object]) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for line in sorted(self._lines(segments, on_error), key=_time):
            if line.get("forgotten"):
                entries.pop(line["key"], None)
            else:
                entries.setdefault(line["key"], {}).update(line)
        return entries

    def _segments(self, on_error: Callable[[OSError], object] = lambda _: None) -> Iterator[Path]:
        try:
            with os.scandir(self.path) as listed:
                names = sorted(entry.name for entry in listed)
        except (FileNotFoundError, NotADirectoryError):  # nothing was ever recorded
            return
        except OSError as error:
            on_error(error)
            return
        yield from (self.path / name for name in names if name.endswith(".jsonl"))

    def _lines(self, segments: Iterable[Path], on_error: Callable[[OSError], object]) -> Iterator[Entry]:
        for segment in segments:
            try:
                content = segment.read_bytes()
            except FileNotFoundError:  # joined meanwhile
                continue
            except OSError as error:
                on_error(error)
                continue
            yield from _parse(content)

    def record(self, entries: list[Entry]) -> None:
        """Append entries; they are on the disk on return.

        Raises
        ------
        OSError
            The folder cannot be written. The cache itself does not depend on it.
        """
        # A forked child begins a segment of its own.
        if self._own_segment is None or f"-{os.getpid()}-" not in self._own_segment.name:
            self.path.mkdir(parents=True, exist_ok=True)
            name = f"{numbering()}-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.jsonl"
            self._own_segment = self.path / name
        now = time.time()
        text = "".join(json.dumps({**entry, "at": now}, separators=(",", ":")) + "\n" for entry in entries)
        with self._own_segment.open("a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())

    def note(self, entries: list[Entry]) -> bool:
        """Append entries where that is possible, and return whether it was: a cache is valid without them."""
        try:
            if entries:
                self.record(entries)
        except OSError as error:
            log.warning("%s: the manifest cannot be written: %s", self.path, error)
            return False
        return True

    def forget(self, keys: list[str]) -> None:
        """Record that the files of these keys are gone."""
        self.record([{"key": key, "forgotten": True} for key in keys])

    def compact(self) -> None:
        """Join the segments of processes that have ended, unless another process does so now."""
        target = self.path / "joined.jsonl"
        if len(self._finished_segments()) < 2 or (claim := Claim.take(target)) is None:
            return
        with claim.hold():
            present = list(self._segments())
            segments = self._finished_segments()  # another process may have joined some before the claim
            try:
                contents = [segment.read_bytes() for segment in segments]
            except OSError:  # what cannot be read now must not be removed
                return
            lines = [line for content in contents for line in _parse(content)]
            joined = _join(lines, with_forgotten=not set(present) <= set(segments))
            write_text(target, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in joined))
            for segment in segments:
                if segment != target:
                    with contextlib.suppress(FileNotFoundError):
                        segment.unlink()

    def _finished_segments(self) -> list[Path]:
        return [segment for segment in self._segments() if not _is_in_use(segment)]


def describes(entry: Entry, report: TensorReport) -> bool | None:
    """Return whether an entry is of the tensor file that a report is of; None where it does not say.

    Parameters
    ----------
    entry : dict
        Of a key.
    report : TensorReport
        On a file that could be read, of that name.

    Returns
    -------
    bool or None
        By the CRCs of the records, else by size and time.
    """
    if entry.get("records") is not None:
        return bool(entry["records"] == {name: crc for name, _, crc in report.records})
    recorded = (entry.get("size"), entry.get("mtime_ns"))
    if recorded == (None, None):
        return None
    found = (report.size, report.mtime_ns)
    return all(each in (None, now) for each, now in zip(recorded, found, strict=True))


def _parse(content: bytes) -> Iterator[Entry]:
    for raw in content.splitlines():
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and line.get("key") is not None and _has_type(line, _TYPES):
            yield line


def _time(line: Entry) -> float:
    return line.get("at") or 0.0


def _join(lines: Iterable[Entry], *, with_forgotten: bool) -> list[Entry]:
    """Return lines that say the same, each with its own time, without what later ones override.

    A key keeps a line for each time at which something was said that still holds: lines of a process that is
    not done yet, and of one whose file was not seen, go between them.

    Parameters
    ----------
    lines : iterable of dict
        In the order of their segments.
    with_forgotten : bool
        Keep the lines that drop a key, as older ones may lie in other segments.

    Returns
    -------
    list of dict
        By time.
    """
    kept: list[Entry] = []
    said: dict[str, set[str]] = {}
    dropped: set[str] = set()
    for line in sorted(lines, key=_time)[::-1]:
        key = line["key"]
        if key in dropped:
            continue
        if line.get("forgotten"):
            dropped.add(key)
            kept += [line] if with_forgotten else []
            continue
        is_newest = key not in said
        names = said.setdefault(key, set())
        rest = {name: value for name, value in line.items() if name not in names}
        names |= rest.keys() - {"key", "at"}
        if is_newest or rest.keys() - {"key", "at"}:
            kept.append(rest)
    return kept[::-1]


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value of a line has the type that its readers expect: it may have been edited or damaged."""
    if value is None:
        return True
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(
            _has_type(value.get(name), part) for name, part in kind.items()
        )
    if kind is float:
        return isinstance(value, int | float) and -(2**63) <= value < 2**63
    return isinstance(value, kind)


def _is_in_use(segment: Path) -> bool:
    where, _, rest = segment.name.partition("-")
    parts = rest.removesuffix(".jsonl").rsplit("-", 2)
    if len(parts) != 3 or not parts[1].isdecimal():
        return False
    running = is_running(where, int(parts[1]))
    if running is not None:
        return running and int(parts[1]) != os.getpid()
    try:
        return time.time() - segment.stat().st_mtime < 86_400
    except OSError:  # another process has joined it
        return True


class Manifests:
    """The manifests of several cache folders, each read when a file of its folder is first asked for.

    Parameters
    ----------
    strict : bool
        As for `Manifest.read`.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._entries: dict[Path, dict[str, Entry]] = {}

    def entry(self, path: Path) -> Entry:
        """Return the entry of a tensor file, empty if there is none."""
        if path.parent not in self._entries:
            self._entries[path.parent] = Manifest(path.parent).read(strict=self._strict)
        return self._entries[path.parent].get(path.stem, {})

    def has_source(self, path: Path) -> bool:
        """Whether the file can be made again: its source lies on disk or in a repository."""
        source = self.entry(path).get("source") or {}
        if all(source.get(name) for name in ("repo", "commit", "hub_path")):
            return True
        return source.get("path") is not None and Path(source["path"]).is_file()
