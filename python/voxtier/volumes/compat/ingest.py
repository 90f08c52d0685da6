"""The origin's search for images: our rules of files, folders and subjects, as its functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from voxtier.errors import ConfigError, IngestError, NotFoundError
from voxtier.volumes.formats.identity import stem_of
from voxtier.volumes.formats.sources import (
    ImageFormat,
    Images,
    dicom_pairs,
    drawn,
    format_of,
    grouped_sources,
    paths_of,
)

__all__ = [
    "ImageFormat",
    "NiftiSource",
    "detect_format",
    "discover_nifti_pairs",
    "resolve_dicom_source",
    "resolve_image_source",
    "resolve_nifti_source",
]

SubjectOf = Callable[[Path], str]
"""Gives the subject of a file or folder."""


@dataclass(frozen=True, slots=True)
class NiftiSource:
    """An image and, where there is one, its label.

    Parameters
    ----------
    image_path : Path
        The image.
    subject_id : str
        Whose image it is.
    label_path : Path, optional
        The label of the same subject.
    """

    image_path: Path
    subject_id: str
    label_path: Path | None = None

    @property
    def has_label(self) -> bool:
        """Whether there is a label."""
        return self.label_path is not None


def _refused(what: object, why: Exception | str) -> IngestError:
    return IngestError([(str(what), str(why))])


def detect_format(source: Images) -> ImageFormat:
    """Return what images are by what lies at their paths.

    Raises
    ------
    IngestError
        When nothing is there that tells.
    """
    source = drawn(source)
    try:
        kind = format_of(source)
        if kind is ImageFormat.DICOM:
            dicom_pairs(source)
        else:
            paths_of(source)
    except (ConfigError, NotFoundError) as error:
        raise _refused(source, error) from None
    return kind


def resolve_nifti_source(source: Images, subject_id_fn: SubjectOf | None = None) -> list[tuple[Path, str]]:
    """Return (path, subject) of NIfTI files.

    Parameters
    ----------
    source : pairs, files, folders or globs
        The files.
    subject_id_fn : callable, optional
        Gives the subject of a file; by default its name tells (see `RadiObject.from_niftis`).

    Returns
    -------
    list of (Path, str)
        In the order of the names.

    Raises
    ------
    IngestError
        When there is no such file, or a name does not tell the subject.
    """
    source = drawn(source)
    try:
        if subject_id_fn is not None and not _are_pairs(source):
            return [(path, subject_id_fn(path)) for path in paths_of(source)]
        found = grouped_sources(source, None, ask_for_series=False)
    except (ConfigError, NotFoundError) as error:
        raise _refused(source, error) from None
    return [(each.path, each.subject) for each in found]


def _are_pairs(source: Images) -> bool:
    if isinstance(source, (str, PathLike)):
        return False
    return any(not isinstance(item, (str, PathLike)) for item in source)


def resolve_dicom_source(source: Images, subject_id_fn: SubjectOf | None = None) -> list[tuple[Path, str]]:
    """Return (folder, subject) of DICOM series.

    Parameters
    ----------
    source : pairs or folder
        Pairs, or a folder with one folder for each series.
    subject_id_fn : callable, optional
        Gives the subject of a folder, by default its name.

    Returns
    -------
    list of (Path, str)
        In the order of the names.

    Raises
    ------
    IngestError
        When there is no such folder.
    """
    source = drawn(source)
    try:
        pairs = dicom_pairs(source)
    except NotFoundError as error:
        raise _refused(source, error) from None
    if subject_id_fn is None or _are_pairs(source):
        return pairs
    return [(folder, subject_id_fn(folder)) for folder, _ in pairs]


def resolve_image_source(
    source: Images, format_hint: ImageFormat | None = None
) -> tuple[list[tuple[Path, str]], ImageFormat]:
    """Return (path, subject) of images, and what they are."""
    source = drawn(source)
    kind = detect_format(source) if format_hint is None else ImageFormat(format_hint)
    resolve = resolve_dicom_source if kind is ImageFormat.DICOM else resolve_nifti_source
    return resolve(source), kind


def discover_nifti_pairs(
    image_dir: str | PathLike[str],
    label_dir: str | PathLike[str] | None = None,
    pattern: str = "*.nii.gz",
    subject_id_fn: SubjectOf | None = None,
) -> list[NiftiSource]:
    """Return the images of a folder, each with the label of its subject where there is one.

    Parameters
    ----------
    image_dir, label_dir : path-like
        Folders of images and of labels.
    pattern : str
        Glob of their names; without a match, the same without ``.gz``.
    subject_id_fn : callable, optional
        Gives the subject of a file, by default its name without suffixes.

    Returns
    -------
    list of NiftiSource
        In the order of the names.

    Raises
    ------
    IngestError
        When there is no such folder or no image, and for two labels of one subject.
    """
    subject_of = subject_id_fn or stem_of
    labels: dict[str, Path] = {}
    for path in _matches(label_dir, pattern) if label_dir is not None else ():
        other = labels.setdefault(subject_of(path), path)
        if other is not path:
            raise _refused(path, f"is a second label of {subject_of(path)} beside {other}")
    images = [(path, subject_of(path)) for path in _matches(image_dir, pattern)]
    return [NiftiSource(path, subject, labels.get(subject)) for path, subject in images]


def _matches(folder: str | PathLike[str], pattern: str) -> Sequence[Path]:
    found = sorted(Path(folder).glob(pattern)) or sorted(Path(folder).glob(pattern.removesuffix(".gz")))
    if not found:
        raise _refused(folder, f"holds no file {pattern}")
    return found
