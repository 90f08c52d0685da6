"""Disk usage of caches, and which files may be removed without losing what cannot be made again.

``voxtier tensors ls | du | gc | evict`` call it. Functions that find files never remove them: `remove` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtier.errors import ConfigError
from voxtier.system.durable import temporary_is_live
from voxtier.tensors.claims import claim_is_dead
from voxtier.tensors.keeping.verify import QUARANTINE, FileState, Listing, list_cache
from voxtier.tensors.manifest import Entry, Manifest, Manifests

OLD = 3600.0
"""Seconds after which a part of a download, or an empty folder, counts as abandoned."""
_HUB_CLIENT = "huggingface"
"""The folder in ``.cache`` where `huggingface_hub` keeps parts of downloads into a folder."""
_PARTS = (".nii.gz.part", ".nii.gz.part.json")
"""How the names of unfinished downloads end; other programs have parts too."""


def list_cache_folders(
    root: Path, unreadable: Callable[[FileState], object] = lambda _: None
) -> Iterator[dict[str, Any]]:
    """Yield a row for every cache folder below ``root``: files, bytes, last use, and its parameters.

    `unreadable` is called for every folder that cannot be listed.
    """
    listing = list_cache(root)
    for state in listing.unreadable:
        unreadable(state)
    folders: dict[Path, list[os.stat_result]] = {}
    for path in listing.files:
        with contextlib.suppress(OSError):
            folders.setdefault(path.parent, []).append(path.stat())
    for folder, files in sorted(folders.items()):
        yield {
            "folder": str(folder),
            "files": len(files),
            "bytes": sum(file.st_size for file in files),
            "newest": max(file.st_mtime for file in files),
            "last_used": max(max(file.st_atime, file.st_mtime) for file in files),
            "parameters": _main_parameters(folder),
        }


def _main_parameters(folder: Path) -> dict[str, Any]:
    """Return spacing, shape, orientation, scale and type of ``cache_params.json``, or nothing."""
    try:
        tree = json.loads((folder / "cache_params.json").read_text())
        steps = {step.get("class"): step for step in tree["transforms"] if isinstance(step, dict)}
        return {
            "spacing": steps["Spacingd"]["spacing_transform"]["pixdim"],
            "shape": steps["Resized"]["resizer"]["spatial_size"],
            "axcodes": steps["Orientationd"]["ornt_transform"]["axcodes"],
            "scale": [
                steps["ScaleIntensityRanged"]["scaler"][name] for name in ("a_min", "a_max", "b_min", "b_max")
            ],
            "dtype": (steps["EnsureTyped"].get("dtype") or [None])[0],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return {}


def measure_usage(root: Path, unreadable: Callable[[OSError], object] | None = None) -> dict[str, int]:
    """Return the bytes of each kind of file: tensors, temporaries, quarantine, manifests, other.

    The manifest of a cache folder lies beside it, and counts with it.
    `unreadable` is called for every folder that cannot be listed, and every file of which the system does
    not tell the size; they are not counted.
    """

    def report(error: OSError) -> None:
        if unreadable is not None and not isinstance(error, FileNotFoundError):
            unreadable(error)

    def size(path: Path) -> int:
        try:
            return path.lstat().st_size
        except OSError as error:
            report(error)
            return 0

    totals = {"tensors": 0, "temporaries": 0, "quarantine": 0, "manifests": 0, "other": 0}
    listing = list_cache(root)
    tensors, temporaries = set(listing.files), set(listing.temporaries)
    root = listing.root  # absolute, as the paths of the listing
    for folder, _, names in os.walk(root, onerror=report):
        for name in names:
            path = Path(folder) / name
            kind = "other"
            if path in tensors:
                kind = "tensors"
            elif path in temporaries:
                kind = "temporaries"
            elif QUARANTINE in path.relative_to(root).parts:
                kind = QUARANTINE
            elif ".voxtier" in path.relative_to(root).parts:
                kind = "manifests"
            totals[kind] += size(path)
    for folder, _, names in os.walk(Manifest(root).path, onerror=report):
        totals["manifests"] += sum(size(Path(folder, name)) for name in names)
    return totals


@dataclass(frozen=True, slots=True)
class Garbage:
    """One file, or one empty folder, that may be removed."""

    path: Path
    reason: str
    size: int
    """Bytes."""
    precious: bool = False
    """No source is known from which it could be made again: it is removed with ``--force`` only."""


def find_garbage(
    root: Path,
    *,
    wanted: frozenset[str] = frozenset(),
    can_be_remade: Callable[[Path], bool] = lambda _: False,
    images: Path | None = None,
    unreadable: Callable[[OSError], object] | None = None,
) -> Iterator[Garbage]:
    """Yield the files and folders that no live process and no list needs.

    Parameters
    ----------
    root : Path
        A cache folder, or the folder of cache folders.
    wanted : frozenset of str
        File names that the lists ask for; if there are any, other tensors are orphans.
    can_be_remade : callable
        Whether a file's source is known to exist; an orphan without a source is precious.
    images : Path, optional
        The image folder, for unfinished downloads older than an hour: of `generate` and of the hub's client.
    unreadable : callable, optional
        Called for every folder that cannot be listed.

    Yields
    ------
    Garbage
        Each once, also where one of the two folders lies in the other; a folder comes after its content.
    """
    found: set[Path] = set()
    for garbage in _find_garbage(list_cache(root), wanted, can_be_remade, images, unreadable):
        place = Path(os.path.realpath(garbage.path.parent), garbage.path.name)
        if place not in found:
            found.add(place)
            yield garbage


def _find_garbage(
    listing: Listing,
    wanted: frozenset[str],
    can_be_remade: Callable[[Path], bool],
    images: Path | None,
    unreadable: Callable[[OSError], object] | None,
) -> Iterator[Garbage]:
    root = listing.root
    for path in listing.temporaries:
        if not temporary_is_live(path):
            yield from _garbage(path, "temporary of a dead run")
    yield from _dead_claims(root, unreadable)
    if wanted:
        for path in listing.files:
            if path.name not in wanted and path not in listing.gds_markers:
                yield from _garbage(path, "orphan: no list asks for it", precious=not can_be_remade(path))
    yield from _dead_folders(root)
    if images is not None and images.is_dir():
        yield from _dead_claims(images, unreadable)
        for path in _files(images):
            ours = path.name.startswith(".") and path.name.endswith(_PARTS)
            if (ours or (path.suffix == ".incomplete" and _HUB_CLIENT in path.parts)) and _is_old(path):
                yield from _garbage(path, "unfinished download")
        yield from _dead_folders(images)


def _files(root: Path, unreadable: Callable[[OSError], object] | None = None) -> Iterator[Path]:
    for folder, _, names in os.walk(root, onerror=unreadable):
        yield from (Path(folder) / name for name in sorted(names))


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > OLD
    except OSError:
        return False


def _dead_claims(root: Path, unreadable: Callable[[OSError], object] | None) -> Iterator[Garbage]:
    for path in _files(root, unreadable):
        if path.name.startswith(".") and path.name.endswith(".claim") and claim_is_dead(path):
            yield from _garbage(path, "claim of a dead run")


def _dead_folders(root: Path) -> Iterator[Garbage]:
    """Yield folders that have been empty for an hour, or hold the parameters of a cache and nothing else."""
    empty: set[Path] = set()
    for name, folders, names in os.walk(root, topdown=False):
        folder = Path(name)
        if folder == root or folder.is_symlink() or not _is_old(folder):
            continue
        if set(names) <= {"cache_params.json"} and all(folder / below in empty for below in folders):
            empty.add(folder)
            if names:
                yield from _garbage(folder / names[0], "parameters of an empty cache")
            yield Garbage(folder, "empty folder", 0)


def _garbage(path: Path, reason: str, *, precious: bool = False) -> Iterator[Garbage]:
    with contextlib.suppress(OSError):
        yield Garbage(path, reason, path.lstat().st_size, precious)


def remove(garbage: Garbage) -> str:
    """Remove one file, or a folder that is empty; return ``removed`` or why not."""
    try:
        if garbage.path.is_dir() and not garbage.path.is_symlink():
            garbage.path.rmdir()
        else:
            garbage.path.unlink()
    except OSError as error:
        return f"left: {error.strerror}"
    return "removed"


def choose_evictions(
    listing: Listing,
    budget: int,
    *,
    keep: frozenset[str] = frozenset(),
    can_be_remade: Callable[[Path], bool],
    force: bool = False,
) -> list[Garbage]:
    """Return the least recently used files whose removal makes a cache fit into a budget.

    Parameters
    ----------
    listing : Listing
        From `list_cache`.
    budget : int
        Bytes that may stay.
    keep : frozenset of str
        File names of the current lists; they are never evicted. Neither are pinned entries.
    can_be_remade : callable
        Whether a file's source is known to exist.
    force : bool
        Also evict files that cannot be made again.

    Returns
    -------
    list of Garbage
        In the order of their last use.

    Raises
    ------
    ConfigError
        The files that may be evicted are not enough, or a folder or a manifest cannot be read.
    """
    for folder in listing.unreadable:
        raise ConfigError(f"{folder.path}: cannot be read, so what would stay is not known: {folder.detail}")
    candidates = []
    total = 0
    manifests = Manifests(strict=True)
    for path in listing.files:
        try:
            entry = manifests.entry(path)
        except OSError as error:
            place = error.filename or path.parent
            raise ConfigError(
                f"{place}: the manifest cannot be read, so what is pinned is not known: {error.strerror}"
            ) from None
        with contextlib.suppress(OSError):
            found = path.stat()
            total += found.st_size
            if path.name not in keep and not entry.get("pinned"):
                candidates.append((max(found.st_atime, found.st_mtime), path, found.st_size))
    chosen: list[Garbage] = []
    for _, path, size in sorted(candidates):
        if total <= budget:
            break
        if force or can_be_remade(path):
            chosen.append(Garbage(path, "least recently used", size))
            total -= size
    if total > budget:
        why = (
            "wanted or pinned"
            if force
            else "wanted, pinned, or cannot be made again (--force evicts the last)"
        )
        raise ConfigError(
            f"{listing.root}: {total:,} bytes would stay, more than {budget:,}: the rest is {why}"
        )
    return chosen


def find_duplicates(entries: dict[str, Entry]) -> list[list[str]]:
    """Return groups of keys whose files have the same content, by the digests of the manifest."""
    groups: dict[str, list[str]] = {}
    for key, entry in entries.items():
        if entry.get("digest") is not None:
            groups.setdefault(entry["digest"], []).append(key)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)
