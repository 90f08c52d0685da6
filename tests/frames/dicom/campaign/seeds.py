"""Files to damage: small, whole, readable, and every element and item of each with its place."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pydicom.data

from frames.dicom.cases import CASES
from support.builders import ITEM, ITEM_END, RLE, SEQUENCE_END, UNDEFINED
from voxtier.errors import FormatError
from voxtier.frames import read_frame, read_table

LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
VRS = LONG_VRS | frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
LARGEST = 200_000
DOSE = b"1.2.840.10008.5.1.4.1.1.481.2"

Frames = tuple[bytes, ...]


@dataclass(frozen=True)
class Part:
    """One element, item or delimiter: where it lies and how its length is written."""

    tag: int
    start: int
    value: int
    length_at: int
    length: int
    depth: int
    is_fragment: bool = False

    @property
    def width(self) -> int:
        """Bytes of the length field."""
        return self.value - self.length_at

    @property
    def is_open(self) -> bool:
        """Whether the length is undefined."""
        return self.length == UNDEFINED and self.width == 4

    @property
    def end(self) -> int:
        """First byte after the value, or after the header where the length is undefined."""
        return self.value if self.is_open else self.value + self.length

    @property
    def is_pixels(self) -> bool:
        return self.depth == 0 and self.tag in PIXEL_TAGS


@dataclass(frozen=True)
class Seed:
    """A readable file, its frames, and its parts in file order."""

    name: str
    content: bytes
    frames: Frames
    parts: tuple[Part, ...]
    explicit: bool
    number_of_frames: int

    def __repr__(self) -> str:
        return self.name

    @cached_property
    def pixels(self) -> Part:
        return next(part for part in self.parts if part.is_pixels)

    @cached_property
    def fragments(self) -> list[Part]:
        """The Items of the pixels, the Basic Offset Table's first; none in native files."""
        return [part for part in self.parts if part.is_fragment]

    @cached_property
    def payloads(self) -> list[bytes]:
        """The values of those Items, the Basic Offset Table's first."""
        return [self.content[item.value : item.end] for item in self.fragments]

    @cached_property
    def top(self) -> list[Part]:
        """The elements of the data set before the pixels."""
        return [part for part in self.parts if part.depth == 0 and 0x00080000 <= part.tag < PIXEL_TAGS[0]]

    def is_image_before(self, at: int) -> bool:
        """Whether what stands before a place says that this is an image; a dose need not be one."""
        rows = self.element(0x00280010)
        return DOSE not in self.content[:at] or (rows is not None and rows.end <= at)

    def element(self, tag: int) -> Part | None:
        """The top-level element of a tag, group 2 included."""
        return next((part for part in self.parts if part.depth == 0 and part.tag == tag), None)

    def end_of(self, part: Part) -> int:
        """First byte after a top-level element, its items and delimiter too."""
        after = (each.start for each in self.parts if each.depth == 0 and each.start > part.start)
        return min(after, default=len(self.content))

    def written(self, tag: int, vr: bytes, value: bytes) -> bytes:
        """An element as this file writes them."""
        head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        if not self.explicit:
            return head + struct.pack("<I", len(value)) + value
        if vr in LONG_VRS:
            return head + vr + b"\0\0" + struct.pack("<I", len(value)) + value
        return head + vr + struct.pack("<H", len(value)) + value

    def with_element(self, part: Part, vr: bytes, value: bytes) -> bytes:
        """The file with another value of a top-level element."""
        return self.content[: part.start] + self.written(part.tag, vr, value) + self.content[part.end :]

    def with_items(self, items: bytes) -> bytes:
        """The file with other items in its pixels, what stands behind them kept."""
        first, last = self.fragments[0], self.fragments[-1]
        return self.content[: first.start] + items + self.content[last.end :]


@dataclass(frozen=True)
class Mutant:
    """A seed with one thing changed."""

    seed: Seed
    what: str
    content: bytes


def frames_of(content: bytes, verify: str = "all") -> Frames:
    """All frames as voxtier serves them; raises `FormatError`, of a truncated file too."""
    table = read_table(content, verify=verify)  # type: ignore[arg-type]
    if table.status == "truncated":
        raise FormatError("truncated_frame", None, "some frames are lost")
    return tuple(read_frame(content, table, index) for index in range(len(table)))


