"""What may be ingested: pairs, folders, globs, tables of them; and which subject and series each file is."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from voxtier.errors import ConfigError, NotFoundError
from voxtier.volumes.tiledb.session import checked_name

Path_: TypeAlias = str | os.PathLike[str]
Pairs: TypeAlias = Sequence[tuple[Path_, str]]
Images: TypeAlias = Path_ | Pairs

# BIDS suffixes and the spellings that scanners and challenges use for them
_SERIES: Final = {
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
    """Return (path, subject) for pairs, a folder of NIfTI files or a glob; the subject is the file's stem."""
    if isinstance(images, (str, os.PathLike)):
        text = os.fspath(images)
        if any(sign in text for sign in "*?["):
            found = sorted(Path(name) for name in glob.glob(text, recursive=True))  # noqa: PTH207
        elif Path(text).is_dir():
            found = sorted(
                p for p in Path(text).iterdir() if re.search(r"\.nii(\.gz)?$", p.name, re.IGNORECASE)
            )
        elif Path(text).is_file():
            found = [Path(text)]
        else:
            raise NotFoundError(f"there is no file or folder {text}")
        if not found:
            raise NotFoundError(f"no NIfTI file matches {text}")
        return [(path, _stem(path)) for path in found]
    pairs = []
    for item in images:
        if isinstance(item, (str, bytes)) or len(item) != 2 or not isinstance(item[1], str) or not item[1]:
            raise ConfigError(f"images are (path, subject) pairs with a non-empty subject, got {item!r}")
        pairs.append((Path(item[0]), item[1]))
    return pairs


def named_sources(images: Mapping[str, Images]) -> list[Source]:
    """Return the sources of collections that the caller names."""
    return [
        Source(path, subject, checked_name("collection", name))
        for name, group in images.items()
        for path, subject in pairs_of(group)
    ]


def grouped_sources(images: Images, collection: str | None) -> list[Source]:
    """Return the sources of one named collection, or of one collection for each series found in the names."""
    return [
        Source(path, subject, checked_name("collection", collection or series_of(path)))
        for path, subject in pairs_of(images)
    ]


def refuse_duplicates(obs_ids: Iterable[str], present: Iterable[str] = ()) -> None:
    """Refuse an observation that would exist twice, before anything is written."""
    counts: dict[str, int] = defaultdict(int)
    known = set(present)
    for obs_id in obs_ids:
        counts[obs_id] += 1
    twice = sorted(obs_id for obs_id, count in counts.items() if count > 1)
    if twice:
        raise ConfigError(f"two images for the same observation: {', '.join(twice[:5])}")
    again = sorted(known & set(counts))
    if again:
        raise ConfigError(f"already in the store: {', '.join(again[:5])}")
