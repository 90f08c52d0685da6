"""Where the data set ends, and which elements are its own: kinds A3 and A4, nesting and zeros."""

from __future__ import annotations

from frames.dicom.cases.model import Case, encapsulated, native
from frames.dicom.cases.native import PREAMBLE
from frames.dicom.cases.reported.counts import frames_of
from frames.dicom.cases.without_pixels import DOCUMENT, no_pixels, refused
from support.builders import (
    DEFLATED_LE,
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    ITEM_END,
    JPEG,
    SEQUENCE_END,
    UNDEFINED,
    Element,
    Syntax,
    dicom,
    element,
    encode,
    image,
    item_header,
)

SEQUENCE_END_BYTES = item_header(0, "<", SEQUENCE_END)
ITEM_END_BYTES = item_header(0, "<", ITEM_END)
# A3: nested elements never become the image's own.

SMALL = [element("Rows", 2), element("Columns", 2), element("BitsAllocated", 8)]
ICON = [*SMALL, element("PixelData", b"ICON", "OB")]
GROUPS = [element("Rows", 2), element("Columns", 2)]


def behind_nothing(tag: int, content: list[Element], syntax: Syntax) -> Element:
    """A sequence of length 0, behind which its item stands all the same."""
    body = encode(content, syntax)
    return Element(tag, "SQ", item_header(len(body), syntax.order) + body, 0)


def in_items(depth: int, content: bytes) -> Element:
    """Bytes inside sequences and items of undefined length."""
    for _ in range(depth):
        content = item_header(UNDEFINED) + content + ITEM_END_BYTES + SEQUENCE_END_BYTES
        content = Element(0x00880200, "SQ", content, UNDEFINED).encode(EXPLICIT_LE)
    return Element(0x00880200, "SQ", content[12:], UNDEFINED)


def broken(*ends: int) -> bytes:
    """A sequence of one item of undefined length that ends with these delimiters, then an icon."""
    inner = item_header(UNDEFINED) + encode([Element(0x00081150, "UI", "1.2")])
    closing = b"".join(item_header(0, "<", tag) for tag in ends)
    sequence = Element(0x00081140, "SQ", inner + closing, UNDEFINED)
    return encode([sequence, *ICON])


BOTH = Element(
    0x00081140,
    "SQ",
    (item_header(16) + encode([Element(0x00081150, "UI", "1.2.3.4")]) + ITEM_END_BYTES) + SEQUENCE_END_BYTES,
    UNDEFINED,
)
ENDINGS = {
    "sequence_sequence": (SEQUENCE_END, SEQUENCE_END),
    "item_item": (ITEM_END, ITEM_END),
    "item_sequence_sequence": (ITEM_END, SEQUENCE_END, SEQUENCE_END),
    "item_item_sequence": (ITEM_END, ITEM_END, SEQUENCE_END),
    "sequence": (SEQUENCE_END,),
    "item": (ITEM_END,),
}
REPAIRED = {
    "sequence_sequence": "seq_delim_instead_of_item_delim",
    "item_item": "item_delim_instead_of_seq_delim",
    "item_item_sequence": "item_with_length_and_delim",
    "sequence": "seq_delim_instead_of_item_delim",
}
UNCERTAIN = {"item_sequence_sequence": "bad_nesting", "item": "bad_item_tag"}


def nested_in(depth: int, name: str, ends: tuple[int, ...]) -> Case:
    full = f"r_nested_{name}_depth_{depth}"
    before = [in_items(depth, broken(*ends))]
    if name in UNCERTAIN:
        return native(full, before=before, error=UNCERTAIN[name])
    return native(full, before=before, notes=[REPAIRED[name]])


