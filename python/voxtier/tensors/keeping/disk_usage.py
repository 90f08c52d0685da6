"""Where the space is, and how to get it back without losing what cannot be made again."""

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
from voxtier.tensors.claims import claim_is_live
from voxtier.tensors.keeping.verify import QUARANTINE, Listing, list_cache
from voxtier.tensors.manifest import Manifest

__all__ = ["Garbage", "cache_folders", "duplicates", "evictions", "find_garbage", "remove", "usage"]

OLD = 3600.0
"""Seconds after which a part of a download, or an empty folder, counts as left behind."""


def cache_folders(root: Path) -> Iterator[dict[str, Any]]:
    """Yield every cache folder below ``root``: files, bytes, last use, and its parameters where known."""
    listing = list_cache(root)
    folders: dict[Path, list[os.stat_result]] = {}
    for path in listing.files:
        with contextlib.suppress(OSError):
            folders.setdefault(path.parent, []).append(path.stat())
    for folder, found in sorted(folders.items()):
        yield {
            "folder": str(folder),
            "files": len(found),
            "bytes": sum(item.st_size for item in found),
            "newest": max(item.st_mtime for item in found),
            "last_used": max(max(item.st_atime, item.st_mtime) for item in found),
            "parameters": _summary(folder),
        }


def _summary(folder: Path) -> dict[str, Any]:
    """Return the parameters that people ask for, of ``cache_params.json``."""
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


def usage(root: Path) -> dict[str, int]:
    """Return bytes by kind: tensors, temporaries, quarantine, manifests, other."""
    totals = {"tensors": 0, "temporaries": 0, "quarantine": 0, "manifests": 0, "other": 0}
    listing = list_cache(root)
    tensors, temporaries = set(listing.files), set(listing.temporaries)
    for folder, _, names in os.walk(root):
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
            with contextlib.suppress(OSError):
                totals[kind] += path.lstat().st_size
    return totals


@dataclass(frozen=True, slots=True)
class Garbage:
    """One file, or empty folder, that may go."""

    path: Path
    reason: str
    size: int
    precious: bool = False
    """Nothing says that it can be made again, so that it goes only by force."""


def find_garbage(
    root: Path,
    *,
    wanted: frozenset[str] = frozenset(),
    can_be_remade: Callable[[Path], bool] = lambda _: False,
    images: Path | None = None,
) -> Iterator[Garbage]:
    """Yield what no living process and no list needs, folders after what lies in them.

    Parameters
    ----------
    root : Path
        A cache folder, or the folder of cache folders.
    wanted : frozenset of str
        File names that the lists ask for; when given, other tensors are orphans.
    can_be_remade : callable
        Whether a file's source is known to exist; orphans of which it is not are precious.
    images : Path, optional
        The image folder: unfinished downloads older than an hour, of `generate` and of the hub's own client.
    """
    listing = list_cache(root)
    for path in listing.temporaries:
        if not temporary_is_live(path):
            yield from _garbage(path, "temporary of a dead run")
    yield from _dead_claims(root)
    if wanted:
        for path in listing.files:
            if path.name not in wanted and path not in listing.gds_markers:
                yield from _garbage(path, "orphan: no list asks for it", precious=not can_be_remade(path))
    yield from _dead_folders(root)
    if images is not None and images.is_dir():
        yield from _dead_claims(images)
        for path in _files(images):
            ours = path.name.startswith(".") and path.name.endswith((".part", ".part.json"))
            if (ours or (path.suffix == ".incomplete" and _HUB_CLIENT in path.parts)) and _is_old(path):
                yield from _garbage(path, "unfinished download")
        yield from _dead_folders(images)


_HUB_CLIENT = "huggingface"
"""A folder of that name, in ``.cache``, is where `huggingface_hub` keeps parts of downloads into a folder."""


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder) / name for name in sorted(names))


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > OLD
    except OSError:
        return False


def _dead_claims(root: Path) -> Iterator[Garbage]:
    for path in _files(root):
        if path.name.startswith(".") and path.name.endswith(".claim") and not claim_is_live(path):
            yield from _garbage(path, "claim of a dead run")


def _dead_folders(root: Path) -> Iterator[Garbage]:
    """Yield folders that have long been empty, or hold the parameters of a cache and nothing else."""
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


def evictions(
    listing: Listing,
    budget: int,
    *,
    keep: frozenset[str] = frozenset(),
    can_be_remade: Callable[[Path], bool],
    force: bool = False,
) -> list[Garbage]:
    """Return the least recently used files that must go for the rest to fit into ``budget`` bytes.

    Parameters
    ----------
    listing : Listing
        From `list_cache`.
    budget : int
        Bytes that may stay.
    keep : frozenset of str
        File names of the current lists; these are never evicted. Neither are pinned entries.
    can_be_remade : callable
        Whether a file's source is known to exist.
    force : bool
        Evict files that cannot be made again, too.

    Raises
    ------
    ConfigError
        What may go is not enough.
    """
    candidates = []
    total = 0
    pinned: dict[Path, set[str]] = {}
    for path in listing.files:
        with contextlib.suppress(OSError):
            found = path.stat()
            total += found.st_size
            if path.parent not in pinned:
                entries = Manifest(path.parent).read()
                pinned[path.parent] = {key for key, entry in entries.items() if entry.get("pinned")}
            if path.name not in keep and path.stem not in pinned[path.parent]:
                candidates.append((max(found.st_atime, found.st_mtime), path, found.st_size))
    chosen: list[Garbage] = []
    for _, path, size in sorted(candidates):
        if total <= budget:
            break
        if force or can_be_remade(path):
            chosen.append(Garbage(path, "least recently used", size))
            total -= size
    if total > budget:
        raise ConfigError(
            f"{listing.root}: {total:,} bytes would stay, more than {budget:,}: the rest is wanted, pinned,"
            " or cannot be made again (--force evicts the last)"
        )
    return chosen


def duplicates(entries: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return groups of keys whose contents are equal, by the manifest's digests."""
    groups: dict[str, list[str]] = {}
    for key, entry in entries.items():
        if entry.get("digest") is not None:
            groups.setdefault(entry["digest"], []).append(key)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)
