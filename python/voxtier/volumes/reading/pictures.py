"""Pictures of volumes without a plotting library: tile layouts as text, slices as PNG."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError
from voxtier.system.text import format_count

_WIDTH, _HEIGHT = 32, 12


class Tiled(Protocol):
    """What is drawn: a volume that knows which tiles answer a plane."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size."""

    def tiling_of_plane(self, axis: int) -> tuple[tuple[int, ...], str | None]:
        """Return tile extents, and whose replica they are of."""


def draw_tiles(volume: Tiled) -> str:
    """Return the tiles of the three planes as text, with what one read of each plane decodes."""
    shape, lines = volume.shape[:3], []
    for name, across, down, fixed in (("axial", 0, 1, 2), ("sagittal", 1, 2, 0), ("coronal", 0, 2, 1)):
        extents, replica = volume.tiling_of_plane(fixed)
        tiles = [-(-n // e) for n, e in zip(shape, extents, strict=True)]
        touched = tiles[across] * tiles[down]
        share = touched * float(np.prod(extents)) / (shape[across] * shape[down])
        lines.append(
            f"{name:8s} {'xyz'[across]} by {'xyz'[down]}: {touched} of"
            f" {format_count(int(np.prod(tiles)), 'tile')},"
            f" {format_count(extents[fixed], 'plane')} thick ({share:.1f} cells decoded for each one wanted)"
            + (f", of the replica {replica}" if replica else "")
        )
        lines += ["  " + row for row in _grid(shape[across], shape[down], extents[across], extents[down])]
    return "\n".join(lines)


def _grid(width: int, height: int, step_x: int, step_y: int) -> list[str]:
    columns, rows = _cuts(width, step_x, _WIDTH), _cuts(height, step_y, _HEIGHT // 2)
    line = "".join("+" if x in columns else "-" for x in range(_WIDTH + 1))
    body = "".join("|" if x in columns else " " for x in range(_WIDTH + 1))
    return [line if y in rows else body for y in range(_HEIGHT // 2 + 1)]


def _cuts(size: int, step: int, cells: int) -> set[int]:
    return {round(cut * cells / size) for cut in range(0, size, step)} | {cells}


def to_grey(plane: NDArray[Any], window: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Return a plane as 8-bit grey, first axis to the right, second upwards.

    Parameters
    ----------
    plane : numpy.ndarray
        (across, up).
    window : (float, float), optional
        Centre and width; by default the 1st to the 99th percentile.

    Raises
    ------
    ConfigError
        For an array that is no plane, and for complex numbers.
    """
    if plane.ndim != 2:
        raise ConfigError("a picture needs a plane: choose a time point of a 4-D volume")
    if plane.dtype.kind == "c":
        raise ConfigError("complex voxels have no grey: take np.abs or np.angle of them")
    numbers = plane.astype(np.float64)  # percentiles of narrow types wrap or overflow
    finite = numbers[np.isfinite(numbers)]
    if window is not None:
        low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
    elif finite.size:
        low, high = (float(value) for value in np.percentile(finite, (1, 99)))
    else:
        low, high = 0.0, 1.0
    scaled = (np.where(np.isnan(numbers), 0, numbers) - low) / max(high - low, 1e-12)
    return (np.clip(scaled, 0, 1) * 255).astype(np.uint8).T[::-1]


def stretch_to_square(picture: NDArray[np.uint8], across: float, up: float) -> NDArray[np.uint8]:
    """Repeat rows and columns so that pixels become square.

    Parameters
    ----------
    picture : numpy.ndarray
        (height, width).
    across, up : float
        What a voxel measures, in millimetres.

    Returns
    -------
    numpy.ndarray
        The stretched picture.
    """
    height, width = picture.shape
    fine = min(across, up)
    rows = np.arange(max(1, round(height * up / fine))) * fine / up
    columns = np.arange(max(1, round(width * across / fine))) * fine / across
    rows = np.minimum(rows.astype(int), height - 1)
    columns = np.minimum(columns.astype(int), width - 1)
    square: NDArray[np.uint8] = picture[rows[:, None], columns]
    return square


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """Return an 8-bit grey PNG (ISO/IEC 15948) of (height, width)."""
    height, width = picture.shape
    rows = np.hstack([np.zeros((height, 1), np.uint8), picture])  # filter type 0 before each row

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = zlib.compress(rows.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
