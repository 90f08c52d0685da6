"""What may be ingested: pairs, files, folders and globs; every path of them gets its subject by one rule."""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from voxtier.arguments import several
from voxtier.errors import ConfigError, LeftOutWarning, NotFoundError
from voxtier.system.text import is_unicode
from voxtier.volumes.formats.identity import Identity, identify, stem_of
from voxtier.volumes.formats.nifti_files import header_of, is_image

_Path: TypeAlias = str | os.PathLike[str]

Pairs: TypeAlias = Iterable[tuple[_Path, str]]
"""Path and subject of each image."""

Images: TypeAlias = _Path | Pairs | Iterable[_Path]
"""Pairs, or files, folders and globs whose names tell the subjects."""

OnError = Literal["raise", "skip"]
"""Whether one bad image refuses all."""

Given = TypeVar("Given")


class ImageFormat(str, Enum):  # noqa: UP042 -- prints as the origin's does
    """What the files of a collection are."""

    NIFTI = "nifti"
    DICOM = "dicom"


_SERIES_OF = (
    "name the file SUBJECT_SERIES.nii.gz, or ingest such files by a call of their own, which names the"
    " collection of all its images: collection_name= or images={name: ...}, on the command line --collection"
)

SUBJECT_OF = "give (path, subject) pairs, on the command line --subject"
"""How a caller says whose images they are, for messages."""

UNKNOWN = "unknown"
"""Series of an image whose name states none."""

# Folders of a BIDS data set that hold no raw images (BIDS 1.10, "Source vs. raw vs. derived data").
_NOT_RAW = ("derivatives", "sourcedata", "code", "stimuli")


@dataclass(frozen=True, slots=True)
class Source:
    """One image to ingest.

    Parameters
    ----------
    path : Path
        The file.
    subject, collection : str
        Whose image it is, and where it belongs.
    identity : Identity
        What else its path tells.
    is_paired : bool
        Whether the caller named the subject.
    """

    path: Path
    subject: str
    collection: str
    identity: Identity
    is_paired: bool

    @property
    def obs_id(self) -> str:
        """Identifier of the observation: subject, what the name tells beside it, collection.

        A subject that the caller named needs no more than the collection.
        """
        return "_".join((self.subject, *(() if self.is_paired else self.identity.parts), self.collection))

    @property
    def columns(self) -> dict[str, str]:
        """Columns of its row that its path tells."""
        identity = self.identity
        told = {"series_type": identity.series or UNKNOWN, "session": identity.session, "run": identity.run}
        return {name: value for name, value in told.items() if value is not None}


def named_sources(images: Mapping[str, Images], on_error: OnError = "raise") -> list[Source]:
    """Return the sources of collections that the caller names.

    Parameters
    ----------
    images : mapping
        Collection name -> images.
    on_error : {"raise", "skip"}
        Whether one name that does not tell the subject refuses all.

    Returns
    -------
    list of Source
        One for each image, in the order of the names.

    Raises
    ------
    NotFoundError
        When there is no such file or folder.
    ConfigError
        When a subject cannot be told.
    """
    sources = [source for name, group in images.items() for source in _sources(group, name, on_error)]
    _refuse_two_spellings(sources)
    _refuse_split_subjects(sources)
    return sources


def grouped_sources(
    images: Images, collection: str | None, *, ask_for_series: bool = True, on_error: OnError = "raise"
) -> list[Source]:
    """Return the sources of one named collection, or of one collection for each series found in the names.

    Parameters
    ----------
    images : pairs, files, folders or globs
        The images.
    collection : str or None
        Name of the collection of all.
    ask_for_series : bool
        Refuse a name that states no series, where the collection has no name.
    on_error : {"raise", "skip"}
        Whether one name that does not tell subject or series refuses all.

    Returns
    -------
    list of Source
        One for each image, in the order of the names.

    Raises
    ------
    NotFoundError
        When there is no such file or folder.
    ConfigError
        When the subject or the series cannot be told.
    """
    sources = _sources(images, collection, on_error)
    if collection is None and ask_for_series:
        unknown = [s.path for s in sources if s.collection == UNKNOWN and not s.is_paired]
        sources = [s for s in sources if s.collection != UNKNOWN or s.is_paired]
        untold = [(path, "the name states no series") for path in unknown]
        _leave_out(untold, on_error if sources else "raise", _SERIES_OF)
    _refuse_two_spellings(sources)
    return sources


def paths_of(images: Images) -> list[Path]:
    """Return the files that paths, folders and globs name.

    Raises
    ------
    NotFoundError
        When there is no such file or folder.
    """
    return [path for path, _ in _items(images)]


