"""Names of volumes: read from CSV files, and turned into paths on disk and on the hub and into cache keys."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtier.arguments import as_several
from voxtier.errors import ConfigError

COLUMN = "VolumeName"
_NO_NAME = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]")
"""Separators, and control characters: a line break in a name is a quote that was not closed."""
_HEX_NAME = re.compile(r"(?:[0-9a-f]{32}|[0-9a-f]{64})\.pt")


def item_key(volume_name: str) -> str:
    """Return the name, without ``.pt``, of a volume's file: md5 of the name as 32 hexadecimal digits."""
    return hashlib.md5(_encode(str(volume_name)), usedforsecurity=False).hexdigest()


def volume_hash(item: dict[str, Any]) -> bytes:
    """``hash_func`` for a `PersistentDataset` of items ``{"image": path, "volume_name": str}``.

    Only the volume's name counts, so a cache survives a move of the images.
    """
    return item_key(item["volume_name"]).encode("ascii")


def stable_hash(item: object) -> bytes:
    """``hash_func`` that does not depend on object identity, path roots or versions of Python and NumPy.

    MONAI's default pickles the item: the same text as one shared object or as two objects, a ``Path`` instead
    of a ``str``, or a newer NumPy change the name. Here a path counts by its last two parts, a number by its
    value, a dict without its order; the first byte of the hashed text is a version. Paths that differ further
    up have one name: `HealingPersistentDataset` refuses such items.

    Returns
    -------
    bytes
        64 hexadecimal digits.

    Raises
    ------
    TypeError
        The item holds an object without a stable text, such as an open file.
    """
    return hashlib.sha256(_encode("1" + _stable_text(item))).hexdigest().encode("ascii")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a file name that is no UTF-8 holds surrogates


def _stable_text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return f"={value}"
    if hasattr(value, "tolist"):  # a NumPy scalar or array, a tensor
        return _stable_text(value.tolist())
    if isinstance(value, float) and not value.is_integer():  # NaN and infinity among them
        return f"n{value!r}"
    if isinstance(value, int | float):
        return f"n{int(value)}"
    if isinstance(value, bytes):
        return f"b{value.hex()}"
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value).replace("\\", "/")
        tail = "/".join(text.rstrip("/").split("/")[-2:]) if "/" in text else text
        return f"s{len(tail)}:{tail}"
    if isinstance(value, dict):
        parts = sorted(f"{_stable_text(k)}>{_stable_text(v)}" for k, v in value.items())
        return "{" + ",".join(parts) + "}"
    if isinstance(value, set | frozenset):
        return "(" + ",".join(sorted(map(_stable_text, value))) + ")"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_stable_text, value)) + "]"
    raise TypeError(f"an item of type {type(value).__name__} has no stable text: give your own hash_func")


def legacy_hex(key: str) -> str:
    """Return the 64-digit key that the predecessor's map wrote: the hexadecimal form of the key's digits."""
    return key.encode("ascii").hex()