NESTING = [
    *(
        native(
            f"r_sequence_of_length_0_{name}_{kind}",
            before=[behind_nothing(tag, content, syntax)],
            syntax=syntax,
            error="bad_item_tag",
        )
        for name, syntax in (
            ("explicit", EXPLICIT_LE),
            ("implicit", IMPLICIT_LE),
            ("big_endian", EXPLICIT_BE),
        )
        for kind, tag, content in (("icon", 0x00880200, ICON), ("groups", 0x52009229, GROUPS))
    ),
    encapsulated(
        "r_sequence_of_length_0_jpeg",
        frames_of("jpeg", 2),
        before=[behind_nothing(0x00880200, ICON, EXPLICIT_LE)],
        error="bad_item_tag",
    ),
    native(
        "r_sequence_of_length_0_nested",
        before=[in_items(1, encode([behind_nothing(0x00880200, ICON, EXPLICIT_LE)]))],
        error="bad_item_tag",
    ),
    *(nested_in(depth, name, ends) for name, ends in ENDINGS.items() for depth in (1, 2, 3)),
    *(
        native(
            f"r_item_with_length_and_delimiter_depth_{depth}",
            before=[in_items(depth, encode([BOTH, *ICON]))],
            notes=["item_with_length_and_delim"],
        )
        for depth in (1, 2, 3)
    ),
    *(
        native(
            f"r_stray_{name}_{number}_{encoding}",
            before=[Element(tag, "", b"", explicit=False)] * number,
            syntax=syntax,
            notes=["stray_delimiter"],
        )
        for name, tag in (("item_end", ITEM_END), ("sequence_end", SEQUENCE_END))
        for number in (1, 2)
        for encoding, syntax in (
            ("explicit", EXPLICIT_LE),
            ("implicit", IMPLICIT_LE),
            ("big_endian", EXPLICIT_BE),
        )
    ),
    encapsulated(
        "r_stray_delimiter_before_jpeg",
        frames_of("jpeg", 2),
        before=[Element(SEQUENCE_END, "", b"", explicit=False)],
        notes=["stray_delimiter"],
    ),
    native(
        "r_stray_item",
        before=[Element(0xFFFEE000, "", encode(SMALL), explicit=False)],
        error="bad_item_tag",
    ),
]

# A4: zeros are not the end.

BLACK = encode([*SMALL, element("PixelData", bytes(64), "OB")])
HOLE = Element(0, "", b"", explicit=False)  # eight bytes of zeros
IMAGE_CLASS_ALONE = [element("SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"), element("Modality", "CT")]
ROWS_ALONE = [
    element("SOPClassUID", "1.2.840.10008.5.1.4.1.1.481.2"),
    element("Rows", 4),
    element("Columns", 4),
]

ZEROS = [
    native(
        "r_zeros_black_icon_in_a_sequence_8_too_short",
        before=[Element(0x00880200, "SQ", item_header(len(BLACK)) + BLACK, len(BLACK))],
        error="misplaced_element",
    ),
    *(
        native(f"r_zeros_hole_of_{8 * count}", before=[HOLE] * count, error="misplaced_element")
        for count in (1, 2, 64, 512)
    ),
    native("r_zeros_hole_implicit", before=[HOLE] * 64, syntax=IMPLICIT_LE, error="misplaced_element"),
    encapsulated(
        "r_zeros_hole_before_jpeg", frames_of("jpeg", 2), before=[HOLE] * 64, error="misplaced_element"
    ),
    *(
        refused(
            f"r_zeros_{length}_behind_the_header_of_{name}",
            dicom(elements, syntax, trailing=bytes(length)).content,
            "missing_pixel_data",
        )
        for length in (0, 8, 1 << 20)
        for name, elements, syntax in (
            ("a_jpeg", image(frames=2), JPEG),
            ("an_image_class", IMAGE_CLASS_ALONE, EXPLICIT_LE),
            ("a_dose_with_rows", ROWS_ALONE, EXPLICIT_LE),
        )
    ),
    refused(
        "r_zeros_behind_the_meta",
        dicom([], trailing=bytes(4096)).content,
        "missing_pixel_data",
    ),
    refused("r_deflated_image_without_pixels", dicom(image(), DEFLATED_LE).content, "missing_pixel_data"),
    refused("r_7_zeros_behind_the_header", dicom(image(), trailing=bytes(7)).content, "missing_pixel_data"),
    refused("r_meta_ends_before_its_length", dicom([]).content[:-28], "truncated_meta"),
    refused(
        "r_meta_ends_between_its_elements",
        (PREAMBLE + b"DICM" + dicom([]).content[132:158]),
        "truncated_meta",
    ),
    no_pixels("r_zeros_behind_a_report", dicom(DOCUMENT, trailing=bytes(4096)).content, "trailing_bytes"),
    *(
        native(f"r_{length}_zeros_behind_native_pixels", file={"trailing": bytes(length)})
        for length in (1, 7, 8, 4096)
    ),
    *(
        encapsulated(
            f"r_{length}_zeros_behind_a_jpeg", frames_of("jpeg", 2), file={"trailing": bytes(length)}
        )
        for length in (1, 7, 8, 4096)
    ),
]

CASES: list[Case] = [*NESTING, *ZEROS]
