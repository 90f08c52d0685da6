"""Verify the files of a cache: structure, pickle opcodes, CRC-32, and agreement with the manifest.

The check itself is in Rust (`voxtier._core.ParallelVerifier`): no torch, no unpickling. A file that cannot be
read gets a state of its own (`voxtier.tensors.states.UNREADABLE`) and is never called damaged.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from voxtier import _core
from voxtier.arguments import as_several
from voxtier.errors import ConfigError
from voxtier.system.durable import TEMPORARY, temporary_is_live
from voxtier.tensors.manifest import Entry, Manifests
from voxtier.tensors.states import FINE

QUARANTINE = "quarantine"
"""The folder in a cache that `voxtier.tensors.keeping.quarantine.fix` moves files to."""
OTHER_FILE = "intact, but not the file that the manifest describes: another program wrote it"
"""The detail of an intact file that does not have the CRCs of the file that was made."""


@dataclass(frozen=True, slots=True)
class FileState:
    """The state of one file, and the evidence for it."""

    path: str
    state: str
    record: str | None = None
    """The record of the file that the evidence concerns."""
    offset: int | None = None
    """The absolute byte offset of the evidence."""
    detail: str = ""
    size: int = 0
    mtime_ns: int = 0
    checked: str = ""
    """``full``, ``quick`` or ``manifest`` (unchanged since it was last found intact)."""
    report: _core.TensorReport | None = field(default=None, repr=False, compare=False)

    def as_json(self) -> str:
        """Return one line of JSON."""
        row = {name: getattr(self, name) for name in self.__slots__ if name != "report"}
        return json.dumps({key: value for key, value in row.items() if value not in (None, "")})


@dataclass(slots=True)
class Listing:
    """The files below a cache folder."""

    root: Path
    files: list[Path] = field(default_factory=list)
    """Every ``.pt`` file."""
    temporaries: list[Path] = field(default_factory=list)
    """Files that a writer has not named yet, or never will."""
    unreadable: list[FileState] = field(default_factory=list)
    """Folders that could not be listed."""
    gds_markers: set[Path] = field(default_factory=set)
    """Those of `files` whose tensors lie beside them, as MONAI's GDSDataset writes them."""
    lmdb: list[Path] = field(default_factory=list)
    """LMDB caches, which are not verified."""
    links: list[Path] = field(default_factory=list)
    """Links to folders outside of `root`; they are not followed."""


def list_cache(root: str | os.PathLike[str]) -> Listing:
    """List the files of a cache folder and of the folders in it, but for quarantine and hidden folders.

    Raises
    ------
    ConfigError
        The folder does not exist (it is never created here), or is a file without ``.pt``.
    """
    root = Path(os.path.abspath(root))  # noqa: PTH100 (resolve() would follow links out of the cache)
    listing = Listing(root)
    if root.is_file():
        if root.suffix != ".pt":
            raise ConfigError(f"{root}: neither a cache folder nor a .pt file")
        listing.files.append(root)
        return listing
    if not root.is_dir():
        raise ConfigError(f"{root}: no such cache folder")
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        waiting += reversed([folder / name for name in _list_folder(folder, listing)])
    return listing


def _list_folder(folder: Path, listing: Listing) -> list[str]:
    """Add the files of one folder, and return the names of the folders to look into."""
    names: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (folders if entry.is_dir(follow_symlinks=False) else names).append(entry.name)
                if entry.is_symlink() and not entry.name.startswith(".") and _leads_out(entry, listing.root):
                    listing.links.append(Path(entry.path))
    except OSError as error:
        listing.unreadable.append(FileState(str(folder), "io_error", detail=f"folder: {error.strerror}"))
        return []
    if "monai_cache.lmdb" in names or "monai_cache.lmdb" in folders:
        listing.lmdb.append(folder / "monai_cache.lmdb")
    text = f"{folder}{os.sep}"
    metadata = {
        name.split(".pt-", 1)[0] + ".pt" for name in names if ".pt-" in name and name.endswith("-meta")
    }
    for name in sorted(names):
        if TEMPORARY.fullmatch(name):
            listing.temporaries.append(folder / name)
        elif name.endswith(".pt") and not name.startswith("."):
            listing.files.append(Path(text + name))
            if name in metadata:
                listing.gds_markers.add(listing.files[-1])
    left_out = (QUARANTINE, "monai_cache.lmdb")
    return sorted(name for name in folders if name not in left_out and not name.startswith("."))


def _leads_out(link: os.DirEntry[str], root: Path) -> bool:
    if (
        link.name.endswith(".pt") or not Path(link.path).is_dir()
    ):  # entries raise where a link leads in a circle
        return False
    return not Path(os.path.realpath(link.path)).is_relative_to(os.path.realpath(root))


Mode = Literal["quick", "full"]


