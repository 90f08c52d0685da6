"""The DICOM files that the journeys read: made with the tests' builder, on disk, of real sizes."""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.builders import (
    EXPLICIT_LE,
    JPEG,
    SEQUENCE_END,
    Element,
    Items,
    dicom,
    element,
    image,
    item_header,
    pattern,
)


def ct_header() -> list[Element]:
    """Return about 4.3 KB of attributes before the pixels, as a CT slice has them."""
    attributes = image(rows=512, columns=512, bits=16)
    history = Items(
        [[element("Modality", "CT"), Element(0x0008103E, "LO", "a step of the scan")]] * 12, undefined=True
    )
    more = [
        Element(0x00080008, "CS", "ORIGINAL\\PRIMARY\\AXIAL"),
        Element(0x00081140, "SQ", history),
        *(Element(0x00180000 + number, "DS", "1.0000000") for number in range(0x50, 0xC0)),
        Element(0x00280030, "DS", "0.7\\0.7 "),
        Element(0x00291010, "OB", pattern(1200)),
    ]
    return sorted([*attributes, *more], key=lambda each: each.tag)


def ct_files(folder: Path, count: int) -> list[Path]:
    """Write ``count`` CT slices of 512 KB; return their paths."""
    folder.mkdir()
    header = dicom([*ct_header(), element("PixelData", b"", "OW")]).content[:-4]
    content = header + struct.pack("<I", 524_288) + os.urandom(524_288)
    paths = [folder / f"slice-{number:05}.dcm" for number in range(count)]
    for path in paths:
        path.write_bytes(content)
    return paths


@dataclass(frozen=True)
class Slide:
    """An encapsulated file of many frames, one fragment each."""

    path: Path
    frames: int
    first_item: int  # offset of the first Item tag after the Basic Offset Table


def slide(path: Path, frames: int, mean: int, table: str) -> Slide:
    """Write a slide whose frames are around ``mean`` bytes; ``table`` is none, bot or eot."""
    lengths = [mean - mean // 4 + (number * 7919) % (mean // 2) & ~1 for number in range(frames)]
    offsets, position = [], 0
    for length in lengths:
        offsets.append(position)
        position += 8 + length
    extended = []
    if table == "eot":
        extended = [
            element("ExtendedOffsetTable", tuple(offsets)),
            element("ExtendedOffsetTableLengths", tuple(lengths)),
        ]
    basic = struct.pack(f"<{frames}I", *offsets) if table == "bot" else b""
    attributes = image(rows=256, columns=256, samples=3, photometric="YBR_FULL_422", planar=0, frames=frames)
    opening = Element(0x7FE00010, "OB", item_header(len(basic)) + basic, 0xFFFFFFFF)
    head = dicom([*attributes, *extended, opening], JPEG).content
    noise = os.urandom(mean * 2).replace(b"\xff", b"\0")
    # In the blocks of a copy or a download: how a file was written decides how finely the page cache
    # holds it.
    with path.open("wb", 1 << 20) as file:
        file.write(head)
        for length in lengths:
            file.write(item_header(length) + b"\xff\xd8" + noise[: length - 4] + b"\xff\xd9")
        file.write(item_header(0, "<", SEQUENCE_END))
        file.flush()
        os.fsync(file.fileno())  # a gigabyte on its way to the disk would slow who reads first
    return Slide(path, frames, len(head))


def functional_groups(path: Path, count: int, *, undefined: bool) -> Path:
    """Write an enhanced multi-frame object: ``count`` items of per-frame attributes (PS3.3 C.7.6.16)."""
    position = Items(
        [[Element(0x00200032, "DS", "0\\0\\1"), Element(0x00200037, "DS", "1\\0\\0\\0\\1\\0 ")]],
        undefined=undefined,
    )
    content = Items([[Element(0x00209057, "UL", 7)]], undefined=undefined)
    group = [Element(0x00209111, "SQ", content), Element(0x00209113, "SQ", position)]
    groups = element("PerFrameFunctionalGroups", Items([group] * count, undefined=undefined))
    elements = [*image(frames=count), groups, element("PixelData", pattern(16) * count, "OW")]
    path.write_bytes(dicom(elements, EXPLICIT_LE).content)
    return path


def ct_series(folder: Path, count: int) -> list[Path]:
    """Write the slices of one series, 32 KB of pixels each, with numbers and UIDs of their own."""
    folder.mkdir()
    pixels = element("PixelData", os.urandom(32_768), "OW")
    paths = [folder / f"slice-{number:05}.dcm" for number in range(count)]
    for number, path in enumerate(paths):
        own = {
            0x00080018: Element(0x00080018, "UI", f"2.25.1.{number}"),
            0x00100010: Element(0x00100010, "PN", "Doe^John"),
            0x00200013: Element(0x00200013, "IS", f"{number}"),
            0x00200032: Element(0x00200032, "DS", f"-175.3\\-175.3\\{number * 0.7:.2f}"),
        }
        elements = {each.tag: each for each in ct_header()} | own
        path.write_bytes(dicom([*(elements[tag] for tag in sorted(elements)), pixels]).content)
    return paths


def slide_header(path: Path, count: int) -> Path:
    """Write the header of a tiled slide: three groups for each of ``count`` tiles (PS3.3 A.32.8)."""
    groups = tile_groups([(number % 250, number // 250) for number in range(count)], 256)
    attributes = image(rows=256, columns=256, samples=3, photometric="RGB", planar=0, frames=count)
    path.write_bytes(dicom([*attributes, groups]).content)
    return path


def sparse_slide(path: Path, count: int) -> Path:
    """Write a TILED_SPARSE slide of ``count`` small tiles: the outline of tissue on a grid of 300 columns."""
    tile, columns = 16, 300
    places = [
        (number % columns, number // columns)
        for number in range(count + count // 2)
        if number % columns >= 40 + number // columns * 7 % 23
    ][:count]
    rows = places[-1][1] + 1
    more = [
        Element(0x00080008, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
        Element(0x00209311, "CS", "TILED_SPARSE"),
        Element(0x00480006, "UL", columns * tile),
        Element(0x00480007, "UL", rows * tile),
        Element(0x00480105, "SQ", Items([[Element(0x00480106, "SH", "1 ")]])),
    ]
    attributes = sorted([*image(rows=tile, columns=tile, frames=count), *more], key=lambda each: each.tag)
    pixels = element("PixelData", pattern(tile * tile) * count, "OW")
    path.write_bytes(dicom([*attributes, tile_groups(places, tile), pixels]).content)
    return path


def tile_groups(places: list[tuple[int, int]], tile: int) -> Element:
    """Return the functional groups of tiles at places (column and row of the grid)."""

    def group(column: int, row: int) -> list[Element]:
        position = [
            Element(0x0040072A, "DS", f"{20.5 + column * 0.064:.3f}"),
            Element(0x0040073A, "DS", f"{40.1 - row * 0.064:.3f}"),
            Element(0x0040074A, "DS", "0.0 "),
            Element(0x0048021E, "SL", struct.pack("<i", column * tile + 1)),
            Element(0x0048021F, "SL", struct.pack("<i", row * tile + 1)),
        ]
        return [
            Element(0x00209111, "SQ", Items([[Element(0x00209157, "UL", (column + 1, row + 1))]])),
            Element(0x00480207, "SQ", Items([[Element(0x00480106, "SH", "1 ")]])),
            Element(0x0048021A, "SQ", Items([position])),
        ]

    return element("PerFrameFunctionalGroups", Items([group(*place) for place in places]))
