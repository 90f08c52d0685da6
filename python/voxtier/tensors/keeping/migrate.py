"""Carry a cache over to another MONAI version, another folder or other paths: nothing is recomputed.

``voxtier tensors migrate`` first plans renames (`plan_renames`, `plan_folder_moves`) and shows them;
`carry_out` renames, and never overwrites a file. `make_safe` rewrites files that newer versions refuse.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from voxtier import _core
from voxtier.errors import ConfigError, NotLoadedError
from voxtier.system.durable import link_from, sync_folder
from voxtier.system.text import first_line
from voxtier.tensors.identity.fingerprint import differences
from voxtier.tensors.manifest import Entry, Manifest


@dataclass(frozen=True, slots=True)
class Move:
    """One rename."""

    old: Path
    new: Path


def monai_key(item: Any, algorithm: Literal["md5", "sha256"]) -> str:
    """Return the name that MONAI's default gives an item: md5 up to 1.6.0, sha256 from 1.6.1.

    Parameters
    ----------
    item : object
        An item of the dataset. Its pickle is hashed, so the same text as one shared object or as two objects
        gives two names.
    algorithm : {"md5", "sha256"}
        The digest.

    Returns
    -------
    str
        32 or 64 hexadecimal digits.
    """
    from monai.data.utils import sorted_dict

    encoded = pickle.dumps(sorted_dict(item), protocol=pickle.HIGHEST_PROTOCOL)
    return hashlib.new(algorithm, encoded, usedforsecurity=False).hexdigest()


def plan_renames(
    folder: Path,
    items: Iterable[Any],
    old_key: Callable[[Any], str],
    new_key: Callable[[Any], str],
    *,
    suffix: str = "",
    new_suffix: str | None = None,
    on_absent: Callable[[Any], None] = lambda _: None,
) -> list[Move]:
    """Return the renames that turn the old names of items into new ones.

    Parameters
    ----------
    folder : Path
        The cache folder.
    items : iterable
        The dataset's items, as they are *now*.
    old_key, new_key : callable
        From an item to its name without suffix.
    suffix : str
        The transform hash that `PersistentDataset` appended to the old names.
    new_suffix : str, optional
        That of the new names; by default the same. MONAI's hashes of transforms change with its version.
    on_absent : callable, optional
        Called with each item that has a file under neither name, and will be computed.

    Returns
    -------
    list of Move
        One per item whose file exists under its old name, or whose row an earlier run left there.
    """
    moves: dict[Move, None] = {}  # an item may be listed twice
    rows = Manifest(folder).read(strict=True)
    new_suffix = suffix if new_suffix is None else new_suffix
    for item in items:
        old = folder / f"{old_key(item)}{suffix}.pt"
        new = folder / f"{new_key(item)}{new_suffix}.pt"
        if old == new:
            is_moved = False
        elif os.path.lexists(old):
            is_moved = old.is_file()
        else:
            is_moved = _is_left_row(rows.get(old.stem, {}), rows.get(new.stem, {}), new)
        if is_moved:
            moves[Move(old, new)] = None
        elif not new.is_file():
            on_absent(item)
    return list(moves)


def change_prefix(value: Any, before: str, after: str) -> Any:
    """Return an item with another beginning of its paths.

    Parameters
    ----------
    value : object
        Texts, also in dicts and lists.
    before : str
        What is taken away, up to the end of a name: ``/data`` begins ``/data/a``, and not ``/data2/a``.
    after : str
        What stands there instead.

    Returns
    -------
    object
        Equal to ``value`` but for these texts.
    """
    if isinstance(value, dict):
        return {key: change_prefix(item, before, after) for key, item in value.items()}
    if isinstance(value, list):
        return [change_prefix(item, before, after) for item in value]
    if not isinstance(value, str):
        return value
    are_folders = bool(before and after)
    if are_folders:  # a slash at the end of one of them alone says nothing
        before, after = before.rstrip("/\\"), after.rstrip("/\\")
    rest = value.removeprefix(before)
    is_whole = rest[:1] in ("", "/", "\\") or (not are_folders and before[-1:] in ("", "/", "\\"))
    return after + rest if value.startswith(before) and is_whole else value


def plan_folder_moves(old: Path, new: Path) -> list[Move]:
    """Return the renames that carry every tensor file of one cache folder to another.

    Rows that an earlier run left behind are among them: it was killed after it had renamed their files.
    """
    if not old.is_dir():
        raise ConfigError(f"{old}: no such cache folder")
    if new.exists() and new.samefile(old):
        raise ConfigError(f"{new}: is the folder {old} itself: name another one")
    moves = [Move(path, new / path.name) for path in sorted(old.glob("*.pt"))]
    rows, new_rows = (Manifest(folder).read(strict=True) for folder in (old, new))
    for key, row in rows.items():
        move = Move(old / f"{key}.pt", new / f"{key}.pt")
        if not os.path.lexists(move.old) and _is_left_row(row, new_rows.get(key, {}), move.new):
            moves.append(move)
    return moves


def parameter_differences(old: Path, new: Path) -> list[str]:
    """Return the differences of the ``cache_params.json`` of two folders, one line per parameter."""
    try:
        return differences(_params(old), _params(new))
    except RecursionError:
        raise ConfigError(f"{old}, {new}: cache_params.json is nested too deeply to compare") from None


def _params(folder: Path) -> Any:
    path = folder / "cache_params.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


_BATCH = 256
"""Files whose rows are written together, before the first of them is renamed."""


def carry_out(moves: Iterable[Move]) -> Iterator[tuple[Move, str]]:
    """Rename files and their manifest entries; yield each move with ``moved``, or with why it was left.

    Rows are written under the new names first, and dropped under the old ones when the files are renamed: a
    run that is killed leaves some rows under both names, and no file without its row.
    """
    rows = _Rows()
    batch: list[Move] = []
    names: set[Path] = set()
    for move in moves:
        if len(batch) == _BATCH or not names.isdisjoint((move.old, move.new)):  # names that follow each other
            yield from _carry_out_batch(batch, rows)
            batch, names = [], set()
        batch.append(move)
        names |= {move.old, move.new}
    yield from _carry_out_batch(batch, rows)


class _Rows:
    """The manifests of the folders that a migration touches."""

    def __init__(self) -> None:
        self._manifests: dict[Path, Manifest] = {}
        self._entries: dict[Path, dict[str, Entry]] = {}
        self.unwritten: set[Path] = set()
        """Folders to whose manifest nothing could be appended."""

    def entry(self, path: Path) -> Entry:
        return self._of(path.parent).get(path.stem, {})

    def _of(self, folder: Path) -> dict[str, Entry]:
        if folder not in self._entries:
            self._manifests[folder] = Manifest(folder)
            self._entries[folder] = self._manifests[folder].read(strict=True)
        return self._entries[folder]

    def write(self, entries: dict[Path, Entry]) -> None:
        """Give files these entries, which may be empty, in the place of those that they have."""
        lines: dict[Path, list[Entry]] = {}
        for path, entry in entries.items():
            if self._of(path.parent).pop(path.stem, None):
                lines.setdefault(path.parent, []).append({"key": path.stem, "forgotten": True})
            if entry:
                self._of(path.parent)[path.stem] = row = {**entry, "key": path.stem}
                lines.setdefault(path.parent, []).append(row)
        for folder, each in lines.items():
            if not self._manifests[folder].note(each):
                self.unwritten.add(folder)


def _carry_out_batch(batch: list[Move], rows: _Rows) -> list[tuple[Move, str]]:
    """Carry out moves of which no name occurs twice."""
    results = dict.fromkeys(batch, "")
    for move in batch:
        if not os.path.lexists(move.old) and _is_left_row(
            rows.entry(move.old), rows.entry(move.new), move.new
        ):
            results[move] = "moved"  # by a run that was killed before it wrote the row
        else:
            results[move] = _attempt(_refuse_taken, move)
    goes = [move for move in batch if results[move] in ("", "moved")]
    before = {move.new: rows.entry(move.new) for move in goes}
    rows.write({move.new: rows.entry(move.old) for move in goes})
    try:
        for move in goes:
            results[move] = results[move] or _attempt(_rename, move) or "moved"
    finally:  # also when this is interrupted, perhaps between a rename and its result
        done = {
            move
            for move in goes
            if results[move] == "moved" or (os.path.lexists(move.new) and not os.path.lexists(move.old))
        }
        for folder in {folder for move in done for folder in (move.old.parent, move.new.parent)}:
            sync_folder(folder)
        rows.write({move.new: before[move.new] for move in goes if move not in done})
        rows.write({move.old: {} for move in done if move.new.parent not in rows.unwritten})
    return list(results.items())


def _attempt(step: Callable[[Move], None], move: Move) -> str:
    """Return why a file is left, or an empty text."""
    try:
        move.new.parent.mkdir(parents=True, exist_ok=True)
        step(move)
    except FileExistsError:
        return "left: the new name is taken"
    except OSError as error:
        return f"left: {error.strerror}"
    return ""


def _refuse_taken(move: Move) -> None:
    """Raise FileExistsError where another file has the new name.

    Two names of one file are no such case: an earlier run was killed between its two steps.
    """
    found = move.old.lstat()
    if not os.path.lexists(move.new):
        return
    target = link_from(move.old, move.new.parent)
    if target is not None and move.new.is_symlink() and os.readlink(move.new) == target:  # noqa: PTH115
        return
    if not os.path.samestat(found, move.new.lstat()) or _is_one_name(move):
        raise FileExistsError(move.new)


def _rename(move: Move) -> None:
    """Rename, but never replace a file, whatever other processes do meanwhile."""
    target = link_from(move.old, move.new.parent)
    try:
        if target is None:
            os.link(move.old, move.new, follow_symlinks=False)
        else:
            move.new.symlink_to(target)
    except FileExistsError:
        _refuse_taken(move)  # one name must not go
    except OSError:  # a file system without hard links, or another one
        if target is not None:
            raise
        if os.path.lexists(move.new):
            raise FileExistsError(move.new) from None
        move.old.rename(move.new)
        return
    move.old.unlink(missing_ok=True)


def _is_left_row(old: Entry, new: Entry, path: Path) -> bool:
    """Whether a row under an old name is of the file with the new name, which came there without it."""
    if not old:
        return False
    try:
        found = path.lstat()
    except OSError:
        return False
    if new:
        return {**old, "key": "", "at": 0} == {**new, "key": "", "at": 0}
    return (old.get("size"), old.get("mtime_ns")) == (found.st_size, found.st_mtime_ns)


def _is_one_name(move: Move) -> bool:
    """Return whether both paths are one entry of one folder, by a link, ``..`` or a second mount."""
    one_folder = os.path.samestat(move.old.parent.stat(), move.new.parent.stat())
    return (one_folder and move.old.name == move.new.name) or move.old.lstat().st_nlink < 2


CONVERTIBLE = frozenset({"not_weights_only", "legacy_format"})
"""The states of files that `make_safe` may rewrite."""


def make_safe(path: Path) -> str:
    """Rewrite a file that ``weights_only=True`` refuses, or of torch < 1.6: every MONAI then loads it.

    Only files whose refused classes are harmless (arrays, dtypes, trace keys) are touched, and no code of a
    file is run. The new file is verified and loaded before it replaces the old one.

    Returns
    -------
    str
        ``converted``, ``fine`` (nothing to do), or why it was left.
    """
    report = _core.verify_tensor_file(path)
    if report.state.startswith("ok"):
        return "fine"
    if report.state not in CONVERTIBLE:
        return f"left: {report.state}: {report.detail}"
    from voxtier.tensors.saving import load_plainly, load_safely, make_plain, reason_of, refusal, save_checked

    if reason := refusal(report):
        return f"left: {reason}"
    try:
        mmap = False if report.state == "legacy_format" else None
        value = _arrays_to_tensors(make_plain(load_safely(path, mmap=mmap)))
        save_checked(value, path, replace=True, read_back=load_plainly)
    except pickle.UnpicklingError as error:
        return f"left: torch refuses it: {reason_of(error)}"
    except (NotLoadedError, OSError, RuntimeError, TypeError) as error:
        return f"left: {first_line(error)}"
    return "converted"


def _arrays_to_tensors(value: Any) -> Any:
    from monai.utils import convert_to_tensor

    _refuse_large_numbers(value)
    return convert_to_tensor(value, convert_numeric=False, track_meta=False)


def _refuse_large_numbers(value: Any) -> None:
    """Raise NotLoadedError for an array whose numbers would change: MONAI makes int64 of uint64."""
    import numpy as np

    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            _refuse_large_numbers(item)
    is_unsigned = isinstance(value, np.ndarray) and value.dtype.kind == "u"
    if is_unsigned and value.size and value.max() > np.iinfo(np.int64).max:
        raise NotLoadedError("it holds numbers above 2**63 - 1 (uint64), of which MONAI makes negative ones")