def verify(
    listing: Listing,
    *,
    mode: Mode = "full",
    sample: float | None = None,
    seed: int = 0,
    since_last: bool = False,
    content: bool = False,
    shape: tuple[int, ...] | None = None,
    digest: bool = False,
    threads: int | None = None,
    orphans: str | Iterable[str] = (),
) -> Iterator[FileState]:
    """Check the files of a listing.

    Parameters
    ----------
    listing : Listing
        From `list_cache`.
    mode : {"full", "quick"}
        ``quick`` checks size and time against the manifest, structure and opcodes; ``full`` also the CRC-32
        of every record.
    sample : float, optional
        Check this share of the files (0 to 1) in full, the rest quickly.
    seed : int
        Draws the sample.
    since_last : bool
        Skip files that the manifest calls intact, and whose size, modification time and time of the inode's
        last change are the same. Bits that rot on the disk change none of them: check in full now and then.
        Files of which the manifest does not answer what is asked here are checked: with `content` those whose
        voxels were not looked at yet, with `shape` those of another or no known shape, with `digest` all.
    content : bool
        Also report constant, NaN and infinite volumes.
    shape : tuple of int, optional
        Report files whose image tensor does not end in this shape.
    digest : bool
        Also compute the content digest.
    threads : int, optional
        Files in flight; by default twice the processors, at least 4 (a cold disk wants several).
    orphans : str or iterable of str
        File names that no volume list asks for.

    Yields
    ------
    FileState
        One per file, in the order in which the checks end. Folders that cannot be listed and temporaries of
        dead writers come first.
    """
    yield from listing.unreadable
    for link in listing.links:
        detail = "a link to a folder elsewhere is not followed: name that folder itself"
        yield FileState(str(link), "unknown", detail=detail)
    for path in listing.temporaries:
        if not temporary_is_live(path):
            detail = "its writer is dead; `voxtier tensors gc` removes it"
            yield FileState(str(path), "leftover_temp", detail=detail)
    manifests = Manifests()
    full: list[Path] = []
    quick: list[Path] = []
    draw = random.Random(seed)
    unwanted = frozenset(as_several(orphans))
    for path in listing.files:
        unchanged = None
        if since_last and not digest:
            unchanged = _unchanged_since_last(
                path, manifests.entry(path), listing, content=content, shape=shape, orphans=unwanted
            )
        if unchanged is not None:
            yield unchanged
        elif mode == "quick" and sample is None:
            quick.append(path)
        elif sample is None or draw.random() < sample:
            full.append(path)
        else:
            quick.append(path)
    threads = threads or default_threads()
    for paths, crc in ((full, True), (quick, False)):
        verifier = _core.ParallelVerifier(paths, crc=crc, content=content, digest=digest, threads=threads)
        try:
            for index, report in verifier:
                state = judge(paths[index], report, listing, shape=shape, orphans=unwanted)
                state = replace(state, checked="full" if crc else "quick")
                yield _compare_with_manifest(state, report, manifests)
        finally:
            verifier.stop()


def default_threads() -> int:
    """Return how many files are verified at a time: a cold disk wants several."""
    return max(4, 2 * (os.cpu_count() or 1))


def judge(
    path: Path,
    report: _core.TensorReport,
    listing: Listing,
    *,
    shape: tuple[int, ...] | None = None,
    orphans: frozenset[str] = frozenset(),
) -> FileState:
    """Return the state of a file: the report's, unless its folder or the lists say otherwise.

    Parameters
    ----------
    path : Path
        The file.
    report : TensorReport
        From the core.
    listing : Listing
        Knows the markers of a GDSDataset.
    shape, orphans : tuple of int or None, frozenset of str
        As for `verify`.

    Returns
    -------
    FileState
        With an empty ``checked``.
    """
    state, detail = report.state, report.detail
    if path in listing.gds_markers and report.size == 0:
        state, detail = "gds_marker", "empty marker of a GDSDataset, whose tensors lie in the files beside it"
    elif state == "ok" and path.name in orphans:
        state, detail = "orphan", _NOT_WANTED
    elif state in FINE and shape is not None:
        found = image_tensors(report)[0][2] if image_tensors(report) else None
        if found is None or tuple(found[-len(shape) :]) != shape:
            state = "suspicious_content"
            expected = ", ".join(map(str, shape))
            detail = f"shape {found if found else 'of no image tensor'}, expected [..., {expected}]"
    return FileState(
        str(path), state, report.record, report.offset, detail, report.size, report.mtime_ns, report=report
    )


_NOT_WANTED = "no volume of the lists has this key"


def image_tensors(report: _core.TensorReport) -> list[list[Any]]:
    """Return key path, dtype and shape of each image tensor, as the manifest has them."""
    return [[place, *kind] for place, *kind, _ in report.tensors if place in ("", "image")]


def _unchanged_since_last(
    path: Path,
    entry: Entry,
    listing: Listing,
    *,
    content: bool,
    shape: tuple[int, ...] | None,
    orphans: frozenset[str],
) -> FileState | None:
    """Return the state of a file that need not be looked at: its entry answers all that is asked."""
    state, detail = entry.get("state"), ""
    if state == "orphan":  # of other lists perhaps: a file that was found right
        state = "ok"
    if state not in FINE or "mtime_ns" not in entry:
        return None
    if state == "gds_marker" and path not in listing.gds_markers:  # the files beside it are gone
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    if (found.st_size, found.st_mtime_ns) != (entry.get("size"), entry["mtime_ns"]):
        return None
    if entry.get("ctime_ns", found.st_ctime_ns) != found.st_ctime_ns:  # no program can set this time back
        return None
    if content and state != "gds_marker" and entry.get("content_ctime_ns") != found.st_ctime_ns:
        return None
    if state == "ok" and path.name in orphans:
        state, detail = "orphan", _NOT_WANTED
    elif shape is not None and state != "gds_marker" and not _had_shape(entry, shape):
        return None
    return FileState(
        str(path), state, detail=detail, size=found.st_size, mtime_ns=found.st_mtime_ns, checked="manifest"
    )


def _had_shape(entry: Entry, shape: tuple[int, ...]) -> bool:
    try:
        return tuple(entry["tensors"][0][2][-len(shape) :]) == shape
    except (KeyError, IndexError, TypeError):  # not recorded, or edited
        return False


def _compare_with_manifest(state: FileState, report: _core.TensorReport, manifests: Manifests) -> FileState:
    entry = manifests.entry(Path(state.path))
    recorded = entry.get("records")
    if state.state not in ("ok", "ok_no_crc") or recorded is None or entry.get("size") is None:
        return state
    found = {name: crc for name, _, crc in report.records}
    return state if found == recorded else replace(state, detail=OTHER_FILE)
