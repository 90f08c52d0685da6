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
from voxtier.system.durable import sync_folder
from voxtier.system.text import first_line
from voxtier.tensors.identity.fingerprint import differences
from voxtier.tensors.manifest import Entry, Manifest, Manifests


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
        One per item whose file exists under its old name.
    """
    moves = []
    new_suffix = suffix if new_suffix is None else new_suffix
    for item in items:
        old = folder / f"{old_key(item)}{suffix}.pt"
        new = folder / f"{new_key(item)}{new_suffix}.pt"
        if old != new and old.is_file():
            moves.append(Move(old, new))
        elif not new.is_file():
            on_absent(item)
    return moves


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
    """Return the renames that carry every tensor file of one cache folder to another."""
    if not old.is_dir():
        raise ConfigError(f"{old}: no such cache folder")
    if new.exists() and new.samefile(old):
        raise ConfigError(f"{new}: is the folder {old} itself: name another one")
    return [Move(path, new / path.name) for path in sorted(old.glob("*.pt"))]


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


def carry_out(moves: Iterable[Move]) -> Iterator[tuple[Move, str]]:
    """Rename files and their manifest entries; yield each move with ``moved``, or with why it was left."""
    folders = set()
    manifests = Manifests()
    rows: dict[Path, list[Entry]] = {}
    try:
        for move in moves:
            try:
                move.new.parent.mkdir(parents=True, exist_ok=True)
                _rename(move)
            except FileExistsError:
                yield move, "left: the new name is taken"
                continue
            except OSError as error:
                yield move, f"left: {error.strerror}"
                continue
            folders |= {move.old.parent, move.new.parent}
            entry = manifests.entry(move.old)
            for path in (move.old, move.new):  # the new name may be that of a file that is gone
                if manifests.entry(path):
                    rows.setdefault(path.parent, []).append({"key": path.stem, "forgotten": True})
            if entry:
                rows.setdefault(move.new.parent, []).append({**entry, "key": move.new.stem})
            yield move, "moved"
    finally:
        for folder in folders:
            sync_folder(folder)
        for folder, lines in rows.items():
            Manifest(folder).note(lines)


def _rename(move: Move) -> None:
    """Rename, but never replace a file, whatever other processes do meanwhile."""
    try:
        os.link(move.old, move.new, follow_symlinks=False)
    except FileExistsError:
        # Two names of one file: an earlier run was killed between its two steps. One name must not go.
        if not os.path.samestat(move.old.lstat(), move.new.lstat()) or _is_one_name(move):
            raise
    except OSError:  # a file system without hard links, or another one
        if os.path.lexists(move.new):
            raise FileExistsError(move.new) from None
        move.old.rename(move.new)
        return
    move.old.unlink(missing_ok=True)


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

    return convert_to_tensor(value, convert_numeric=False, track_meta=False)
