"""Folders of small DICOM files, each different, and what is true of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from support.builders import JPEG, TAGS, Element, Fragments, dicom, element, image, jpeg, pattern

TABLE = "main.pixels.object_catalog"
"""The table of files under which the tests of Spark and Lakebase index them."""


def native(seed: int, frames: int = 1) -> bytes:
    """A native file of 4 x 4 pixels and 8 bits, its UIDs made of `seed`."""
    return dicom([*_attributes(seed, frames), element("PixelData", pattern(16 * frames, seed))]).content


def fragmented(seed: int) -> bytes:
    """Three JPEG frames of two, one and three fragments, without an offset table (PS3.5 A.4)."""
    first, last = jpeg(20, seed), jpeg(30, seed)
    payloads = (first[:10], first[10:], jpeg(26, seed), last[:8], last[8:20], last[20:])
    return dicom([*_attributes(seed, 3), element("PixelData", Fragments(payloads))], JPEG).content


def without_pixels(seed: int) -> bytes:
    """A report: it has no image, so nothing of group 0028."""
    own = {TAGS["SOPClassUID"][0]: "1.2.840.10008.5.1.4.1.1.88.11", TAGS["Modality"][0]: "SR"}
    kept = [each for each in _attributes(seed, None) if each.tag >> 16 != 0x0028]
    return dicom([replace(each, value=own.get(each.tag, each.value)) for each in kept]).content


def write_files(folder: Path, count: int, *, first: int = 0) -> list[str]:
    """Write `count` native files of one to three frames; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(first, first + count):
        path = folder / f"image{number:05d}.dcm"
        path.write_bytes(native(number, 1 + number % 3))
        paths.append(str(path))
    return paths


def frames_of(path: str) -> int:
    """Frames of a file that `write_files` wrote."""
    return 1 + int(Path(path).stem.removeprefix("image")) % 3


def _attributes(seed: int, frames: int | None) -> list[Element]:
    own = {"SOPInstanceUID": f"2.25.1.{seed}", "SeriesInstanceUID": f"2.25.3.{seed // 10}"}
    common = [each for each in image(frames=frames) if each.tag not in {TAGS[name][0] for name in own}]
    return sorted([*common, *(element(name, uid) for name, uid in own.items())], key=lambda each: each.tag)
