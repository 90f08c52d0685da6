"""Is every file of a cache right? And if not: quarantine on evidence, never on a failure to look.

The check itself is in Rust (`voxtier._core.ParallelVerifier`): no torch, no unpickling. `fix` moves files whose
*content* proves them bad; a file that could not be read is reported and left alone.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from voxtier import _core
from voxtier.errors import CircuitOpenError, ConfigError
from voxtier.system.durable import TEMPORARY, sync_folder, temporary_is_live, write_text
from voxtier.tensors.claims import Claim, claim_is_live
from voxtier.tensors.manifest import Manifest

__all__ = ["FileState", "FixResult", "Listing", "fix", "list_cache", "verify"]

QUARANTINE = "quarantine"
FINE = frozenset(["ok", "ok_no_crc", "ok_trailing", "gds_marker"])
INFORMATIVE = frozenset(["orphan", "leftover_temp"])
UNDECIDED = frozenset(["io_error", "unknown"])
FIXABLE = frozenset(["truncated", "bad_structure", "bad_crc", "unsafe_globals"])
DELETABLE = FIXABLE - {"unsafe_globals"}

MAX_SHARE = 0.20
"""Above this share of bad files something else is wrong than the files: nothing is touched."""
MAX_BAD = 1000


@dataclass(frozen=True, slots=True)
class FileState:
    """The verdict on one file."""

    path: str
    state: str
    record: str | None = None
    offset: int | None = None
    detail: str = ""
    size: int = 0
    mtime_ns: int = 0
    checked: str = ""
    """``full``, ``quick`` or ``manifest`` (unchanged since it was last found right)."""
    report: _core.TensorReport | None = field(default=None, repr=False, compare=False)

    def as_json(self) -> str:
        """Return one line of JSON."""
        row = {name: getattr(self, name) for name in self.__slots__ if name != "report"}
        return json.dumps({key: value for key, value in row.items() if value not in (None, "")})


@dataclass(slots=True)
class Listing:
    """One walk over a cache."""

    root: Path
    files: list[Path] = field(default_factory=list)
    temporaries: list[Path] = field(default_factory=list)
    unreadable: list[FileState] = field(default_factory=list)
    gds_markers: set[Path] = field(default_factory=set)
    lmdb: list[Path] = field(default_factory=list)


def list_cache(root: str | os.PathLike[str]) -> Listing:
    """List the files of a cache folder and of the folders in it; quarantine and hidden folders are left out.

    Raises
    ------
    ConfigError
        The folder does not exist. (It is never created here.)
    """
    root = Path(os.path.abspath(root))  # noqa: PTH100 (resolve() would follow links out of the cache)
    listing = Listing(root)
    if root.is_file():
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
    """Add what one folder holds, and return the names of the folders to look into."""
    names: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (folders if entry.is_dir(follow_symlinks=False) else names).append(entry.name)
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
    own = (QUARANTINE, "monai_cache.lmdb")
    return sorted(name for name in folders if name not in own and not name.startswith("."))


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
    orphans: frozenset[str] = frozenset(),
) -> Iterator[FileState]:
    """Check the files of a listing; results come in the order in which they finish.

    Parameters
    ----------
    listing : Listing
        From `list_cache`.
    mode : {"full", "quick"}
        ``quick`` checks size and time against the manifest, structure and opcodes; ``full`` also the CRC-32
        of every record.
    sample : float, optional
        Check this share of the files (0 to 1) in full, drawn with ``seed``, the rest quickly.
    since_last : bool
        Skip files that the manifest saw right, and whose size, modification time and time of the inode's last
        change are still the same. Bits that rot on the disk change none of them: check in full now and then.
    content : bool
        Also report constant, NaN and infinite volumes.
    shape : tuple of int, optional
        Report files whose first tensor ends in another shape.
    digest : bool
        Also compute the content digest.
    threads : int, optional
        Files in flight; by default twice the processors, at least 4 (a cold disk wants several).
    orphans : frozenset of str
        File names that no volume list asks for.
    """
    yield from listing.unreadable
    for path in listing.temporaries:
        if not temporary_is_live(path):
            detail = "its writer is dead; `voxtier tensors gc` removes it"
            yield FileState(str(path), "leftover_temp", detail=detail)
    manifests = _Manifests()
    full: list[Path] = []
    quick: list[Path] = []
    draw = random.Random(seed)
    for path in listing.files:
        known = manifests.known(path) if since_last else None
        if known is not None:
            yield known
        elif mode == "quick" and sample is None:
            quick.append(path)
        elif sample is None or draw.random() < sample:
            full.append(path)
        else:
            quick.append(path)
    threads = threads or max(4, 2 * (os.cpu_count() or 1))
    for paths, crc in ((full, True), (quick, False)):
        verifier = _core.ParallelVerifier(paths, crc=crc, content=content, digest=digest, threads=threads)
        try:
            for index, report in verifier:
                state = _judge(paths[index], report, listing, shape=shape, orphans=orphans)
                yield manifests.compare(paths[index], state, checked="full" if crc else "quick")
        finally:
            verifier.stop()


def _judge(
    path: Path,
    report: _core.TensorReport,
    listing: Listing,
    *,
    shape: tuple[int, ...] | None = None,
    orphans: frozenset[str] = frozenset(),
) -> FileState:
    state, detail = report.state, report.detail
    if path in listing.gds_markers and report.size == 0:
        state, detail = "gds_marker", "empty marker of a GDSDataset, whose tensors lie in the files beside it"
    elif state == "ok" and shape is not None:
        found = next((tensor for tensor in report.tensors if tensor[0] in ("", "image")), None)
        if found is None or tuple(found[2][-len(shape) :]) != shape:
            state = "suspicious_content"
            detail = f"shape {found[2] if found else 'of no image tensor'}, expected (..., {shape})"
    elif state == "ok" and path.name in orphans:
        state, detail = "orphan", "no volume of the lists has this key"
    return FileState(
        str(path), state, report.record, report.offset, detail, report.size, report.mtime_ns, report=report
    )


class _Manifests:
    """The manifests of the folders of a listing, read when first needed."""

    def __init__(self) -> None:
        self._entries: dict[Path, dict[str, dict[str, Any]]] = {}

    def entry(self, path: Path) -> dict[str, Any]:
        folder = path.parent
        if folder not in self._entries:
            self._entries[folder] = Manifest(folder).read()
        return self._entries[folder].get(path.stem, {})

    def known(self, path: Path) -> FileState | None:
        entry = self.entry(path)
        if entry.get("state") not in FINE or "mtime_ns" not in entry:
            return None
        try:
            found = path.stat()
        except OSError:
            return None
        if (found.st_size, found.st_mtime_ns) != (entry.get("size"), entry["mtime_ns"]):
            return None
        if entry.get("ctime_ns", found.st_ctime_ns) != found.st_ctime_ns:  # the one time that nobody sets
            return None
        return FileState(
            str(path), entry["state"], size=found.st_size, mtime_ns=found.st_mtime_ns, checked="manifest"
        )

    def compare(self, path: Path, state: FileState, *, checked: str) -> FileState:
        """Hold the file against what was recorded when it was made."""
        values = {name: getattr(state, name) for name in state.__slots__} | {"checked": checked}
        entry = self.entry(path)
        recorded = entry.get("records")
        if state.state in ("ok", "ok_no_crc") and recorded is not None and state.report is not None:
            found = {name: crc for name, _, crc in state.report.records}
            if found != recorded and entry.get("size") is not None:
                values["detail"] = "intact, but not the file that the manifest knows: another wrote it"
        return FileState(**values)


@dataclass(frozen=True, slots=True)
class FixResult:
    """What happened to one bad file."""

    path: str
    state: str
    action: str
    """``quarantined``, ``deleted``, ``left`` or ``would_quarantine``, ``would_delete``."""
    detail: str = ""
    moved_to: str | None = None

    def as_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps({key: value for key, value in asdict(self).items() if value not in (None, "")})


def breaker(states: Iterable[FileState], *, max_bad: int = MAX_BAD) -> str | None:
    """Return why `fix` refuses these results without ``force``, or None."""
    bad = total = 0
    for state in states:
        if state.state not in INFORMATIVE:
            total += 1
            bad += state.state in FIXABLE
    if bad > max_bad:
        return f"{bad} bad files, more than {max_bad}"
    if bad > MAX_SHARE * total:
        return f"{bad} of {total} files are bad, more than {MAX_SHARE:.0%}"
    return None


def fix(
    root: Path,
    states: list[FileState],
    *,
    delete: bool = False,
    can_be_remade: Callable[[Path], bool] = lambda _: False,
    force: bool = False,
    max_bad: int = MAX_BAD,
    run: str | None = None,
) -> Iterator[FixResult]:
    """Move bad files to ``<root>/quarantine/<run>/``, each with a reason beside it.

    Parameters
    ----------
    root : Path
        The cache that was listed.
    states : list of FileState
        *All* results of a finished `verify`: the breaker needs the healthy ones too.
    delete : bool
        Remove truncated and damaged files instead, where ``can_be_remade`` agrees.
    can_be_remade : callable
        Whether the source of a file is known to exist.
    force : bool
        Act even when the circuit breaker objects.

    Raises
    ------
    CircuitOpenError
        Too large a share looks bad, and ``force`` is off.
    """
    objection = breaker(states, max_bad=max_bad)
    if objection and not force:
        raise CircuitOpenError(f"{objection}: nothing was touched; look at the disk, then use --force")
    return _fix(root, states, delete=delete, can_be_remade=can_be_remade, run=run or _run_name())


def _run_name() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{os.getpid()}"


def _fix(
    root: Path, states: list[FileState], *, delete: bool, can_be_remade: Callable[[Path], bool], run: str
) -> Iterator[FixResult]:
    base = root.parent if root.is_file() else root
    listing = Listing(base)
    for state in states:
        if state.state not in FIXABLE:
            continue
        path = Path(state.path)
        if claim_is_live(Claim.path_for(path)):
            yield FixResult(state.path, state.state, "left", "another process is making this file")
            continue
        again = _judge(path, _core.verify_tensor_file(path), listing)
        if (again.state, again.size, again.mtime_ns) != (state.state, state.size, state.mtime_ns):
            yield FixResult(state.path, again.state, "left", "the file changed since it was checked")
            continue
        try:
            yield _remove(path, again, base, run, delete=delete and can_be_remade(path), asked=delete)
        except OSError as error:
            yield FixResult(state.path, state.state, "left", f"could not be moved: {error}")


def _remove(path: Path, state: FileState, base: Path, run: str, *, delete: bool, asked: bool) -> FixResult:
    if delete and state.state in DELETABLE:
        path.unlink()
        sync_folder(path.parent)
        return FixResult(state.path, state.state, "deleted", state.detail)
    target = base / QUARANTINE / run / path.relative_to(base)
    target.parent.mkdir(parents=True, exist_ok=True)
    reason = json.loads(state.as_json()) | {"moved_from": str(path), "at": time.time(), "run": run}
    write_text(target.with_name(target.name + ".json"), json.dumps(reason, indent=2))
    if target.exists():
        raise FileExistsError(f"{target} exists")
    path.rename(target)
    sync_folder(target.parent)
    sync_folder(path.parent)
    detail = state.detail
    if asked and state.state in DELETABLE:
        detail += "; kept in quarantine because nothing says that it can be made again"
    return FixResult(state.path, state.state, "quarantined", detail, str(target))
