"""What a run learns of a volume from its header alone: size, class, and whether it is rotated."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MOST_BYTES_PER_BYTE = 1032
"""The most bytes that DEFLATE unpacks from one byte (RFC 1951: 258 from two bits)."""
HEADER_BYTES = 348
"""Of NIfTI-1."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a volume, as far as a run needs it."""

    voxels: int
    """As declared, but no more than the file can hold."""
    volume_class: str
    """Type, shape, spacing and directions: what is proved of one volume holds for the others of its class."""
    is_oblique: bool
    """Whether its axes are not those of the world: the engine leaves it to MONAI."""


def read_header(path: Path) -> Header | None:
    """Read the header of a NIfTI-1 file, or return None where there is none."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            content = stream.read(HEADER_BYTES)
        size = path.stat().st_size
    except (OSError, EOFError, zlib.error):  # the last for a damaged gzip file
        return None
    order = next((each for each in "<>" if content[:4] == struct.pack(f"{each}i", HEADER_BYTES)), None)
    if order is None or len(content) < 56:
        return None
    content = content.ljust(HEADER_BYTES, b"\0")
    axes = [int(axis) for axis in struct.unpack_from(f"{order}8h", content, 40)]
    shape = [max(1, axis) for axis in axes[1 : 1 + min(max(axes[0], 0), 7)]]
    (kind,) = struct.unpack_from(f"{order}h", content, 70)
    spacing = struct.unpack_from(f"{order}3f", content, 80)
    matrix = np.nan_to_num(_directions(content, order))
    signs = "".join("+0-"[1 - int(np.sign(number))] for number in matrix.ravel())
    return Header(
        voxels=min(math.prod(shape), MOST_BYTES_PER_BYTE * size),  # the header may claim anything
        volume_class=f"{kind} {shape} {' '.join(f'{length:.6g}' for length in spacing)} {signs}",
        is_oblique=bool((np.count_nonzero(matrix, axis=0) > 1).any()),
    )


def _directions(content: bytes, order: str) -> NDArray[np.float64]:
    """Return the matrix of the axes: the sform, or else the rotation of the qform (NIfTI-1, method 3, 2)."""
    qform, sform = struct.unpack_from(f"{order}2h", content, 252)
    if sform > 0:
        rows = struct.unpack_from(f"{order}12f", content, 280)
        return np.array(rows, np.float64).reshape(3, 4)[:, :3]
    if qform <= 0:
        return np.eye(3)
    b, c, d = (float(part) for part in struct.unpack_from(f"{order}3f", content, 256))
    a = math.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * b * c - 2 * a * d, 2 * b * d + 2 * a * c],
            [2 * b * c + 2 * a * d, a * a + c * c - b * b - d * d, 2 * c * d - 2 * a * b],
            [2 * b * d - 2 * a * c, 2 * c * d + 2 * a * b, a * a + d * d - b * b - c * c],
        ]
    )
