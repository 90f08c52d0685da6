"""DICOM bytes from a few arguments, independent of pydicom and of voxtier.

A file is a list of `Element`; `dicom` writes it and tells where the pixels came to lie. Nothing is
checked and every length can be made to lie, because most of what is built here is broken on purpose.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7.2"  # a multi-frame one
PIXEL_DATA, FLOAT_PIXELS, DOUBLE_PIXELS = 0x7FE00010, 0x7FE00008, 0x7FE00009

TAGS = {
    "MediaStorageSOPClassUID": (0x00020002, "UI"),
    "MediaStorageSOPInstanceUID": (0x00020003, "UI"),
    "TransferSyntaxUID": (0x00020010, "UI"),
    "SOPClassUID": (0x00080016, "UI"),
    "SOPInstanceUID": (0x00080018, "UI"),
    "Modality": (0x00080060, "CS"),
    "PatientName": (0x00100010, "PN"),
    "StudyInstanceUID": (0x0020000D, "UI"),
    "SeriesInstanceUID": (0x0020000E, "UI"),
    "SamplesPerPixel": (0x00280002, "US"),
    "PhotometricInterpretation": (0x00280004, "CS"),
    "PlanarConfiguration": (0x00280006, "US"),
    "NumberOfFrames": (0x00280008, "IS"),
    "Rows": (0x00280010, "US"),
    "Columns": (0x00280011, "US"),
    "BitsAllocated": (0x00280100, "US"),
    "BitsStored": (0x00280101, "US"),
    "HighBit": (0x00280102, "US"),
    "PixelRepresentation": (0x00280103, "US"),
    "PixelDataProviderURL": (0x00287FE0, "UR"),
    "IconImageSequence": (0x00880200, "SQ"),
    "PerFrameFunctionalGroups": (0x52009230, "SQ"),
    "ExtendedOffsetTable": (0x7FE00001, "OV"),
    "ExtendedOffsetTableLengths": (0x7FE00002, "OV"),
    "FloatPixelData": (FLOAT_PIXELS, "OF"),
    "DoubleFloatPixelData": (DOUBLE_PIXELS, "OD"),
    "PixelData": (PIXEL_DATA, "OW"),
    "DataSetTrailingPadding": (0xFFFCFFFC, "OB"),
}
# PS3.5 Table 7.1-2: these VRs have a 16-bit length; every other one, unknown ones too, has 32 bits.
SHORT_VRS = {
    *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FL", "FD", "IS", "LO"),
    *("LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI", "UL", "US"),
}
NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "OV": "Q", "AT": "I"}


@dataclass(frozen=True)
class Syntax:
    """A transfer syntax: its UID and how it writes a data set (PS3.5 Annex A)."""

    uid: str
    explicit: bool = True
    order: str = "<"
    deflated: bool = False


EXPLICIT_LE = Syntax("1.2.840.10008.1.2.1")
IMPLICIT_LE = Syntax("1.2.840.10008.1.2", explicit=False)
EXPLICIT_BE = Syntax("1.2.840.10008.1.2.2", order=">")
DEFLATED_LE = Syntax("1.2.840.10008.1.2.1.99", deflated=True)
GE_PRIVATE = Syntax("1.2.840.113619.5.2", explicit=False)
JPEG = Syntax("1.2.840.10008.1.2.4.50")
JPEG_2000 = Syntax("1.2.840.10008.1.2.4.90")
JPEG_XL = Syntax("1.2.840.10008.1.2.4.110")
HTJ2K = Syntax("1.2.840.10008.1.2.4.201")
RLE = Syntax("1.2.840.10008.1.2.5")
MPEG4 = Syntax("1.2.840.10008.1.2.4.102")
MPEG4_FRAGMENTABLE = Syntax("1.2.840.10008.1.2.4.102.1")
ENCAPSULATED_RAW = Syntax("1.2.840.10008.1.2.1.98")
DEFLATED_FRAMES = Syntax("1.2.840.10008.1.2.8.1")


@dataclass(frozen=True)
class Items:
    """The value of a sequence: items of elements (PS3.5 7.5)."""

    items: Sequence[Sequence[Element]]
    undefined: bool = False  # length of the sequence and of its items
    delimiter: int = SEQUENCE_END
    syntax: Syntax | None = None  # of the content, where it differs from the data set's (CP-246)

    def encode(self, syntax: Syntax) -> bytes:
        """Write every item."""
        inner = self.syntax or syntax
        parts = []
        for elements in self.items:
            content = encode(elements, inner)
            length = UNDEFINED if self.undefined else len(content)
            parts += [item_header(length, syntax.order), content]
            if self.undefined:
                parts.append(item_header(0, syntax.order, ITEM_END))
        if self.undefined:
            parts.append(item_header(0, syntax.order, self.delimiter))
        return b"".join(parts)


@dataclass(frozen=True)
class Fragments:
    """The value of encapsulated Pixel Data: a Basic Offset Table and fragments (PS3.5 A.4)."""

    payloads: Sequence[bytes]
    table: Sequence[int] | bytes = ()
    delimiter: bytes | None = None  # None: the right one
    declared: Mapping[int, int] = field(default_factory=dict)  # fragment -> a length that lies

    def encode(self, syntax: Syntax) -> bytes:
        """Write the table, the fragments and the delimiter."""
        table = self.table_bytes
        parts = [item_header(len(table), syntax.order), table]
        for index, payload in enumerate(self.payloads):
            parts += [item_header(self.declared.get(index, len(payload)), syntax.order), payload]
        end = item_header(0, syntax.order, SEQUENCE_END) if self.delimiter is None else self.delimiter
        return b"".join([*parts, end])

    @property
    def table_bytes(self) -> bytes:
        """The Basic Offset Table's value."""
        return (
            self.table if isinstance(self.table, bytes) else struct.pack(f"<{len(self.table)}I", *self.table)
        )

    def offsets(self) -> list[int]:
        """Offset of each fragment's Item tag from the first byte after the table."""
        found, position = [], 0
        for payload in self.payloads:
            found.append(position)
            position += 8 + len(payload)
        return found