def _sources(images: Images, collection: str | None, on_error: OnError) -> list[Source]:
    sources: list[Source] = []
    untold: list[tuple[Path, str]] = []
    for path, subject in _items(images):
        identity = identify(path, collection)
        name = (identity.series or UNKNOWN) if collection is None else collection
        if subject is None and identity.subject is None:
            untold.append((path, f"the name does not tell the subject ({identity.problem})"))
            continue
        source = Source(path, subject or identity.subject or "", name, identity, subject is not None)
        if all(map(is_unicode, (source.obs_id, *source.columns.values()))):
            sources.append(source)
            continue
        for given in (subject, collection):
            if given is not None and not is_unicode(given):
                raise ConfigError(f"{given!r}, which was given for {path}, is no UTF-8 text")
        untold.append((path, "the name is no UTF-8 text"))
    _leave_out(
        untold, on_error if sources else "raise", f"{SUBJECT_OF}, or name the file SUBJECT_SERIES.nii.gz"
    )
    return sources


def _leave_out(untold: Sequence[tuple[Path, str]], on_error: OnError, remedy: str) -> None:
    """Refuse images whose names do not tell what is asked, each with the reason; or warn of each."""
    if untold and on_error == "raise":
        paths, reasons = zip(*untold, strict=True)
        raise ConfigError(f"{_first_of(paths)}: {reasons[0]}: {remedy}")
    for path, why in untold:
        warnings.warn(LeftOutWarning(str(path), why), stacklevel=5)


def _first_of(paths: Sequence[Path]) -> str:
    return f"{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _items(images: Images) -> Iterator[tuple[Path, str | None]]:
    """Yield every file and, where the caller named it, its subject; a file that is named twice once."""
    seen: set[Path] = set()
    for item in several(images):
        if isinstance(item, (str, os.PathLike)):
            for path in map(header_of, _expand(os.fspath(item))):
                if path.absolute() not in seen:
                    seen.add(path.absolute())
                    yield path, None
        elif not _is_pair(item):
            raise ConfigError(f"images are paths, or (path, subject) pairs with a subject, got {item!r}")
        else:
            yield Path(item[0]), item[1]


def _is_pair(item: Any) -> bool:
    """Return whether something is two, the second a subject: a tuple, a list, a row of an array."""
    return _is_two(item) and isinstance(item[1], str) and item[1] != ""


def _is_two(item: Any) -> bool:
    return not isinstance(item, (str, bytes, Mapping)) and hasattr(item, "__getitem__") and len(item) == 2


def drawn(given: Given) -> Given:
    """Return images that may be looked at twice: those of an iterator as a list."""
    return given if isinstance(given, (str, os.PathLike)) else list(given)  # type: ignore[call-overload]


def checked_pairs(pairs: Iterable[tuple[Any, str]]) -> list[tuple[Any, str]]:
    """Return the (folder, subject) pairs of an argument; the first may be files.

    Raises
    ------
    ConfigError
        For what is no pair, as a folder without its subject.
    """
    found = []
    for item in several(pairs):
        place, subject = item if _is_two(item) else (None, None)
        if isinstance(subject, (int, np.integer)) and not isinstance(subject, bool):  # of a column of numbers
            subject = str(subject)
        if not isinstance(subject, str) or not subject:
            raise ConfigError(f"dicom_dirs are (folder, subject) pairs with a subject, got {item!r}")
        found.append((drawn(place), subject))
    return found


