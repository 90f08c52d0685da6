"""Move damaged files of a cache to quarantine: on evidence, never because a file could not be read.

`fix` acts on the states of a finished `verify`. A circuit breaker refuses when so many files look damaged
that something else must be wrong, such as the disk.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from voxtier import _core
from voxtier.errors import CircuitOpenError
from voxtier.system.durable import link_from, sync_folder, write_text
from voxtier.system.text import format_count
from voxtier.tensors.claims import Claim, claim_is_live
from voxtier.tensors.keeping.verify import QUARANTINE, FileState, Listing, judge
from voxtier.tensors.states import DAMAGED, FIXABLE, NOTED, UNREADABLE

MAX_SHARE = 0.20
"""The share of fixable files, of those that could be read, above which the circuit breaker refuses."""
MAX_BAD = 1000
"""The number of fixable files above which the circuit breaker refuses."""


@dataclass(frozen=True, slots=True)
class FixResult:
    """What was done with one fixable file."""

    path: str
    state: str
    action: str
    """``quarantined``, ``deleted`` or ``left``."""
    detail: str = ""
    moved_to: str | None = None

    def as_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps({key: value for key, value in asdict(self).items() if value not in (None, "")})


def _objection(states: Iterable[FileState], max_bad: int) -> str | None:
    """Return why the circuit breaker refuses, or None."""
    bad = total = 0
    for state in states:
        if state.state not in NOTED | UNREADABLE:  # of a file that was not read nothing is known
            total += 1
            bad += state.state in FIXABLE
    if bad > max_bad:
        return f"{bad} bad files, more than {max_bad}"
    if bad > MAX_SHARE * total:
        return f"{bad} of {format_count(total, 'readable file')} are bad, more than {MAX_SHARE:.0%}"
    return None


def fix(
    root: Path,
    states: list[FileState],
    *,
    delete: bool = False,
    can_be_remade: Callable[[Path], bool] = lambda _: False,
    force: bool = False,
    max_bad: int = MAX_BAD,
) -> Iterator[FixResult]:
    """Move fixable files to ``<root>/quarantine/<time>-<process>/``, each with the reason as JSON.

    A file is verified again right before it is moved, and left if it has changed or is claimed.

    Parameters
    ----------
    root : Path
        The cache that was listed.
    states : list of FileState
        *All* results of a finished `verify`: the circuit breaker counts the healthy ones too.
    delete : bool
        Delete damaged files that can be made again, instead of moving them.
    can_be_remade : callable
        Whether the source of a file is known to exist.
    force : bool
        Act although the circuit breaker objects.
    max_bad : int
        The most files that are touched without ``force``.

    Yields
    ------
    FixResult
        One per fixable file.

    Raises
    ------
    CircuitOpenError
        More than a fifth of the files that could be read, or more than ``max_bad``, are fixable, and
        ``force`` is off.
    """
    objection = _objection(states, max_bad)
    if objection and not force:
        raise CircuitOpenError(f"{root}: {objection}: nothing was touched; check the disk, then use --force")
    return _fix(root, states, delete=delete, can_be_remade=can_be_remade)


def _fix(
    root: Path, states: list[FileState], *, delete: bool, can_be_remade: Callable[[Path], bool]
) -> Iterator[FixResult]:
    root = Path(os.path.abspath(root))  # noqa: PTH100 - as the paths of the states
    base = root.parent if root.is_file() else root
    run = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{os.getpid()}"
    listing = Listing(base)
    for state in states:
        if state.state not in FIXABLE:
            continue
        path = Path(state.path)
        if claim_is_live(Claim.path_for(path)):
            yield FixResult(state.path, state.state, "left", "another process is making this file")
            continue
        again = judge(path, _core.verify_tensor_file(path), listing)
        if (again.state, again.size, again.mtime_ns) != (state.state, state.size, state.mtime_ns):
            yield FixResult(state.path, again.state, "left", "the file changed since it was checked")
            continue
        try:
            yield _remove(path, again, base, run, delete=delete and can_be_remade(path), asked=delete)
        except OSError as error:
            yield FixResult(state.path, state.state, "left", f"could not be moved: {error}")


def _remove(path: Path, state: FileState, base: Path, run: str, *, delete: bool, asked: bool) -> FixResult:
    if delete and state.state in DAMAGED:
        path.unlink()
        sync_folder(path.parent)
        return FixResult(state.path, state.state, "deleted", state.detail)
    target = base / QUARANTINE / run / path.relative_to(base)
    target.parent.mkdir(parents=True, exist_ok=True)
    reason = json.loads(state.as_json()) | {"moved_from": str(path), "at": time.time(), "run": run}
    write_text(target.with_name(target.name + ".json"), json.dumps(reason, indent=2))
    if target.exists():
        raise FileExistsError(f"{target} exists")
    elsewhere = link_from(path, target.parent)
    if elsewhere is None:
        path.rename(target)
    else:
        target.symlink_to(elsewhere)
        path.unlink()
    sync_folder(target.parent)
    sync_folder(path.parent)
    detail = state.detail
    if asked and state.state in DAMAGED:
        detail += "; not deleted: no source is known from which it could be made again"
    return FixResult(state.path, state.state, "quarantined", detail, str(target))