@dataclass(frozen=True)
class Element:
    """One Data Element; bytes are written as they are, text and numbers as the VR demands."""

    tag: int
    vr: str
    value: bytes | str | int | tuple[int, ...] | Items | Fragments
    length: int | None = None  # declared, where it lies
    explicit: bool | None = None  # where it differs from the data set's

    def value_bytes(self, syntax: Syntax) -> bytes:
        """The value as it lies in the file."""
        value = self.value
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            encoded = value.encode("ascii")
            return encoded + (b"\0" if self.vr == "UI" else b" ") * (len(encoded) % 2)
        if isinstance(value, Items | Fragments):
            return value.encode(syntax)
        numbers = (value,) if isinstance(value, int) else value
        return struct.pack(f"{syntax.order}{len(numbers)}{NUMBERS[self.vr]}", *numbers)

    def header(self, syntax: Syntax, value_length: int | None = None) -> bytes:
        """Tag, VR and length; that of the value where it is known already."""
        length = self.length
        if length is None:
            open_ended = isinstance(self.value, Fragments) or (
                isinstance(self.value, Items) and self.value.undefined
            )
            if value_length is None:
                value_length = len(self.value_bytes(syntax))
            length = UNDEFINED if open_ended else value_length
        tag = struct.pack(syntax.order + "HH", self.tag >> 16, self.tag & 0xFFFF)
        if not (syntax.explicit if self.explicit is None else self.explicit):
            return tag + struct.pack(syntax.order + "I", length)
        if self.vr in SHORT_VRS:
            return tag + self.vr.encode() + struct.pack(syntax.order + "H", length)
        return tag + self.vr.encode() + b"\0\0" + struct.pack(syntax.order + "I", length)

    def encode(self, syntax: Syntax) -> bytes:
        """The whole element."""
        value = self.value_bytes(syntax)
        return self.header(syntax, len(value)) + value


@dataclass(frozen=True)
class Layout:
    """A finished file and where its pixels lie (in the inflated data set when it is deflated)."""

    content: bytes
    pixel_tag: int | None = None
    value: int = 0  # first byte of the pixel element's value
    fragments: tuple[tuple[int, int], ...] = ()  # payload of each fragment, half-open


def item_header(length: int, order: str = "<", tag: int = ITEM) -> bytes:
    """An Item, or a delimiter, and its length."""
    return struct.pack(order + "HHI", tag >> 16, tag & 0xFFFF, length)


def element(
    keyword: str, value: bytes | str | int | tuple[int, ...] | Items | Fragments, vr: str = ""
) -> Element:
    """An element by its keyword."""
    tag, usual = TAGS[keyword]
    return Element(tag, vr or usual, value)


def encode(elements: Iterable[Element], syntax: Syntax = EXPLICIT_LE) -> bytes:
    """A data set without any file meta information."""
    return b"".join(element.encode(syntax) for element in elements)


def image(
    *,
    rows: int | None = 4,
    columns: int | None = 4,
    bits: int = 8,
    samples: int | Element | None = 1,
    photometric: str = "MONOCHROME2",
    planar: int | None = None,
    frames: int | str | bytes | Element | None = 1,
) -> list[Element]:
    """The attributes of an image, without its pixels; None leaves one out, an element stands as it is."""
    number = str(frames) if isinstance(frames, int) else frames
    values = {
        "SOPClassUID": SECONDARY_CAPTURE,
        "SOPInstanceUID": "2.25.1",
        "Modality": "OT",
        "StudyInstanceUID": "2.25.2",
        "SeriesInstanceUID": "2.25.3",
        "SamplesPerPixel": samples,
        "PhotometricInterpretation": photometric,
        "PlanarConfiguration": planar,
        "NumberOfFrames": number,
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": max(bits, 1) - 1,
        "PixelRepresentation": 0,
    }
    return [
        value if isinstance(value, Element) else element(keyword, value)
        for keyword, value in values.items()
        if value is not None
    ]