def _expand(text: str) -> list[Path]:
    """Return a file as it is; the NIfTI files below a folder, or of a glob."""
    path = Path(text)
    if path.is_dir():
        paths = sorted(_walk(path))
    elif path.exists() or not any(sign in text for sign in "*?["):
        paths = [path]
    else:
        matches = [Path(name) for name in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207
        # `**` matches folders and their files: a folder is taken only where its files were not matched.
        files = {match for match in matches if match.is_file() and is_image(match)}
        inside = {parent for file in files for parent in file.parents}
        below = {file for match in matches if match.is_dir() and match not in inside for file in _walk(match)}
        paths = sorted(files | below)
    if not paths:
        raise NotFoundError(f"no NIfTI file matches {text}")
    if not any(path.exists() for path in paths):
        raise NotFoundError(f"there is no file or folder {text}")
    return paths


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the NIfTI files below a folder, without hidden ones and without what is derived in BIDS."""
    visited: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        is_data_set = "dataset_description.json" in names or any(f.startswith("sub-") for f in folders)
        skipped = _NOT_RAW if is_data_set else ()
        folders[:] = (
            [] if real in visited else [f for f in folders if not f.startswith(".") and f not in skipped]
        )
        if real not in visited:
            yield from (
                Path(parent, name)
                for name in names
                if not name.startswith(".") and is_image(Path(parent, name))
            )
        visited.add(real)


def has_images(folder: Path) -> bool:
    """Return whether a folder, or one below it, holds a NIfTI file."""
    return next(_walk(folder), None) is not None


def format_of(images: Images) -> ImageFormat:
    """Return what images are by what lies at their paths: folders without NIfTI files are DICOM.

    Raises
    ------
    NotFoundError
        When there is no image.
    """
    paths = [Path(item if isinstance(item, (str, os.PathLike)) else item[0]) for item in several(images)]
    if not paths:
        raise NotFoundError("there is no image")
    is_dicom = all(
        not has_images(path) if path.is_dir() else path.suffix.lower() == ".dcm" and path.is_file()
        for path in paths
    )
    return ImageFormat.DICOM if is_dicom else ImageFormat.NIFTI


def dicom_pairs(images: Images) -> list[tuple[Path, str]]:
    """Return (folder, subject) of DICOM series: pairs as they are, else each folder inside the ones given.

    Raises
    ------
    NotFoundError
        When there is no such folder, or none inside it.
    """
    pairs: list[tuple[Path, str]] = []
    for item in several(images):
        if not isinstance(item, (str, os.PathLike)):
            pairs.append((Path(item[0]), item[1]))
            continue
        if not Path(item).is_dir():
            raise NotFoundError(f"there is no folder {os.fspath(item)} of DICOM series")
        inside = sorted(entry for entry in Path(item).iterdir() if entry.is_dir() and entry.name[0] != ".")
        if not inside:
            raise NotFoundError(
                f"{os.fspath(item)} holds no NIfTI file, and no folder inside it: each DICOM series lies in"
                " one, named after its subject; else give (folder, subject) pairs"
            )
        pairs += [(folder, folder.name) for folder in inside]
    return pairs


def find_scans(
    images: Mapping[str, Images], hints: Mapping[str, ImageFormat | str]
) -> dict[str, list[tuple[Path, str]]]:
    """Return the collections that are DICOM: name -> (folder, subject) of each series.

    Raises
    ------
    ConfigError
        For a hint that names no collection or no format.
    """
    strangers = sorted(set(hints) - set(images))
    if strangers:
        raise ConfigError(f"format_hint names {strangers[0]!r}, which is no collection of images")
    scans = {}
    for name, group in images.items():
        try:
            kind = ImageFormat(hints[name]) if name in hints else format_of(group)
        except ValueError:
            raise ConfigError(f"format_hint is nifti or dicom, got {hints[name]!r} for {name!r}") from None
        if kind is ImageFormat.DICOM:
            scans[name] = dicom_pairs(group)
    return scans


def _refuse_two_spellings(sources: Sequence[Source]) -> None:
    """Refuse subjects that names tell and that differ by capitals alone."""
    first: dict[str, Source] = {}
    for source in sources:
        other = first.setdefault(source.subject.casefold(), source)
        if other.subject != source.subject and not (source.is_paired or other.is_paired):
            raise ConfigError(
                f"two spellings of one subject: {other.path} and {source.path}; rename one, or give"
                " (path, subject) pairs"
            )


def _refuse_split_subjects(sources: Sequence[Source]) -> None:
    """Refuse names of which nothing was recognized where a constant end or beginning hides the subject.

    ``p1_foo`` and ``p1_bar`` in collections of other names would be two subjects.
    """
    groups: dict[str, set[str]] = {}
    bare: dict[str, set[str]] = {}
    for source in sources:
        groups.setdefault(source.collection, set()).add(source.subject)
        if not source.is_paired and source.subject == stem_of(source.path):
            bare.setdefault(source.collection, set()).add(source.subject)
    for one, other in combinations(groups, 2):
        if groups[one] & groups[other]:
            continue
        for left in (groups[one], *_without_constant(bare.get(one, set()))):
            for right in (groups[other], *_without_constant(bare.get(other, set()))):
                if left & right:
                    raise ConfigError(
                        f"the names do not tell the subjects: {min(groups[one])} in {one!r} and"
                        f" {min(groups[other])} in {other!r} seem to be of one; give (path, subject) pairs,"
                        " or name the collections as the files do"
                    )


def _without_constant(names: set[str]) -> Iterator[set[str]]:
    """Yield names without the part that all end in, and without the one that all begin with."""
    for cut in (r"[_\-.\s]+[^_\-.\s]+$", r"^[^_\-.\s]+[_\-.\s]+"):
        parts = {match.group() if (match := re.search(cut, name)) else "" for name in names}
        if len(parts) == 1 and "" not in parts:
            yield {re.sub(cut, "", name) for name in names}
