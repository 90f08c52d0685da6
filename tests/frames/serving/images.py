"""Small images for readers, each of its own SOP Instance."""

from __future__ import annotations

from pathlib import Path

from support.builders import dicom, element, image, pattern


def native(frames: int = 3, seed: int = 0, uid: str = "2.25.1") -> bytes:
    elements = [e for e in image(frames=frames) if e.tag != 0x00080018]
    elements.insert(1, element("SOPInstanceUID", uid))
    return dicom([*elements, element("PixelData", pattern(16 * frames, seed))]).content


def frame_of(index: int, frames: int = 3, seed: int = 0) -> bytes:
    return pattern(16 * frames, seed)[16 * index : 16 * index + 16]


def write_images(folder: Path, count: int, frames: int = 3) -> list[str]:
    paths = []
    for number in range(count):
        path = folder / f"{number:05}.dcm"
        path.write_bytes(native(frames, number, f"2.25.{1000 + number}"))
        paths.append(str(path))
    return paths
