"""Record what a cache holds (`adopt`), and find files that would be made differently today (`find_stale`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtier.tensors.identity.fingerprint import differences
from voxtier.tensors.keeping.verify import FileState, list_cache, verify
from voxtier.tensors.manifest import HUB_FIELDS, Entry, Manifest, Manifests
from voxtier.tensors.states import FINE


def adopt(
    root: Path,
    *,
    volumes: dict[str, str] | None = None,
    sources: dict[str, Path] | None = None,
    fingerprint: dict[str, Any] | None = None,
    threads: int | None = None,
) -> Iterator[FileState]:
    """Verify every file in full and record what it holds: a manifest for a cache of any origin.

    Parameters
    ----------
    root : Path
        A cache folder, or the folder of cache folders.
    volumes : dict, optional
        Volume names by key.
    sources : dict, optional
        Raw files by key. What `generate` recorded of the same file stays, and so does where it came from.
    fingerprint : dict, optional
        Recorded for every file. Give it only when the files are known to be made that way.
    threads : int, optional
        Files in flight, as for `verify`.

    Yields
    ------
    FileState
        One per file.
    """
    volumes, sources, before = volumes or {}, sources or {}, Manifests()
    batches: dict[Path, list[Entry]] = {}
    for state in verify(list_cache(root), digest=True, threads=threads):
        yield state
        if state.report is None:
            continue
        path = Path(state.path)
        row: Entry = {
            "key": path.stem,
            "size": state.size,
            "mtime_ns": state.mtime_ns,
            "ctime_ns": state.report.ctime_ns,
            "state": state.state,
        }
        if state.state in FINE:
            row["records"] = {name: crc for name, _, crc in state.report.records}
            row["digest"] = state.report.digest
            tensors = state.report.tensors
            row["tensors"] = [[place, *kind] for place, *kind, _ in tensors if place in ("", "image")]
        if path.stem in volumes:
            row["volume"] = volumes[path.stem]
        if path.stem in sources:
            source = before.entry(path).get("source") or {}
            if source.get("path") != str(sources[path.stem]):
                from_hub = {name: source[name] for name in HUB_FIELDS if source.get(name) is not None}
                row["source"] = {**from_hub, "path": str(sources[path.stem])}
        if fingerprint is not None:
            row["fingerprint"] = fingerprint
        batches.setdefault(path.parent, []).append(row)
        if len(batches[path.parent]) >= 1000:
            Manifest(path.parent).record(batches.pop(path.parent))
    for folder, rows in batches.items():
        manifest = Manifest(folder)
        manifest.record(rows)
        manifest.compact()


@dataclass(frozen=True, slots=True)
class Stale:
    """A file that would be made differently today, and every difference."""

    key: str
    volume: str | None
    reasons: list[str]


def find_stale(
    folder: Path, current: dict[str, Any], on_unknown: Callable[[str], None] = lambda _: None
) -> Iterator[Stale]:
    """Yield the files whose fingerprint or source differs from today's.

    Who made a tensor is no difference: the engines give the same bits.

    Parameters
    ----------
    folder : Path
        A cache folder; may be absent.
    current : dict
        Today's `fingerprint`.
    on_unknown : callable, optional
        Called with the key of each file of which no fingerprint is recorded.

    Yields
    ------
    Stale
        In the order of the keys.
    """
    entries = Manifest(folder).read()
    for key in sorted(path.stem for path in folder.glob("*.pt") if path.is_file()):
        entry = entries.get(key, {})
        reasons = []
        if entry.get("fingerprint") is None:
            on_unknown(key)
        else:
            recorded = {name: value for name, value in entry["fingerprint"].items() if name != "engine"}
            reasons += differences(recorded, current)
        source = entry.get("source") or {}
        state = (source.get("size"), source.get("mtime_ns"))
        if source.get("path") is not None and None not in state:
            with contextlib.suppress(OSError, ValueError):  # the source is gone, or the text is not a path
                found = Path(source["path"]).stat()
                if (found.st_size, found.st_mtime_ns) != state:
                    reasons.append(f"source: {source['path']} changed since")
        if reasons:
            yield Stale(key, entry.get("volume"), reasons)
