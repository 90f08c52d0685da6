"""Pixels of slices as voxels: decoded, cut out of mosaics, rescaled without losing a bit of an integer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import SourceError
from voxtier.volumes.formats.dicom.attributes import (
    find_numbers,
    find_text,
    import_pydicom,
    refusal,
    silent_pydicom,
)
from voxtier.volumes.formats.dicom.grid import Stack
from voxtier.volumes.formats.dicom.slices import Slice

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def read_voxels(stacks: Sequence[Stack]) -> NDArray[Any]:
    """Return the rescaled voxels of stacks at one place: (column, row, slice[, time]).

    Missing slices hold the least value of the volume.

    Raises
    ------
    FormatError
        When pixels cannot be decoded, or differ from what their header says.
    """
    slices = [item for stack in stacks for item in stack.slices]
    frames = _Frames()
    raw: list[NDArray[Any]] = [np.empty(0)] * len(slices)
    with silent_pydicom():
        for place in sorted(range(len(slices)), key=lambda place: slices[place].path):
            raw[place] = frames.read(slices[place])  # file by file: one of many frames is decoded once
    for pixels, item in zip(raw, slices, strict=True):
        _check_mapped(pixels, item)
    dtype = rescaled_dtype(slices, raw)
    grid = stacks[0].grid
    shape = (len(stacks), grid.slots[-1] + 1, *slices[0].size)
    stored = np.empty(shape, dtype)
    least = None
    for index, (pixels, item) in enumerate(zip(raw, slices, strict=True)):
        time, place = divmod(index, len(stacks[0].slices))
        rescaled = _rescale(pixels, item, dtype)
        stored[time, grid.slots[place]] = rescaled
        least = rescaled.min() if least is None else min(least, rescaled.min())
    gaps = sorted(set(range(grid.slots[-1] + 1)) - set(grid.slots))
    if gaps:
        stored[:, gaps] = least
    volume = stored.transpose(3, 2, 1, 0)  # i = column, j = row, k = slice, t
    return volume if len(stacks) > 1 else volume[..., 0]


def _rescale(pixels: NDArray[Any], item: Slice, dtype: np.dtype[Any]) -> NDArray[Any]:
    if (item.slope, item.intercept) == (1.0, 0.0):
        return pixels.astype(dtype)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            values: NDArray[Any] = (pixels.astype(np.float64) * item.slope + item.intercept).astype(dtype)
        if (np.isfinite(pixels) & ~np.isfinite(values)).any():
            raise refusal("bad_values", item.path.name, f"rescaled pixels are beyond the range of {dtype}")
        return values
    return (pixels.astype(np.int64) * int(item.slope) + int(item.intercept)).astype(dtype)


def _check_mapped(pixels: NDArray[Any], item: Slice) -> None:
    """Refuse a map with stored numbers that its mapping does not reach: they mean nothing (NaN may be)."""
    if item.scale.mapped is None:
        return
    ends = np.array(item.scale.mapped)
    if pixels.dtype.kind == "f":
        with np.errstate(over="ignore"):
            ends = ends.astype(pixels.dtype)  # the ends are float64: of 0.1 as float32 they are no bound
    outside = pixels[(pixels < ends[0]) | (pixels > ends[1])]
    if outside.size:
        raise refusal(
            "bad_values",
            item.path.name if item.frame is None else f"{item.path.name}, frame {item.frame + 1}",
            f"{outside.size} pixels (the first is {outside[0]}) outside of the stored values from"
            f" {item.scale.mapped[0]:g} to {item.scale.mapped[1]:g} that the Real World Value Mapping covers;"
            " write the map again with a mapping for all of them",
        )


def rescaled_dtype(slices: Sequence[Slice], raw: Sequence[NDArray[Any]]) -> np.dtype[Any]:
    """Return the narrowest type that keeps rescaled pixels apart.

    Integers stay integers where every scale is integral and 64 bits hold them; else float32 where it tells
    neighbouring pixel values apart, float64 where it does not.

    Parameters
    ----------
    slices : sequence of Slice
        Their scales.
    raw : sequence of numpy.ndarray
        Their pixels before rescaling.

    Returns
    -------
    numpy.dtype
        Of the voxels.
    """
    common = np.result_type(*{pixels.dtype for pixels in raw})
    scales = {(item.slope, item.intercept) for item in slices}
    if scales == {(1.0, 0.0)} and (common.kind in "iu" or all(pixels.dtype.kind == "f" for pixels in raw)):
        return common
    if any(pixels.dtype.kind not in "iu" for pixels in raw):
        return np.dtype(np.float64 if common.itemsize > 4 else np.float32)
    ends = [(int(pixels.min()), int(pixels.max())) for pixels in raw]
    if all(number.is_integer() and abs(number) < 2**63 for scale in scales for number in scale):
        reached = [
            int(value) * int(item.slope) + int(item.intercept)
            for pair, item in zip(ends, slices, strict=True)
            for value in pair
        ]
        for candidate in ("i2", "i4", "i8"):
            limits = np.iinfo(candidate)
            if limits.min <= min(reached) and max(reached) <= limits.max:
                return np.dtype(candidate)
        return np.dtype(np.float64)
    largest = max(
        abs(value * item.slope + item.intercept)
        for pair, item in zip(ends, slices, strict=True)
        for value in pair
    )
    is_fine = largest < min(abs(slope) for slope, _ in scales) * 2**24 and largest < _FLOAT32_MAX
    return np.dtype(np.float32 if is_fine else np.float64)


class _Frames:
    """Decoded pixels; a multi-frame file or a mosaic is decoded once."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._pixels: NDArray[Any] = np.empty(0)

    def read(self, item: Slice) -> NDArray[Any]:
        if self._path != item.path:
            self._path, self._pixels = item.path, _decode(item.path, item.sop_instance_uid)
            if item.tile is not None:
                _check_padding(item, self._pixels)
        pixels = self._pixels if item.frame is None or self._pixels.ndim == 2 else self._pixels[item.frame]
        whole = item.size
        if item.tile is not None:
            whole = (item.size[0] * item.tile[2], item.size[1] * item.tile[2])
        if pixels.shape != whole:
            raise refusal(
                "undecodable_pixels",
                item.path.name,
                f"pixels of shape {pixels.shape}, Rows and Columns say {whole}",
            )
        return pixels if item.tile is None else _cut_tile(pixels, item.size, item.tile[0], item.tile[2])


