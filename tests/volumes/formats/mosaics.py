"""Siemens mosaics made from a volume whose every voxel has a known place, with CSA headers written here."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from volumes.support.images import slice_dataset

_VRS = {"EchoLinePosition": b"IS", "NumberOfImagesInMosaic": b"US", "SliceNormalVector": b"FD"}


@dataclass(frozen=True)
class Scan:
    """A volume: voxel (row, column, slice) at origin + row * down + column * right + slice * step, LPS."""

    voxels: NDArray[np.uint16]
    origin: NDArray[np.float64]
    right: NDArray[np.float64]
    down: NDArray[np.float64]
    step: NDArray[np.float64]

    @property
    def normal(self) -> NDArray[np.float64]:
        return self.step / np.linalg.norm(self.step)

    def place(self, row: int, column: int, number: int) -> NDArray[np.float64]:
        """Return where a voxel lies, LPS."""
        return self.origin + row * self.down + column * self.right + number * self.step

    def centre(self, number: int) -> NDArray[np.float64]:
        """Return the centre of a slice as Siemens counts it: half of its size from the first voxel."""
        rows, columns, _ = self.voxels.shape
        return self.place(0, 0, number) + self.down * rows / 2 + self.right * columns / 2


def random_scan(rng: np.random.Generator, slices: int, *, is_reversed: bool = False) -> Scan:
    """Draw an oblique scan; a reversed one steps against the cross product of its rows and columns."""
    basis = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    right, down = basis[:, 0], basis[:, 1]
    normal = np.cross(right, down) * (-1 if is_reversed else 1)
    size, spacing = int(rng.integers(4, 9)), round(float(rng.uniform(1, 3)), 3)
    return Scan(
        rng.integers(1, 4000, (size, size, slices)).astype(np.uint16),
        rng.uniform(-100, 100, 3),
        right * spacing,
        down * spacing,
        normal * round(float(rng.uniform(2, 5)), 3),
    )


def csa_header(elements: dict[str, Sequence[object]], *, is_first_type: bool = False) -> bytes:
    """Write a CSA header of the second ("SV10") or the first type."""
    raw = b"" if is_first_type else b"SV10\4\3\2\1"
    raw += struct.pack("<2I", len(elements), 77)
    for name, values in elements.items():
        items = 6 if values else 0
        raw += struct.pack("<64si4siii", name.encode(), len(values), _VRS.get(name, b"SH"), 4, items, 77)
        for number in range(items):
            text = f"{values[number]}".encode() + b"\0" if number < len(values) else b""
            first = len(text) + 6 if is_first_type else len(text)
            raw += struct.pack("<4i", first, len(text), 77, len(text)) + text.ljust(
                -len(text) % 4 + len(text), b"\0"
            )
    return raw


def csa_elements(scan: Scan) -> dict[str, Sequence[object]]:
    """Return what a CSA header says of a mosaic."""
    rows, columns, slices = scan.voxels.shape
    return {
        "AcquisitionMatrixText": [f"{rows}*{columns}"],
        "NumberOfImagesInMosaic": [slices],
        "SliceNormalVector": list(scan.normal),
    }


def protocol(centres: Sequence[NDArray[np.float64]]) -> bytes:
    """Write the part of an ASCII protocol that tells of slices; Siemens leaves out zeros."""
    lines = ["### ASCCONV BEGIN ###", f"sSliceArray.lSize                        = {len(centres)}"]
    for number, centre in enumerate(centres):
        lines += [
            f"sSliceArray.asSlice[{number}].sPosition.d{axis}    = {value:.10g}"
            for axis, value in zip(("Sag", "Cor", "Tra"), centre, strict=True)
            if value
        ]
    return "\n".join([*lines, "### ASCCONV END ###"]).encode()


def mosaic(scan: Scan, number: int = 1, **options: Any) -> Dataset:
    """Return the mosaic of a scan.

    Options: ``csa`` and ``text`` replace the two private elements (None leaves one out), anything else is an
    element of the data set.
    """
    rows, columns, slices = scan.voxels.shape
    side = math.ceil(math.sqrt(slices))
    tiles = np.zeros((side * rows, side * columns), np.uint16)
    for tile in range(slices):
        row, column = tile // side * rows, tile % side * columns
        tiles[row : row + rows, column : column + columns] = scan.voxels[:, :, tile]
    # Image Position is that of an image of the whole size around the centre of the first slice.
    corner = scan.centre(0) - scan.down * rows * side / 2 - scan.right * columns * side / 2
    spacing = float(np.linalg.norm(scan.right))
    csa = options.pop("csa", csa_elements(scan))
    text = options.pop("text", None)
    dataset = slice_dataset(
        [f"{value:.10g}" for value in corner],
        [f"{value:.10g}" for value in (*scan.right / spacing, *scan.down / spacing)],
        [spacing, spacing],
        pixels=tiles,
        number=number,
        AcquisitionNumber=number,
        Modality="MR",
        Manufacturer="SIEMENS",
        ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
        SpacingBetweenSlices=f"{np.linalg.norm(scan.step):.10g}",
        SliceThickness=1,
    )
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    if csa is not None:
        block.add_new(0x10, "OB", csa if isinstance(csa, bytes) else csa_header(csa))
    if text is not None:
        block.add_new(0x20, "OB", text if len(text) % 2 == 0 else text + b"\n")
    for name, value in options.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def write(folder: Path, datasets: Sequence[Dataset]) -> Path:
    """Write data sets as the files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, dataset in enumerate(datasets):
        pydicom.dcmwrite(folder / f"{number:03d}.dcm", dataset, enforce_file_format=True)
    return folder
