"""Record what a cache holds (`adopt`), and find files that would be made differently today (`find_stale`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtier import _core
from voxtier.tensors.identity.fingerprint import differences
from voxtier.tensors.keeping.verify import FileState, default_threads, image_tensors, list_cache, verify
from voxtier.tensors.manifest import HUB_FIELDS, Entry, Manifest, Manifests, describes
from voxtier.tensors.states import DAMAGED, FINE, UNREADABLE

_OF_FILE = ("fingerprint", "engine", "seconds", "created", "records", "digest", "tensors")
"""What the manifest says of one file alone: another file of its name was made otherwise."""


def adopt(
    root: Path,
    *,
    volumes: dict[str, str] | None = None,
    sources: dict[str, Path] | None = None,
    fingerprint: dict[str, Any] | None = None,
) -> Iterator[FileState]:
    """Verify every file in full and record what it holds: a manifest for a cache of any origin.

    What `generate` recorded of how a file was made stays where it is that file; else it is forgotten.

    Parameters
    ----------
    root : Path
        A cache folder, or the folder of cache folders.
    volumes : dict, optional
        Volume names by key.
    sources : dict, optional
        Raw files by key. Where a volume came from stays recorded.
    fingerprint : dict, optional
        Recorded for every file. Give it only when the files are known to be made that way.

    Yields
    ------
    FileState
        One per file.

    Raises
    ------
    OSError
        The manifest cannot be read or written: what it says of a file's origin would be lost.
    """
    volumes, sources, before = volumes or {}, sources or {}, Manifests(strict=True)
    batches: dict[Path, list[Entry]] = {}
    listing = list_cache(root)
    for path in listing.files:  # all manifests can be read, or nothing is begun
        before.entry(path)
    for state in verify(listing, digest=True):
        yield state
        if state.report is None:
            continue
        path = Path(state.path)
        known = before.entry(path)
        is_recorded = _is_recorded(known, state)
        row: Entry = {
            **({} if is_recorded else dict.fromkeys(_OF_FILE)),
            "key": path.stem,
            "size": state.size,
            "mtime_ns": state.mtime_ns,
            "ctime_ns": state.report.ctime_ns,
            "state": state.state,
        }
        if state.state in FINE:
            row["records"] = {name: crc for name, _, crc in state.report.records}
            row["digest"] = state.report.digest
            row["tensors"] = image_tensors(state.report)
        if path.stem in volumes:
            row["volume"] = volumes[path.stem]
        source = known.get("source") or {}
        raw = str(sources[path.stem]) if path.stem in sources else source.get("path")
        if raw is not None and (raw != source.get("path") or not is_recorded):
            from_hub = {name: source[name] for name in HUB_FIELDS if source.get(name) is not None}
            row["source"] = {
                **from_hub,
                "path": raw,
            }  # not the raw file's size and time: of it nothing is known
        if fingerprint is not None:
            row["fingerprint"] = fingerprint
        batches.setdefault(path.parent, []).append(row)
        if len(batches[path.parent]) >= 1000:
            Manifest(path.parent).record(batches.pop(path.parent))
    for folder, rows in batches.items():
        manifest = Manifest(folder)
        manifest.record(rows)
        manifest.compact()


def _is_recorded(entry: Entry, state: FileState) -> bool:
    """Whether a file is the one that an entry describes, as far as a look at the file can tell."""
    if state.report is None or state.state in DAMAGED | UNREADABLE:
        return True
    return describes(entry, state.report) is not False


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

    Who made a tensor is no difference: the engines give the same bits. A fingerprint counts for the file that
    it was recorded with, by the CRCs of its records: of one that was written since nothing is known.

    Parameters
    ----------
    folder : Path
        A cache folder; may be absent.
    current : dict
        As `describe_processing` gives it.
    on_unknown : callable, optional
        Called with the key of each file of which it is not recorded how it was made.

    Yields
    ------
    Stale
        In the order of the keys.

    Raises
    ------
    OSError
        The folder or its manifest cannot be read.
    """
    entries = Manifest(folder).read(strict=True)
    keys = [path.stem for path in list_tensors(folder)]
    others = _find_others(folder, [key for key in keys if (entries.get(key) or {}).get("records")], entries)
    for key in keys:
        entry = entries.get(key, {})
        reasons = []
        if entry.get("fingerprint") is None or key in others:
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


def list_tensors(folder: Path) -> list[Path]:
    """Return the tensor files right in a folder, in the order of their names; none where it is absent.

    Raises
    ------
    OSError
        The folder cannot be read.
    """
    try:
        paths = sorted(folder.iterdir())  # `glob` is silent about a folder that it cannot read
    except FileNotFoundError:
        return []
    return [path for path in paths if _is_tensor(path)]


def has_tensors(folder: Path) -> bool:
    """Whether a tensor file lies right in a folder, by a look at the files up to the first.

    Raises
    ------
    OSError
        The folder cannot be read.
    """
    try:
        return any(map(_is_tensor, folder.iterdir()))
    except FileNotFoundError:
        return False


def _is_tensor(path: Path) -> bool:
    return path.suffix == ".pt" and path.is_file()


def _find_others(folder: Path, keys: list[str], entries: dict[str, Entry]) -> set[str]:
    """Return the keys of files that are not those that the manifest describes."""
    paths = [folder / f"{key}.pt" for key in keys]
    verifier = _core.ParallelVerifier(paths, crc=False, threads=default_threads())
    try:
        return {
            keys[place]
            for place, report in verifier
            if report.state not in DAMAGED | UNREADABLE
            and entries[keys[place]]["records"] != {name: crc for name, _, crc in report.records}
        }
    finally:
        verifier.stop()