def _cut_tile(pixels: NDArray[Any], size: tuple[int, int], number: int, side: int) -> NDArray[Any]:
    row, column = number // side * size[0], number % side * size[1]
    return pixels[row : row + size[0], column : column + size[1]]


def _check_padding(item: Slice, pixels: NDArray[Any]) -> None:
    """Refuse a mosaic with an image in a tile that its header does not count."""
    _, count, side = item.tile or (0, 0, 0)
    if pixels.ndim == 2:
        for number in range(count, side * side):
            tile = _cut_tile(pixels, item.size, number, side)
            if tile.size and tile.min() != tile.max():
                raise refusal(
                    "bad_header",
                    item.path.name,
                    f"a mosaic of {count} tiles has an image in tile {number + 1}",
                )


def _decode(path: Path, uid: str) -> NDArray[Any]:
    try:
        dataset = import_pydicom().dcmread(path)
        if (find_text(dataset, "SOPInstanceUID") or str(path)) != uid:
            raise SourceError("changed_during_read", None, f"{path.name} was replaced while it was read")
        pixels: NDArray[Any] = dataset.pixel_array
    except SourceError:
        raise
    except Exception as error:  # pydicom names the missing decoder in its own words
        raise refusal("undecodable_pixels", path.name, f"pixels cannot be decoded: {error}") from None
    if pixels.dtype.kind not in "iu":
        return pixels
    allocated = pixels.dtype.itemsize * 8
    stored = int((find_numbers(dataset, "BitsStored") or (allocated,))[0])
    high = int((find_numbers(dataset, "HighBit") or (stored - 1,))[0])
    if not 0 < stored <= high + 1 <= allocated:
        raise refusal(
            "bad_header", path.name, f"Bits Stored {stored} and High Bit {high} in {allocated} bits"
        )
    if high != stored - 1 and _keeps_words(dataset):
        raise refusal(
            "bad_header",
            path.name,
            f"High Bit {high} is not one below Bits Stored {stored} (PS3.5 8.1.1): programs differ in"
            " which bits are the pixel; write the file again with pixels from bit 0",
        )
    if stored == allocated:
        return pixels
    # Overlay bits above the pixel: shift up to the sign bit, then back down.
    values: NDArray[Any] = np.right_shift(np.left_shift(pixels, allocated - stored), allocated - stored)
    return values


def _keeps_words(dataset: Any) -> bool:
    """Return whether pixels are stored word by word; any codec but RLE stores numbers, from bit 0."""
    syntax = dataset.file_meta.TransferSyntaxUID
    return not syntax.is_encapsulated or syntax == import_pydicom().uid.RLELossless