def seeds() -> list[Seed]:
    """The reference cases and pydicom's files, as far as they are small, whole and readable."""
    found = [seed_of(case.name, case.content) for case in CASES if not case.error and case.status == "ok"]
    # Not by pydicom's own function, which downloads what is missing.
    paths = sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm"))
    found += [seed_of(path.name, path.read_bytes()) for path in paths if path.stat().st_size <= LARGEST]
    return [seed for seed in found if seed is not None]


def seed_of(name: str, content: bytes) -> Seed | None:
    """A seed, if the file is small, whole, well-formed little endian, and holds frames that voxtier reads."""
    if content[128:132] != b"DICM" or len(content) > LARGEST:
        return None
    try:
        table = read_table(content, verify="all")
        frames = frames_of(content)
    except FormatError:
        return None
    if table.status != "ok" or table.offsets_in != "file" or table.kind == "video" or not frames:
        return None
    # Frames whose order stands in their table alone, and RLE that is none, prove nothing once damaged.
    is_rle = table.transfer_syntax_uid == RLE.uid
    if "table_not_ascending" in table.notes or (is_rle and not all(map(begins_rle, frames))):
        return None
    explicit = table.transfer_syntax_uid not in ("1.2.840.10008.1.2", "1.2.840.113619.5.2")
    try:
        parts = parts_of(content, explicit=explicit)
    except (ValueError, struct.error):
        return None
    if not any(part.is_pixels for part in parts):
        return None
    return Seed(name, content, frames, parts, explicit, table.number_of_frames)


def begins_rle(frame: bytes) -> bool:
    """Whether a frame begins with the header of PS3.5 G.5: 1 to 15 segments, the first at byte 64."""
    count, first = struct.unpack_from("<II", frame.ljust(64))
    return len(frame) >= 64 and 1 <= count <= 15 and first == 64


def parts_of(content: bytes, *, explicit: bool) -> tuple[Part, ...]:
    """Walk a Part 10 file, nested items too; raise ValueError or struct.error where it is not well-formed."""
    walk = _Walk(content, explicit)
    walk.elements(132, len(content), 0)
    return tuple(walk.found)


class _Walk:
    def __init__(self, content: bytes, explicit: bool) -> None:
        self.content = content
        self.explicit = explicit
        self.found: list[Part] = []

    def header(self, at: int, depth: int) -> Part:
        group, number = struct.unpack_from("<HH", self.content, at)
        vr = self.content[at + 4 : at + 6]
        if group == 0xFFFE or (not self.explicit and group != 2):
            place, width = at + 4, 4
        elif vr in LONG_VRS:
            place, width = at + 8, 4
        elif vr in VRS:
            place, width = at + 6, 2
        else:
            raise ValueError(f"no VR at {at}")
        value = place + width
        length = int.from_bytes(self.content[place:value], "little")
        return Part(group << 16 | number, at, value, place, length, depth)

    def is_sequence(self, part: Part) -> bool:
        vr = self.content[part.start + 4 : part.start + 6]
        return part.is_open or (self.explicit and vr == b"SQ" and part.length > 0)

    def items(self, at: int, end: int | None, depth: int, *, fragments: bool) -> int:
        while end is None or at < end:
            item = replace(self.header(at, depth), is_fragment=fragments)
            if item.tag == SEQUENCE_END:
                self.found.append(replace(item, is_fragment=False))
                return item.value
            if item.tag != ITEM:
                raise ValueError(f"no item at {at}")
            self.found.append(item)
            if fragments:
                at = item.end
            else:
                at = self.elements(item.value, None if item.is_open else item.end, depth + 1)
        return at

    def elements(self, at: int, end: int | None, depth: int) -> int:
        while at < (len(self.content) if end is None else end):
            part = self.header(at, depth)
            self.found.append(part)
            if part.tag == ITEM_END:
                return part.value
            at = part.end
            if self.is_sequence(part):
                inside = None if part.is_open else part.end
                at = self.items(part.value, inside, depth + 1, fragments=part.is_pixels)
            if at > len(self.content):
                raise ValueError("past the end")
        return at
