"""Files whose frames say what they are: instance, version, frame, length and a checksum of the rest.

All versions of an instance have one size but every third, and their frames lie at other places.
"""

from __future__ import annotations

import random
import struct
from itertools import accumulate
from zlib import crc32

from support.builders import (
    DEFLATED_LE,
    ENCAPSULATED_RAW,
    EXPLICIT_LE,
    JPEG,
    PIXEL_DATA,
    Element,
    Fragments,
    dicom,
    element,
    image,
)

FRAMES = 6
NATIVE_FRAME = 512
_HEAD = struct.Struct("<4sIIIII")
_MAGIC = b"VOXF"
_START, _END = b"\xff\xd8", b"\xff\xd9"
_ROOM = 240  # bytes that are shared by what stands before and behind the pixels


def uid_of(instance: int) -> str:
    """The SOP Instance UID; all have one length."""
    return f"2.25.{100000 + instance}"


def payload(instance: int, version: int, frame: int, length: int) -> bytes:
    """A frame that names itself, between the markers of a JPEG."""
    rest = random.Random(f"{instance} {version} {frame}").randbytes(length - _HEAD.size - 4)
    rest = rest.replace(b"\xff", b"\xfe")
    head = _HEAD.pack(_MAGIC, instance, version, frame, length, crc32(rest))
    return _START + head + rest + _END


def identify(frame: bytes, number: int) -> tuple[int, int] | None:
    """Return instance and version of a frame that is whole and has this number, else None."""
    if len(frame) < _HEAD.size + 4 or frame[:2] != _START or frame[-2:] != _END:
        return None
    magic, instance, version, found, length, crc = _HEAD.unpack_from(frame, 2)
    rest = frame[2 + _HEAD.size : -2]
    is_whole = (magic, found, length, crc) == (_MAGIC, number, len(frame), crc32(rest))
    return (instance, version) if is_whole else None


def content(instance: int, version: int) -> bytes:
    """The file of a version of an instance."""
    dice = random.Random(version)
    before = dice.randrange(2, _ROOM - 2) & ~1
    behind = _ROOM - before + (64 * version if version % 3 == 0 else 0)
    elements = [e for e in image(rows=16, columns=32, frames=FRAMES) if e.tag != 0x00080018]
    elements.insert(1, element("SOPInstanceUID", uid_of(instance)))
    elements.append(Element(0x00291010, "OB", bytes(before)))
    padding = element("DataSetTrailingPadding", bytes(behind))
    kind = instance % 6
    if kind < 2:
        pixels = b"".join(payload(instance, version, frame, NATIVE_FRAME) for frame in range(FRAMES))
        syntax = (EXPLICIT_LE, DEFLATED_LE)[kind]
        return dicom([*elements, element("PixelData", pixels), padding], syntax).content
    lengths = [200 + 120 * frame for frame in range(FRAMES)]
    dice.shuffle(lengths)
    frames = [payload(instance, version, frame, length) for frame, length in enumerate(lengths)]
    offsets = list(accumulate((length + 8 for length in lengths[:-1]), initial=0))
    fragments, tables = Fragments(frames), []
    if kind == 3:
        fragments = Fragments(frames, offsets)
    elif kind == 4:
        tables = [
            element("ExtendedOffsetTable", tuple(offsets)),
            element("ExtendedOffsetTableLengths", tuple(lengths)),
        ]
    elif kind == 5:
        fragments = Fragments([part for frame in frames for part in (frame[:100], frame[100:])])
    syntax = ENCAPSULATED_RAW if kind == 2 else JPEG
    return dicom([*elements, *tables, Element(PIXEL_DATA, "OB", fragments), padding], syntax).content
