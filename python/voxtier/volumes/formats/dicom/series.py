"""What a folder (or some files) of DICOM holds: volumes, refused series, objects that are no scan."""

from __future__ import annotations

import glob
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from voxtier.errors import FormatError, LeftOutWarning, NotFoundError, SourceError
from voxtier.volumes.formats.dicom.attributes import (
    find_numbers,
    find_text,
    import_pydicom,
    refusal,
    silent_pydicom,
)
from voxtier.volumes.formats.dicom.grid import OnGap, Stack
from voxtier.volumes.formats.dicom.slices import Contents, Kind, Slice, read_slices
from voxtier.volumes.formats.dicom.stacks import volumes_of
from voxtier.volumes.formats.sources import SUBJECT_OF

DicomPath: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
"""A folder, a file, or the files of one folder."""

_MOST_NAMED = 5  # files that are left out for one reason
_MOST_LOOKED_AT = 10_000  # files, for a folder that an error may name
_MOST_PARTS = 65535  # In-concatenation Number is US
_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(slots=True)
class FoundSeries:
    """What was found.

    Parameters
    ----------
    volumes : list of list of Stack
        The time points of each volume; scans before localizers, more slices before fewer.
    refused : list of (str, FormatError)
        Series that cannot become a volume without guessing, and why.
    left_out : list of (str, str)
        Files that are no part of a scan, and what they are.
    """

    volumes: list[list[Stack]] = field(default_factory=list)
    refused: list[tuple[str, FormatError]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def warn(self) -> None:
        """Warn of what is left out, once for each reason."""
        reasons: dict[str, list[str]] = defaultdict(list)
        for file, why in self.left_out:
            reasons[why].append(file)
        for why, files in reasons.items():
            more = f" and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else ""
            warnings.warn(LeftOutWarning(", ".join(files[:_MOST_NAMED]) + more, why), stacklevel=3)


def files_of(path: DicomPath) -> list[Path]:
    """Return the files of a folder (not of its subfolders), a file, or the files that are given.

    Raises
    ------
    SourceError
        When one does not exist.
    """
    paths = [Path(path)] if isinstance(path, (str, os.PathLike)) else [Path(one) for one in path]
    for one in paths:
        if not one.exists():
            raise SourceError("io_error", None, f"there is no file or folder {one}", 2)
    if len(paths) == 1 and paths[0].is_dir():
        entries = sorted(paths[0].iterdir())
        for entry in entries:
            if entry.is_symlink() and not entry.exists():
                raise SourceError("io_error", None, f"{entry} is a link to a file that does not exist", 2)
        return [entry for entry in entries if entry.is_file()]
    return paths


def is_dicom(path: Path) -> bool:
    """Return whether a path is a file that begins as DICOM Part 10 does (PS3.10 7.1), or is named as one."""
    if path.suffix.lower() in _SUFFIXES:
        return path.is_file()
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def expand_files(source: str) -> list[Path]:
    """Return the DICOM files that a path or a glob names."""
    path = Path(source)
    if path.exists() or not any(sign in source for sign in "*?["):
        return [path] if is_dicom(path) else []
    return [match for match in map(Path, sorted(glob.glob(source, recursive=True))) if is_dicom(match)]  # noqa: PTH207


def describe(path: DicomPath) -> str:
    """Return how messages name a folder, a file or some files."""
    if isinstance(path, (str, os.PathLike)):
        return str(path)
    files = [Path(one) for one in path]
    return f"{files[0].parent} ({len(files)} files)" if files else "no files"


def find_series(path: DicomPath, *, on_gap: OnGap = "error") -> FoundSeries:
    """Find the volumes of a folder (not of its subfolders) or of some files, by headers alone.

    Parameters
    ----------
    path : path-like or sequence of path-like
        A folder, a file, or files.
    on_gap : {"error", "keep", "fill"}
        What becomes of missing slices.

    Returns
    -------
    FoundSeries
        Volumes, series that are refused, and files that are left out.

    Raises
    ------
    FormatError
        For a file that begins as DICOM and cannot be read on, and where nothing is a scan.
    SourceError
        When a file cannot be read.
    NotFoundError
        When there is no DICOM file.
    """
    import_pydicom()
    with silent_pydicom():
        contents = _read(files_of(path))
        if not contents:
            raise _no_image(path)
        found = _sort(contents, on_gap)
    if not found.volumes and not found.refused:
        raise _nothing(contents)
    return found


def _no_image(path: DicomPath) -> NotFoundError:
    """Return the error for files without an image; of a folder it names the first below that holds DICOM."""
    text = f"no DICOM image with a position in the patient in {describe(path)}"
    if not isinstance(path, (str, os.PathLike)) or not Path(path).is_dir():
        return NotFoundError(text)
    text += " (subfolders are not read)"
    first = next(filter(is_dicom, islice(_files_in_subfolders(path), _MOST_LOOKED_AT)), None)
    if first is None:
        return NotFoundError(text)
    where = f"name the folder that holds the files, as {first.parent}"
    return NotFoundError(f"{text}: {where}; for an ingest {SUBJECT_OF}")


def _files_in_subfolders(path: str | os.PathLike[str]) -> Iterator[Path]:
    for parent, folders, names in os.walk(path):
        folders.sort()
        if Path(parent) != Path(path):
            yield from (Path(parent, name) for name in names)


def _read(files: Iterable[Path]) -> list[tuple[Path, Contents]]:
    contents = []
    for file in files:
        read = read_slices(file)
        if read is not None:
            contents.append((file, read))
        elif _has_name_of_slice(file):
            if not file.stat().st_size or file.suffix.lower() in _SUFFIXES:
                raise refusal(
                    "not_dicom",
                    file.name,
                    f"{file.stat().st_size} bytes that are not DICOM Part 10 (no DICM at byte 128): copy"
                    " it again, or remove it",
                )
            contents.append((file, Contents(no_image="not DICOM Part 10 (no DICM at byte 128)")))
    return contents if any(read.series or read.slices or read.error for _, read in contents) else []


def _has_name_of_slice(file: Path) -> bool:
    """Return whether a file may be a damaged slice: ``notes.txt`` is none, ``IM0001`` and a UID may be."""
    suffix = file.suffix.lower()
    return not file.name.startswith(".") and (suffix in ("", *_SUFFIXES) or suffix[1:].isdigit())


def _nothing(contents: list[tuple[Path, Contents]]) -> FormatError:
    errors = [read.error for _, read in contents if read.error is not None]
    if errors:
        return errors[0]
    file, read = contents[0]
    return refusal("unsupported_image", file.name, read.no_image)


def _sort(contents: list[tuple[Path, Contents]], on_gap: OnGap) -> FoundSeries:
    found = FoundSeries()
    kinds: dict[Kind, list[Slice]] = defaultdict(list)
    damaged: dict[str, FormatError] = {}
    scans = {read.series for _, read in contents if read.slices}
    for file, read in contents:
        if read.error is not None and read.series in scans:
            damaged.setdefault(read.series, read.error)
        elif read.no_image or read.error is not None:
            why = read.error.detail.removeprefix(f"{file.name}: ") if read.error else ""
            found.left_out.append((str(file), read.no_image or f"no part of a scan: {why}"))
    slices = _without_copies(contents, damaged)
    for item in slices:
        kinds[item.kind].append(item)
    _refuse_incomplete(slices, damaged, on_gap)
    _refuse_scattered(kinds, damaged)
    for kind, group in sorted(kinds.items()):
        name = f"series {kind.series or group[0].path.name}"
        try:
            if kind.series in damaged:
                raise damaged[kind.series]
            found.volumes += volumes_of(group, name, on_gap)
        except FormatError as error:
            label = f"{group[0].path.parent} ({name})"
            if (label, error) not in found.refused:
                found.refused.append((label, error))
    _leave_out(found)
    found.volumes.sort(key=_precedence)
    return found


def _refuse_scattered(kinds: dict[Kind, list[Slice]], damaged: dict[str, FormatError]) -> None:
    """Refuse a series of which each slice has a frame of reference of its own: no two can be compared."""
    alike: dict[Kind, list[list[Slice]]] = defaultdict(list)
    for kind, slices in kinds.items():
        alike[kind._replace(frame_of_reference="")].append(slices)
    for kind, groups in alike.items():
        if len(groups) > 2 and all(len(slices) == 1 for slices in groups):
            damaged.setdefault(
                kind.series,
                refusal(
                    "bad_header",
                    f"series {kind.series}",
                    f"{len(groups)} slices with a Frame of Reference UID of their own: their positions"
                    " cannot be compared",
                ),
            )


def _refuse_incomplete(slices: Sequence[Slice], damaged: dict[str, FormatError], on_gap: OnGap) -> None:
    """Refuse a series that lacks a part of a concatenation (PS3.3 C.7.6.16.2.2.4): its frames are lost."""
    wholes: dict[tuple[str, str], dict[str, Slice]] = defaultdict(dict)
    for item in slices:
        uid = find_text(item.header, "ConcatenationUID")
        if uid:
            wholes[item.kind.series, uid].setdefault(item.sop_instance_uid, item)
    for (series, uid), parts in wholes.items():
        lost, is_between = _lost_parts(list(parts.values()))
        # Between parts a gap is seen in millimetres, and filled; nobody knows how far an end goes.
        if lost and on_gap != "keep" and not (on_gap == "fill" and is_between):
            damaged.setdefault(
                series,
                refusal(
                    "bad_geometry",
                    f"series {series}",
                    f"missing slices: these files lack {lost} of concatenation {uid}; add what is missing, or"
                    " store the frames that are there with on_gap='keep' (--on-gap keep)",
                ),
            )


def _lost_parts(parts: Sequence[Slice]) -> tuple[str, bool]:
    """Return what a concatenation provably lacks, and whether all of it lies between parts that are there."""
    numbers = {_whole_number(part, "InConcatenationNumber") or 0 for part in parts}
    total = max(_whole_number(part, "InConcatenationTotalNumber") or 0 for part in parts)
    if 0 not in numbers:
        count = min(max(total, *numbers), _MOST_PARTS)
        lost = [number for number in range(1, count + 1) if number not in numbers]
        if lost:
            more = f" and {len(lost) - _MOST_NAMED} more" if len(lost) > _MOST_NAMED else ""
            named = f"part{'s' * (len(lost) > 1)} {', '.join(map(str, lost[:_MOST_NAMED]))}{more}"
            whole = f"{named} of {count}" if total else f"{named} (of {count} or more)"
            return whole, min(numbers) < lost[0] and lost[-1] < max(numbers)
    elif len(parts) < total:  # parts that are not numbered, or from 0
        return f"{total - len(parts)} of {total} parts", False
    places = [(_whole_number(part, "ConcatenationFrameOffsetNumber"), part) for part in parts]
    spans = [
        (begin, begin + int(part.header.get("NumberOfFrames", 1) or 1))
        for begin, part in places
        if begin is not None
    ]
    reached = 0
    for begin, end in sorted(spans) if len(spans) == len(parts) else ():
        if begin > reached:
            return f"frames {reached + 1} to {begin}", reached > 0
        reached = max(reached, end)
    return "", True


def _whole_number(part: Slice, name: str) -> int | None:
    value = find_numbers(part.header, name)
    return int(value[0]) if value else None


def _without_copies(contents: list[tuple[Path, Contents]], damaged: dict[str, FormatError]) -> list[Slice]:
    """Return the slices of all files: an object counts once, two objects with one UID refuse their series."""
    seen: dict[tuple[str, int | None, int], Slice] = {}
    for _, read in contents:
        for item in read.slices:
            identity = (item.sop_instance_uid, item.frame, item.tile[0] if item.tile else 0)
            first = seen.setdefault(identity, item)
            if first is not item and not _is_copy(first, item):
                damaged[item.kind.series] = damaged[first.kind.series] = refusal(
                    "bad_header",
                    f"series {item.kind.series}",
                    f"{first.path.name} and {item.path.name} are two images with one SOP Instance UID"
                    f" {item.sop_instance_uid}",
                )
    return list(seen.values())


def _is_copy(first: Slice, second: Slice) -> bool:
    places = [(i.kind, i.position, i.orientation, i.pixel_spacing, i.scale, i.tags) for i in (first, second)]
    if places[0] != places[1]:
        return False
    if first.frame or (first.tile and first.tile[0]):  # compared with the first frame or tile
        return True
    return _is_same_file(first.path, second.path) or _pixel_bytes(first.path) == _pixel_bytes(second.path)


def _is_same_file(first: Path, second: Path) -> bool:
    if first.samefile(second):
        return True
    return first.stat().st_size == second.stat().st_size and first.read_bytes() == second.read_bytes()


def _pixel_bytes(path: Path) -> object:
    tags = ["PixelData", "FloatPixelData", "DoubleFloatPixelData"]
    try:
        header = import_pydicom().dcmread(path, specific_tags=tags)
        return [header[tag].value for tag in tags if tag in header]
    except Exception as error:
        raise refusal("not_dicom", path.name, f"{error}") from None


def _leave_out(found: FoundSeries) -> None:
    """Leave out secondary captures beside a scan, and localizers beside the scan of another series."""
    firsts = [_first(volume) for volume in found.volumes]
    scans = {item.kind.series for item in firsts if not (item.is_localizer or item.is_secondary_capture)}
    if not scans and not found.refused:
        return
    kept = []
    for volume in found.volumes:
        first = _first(volume)
        why = ""
        if first.is_secondary_capture:
            why = "a secondary capture"
        elif first.is_localizer and first.kind.series not in scans:
            why = "a localizer"
        if why:
            files = dict.fromkeys(str(item.path) for stack in volume for item in stack.slices)
            found.left_out += [(file, why) for file in files]
        else:
            kept.append(volume)
    found.volumes[:] = kept


def _first(volume: list[Stack]) -> Slice:
    return volume[0].slices[0]


def _precedence(volume: list[Stack]) -> tuple[object, ...]:
    first = _first(volume)
    rows, columns = first.size
    number = find_numbers(first.header, "SeriesNumber") or (0.0,)
    return (
        first.is_localizer,
        first.is_secondary_capture,
        -len(volume[0].slices),
        -rows * columns,
        number,
        first.kind,
    )