def file_meta(
    syntax: Syntax | None = EXPLICIT_LE,
    *,
    group_length: int | None = 0,
    sop_class: str = SECONDARY_CAPTURE,
) -> bytes:
    """Group 2: always explicit little endian (PS3.10 7.1); `group_length` is added to the true one."""
    elements = [
        element("MediaStorageSOPClassUID", sop_class),
        element("MediaStorageSOPInstanceUID", "2.25.1"),
    ]
    if syntax is not None:
        elements.append(element("TransferSyntaxUID", syntax.uid))
    body = Element(0x00020001, "OB", b"\0\1").encode(EXPLICIT_LE) + encode(elements)
    if group_length is None:
        return body
    return Element(0x00020000, "UL", len(body) + group_length).encode(EXPLICIT_LE) + body


def dicom(
    elements: Sequence[Element],
    syntax: Syntax = EXPLICIT_LE,
    *,
    start: bytes | None = None,
    written_as: Syntax | None = None,
    preamble: bytes = bytes(128),
    trailing: bytes = b"",
    cut: int = 0,
) -> Layout:
    """Write a file.

    Parameters
    ----------
    elements
        The data set; its last top-level pixel element is the one whose place is reported.
    syntax
        The transfer syntax that the file meta information names.
    start
        Everything before the data set; by default preamble, ``DICM`` and group 2.
    written_as
        How the data set is really written, where that differs from ``syntax``.
    trailing
        Bytes after the data set.
    cut
        Bytes missing at the end.
    """
    head = preamble + b"DICM" + file_meta(syntax) if start is None else start
    actual = written_as or syntax
    encoded = [each.encode(actual) for each in elements]
    body = b"".join(encoded)
    pixel_tag, value, fragments = None, 0, ()
    position = 0 if actual.deflated else len(head)
    for each, written in zip(elements, encoded, strict=True):
        if each.tag in (PIXEL_DATA, FLOAT_PIXELS, DOUBLE_PIXELS):
            pixel_tag, value = position, position + len(each.header(actual, 0))
            fragments = _payloads(each.value, value) if isinstance(each.value, Fragments) else ()
        position += len(written)
    if actual.deflated:
        body = _deflate(body)
    content = head + body + trailing
    return Layout(content[: len(content) - cut], pixel_tag, value, fragments)


def _payloads(value: Fragments, start: int) -> tuple[tuple[int, int], ...]:
    base = start + 8 + len(value.table_bytes)
    return tuple(
        (base + offset + 8, base + offset + 8 + len(payload))
        for offset, payload in zip(value.offsets(), value.payloads, strict=True)
    )


def _deflate(body: bytes) -> bytes:
    """Raw deflate, padded to even length (PS3.5 A.5)."""
    squeezed = zlib.compress(body, wbits=-15)
    return squeezed + bytes(len(squeezed) % 2)


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes that differ from seed to seed and hold neither a marker nor a tag."""
    once = bytes(1 + (index * 7 + seed * 31) % 97 for index in range(97))
    return (once * (length // 97 + 1))[:length]


def jpeg(length: int, seed: int = 0) -> bytes:
    """A payload that begins and ends as a JPEG stream does: SOI ... EOI."""
    return b"\xff\xd8" + pattern(length - 4, seed) + b"\xff\xd9"


def tiff_directories(
    directories: Sequence[tuple[Sequence[int], Sequence[int]]],
    at: int,
    *,
    order: str = "<",
    big: bool = False,
) -> tuple[bytes, bytes]:
    """A TIFF header for the preamble and, for byte ``at``, its chain of directories with their tiles.

    Each directory is ``(TileOffsets, TileByteCounts)``; both arrays are LONG, or LONG8 in BigTIFF.
    """
    code, width = ("Q", 8) if big else ("I", 4)
    type_code = 16 if big else 4
    entry, count_code = (20, "Q") if big else (12, "H")
    magic = b"II" if order == "<" else b"MM"
    header = magic + struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, at) if big else (42, at)))
    body = b""
    for index, arrays in enumerate(directories):
        fixed = struct.calcsize("=" + count_code) + 2 * entry + width
        place = at + len(body) + fixed
        table, values = struct.pack(order + count_code, 2), b""
        for tag, array in zip((324, 325), arrays, strict=True):
            packed = struct.pack(f"{order}{len(array)}{code}", *array)
            inline = len(packed) <= width
            field_value = (
                packed.ljust(width, b"\0") if inline else struct.pack(order + code, place + len(values))
            )
            values += b"" if inline else packed
            table += struct.pack(f"{order}HH{code}", tag, type_code, len(array)) + field_value
        following = place + len(values) if index + 1 < len(directories) else 0
        body += table + struct.pack(order + code, following) + values
    return header.ljust(128, b"\0"), body
