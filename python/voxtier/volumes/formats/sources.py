"""What may be ingested: pairs, folders, globs, tables of them; and which subject and series each file is."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from voxtier.errors import ConfigError, NotFoundError

_Path: TypeAlias = str | os.PathLike[str]

Pairs: TypeAlias = Sequence[tuple[_Path, str]]
"""Path and subject of each image."""

Images: TypeAlias = _Path | Pairs
"""Pairs, a folder, a file or a glob."""

# BIDS suffixes and the spellings that scanners and challenges use for them.
_SERIES = {
    "T1gd": ("t1gd", "t1ce", "t1c", "t1_gd"),
    "T1w": ("t1w", "t1_mprage", "mprage", "t1"),
    "T2w": ("t2w", "t2"),
    "FLAIR": ("flair",),
    "bold": ("bold", "fmri", "func"),
    "dwi": ("dwi", "dti"),
    "ADC": ("adc",),
    "PET": ("pet",),
    "CT": ("ct",),
    "seg": ("seg", "mask", "label", "labels", "dseg"),
}


@dataclass(frozen=True, slots=True)
class Source:
    """One image to ingest."""

    path: Path
    subject: str
    collection: str

    @property
    def obs_id(self) -> str:
        """Identifier of the observation: subject and collection."""
        return f"{self.subject}_{self.collection}"


def series_of(path: Path) -> str:
    """Return the series that a file name states (its last part first), ``"unknown"`` when it states none."""
    parts = re.split(r"[_\-. ]+", _stem(path).lower())
    for part in reversed(parts):
        for series, spellings in _SERIES.items():
            if part in spellings:
                return series
    joined = "_".join(parts)
    return next(
        (series for series, words in _SERIES.items() for word in words if "_" in word and word in joined),
        "unknown",
    )


def _stem(path: Path) -> str:
    return re.sub(r"\.(nii(\.gz)?|dcm)$", "", path.name, flags=re.IGNORECASE)


def pairs_of(images: Images) -> list[tuple[Path, str]]:
    """Return (path, subject) for pairs, a folder of NIfTI files or a glob; the subject is the file's stem.

    Raises
    ------
    NotFoundError
        When there is no such file or folder.
    ConfigError
        For pairs without a path or a subject.
    """
    if isinstance(images, (str, os.PathLike)):
        paths = _paths_of(os.fspath(images))
        return [(path, _stem(path)) for path in paths]
    pairs = []
    for item in images:
        if isinstance(item, (str, bytes)) or len(item) != 2 or not isinstance(item[1], str) or not item[1]:
            raise ConfigError(f"images are (path, subject) pairs with a non-empty subject, got {item!r}")
        pairs.append((Path(item[0]), item[1]))
    return pairs


def _paths_of(text: str) -> list[Path]:
    if any(sign in text for sign in "*?["):
        paths = sorted(Path(name) for name in glob.glob(text, recursive=True))  # noqa: PTH207
    elif Path(text).is_dir():
        entries = Path(text).iterdir()
        paths = sorted(path for path in entries if re.search(r"\.nii(\.gz)?$", path.name, re.IGNORECASE))
    elif Path(text).is_file():
        paths = [Path(text)]
    else:
        raise NotFoundError(f"there is no file or folder {text}")
    if not paths:
        raise NotFoundError(f"no NIfTI file matches {text}")
    return paths


def named_sources(images: Mapping[str, Images]) -> list[Source]:
    """Return the sources of collections that the caller names."""
    return [
        Source(path, subject, name) for name, group in images.items() for path, subject in pairs_of(group)
    ]


def grouped_sources(images: Images, collection: str | None) -> list[Source]:
    """Return the sources of one named collection, or of one collection for each series found in the names."""
    return [Source(path, subject, collection or series_of(path)) for path, subject in pairs_of(images)]