def read_volume_names(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[str]:
    """Return the distinct volume names of CSV files, in order of appearance.

    Raises
    ------
    ConfigError
        A file is absent, is not text or not CSV, or has not one column ``VolumeName``.
    """
    names: dict[str, None] = {}
    for path in as_several(paths):
        try:
            with Path(path).open(encoding="utf-8-sig", newline="") as stream:
                rows = csv.DictReader(stream, strict=True)
                columns = list(rows.fieldnames or ())
                if columns.count(COLUMN) != 1:
                    found = ", ".join(name if name == name.strip() else repr(name) for name in columns)
                    raise ConfigError(f"{path}: needs a column {COLUMN}, found {found[:200] or 'nothing'}")
                for row in rows:
                    name = (row[COLUMN] or "").strip()
                    if name:
                        _check_name(name, path, rows.line_num)
                        names[name] = None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from None
    return list(names)


def _check_name(name: str, path: object, line: int) -> None:
    longest = f"{_stem(name)}__transformed.nii.gz"
    if _NO_NAME.search(name) or name in (".", "..") or len(os.fsencode(longest)) > 255:
        raise ConfigError(f"{path}, line {line}: {name[:200]!r} cannot be a file name: correct the list")


def _stem(volume_name: str) -> str:
    return volume_name.removesuffix(".gz").removesuffix(".nii")


def raw_path(base: Path, volume_name: str, structure: str) -> Path:
    """Return where a volume lies below the image folder.

    Parameters
    ----------
    base : Path
        The image folder.
    volume_name : str
        With or without ``.nii.gz``.
    structure : {"nested", "flat"}
        ``nested``: ``train_1/train_1_a/train_1_a_1.nii.gz``; a name with fewer than three parts lies directly
        in the folder. ``flat``: ``train_1_a_1__transformed.nii.gz``.

    Returns
    -------
    Path
        The raw file, which need not exist.

    Raises
    ------
    ConfigError
        Another ``structure``.
    """
    stem = _stem(volume_name)
    if structure == "flat":
        return base / f"{stem}__transformed.nii.gz"
    if structure != "nested":
        raise ConfigError(f"dir_structure must be 'nested' or 'flat', found {structure!r}")
    parts = stem.split("_")
    if len(parts) < 3:
        return base / f"{stem}.nii.gz"
    return base / "_".join(parts[:2]) / "_".join(parts[:3]) / f"{stem}.nii.gz"


def hub_path(volume_name: str) -> str:
    """Return the path of a volume inside the CT-RATE repository."""
    stem = _stem(volume_name)
    parts = stem.split("_")
    if len(parts) < 3:
        return f"dataset/{parts[0]}/{stem}.nii.gz"
    return f"dataset/{parts[0]}_fixed/{'_'.join(parts[:2])}/{'_'.join(parts[:3])}/{stem}.nii.gz"


def spellings(names: Iterable[str]) -> dict[str, list[str]]:
    """Return, by each of them, the names of a volume that is listed with and without ``.nii.gz``.

    They have one raw file and a cache file each. Volumes that are listed under one name are left out.
    """
    by_stem: dict[str, list[str]] = {}
    for name in names:
        by_stem.setdefault(_stem(name), []).append(name)
    return {name: group for group in by_stem.values() if len(group) > 1 for name in group}


@dataclass(frozen=True, slots=True)
class Expected:
    """The volumes of the CSV files compared with one cache folder."""

    names: list[str]
    missing: list[str]
    """Volume names for which nothing is there."""
    unreadable: dict[str, str]
    """Volume names to why what is there is no file: a link whose target is gone, a folder."""
    orphans: list[str]
    """File names that no volume asks for."""
    ambiguous: list[str]
    """Volumes that are listed with and without ``.nii.gz``: two keys for one image."""


def missing_keys(names: Sequence[str], folder: Path) -> Expected:
    """Compare names with one listing of the cache folder; an absent folder holds nothing."""
    keys = [item_key(name) for name in names]
    present: set[str] = set()
    others: set[str] = set()
    try:
        with os.scandir(folder) as entries:  # a Path an entry costs more than the hash
            for entry in entries:
                present.add(entry.name)
                if not entry.is_file(follow_symlinks=False):  # what the listing itself says, without a look
                    others.add(entry.name)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read: {error.strerror}") from None
    wanted = {f"{key}.pt" for key in keys}
    missing = [name for name, key in zip(names, keys, strict=True) if f"{key}.pt" not in present]
    orphans = sorted(name for name in present - wanted if _HEX_NAME.fullmatch(name))
    unreadable = {
        name: why
        for name, key in zip(names, keys, strict=True)
        if f"{key}.pt" in others and (why := _why_no_file(folder / f"{key}.pt"))
    }
    several = spellings(names)
    ambiguous = [name for name in names if name in several and several[name][0] != name]
    return Expected(list(names), missing, unreadable, orphans, ambiguous)


def _why_no_file(path: Path) -> str:
    """Return why a path cannot be the file that its name says; empty for a link to a file."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return ""
        what = "is a folder" if stat.S_ISDIR(mode) else "is no file"
    except FileNotFoundError:
        what = "is a link whose target is gone"
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
    return f"{path} {what}: restore the tensor, or remove what is there"
