"""What compressed frames say of their own samples: sizes, bits and sign, for `zarr_references`."""

from __future__ import annotations

import struct
from typing import NamedTuple

HEAD_BYTES = 4096
"""Bytes of a frame in which its header is looked for; SIZ is the first segment, SOF one of the first."""

_SOC_SIZ = b"\xff\x4f\xff\x51"
_SOI, _SOF55 = b"\xff\xd8", 0xF7


class CodeStream(NamedTuple):
    """The header of a code stream.

    Attributes
    ----------
    columns, rows, components : int
        Of the image.
    precision : int
        Bits of a sample.
    is_signed : bool
        Whether the decoder gives numbers below 0; JPEG-LS has none.
    """

    columns: int
    rows: int
    components: int
    precision: int
    is_signed: bool


def read_jpeg_2000(head: bytes) -> CodeStream | None:
    """Return what the segment SIZ of JPEG 2000 says (ISO/IEC 15444-1 A.5.1); None where there is none."""
    at = head.find(_SOC_SIZ)  # at the start, unless there are boxes of a JP2 file before it
    if at < 0 or len(head) < at + 45:
        return None
    right, bottom, left, top, *_, components = struct.unpack_from(">8IH", head, at + 8)
    depth, across, down = head[at + 42 : at + 45]
    if across != 1 or down != 1:
        return None
    return CodeStream(right - left, bottom - top, components, (depth & 0x7F) + 1, depth >= 0x80)


def read_jpeg_ls(head: bytes) -> CodeStream | None:
    """Return what the segment SOF55 of JPEG-LS says (ISO/IEC 14495-1 C.2.2); None where there is none."""
    at = len(_SOI)
    if not head.startswith(_SOI):
        return None
    while at + 10 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if marker == 0xFF:  # a byte of filling
            at += 1
            continue
        length, precision, rows, columns, components = struct.unpack_from(">HBHHB", head, at + 2)
        if marker == _SOF55:
            return CodeStream(columns, rows, components, precision, is_signed=False)
        at += 2 + length
    return None
