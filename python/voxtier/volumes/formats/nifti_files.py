"""Files of NIfTI images: a single file or a .hdr/.img pair, gzipped or not, whatever the case of its suffix.

Whether a file is gzipped is told by its first bytes, never by its name.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtier.errors import FormatError, SourceError

_SUFFIX = re.compile(r"(?:\.(nii|hdr|img))?(\.gz)?\Z", re.IGNORECASE)
_PARTNER = {"hdr": "img", "img": "hdr"}
_PAIR_MAGICS = ((344, b"ni1\0"), (4, b"ni2\0"))


@dataclass(frozen=True, slots=True)
class NiftiFiles:
    """Where the two parts of an image are.

    Parameters
    ----------
    header, voxels : pathlib.Path
        The same file, unless it is a pair.
    is_packed : bool
        The voxels are gzipped.
    """

    header: Path
    voxels: Path
    is_packed: bool

    @property
    def is_pair(self) -> bool:
        """Whether header and voxels are two files."""
        return self.header != self.voxels


def locate(path: Path) -> NiftiFiles:
    """Return the files of the image that a path names; of a pair either file may be named.

    Raises
    ------
    SourceError
        When a file does not exist or cannot be read.
    FormatError
        When the other file of a pair is missing.
    """
    kind = _kind(path)
    header = _partner(path, kind) if kind == "img" else path
    if header is None:
        raise FormatError("bad_header", None, f"{path.name}: an .img file without the .hdr file beside it")
    voxels = header
    if kind in _PARTNER and _has_pair_magic(header):
        partner = path if kind == "img" else _partner(path, kind)
        if partner is None:
            raise FormatError("bad_header", None, f"{path.name}: a .hdr file without the .img file beside it")
        voxels = partner
    return NiftiFiles(header, voxels, is_gzipped(voxels))


def _kind(path: Path) -> str:
    found = _SUFFIX.search(path.name)
    return (found.group(1) or "").lower() if found else ""


def _partner(path: Path, kind: str) -> Path | None:
    """Return the other file of a pair: of the same name, compressed like this one where there are both."""
    stem = _SUFFIX.sub("", path.name)
    suffix = path.name[len(stem) :]
    endings = [suffix[4:], "", ".gz", ".GZ"]
    names = [_PARTNER[kind], _PARTNER[kind].upper(), _PARTNER[kind].title()]
    if suffix[1:4].isupper():
        names.insert(0, _PARTNER[kind].upper())
    candidates = (path.with_name(f"{stem}.{name}{ending}") for ending in endings for name in names)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _has_pair_magic(path: Path) -> bool:
    with open_bytes(path) as stream:
        try:
            raw = stream.read(348)
        except (OSError, EOFError, ValueError) as error:
            raise FormatError("truncated_header", None, f"{path.name}: {error}") from None
    return any(raw[at : at + len(magic)] == magic for at, magic in _PAIR_MAGICS)


def is_image(path: Path) -> bool:
    """Return whether a file of a folder is taken for an image: by its suffix, or as the header of a pair."""
    kind = _kind(path)
    if kind != "hdr":
        return kind == "nii"
    try:
        return _partner(path, kind) is not None and _has_pair_magic(path)
    except (FormatError, SourceError):
        return False


def header_of(path: Path) -> Path:
    """Return the header of the pair that an ``.img`` file belongs to; any other path as it is."""
    return (_partner(path, "img") or path) if _kind(path) == "img" else path


def is_gzipped(path: Path) -> bool:
    """Return whether a file begins as gzip does (RFC 1952).

    Raises
    ------
    SourceError
        When it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(2) == b"\x1f\x8b"
    except FileNotFoundError as error:
        raise SourceError("io_error", None, f"there is no file {path}", error.errno) from None
    except OSError as error:
        raise SourceError.from_os(error, path) from None


def open_bytes(path: Path) -> Any:
    """Return a stream of the (inflated) bytes of a file.

    Raises
    ------
    SourceError
        When it cannot be opened.
    """
    return gzip.open(path, "rb") if is_gzipped(path) else path.open("rb")
