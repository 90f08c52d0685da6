"""Files beyond 4 GiB: six gigabytes of hole, a few hundred written bytes."""

from __future__ import annotations

import struct

from frames.dicom.cases.model import SparseCase
from support.builders import EXPLICIT_LE, JPEG, Element, dicom, element, image, item_header, jpeg, pattern
from support.builders import SEQUENCE_END as END

GIB = 2**30
LAST = jpeg(40, 1)


def three_frames(
    name: str,
    method: str,
    *,
    table: bytes = b"",
    tables: list[Element] | None = None,
    notes: tuple[str, ...] = (),
) -> SparseCase:
    """Two frames of 3 GiB each and a small one beyond 2^32; ``table`` is the Basic Offset Table."""
    head = dicom(
        [
            *image(frames=3),
            *(tables or []),
            Element(0x7FE00010, "OB", item_header(len(table)) + table, 0xFFFFFFFF),
        ],
        JPEG,
    )
    base = len(head.content)
    lengths = [3 * GIB, 3 * GIB, len(LAST)]
    tags = [base, base + 8 + lengths[0], base + 16 + lengths[0] + lengths[1]]
    end = tags[2] + 8 + len(LAST)
    ranges = tuple(((tag + 8, tag + 8 + length),) for tag, length in zip(tags, lengths, strict=True))
    parts = [(0, head.content)]
    for tag, length in zip(tags, lengths, strict=True):
        parts += [(tag, item_header(length) + b"\xff\xd8"), (tag + 8 + length - 2, b"\xff\xd9")]
    parts += [(tags[2] + 8, LAST), (end, item_header(0, "<", END))]
    return SparseCase(
        name,
        b"",
        kind="encapsulated",
        method=method,
        number_of_frames=3,
        ranges=ranges,
        bit_offsets=(0, 0, 0),
        transfer_syntax_uid=JPEG.uid,
        pixel_tag=head.pixel_tag,
        notes=frozenset(notes),
        size=end + 8,
        parts=tuple(parts),
    )


OFFSETS = (0, 3 * GIB + 8, 6 * GIB + 16)
WRAPPED = struct.pack("<3I", *(offset % 2**32 for offset in OFFSETS))
EXTENDED = [
    element("ExtendedOffsetTable", OFFSETS),
    element("ExtendedOffsetTableLengths", (3 * GIB, 3 * GIB, len(LAST))),
]


def native_beyond_4_gib() -> SparseCase:
    """Native pixels of 2 GiB behind a private element of 3 GiB."""
    ballast, frame = 3 * GIB, 64 * 2**20
    attributes = image(rows=8192, columns=8192, frames=32)
    gap = Element(0x00291010, "OB", b"", ballast)
    head = dicom([*attributes, gap]).content
    start = len(head) + ballast
    pixels = Element(0x7FE00010, "OW", b"", 32 * frame).header(EXPLICIT_LE)
    first = start + len(pixels)
    return SparseCase(
        "x_native_end_beyond_4_gib",
        b"",
        kind="native",
        method="native",
        number_of_frames=32,
        ranges=tuple(((first + index * frame, first + (index + 1) * frame),) for index in range(32)),
        bit_offsets=(0,) * 32,
        pixel_tag=start,
        size=first + 32 * frame,
        parts=((0, head), (start, pixels), (first + 31 * frame, pattern(16))),
    )


CASES = [
    three_frames("x_bot_wrapped_at_2_32", "bot", table=WRAPPED, notes=("bot_wrapped",)),
    three_frames("x_eot_beyond_4_gib", "eot", tables=EXTENDED),
    three_frames("x_no_table_beyond_4_gib", "one_fragment_per_frame"),
    native_beyond_4_gib(),
]
