"""Images for buckets, cheap to make at any size."""

from __future__ import annotations

import struct

from support.builders import EXPLICIT_LE, JPEG, Fragments, dicom, element, image


def ct(seed: int = 0, uid: str = "2.25.1", series: str = "2.25.3") -> bytes:
    """A CT slice: 512 x 512 pixels of 16 bits, half a megabyte."""
    uids = {0x00080018: element("SOPInstanceUID", uid), 0x0020000E: element("SeriesInstanceUID", series)}
    elements = [uids.get(each.tag, each) for each in image(rows=512, columns=512, bits=16)]
    pixels = struct.pack("<I", seed) + bytes([seed % 251]) * (512 * 512 * 2 - 4)
    return dicom([*elements, element("PixelData", pixels, "OW")], EXPLICIT_LE).content


def tile(index: int, length: int) -> bytes:
    """A payload that begins and ends as a JPEG stream does, and knows its number."""
    return b"\xff\xd8" + struct.pack("<I", index) + bytes([index % 251]) * (length - 8) + b"\xff\xd9"


def slide(
    frames: int, length: int, table: str = "none", uid: str = "2.25.1", *, last: int | None = None
) -> bytes:
    """A slide of `frames` tiles of `length` bytes, with a Basic or an Extended Offset Table or with none.

    The last tile has `last` bytes, if given.
    """
    lengths = [length] * (frames - 1) + [last or length]
    payloads = [tile(index, each) for index, each in enumerate(lengths)]
    pixels = Fragments(payloads)
    elements = [
        element("SOPInstanceUID", uid) if each.tag == 0x00080018 else each for each in image(frames=frames)
    ]
    if table == "bot":
        pixels = Fragments(payloads, table=pixels.offsets())
    elif table == "eot":
        offsets = struct.pack(f"<{frames}Q", *pixels.offsets())
        elements += [
            element("ExtendedOffsetTable", offsets, "OV"),
            element("ExtendedOffsetTableLengths", struct.pack(f"<{frames}Q", *lengths), "OV"),
        ]
    return dicom([*elements, element("PixelData", pixels, "OB")], JPEG).content
