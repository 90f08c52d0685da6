"""Siemens mosaics: one image that holds the slices of a volume as tiles, row by row.

How many tiles there are, and on which side of the first the second lies, stands in private elements alone:
the CSA header (format of SPM and nibabel.nicom) or the ASCII protocol. The first tile lies where dcm2niix,
nibabel and dicom2nifti put it: Image Position (Patient) is that of an image of the mosaic's size around the
centre of the first slice.
"""

from __future__ import annotations

import math
import re
import struct
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voxtier.volumes.formats.dicom.attributes import find_numbers, find_text, refusal

_LONGEST = 1000  # elements of a CSA header, and items of one; real ones have about a hundred


class Mosaic(NamedTuple):
    """The tiles of a mosaic."""

    tiles: int
    """Tiles that hold a slice."""
    side: int
    """Tiles in a row of tiles, and rows of tiles."""
    step: NDArray[np.float64]
    """From tile to tile in mm, (3,), LPS."""


def is_mosaic(header: Any) -> bool:
    """Return whether an image is a mosaic, by Image Type or by the private number of its tiles."""
    if "MOSAIC" in find_text(header, "ImageType").upper().split("\\"):
        return True
    return (_private_number(header, 0x0019, "SIEMENS MR HEADER", 0x0A) or 0) > 1


def read_mosaic(header: Any, centre: NDArray[np.float64], normal: NDArray[np.float64], where: str) -> Mosaic:
    """Return the tiles of a mosaic.

    Parameters
    ----------
    header : pydicom.Dataset
        All elements but the pixels.
    centre : numpy.ndarray, (3,)
        Centre of the whole image in mm, LPS: that of the slice in the first tile.
    normal : numpy.ndarray, (3,)
        Cross product of the directions along a row and a column, LPS.
    where : str
        The file, for messages.

    Returns
    -------
    Mosaic
        How many tiles there are, and the step from one to the next.

    Raises
    ------
    FormatError
        ``unsupported_image`` when the private elements are missing, ``bad_geometry`` when they contradict.
    """
    csa = _read_csa(_private_bytes(header, "SIEMENS CSA HEADER", 0x10), where)
    protocol = _read_protocol(_private_bytes(header, "SIEMENS CSA HEADER", 0x20))
    count = _count(header, csa, len(protocol), where)
    side = math.ceil(math.sqrt(count))
    if int(header.Rows) % side or int(header.Columns) % side:
        raise refusal(
            "bad_geometry",
            where,
            f"a mosaic of {count} tiles does not divide {header.Rows} x {header.Columns}",
        )
    stated = csa.get("SliceNormalVector", [])
    by_csa = _direction(np.array(stated), normal, where) if len(stated) == 3 else 0
    by_protocol, distance = 0, None
    if len(protocol) == count > 1:
        by_protocol, distance = _protocol_step(protocol, centre, normal, where)
    if by_csa * by_protocol < 0:
        raise refusal("bad_geometry", where, "slice normal and protocol of the mosaic contradict each other")
    sign = by_csa or by_protocol or (1 if count == 1 else 0)
    spacing = _spacing(header, distance, where)
    if not sign or not spacing:
        missing = "slice normal" if not sign else "spacing between slices"
        raise refusal(
            "unsupported_image",
            where,
            f"Image Type MOSAIC, and no private element states the {missing}: convert the original, which has"
            " its CSA header (0029,1010)",
        )
    return Mosaic(count, side, normal * sign * spacing)


def _count(header: Any, csa: dict[str, list[float]], slices: int, where: str) -> int:
    stated = {
        int(number)
        for number in (
            *csa.get("NumberOfImagesInMosaic", [])[:1],
            _private_number(header, 0x0019, "SIEMENS MR HEADER", 0x0A) or 0,
        )
        if number >= 1
    } or ({slices} if slices else set())
    if len(stated) != 1:
        why = (
            f"its headers state {sorted(stated)} tiles"
            if stated
            else "no private element says of how many tiles"
        )
        raise refusal("unsupported_image", where, f"Image Type MOSAIC, and {why}: convert the original")
    return stated.pop()


def _direction(stated: NDArray[np.float64], normal: NDArray[np.float64], where: str) -> int:
    along = float(stated @ normal)
    if abs(abs(along) - 1) > 1e-3:
        raise refusal(
            "bad_geometry", where, f"the mosaic's slice normal {stated.tolist()} is not that of its rows"
        )
    return 1 if along > 0 else -1


