"""Files with one thing wrong, and neighbours of each: the kinds G1 to G14 of a mutation campaign.

Every one of these was once answered "ok" or "no_pixels" with other frames than the undamaged file has.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

from frames.dicom.cases.encapsulated import BOT_A, LENGTHS_A
from frames.dicom.cases.model import A, Case, encapsulated, make, native, split
from frames.dicom.cases.reported.counts import CODECS, frames_of, offsets_of, rle
from frames.dicom.cases.reported.structure import ICON
from support.builders import (
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    ITEM_END,
    JPEG,
    PIXEL_DATA,
    RLE,
    SEQUENCE_END,
    UNDEFINED,
    Element,
    Fragments,
    Items,
    Syntax,
    dicom,
    element,
    encode,
    image,
    item_header,
    pattern,
)

SEQUENCE_END_BYTES = item_header(0, "<", SEQUENCE_END)
ENCODINGS = {"explicit": EXPLICIT_LE, "implicit": IMPLICIT_LE, "big_endian": EXPLICIT_BE}


def pixels_of(name: str, value: bytes, syntax: Syntax, frames: int, **outcome: Any) -> Case:
    """An encapsulated image whose whole pixel value is given."""
    pixels = Element(PIXEL_DATA, "OB", value, UNDEFINED)
    return make(name, dicom([*image(frames=frames), pixels], syntax), **outcome)


def items(*payloads: bytes) -> bytes:
    return b"".join(item_header(len(payload)) + payload for payload in payloads)


# G1: the last fragment's length is too small: the walk goes astray behind it.


def short(codec: str, frames: int, less: int, table: str, **outcome: Any) -> Case:
    """The last of ``frames`` declares ``less`` bytes fewer than it has."""
    syntax, _ = CODECS[codec]
    payloads = frames_of(codec, frames)
    lengths = [len(each) for each in payloads]
    tables: dict[str, dict[str, Any]] = {
        "bot": {"bot": offsets_of(payloads)},
        "eot": {"eot": (offsets_of(payloads), lengths)},
        "none": {},
    }
    case = encapsulated(
        f"d_last_{codec}_of_{frames}_{less}_too_short_{table}",
        payloads,
        syntax=syntax,
        item_lengths={frames - 1: lengths[-1] - less},
        **(tables[table] | outcome),
    )
    if case.error:
        return case
    cut = (*case.ranges[:-1], ((case.ranges[-1][0][0], case.ranges[-1][0][1] - less),))
    return replace(
        case,
        ranges=cut,
        pixels=case.pixels[:-1],
        status="truncated",
        truncated_from=frames - 1,
        notes=frozenset({"astray_after_fragment"}),
    )


METHODS = {"bot": "bot", "none": "one_fragment_per_frame", "eot": "eot_offsets_only"}
G1 = [
    *(
        short(
            codec,
            frames,
            less,
            table,
            method="single_frame" if (table, frames) == ("none", 1) else METHODS[table],
        )
        for codec in ("jpeg", "j2k", "rle", "raw")
        for frames, table in ((1, "none"), (3, "none"), (3, "bot"))
        for less in (2, 12)
    ),
]

# G2: the first Item behind the Basic Offset Table is not found.

FIRST = [
    *(
        pixels_of(
            f"d_{gap}_bytes_before_the_first_item",
            item_header(0) + bytes(gap) + items(*A) + SEQUENCE_END_BYTES,
            JPEG,
            3,
            error="missing_pixel_data",
        )
        for gap in (1, 2, 4, 7)
    ),
    *(
        pixels_of(
            f"d_bot_length_{delta:+d}",
            item_header(12 + delta) + struct.pack("<3I", *BOT_A) + items(*A) + SEQUENCE_END_BYTES,
            JPEG,
            3,
            error="missing_pixel_data",
        )
        for delta in (-12, -8, -4, -1, 1, 4, 12)
    ),
    *(
        pixels_of(
            f"d_no_bot_item_{codec}_{frames}",
            items(*frames_of(codec, frames)) + SEQUENCE_END_BYTES,
            CODECS[codec][0],
            frames,
            error="no_bot_item",
        )
        for codec in ("jpeg", "jpeg_ls", "j2k", "htj2k", "jxl", "rle")
        for frames in (1, 2)
    ),
    pixels_of(
        "d_no_bot_item_two_fragments",
        items(*split(A[:1], [10, 10])) + SEQUENCE_END_BYTES,
        JPEG,
        1,
        error="no_bot_item",
    ),
    pixels_of(
        "d_no_fragment_behind_the_bot", items(b"") + SEQUENCE_END_BYTES, JPEG, 1, error="missing_pixel_data"
    ),
    pixels_of("d_no_fragment_and_no_delimiter", items(b""), JPEG, 1, error="missing_pixel_data"),
    pixels_of("d_no_fragment_but_zeros", items(b"") + bytes(64), RLE, 1, error="missing_pixel_data"),
]

# G3: an element before the pixels is too long, and the next header is read from its middle.


def too_long(delta: int, encoding: str, **outcome: Any) -> Case:
    syntax = ENCODINGS[encoding]
    before = [Element(0x00291010, "OB", pattern(16), 16 + delta)]
    return native(f"d_private_element_{delta:+d}_{encoding}", before=before, syntax=syntax, **outcome)


SWALLOWED = [
    *(too_long(4, encoding, error="missing_pixel_data") for encoding in ("explicit", "big_endian")),
    too_long(4, "implicit", error="value_past_end"),
    native(
        "d_sequence_edited_inside",
        before=[Element(0x00081140, "SQ", items(encode([Element(0x00081155, "UI", "1.2.")])), 24)],
        error="missing_pixel_data",
    ),
    native(
        "d_implicit_element_and_stray_delimiter",
        before=[
            Element(0x00291010, "LO", pattern(8), explicit=False),
            Element(SEQUENCE_END, "", b"", explicit=False),
        ],
        notes=["implicit_element_in_explicit", "stray_delimiter"],
    ),
]

# G4 and G5: a fragment's length is a little wrong.


def off(name: str, codec: str, frame: int, delta: int, last_byte: bytes = b"", **outcome: Any) -> Case:
    """Two frames of which one declares another length; ``last_byte`` is its own."""
    payloads = frames_of(codec, 2)
    if last_byte:
        payloads[frame] = payloads[frame][:-1] + last_byte
    return encapsulated(
        f"d_{name}_{codec}_frame_{frame}_{delta:+d}",
        payloads,
        syntax=CODECS[codec][0],
        item_lengths={frame: len(payloads[frame]) + delta},
        **outcome,
    )


INSIDE = "delimiter_inside_fragment"
LENGTHS = [
    off("delimiter_counted", "jpeg", 1, 8, notes=[INSIDE]),
    off("delimiter_counted", "rle", 1, 8, notes=[INSIDE]),
    off("delimiter_counted", "raw", 1, 8, notes=[INSIDE]),
    off("half_a_delimiter_counted", "j2k", 1, 4, notes=[INSIDE]),
    *(
        off(
            "delimiter_counted",
            "rle",
            1,
            delta,
            notes=["bad_fragment_tag"] if delta == 2 else ["bad_fragment_tag", "odd_fragment_length"],
        )
        for delta in (1, 2, 3)
    ),
]

# G6 and G10: two pixel elements, and attributes behind the pixels or twice.

PIXELS, EMPTY, OTHER = (element("PixelData", value) for value in (pattern(16), b"", pattern(16, 7)))
FLOATS = element("FloatPixelData", pattern(64))
AGAIN = {
    "rows": element("Rows", 2),
    "frames": element("NumberOfFrames", "2"),
    "uid": element("SOPInstanceUID", "2.25.9"),
    "name": element("PatientName", "A^B"),
    "private": Element(0x00291010, "OB", pattern(16)),
    "unknown": Element(0x00291010, "UN", pattern(16)),
    "sequence": Element(0x00081140, "SQ", Items([[element("Modality", "OT")]])),
    "open_sequence": Element(0x00081140, "SQ", Items([[element("Modality", "OT")]], undefined=True)),
    "groups": Element(0x52009230, "SQ", Items([[element("Modality", "OT")]])),
    "eot": element("ExtendedOffsetTable", (0,)),
}
# Without VRs, bytes behind the pixels are elements where an image may have them, else anything at all.
UNTOLD = (("private", "implicit"), ("unknown", "implicit"))
ABOVE = {
    "signatures": Element(0xFFFAFFFA, "SQ", Items([[element("Modality", "OT")]])),
    "open_signatures": Element(0xFFFAFFFA, "SQ", Items([[element("Modality", "OT")]], undefined=True)),
    "padding": element("DataSetTrailingPadding", bytes(32)),
    "odd_padding": Element(0xFFFCFFFC, "OB", bytes(7)),
    "private_group": Element(0x7FE10010, "LO", "OWNER ID"),
    "coefficients": Element(0x7FE00020, "OW", pattern(16)),
}


def behind(name: str, kind: str, what: list[Element], **outcome: Any) -> Case:
    """Elements behind native or compressed pixels."""
    full = f"d_{name}_behind_{kind}"
    if kind == "jpeg" and outcome.get("error"):
        pixels = element("PixelData", Fragments(frames_of("jpeg", 2)), "OB")
        return make(full, dicom([*image(frames=2), pixels, *what], JPEG), **outcome)
    if kind == "jpeg":
        return encapsulated(full, frames_of("jpeg", 2), after=what, **outcome)
    return native(full, after=what, syntax=ENCODINGS[kind], **outcome)


KINDS = ("explicit", "implicit", "big_endian", "jpeg")
BEHIND = [
    *(
        behind(name, kind, [what], error="misplaced_element")
        for name, what in AGAIN.items()
        for kind in KINDS
        if (name, kind) not in UNTOLD
    ),
    *(behind(name, kind, [AGAIN[name]]) for name, kind in UNTOLD),
    *(behind(name, kind, [what]) for name, what in ABOVE.items() for kind in KINDS),
    *(
        behind(
            f"padding_and_{name}",
            "explicit",
            [ABOVE["private_group"], AGAIN[name]],
            error="misplaced_element",
        )
        for name in ("rows", "uid")
    ),
    *(
        behind(f"pixels_{name}", kind, [what], error="misplaced_element")
        for name, what in (("empty", EMPTY), ("other", OTHER), ("floats", FLOATS))
        for kind in ("explicit", "implicit", "jpeg")
    ),
    native("d_empty_pixels_before_pixels", before=[EMPTY], error="misplaced_element"),
    native("d_empty_pixels_before_implicit", before=[EMPTY], syntax=IMPLICIT_LE, error="misplaced_element"),
    encapsulated(
        "d_empty_pixels_before_a_jpeg", A, before=[Element(PIXEL_DATA, "OB", b"")], error="misplaced_element"
    ),
    native(
        "d_float_pixels_before_pixels", before=[FLOATS], attributes={"bits": 32}, error="misplaced_element"
    ),
    *(
        behind(f"stray_{name}", "explicit", [Element(tag, "", b"", explicit=False)], **outcome)
        for name, tag, outcome in (
            ("sequence_end", SEQUENCE_END, {}),
            ("item_end", ITEM_END, {"error": "misplaced_element"}),
            ("item", 0xFFFEE000, {"error": "misplaced_element"}),
        )
    ),
    *(
        native(
            f"d_{length}_bytes_of_garbage_behind_{kind}",
            file={"trailing": pattern(length, 8)},
            syntax=ENCODINGS[kind],
        )
        for length in (1, 8, 500)
        for kind in ("explicit", "implicit")
    ),
    encapsulated("d_garbage_behind_a_jpeg", A, file={"trailing": pattern(500, 8)}),
    *(
        native(
            f"d_{name}_twice_with_another_value_{kind}",
            before=[again],
            syntax=ENCODINGS[kind],
            error="misplaced_element",
        )
        for name, again in (("rows", AGAIN["rows"]), ("frames", AGAIN["frames"]), ("uid", AGAIN["uid"]))
        for kind in ENCODINGS
    ),
    native("d_rows_twice_with_the_same_value", before=[element("Rows", 4)], notes=["tags_not_ascending"]),
    encapsulated(
        "d_extended_table_twice",
        A,
        eot=(BOT_A, LENGTHS_A),
        before=[element("ExtendedOffsetTable", BOT_A)],
        error="misplaced_element",
    ),
]

# G7 and G9: tables that contradict each other or the codec's own markers.

REVERSED = (62, 28, 0)
FIVE = split(A, [10, 10], [10, 16], [30])
TABLES = [
    *(
        encapsulated(
            f"d_eot_reversed_bot_ascending_{codec}",
            payloads := frames_of(codec, 3),
            bot=offsets_of(payloads),
            eot=(offsets_of(payloads)[::-1], [len(each) for each in payloads][::-1]),
            syntax=CODECS[codec][0],
            error="contradictory_tables",
        )
        for codec in ("jpeg", "j2k", "rle", "raw")
    ),
    encapsulated(
        "d_bot_reversed_eot_ascending", A, bot=REVERSED, eot=(BOT_A, LENGTHS_A), error="contradictory_tables"
    ),
    encapsulated(
        "d_eot_shifted_bot_right",
        A,
        bot=BOT_A,
        eot=((8, 36, 70), LENGTHS_A),
        method="bot",
        notes=["eot_and_bot", "eot_rejected"],
    ),
    encapsulated(
        "d_bot_shifted_eot_right",
        A,
        bot=(8, 36, 70),
        eot=(BOT_A, LENGTHS_A),
        method="eot",
        table_serves=True,
        notes=["eot_and_bot"],
    ),
    encapsulated(
        "d_bot_on_wrong_items", FIVE, declared=3, bot=(0, 18, 36), error="not_a_frame", found_when_read=True
    ),
    encapsulated(
        "d_bot_on_wrong_items_later",
        FIVE,
        declared=3,
        bot=(0, 36, 54),
        error="not_a_frame",
        found_when_read=True,
    ),
    encapsulated(
        "d_eot_on_wrong_items",
        FIVE,
        declared=3,
        eot=((0, 18, 36), (10, 10, 10)),
        error="not_a_frame",
    ),
    encapsulated(
        "d_bot_on_wrong_items_rle",
        split([rle(90, 0), rle(90, 1)], [70, 20], [70, 20]),
        declared=2,
        bot=(0, 78),
        syntax=RLE,
        error="not_a_frame",
        found_when_read=True,
    ),
]

# G8: a sequence's length ends inside it.

ITEM_OF_ICON = items(encode(ICON))
ENDS_INSIDE = [
    native(
        f"d_sequence_ends_after_{length}_of_{len(ITEM_OF_ICON)}",
        before=[Element(0x00880200, "SQ", ITEM_OF_ICON, length)],
        error="misplaced_element",
    )
    for length in (8, 18, 28, 38)
]

# G11 to G14: values that cannot be what they stand for.

DEFINED = item_header(0) + item_header(16) + pattern(16) + SEQUENCE_END_BYTES
NO_SIZE = [element("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7.4"), element("NumberOfFrames", "2")]
VALUES = [
    *(
        native(f"d_items_in_a_defined_length_{kind}", value=DEFINED, syntax=syntax, error="not_a_frame")
        for kind, syntax in (("explicit", EXPLICIT_LE), ("implicit", IMPLICIT_LE))
    ),
    native("d_native_pixels_that_look_like_an_item", value=item_header(8) + pattern(8)),
    *(
        native(
            f"d_samples_per_pixel_of_{len(value)}_bytes",
            attributes={"samples": Element(0x00280002, "US", value)},
            error="missing_image_attributes",
        )
        for value in (b"", b"\3", b"\1\0\0", b"\1\0\0\0")
    ),
    native("d_samples_per_pixel_as_ul", attributes={"samples": Element(0x00280002, "UL", 1)}),
    *(
        native(f"d_pixel_vr_{vr.strip().lower() or 'blank'}", vr=vr, value=pattern(12), error="not_a_frame")
        for vr in ("OL", "UT", "US")
    ),
    native("d_pixel_vr_ul_exact", vr="UL", value=struct.pack("<4I", 1, 2, 3, 4)),
    *(
        make(
            f"d_encapsulated_without_{name}_{codec}",
            dicom(
                [*attributes, element("PixelData", Fragments(frames_of(codec, 2)), "OB")], CODECS[codec][0]
            ),
            error="missing_image_attributes",
        )
        for codec in ("jpeg", "rle")
        for name, attributes in (
            ("size", NO_SIZE),
            ("rows", image(rows=None, frames=2)),
            ("columns", image(columns=None, frames=2)),
            ("rows_of_0", image(rows=0, frames=2)),
        )
    ),
]

CASES: list[Case] = [
    *G1,
    *FIRST,
    *SWALLOWED,
    *LENGTHS,
    *BEHIND,
    *TABLES,
    *ENDS_INSIDE,
    *VALUES,
]