def _protocol_step(
    slices: list[NDArray[np.float64]], centre: NDArray[np.float64], normal: NDArray[np.float64], where: str
) -> tuple[int, float]:
    """Return on which side of the first tile the others lie (0: cannot be told), and their distance in mm."""
    centres = np.array(slices)
    steps = np.diff(centres, axis=0)
    along = steps @ normal
    distance = float(np.abs(along).mean())
    if (
        distance <= 0
        or np.abs(steps - np.outer(along, normal)).max() > 0.1
        or np.ptp(along) > 0.01 * distance
    ):
        raise refusal("bad_geometry", where, "the slices of the mosaic's protocol lie on no regular grid")
    offsets = (centres - centre) @ normal
    if abs(offsets[0]) < distance / 4:
        return (1 if along[0] > 0 else -1), distance
    if abs(offsets[-1]) < distance / 4:  # numbered from the other end
        return (1 if along[0] < 0 else -1), distance
    return 0, distance


def _spacing(header: Any, distance: float | None, where: str) -> float | None:
    spacing = find_numbers(header, "SpacingBetweenSlices")
    stated = (abs(spacing[0]) or None) if spacing else None
    if stated and distance and abs(stated - distance) > max(0.01, 0.01 * distance):
        raise refusal(
            "bad_geometry",
            where,
            f"Spacing Between Slices {stated:.4g} mm, its protocol has slices {distance:.4g} mm apart",
        )
    return distance or stated


def _private_bytes(header: Any, creator: str, element: int) -> bytes:
    with suppress(Exception):  # also a block that is damaged
        value = header.private_block(0x0029, creator)[element].value
        return value if isinstance(value, bytes) else b""
    return b""


def _private_number(header: Any, group: int, creator: str, element: int) -> int | None:
    with suppress(Exception):  # also a block that is damaged
        value = header.private_block(group, creator)[element].value
        return int.from_bytes(value[:2], "little") if isinstance(value, bytes) else int(value)
    return None


def _read_csa(raw: bytes, where: str) -> dict[str, list[float]]:
    """Return the elements of a CSA header (type 1 or "SV10") whose values are numbers."""
    if not raw:
        return {}
    try:
        return dict(_csa_elements(raw))
    except (struct.error, ValueError):
        raise refusal("bad_header", where, "the CSA header (0029,1010) is damaged") from None


def _csa_elements(raw: bytes) -> list[tuple[str, list[float]]]:
    is_second = raw[:4] == b"SV10"
    at = 8 if is_second else 0
    (count,) = struct.unpack_from("<I", raw, at)
    if not 0 < count <= _LONGEST:
        raise ValueError(count)
    at += 8
    found, first_items = [], 0
    for number in range(count):
        name, _, _, _, items, _ = struct.unpack_from("<64si4sIii", raw, at)
        at += 84
        if not 0 <= items <= _LONGEST:
            raise ValueError(items)
        if number == 0:
            first_items = items
        values: list[float] = []
        for _ in range(items):
            lengths = struct.unpack_from("<4i", raw, at)
            at += 16
            # In type 1 the length is counted from the number of items of the first element.
            length = lengths[1] if is_second else lengths[0] - first_items
            if not is_second and not 0 <= length <= len(raw) - at:
                break
            text = struct.unpack_from(f"{length}s", raw, at)[0].partition(b"\0")[0]
            with suppress(ValueError):
                values.append(float(text))
            at += (length + 3) // 4 * 4
        found.append((name.partition(b"\0")[0].decode("latin-1"), values))
    return found


def _read_protocol(raw: bytes) -> list[NDArray[np.float64]]:
    """Return the centres of the slices of an ASCII protocol, LPS; empty where there is none."""
    text = raw.decode("latin-1")
    size = re.search(r"^\s*sSliceArray\.lSize\s*=\s*(0x[0-9a-fA-F]+|\d+)", text, re.MULTILINE)
    count = int(size.group(1), 0) if size else 0
    if not 0 < count <= _LONGEST:
        return []
    centres = [np.zeros(3) for _ in range(count)]
    pattern = r"^\s*sSliceArray\.asSlice\[(\d+)\]\.sPosition\.d(Sag|Cor|Tra)\s*=\s*([-+.\deE]+)"
    for index, axis, value in re.findall(pattern, text, re.MULTILINE):
        with suppress(ValueError):
            if int(index) < count:
                centres[int(index)][("Sag", "Cor", "Tra").index(axis)] = float(value)
    return centres
