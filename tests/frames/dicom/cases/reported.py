"""Files after public bug reports of other readers, and neighbours of each: kinds A1 to A6 and A8.

Every one of these was once answered "ok" with wrong frames by some reader, voxtier among them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

from builders import (
    DEFLATED_FRAMES,
    DEFLATED_LE,
    ENCAPSULATED_RAW,
    EXPLICIT_BE,
    EXPLICIT_LE,
    HTJ2K,
    IMPLICIT_LE,
    ITEM_END,
    JPEG,
    JPEG_2000,
    JPEG_XL,
    RLE,
    SEQUENCE_END,
    UNDEFINED,
    Element,
    Fragments,
    Syntax,
    dicom,
    element,
    encode,
    image,
    item_header,
    jpeg,
    pattern,
)
from frames.dicom.cases.encapsulated import j2k, jxl, raw
from frames.dicom.cases.model import Case, encapsulated, make, native
from frames.dicom.cases.native import PREAMBLE
from frames.dicom.cases.native import one_bit as packed
from frames.dicom.cases.without_pixels import DOCUMENT, no_pixels, refused

JPEG_LS = Syntax("1.2.840.10008.1.2.4.80")
NUMBER_OF_FRAMES = 0x00280008
UNUSUAL = "number_of_frames_unusual"
ITEM_END_BYTES = item_header(0, "<", ITEM_END)
SEQUENCE_END_BYTES = item_header(0, "<", SEQUENCE_END)


def rle(length: int, seed: int) -> bytes:
    """A frame of one segment behind a whole header (PS3.5 G.5)."""
    return b"\1\0\0\0\x40\0\0\0" + bytes(56) + pattern(length - 64, seed)


CODECS: dict[str, tuple[Syntax, Any]] = {
    "jpeg": (JPEG, jpeg),
    "jpeg_ls": (JPEG_LS, jpeg),
    "j2k": (JPEG_2000, j2k),
    "htj2k": (HTJ2K, j2k),
    "jxl": (JPEG_XL, jxl),
    "rle": (RLE, rle),
    "raw": (ENCAPSULATED_RAW, raw),
    "deflated_frames": (DEFLATED_FRAMES, raw),
}
MARKED = ("jpeg", "jpeg_ls", "j2k", "htj2k", "jxl")


def frames_of(codec: str, count: int) -> list[bytes]:
    return [CODECS[codec][1](70 + 6 * seed, seed) for seed in range(count)]


def offsets_of(payloads: list[bytes]) -> tuple[int, ...]:
    return tuple(accumulate((8 + len(each) for each in payloads[:-1]), initial=0))


# A1: Number of Frames as other programs write it.

THREE = {
    "decimals": "3.000",
    "decimal": "3.0",
    "point": "3.",
    "tab": "\t3",
    "newline": "3\n",
    "carriage_return": "3\r\n",
    "two_values": "3\\4",
    "unit": "3 frames",
}
PLAIN_THREE = {"spaces": b"  3 ", "zeros": b"0003", "null": b"3\0", "plus": b"+3"}
NO_NUMBER = {"exponent": "3e2", "negative": "-1", "word": "three", "fraction": ".3"}
TOO_LARGE = {"too_large_for_32_bits": "4294967296", "too_large_for_is": "2147483648", "huge": "9" * 12}
BINARY = {
    "us": ("US", 3),
    "ul": ("UL", 3),
    "ss": ("SS", 3),
    "sl": ("SL", 3),
}
ABSENT = {"empty": ("", "number_of_frames_empty"), "zero": ("0", "number_of_frames_zero")}
FROM_TABLE, FROM_LENGTH, BAD = (
    "number_of_frames_from_table",
    "number_of_frames_from_length",
    "bad_number_of_frames",
)


def numbered(name: str, declared: Any, notes: list[str]) -> list[Case]:
    """Three frames whose number is written in an odd way: native in every encoding, and compressed."""
    three = frames_of("jpeg", 3)
    return [
        native(f"r_number_{name}_native", frames=3, declared=declared, notes=notes),
        native(f"r_number_{name}_implicit", frames=3, declared=declared, syntax=IMPLICIT_LE, notes=notes),
        native(
            f"r_number_{name}_big_endian",
            frames=3,
            frame_bytes=32,
            attributes={"bits": 16},
            declared=declared,
            syntax=EXPLICIT_BE,
            notes=notes,
        ),
        native(f"r_number_{name}_deflated", frames=3, declared=declared, syntax=DEFLATED_LE, notes=notes),
        encapsulated(f"r_number_{name}_jpeg", three, declared=declared, notes=notes),
    ]


def unusable(name: str, value: str, *more: str) -> list[Case]:
    """No number: only a table or the length of native pixels can prove the count."""
    three = frames_of("jpeg", 3)
    notes = [BAD, *more]
    return [
        native(f"r_number_{name}_native", frames=3, declared=value, notes=[FROM_LENGTH, *notes]),
        native(
            f"r_number_{name}_and_half_a_frame",
            value=pattern(40),
            declared=value,
            error="bad_number_of_frames",
        ),
        encapsulated(
            f"r_number_{name}_one_jpeg", three[:1], declared=value, method="single_frame", notes=notes
        ),
        encapsulated(f"r_number_{name}_three_jpegs", three, declared=value, error="bad_number_of_frames"),
        encapsulated(
            f"r_number_{name}_bot",
            three,
            declared=value,
            bot=offsets_of(three),
            method="bot",
            table_serves=True,
            notes=[FROM_TABLE, *notes],
        ),
    ]


NUMBERS = [
    *(case for name, value in THREE.items() for case in numbered(name, value, [UNUSUAL])),
    *(case for name, value in PLAIN_THREE.items() for case in numbered(name, value, [])),
    *(
        case
        for vr, (_, value) in BINARY.items()
        for case in numbered(f"as_{vr}", Element(NUMBER_OF_FRAMES, vr.upper(), value), [UNUSUAL])
    ),
    *(case for name, value in NO_NUMBER.items() for case in unusable(name, value, UNUSUAL)),
    *(case for name, value in TOO_LARGE.items() for case in unusable(name, value)),
    native(
        "r_number_longer_than_text",
        frames=3,
        declared="3" + " " * 199,
        notes=[BAD, FROM_LENGTH],
    ),
    native(
        "r_number_as_us_zero",
        declared=Element(NUMBER_OF_FRAMES, "US", 0),
        notes=[UNUSUAL, "number_of_frames_zero"],
    ),
    native(
        "r_number_as_sl_negative",
        frames=2,
        declared=Element(NUMBER_OF_FRAMES, "SL", -2),
        notes=[UNUSUAL, BAD, FROM_LENGTH],
    ),
    native("r_number_larger_than_the_pixels", declared="70000", error="frames_exceed_pixel_data"),
]

# A2: Number of Frames 1 or absent, but a complete table on real Items says more.


def tabled(codec: str, count: int, table: str, declared: Any, **outcome: Any) -> Case:
    syntax, _ = CODECS[codec]
    payloads = frames_of(codec, count)
    offsets, lengths = offsets_of(payloads), [len(each) for each in payloads]
    tables: dict[str, dict[str, Any]] = {
        "bot": {"bot": offsets},
        "eot": {"eot": (offsets, lengths)},
        "eot_offsets": {"eot": (offsets, None)},
        "both": {"bot": offsets, "eot": (offsets, lengths)},
        "none": {},
    }
    word = {None: "absent", "": "empty"}.get(declared, str(declared))
    name = f"r_count_{word}_{codec}_{count}_{table}"
    return encapsulated(name, payloads, declared=declared, syntax=syntax, **(tables[table] | outcome))


def proven(codec: str, count: int, table: str, declared: Any, *notes: str) -> Case:
    """The table tells how many frames there are."""
    method = {"eot_offsets": "eot_offsets_only", "both": "eot"}.get(table, table)
    both = ["eot_and_bot"] if table == "both" else []
    return tabled(
        codec,
        count,
        table,
        declared,
        method=method,
        table_serves=True,
        notes=[FROM_TABLE, *both, *notes],
    )


COUNTS = [
    *(tabled(codec, 3, "bot", 1, error="ambiguous_fragments") for codec in MARKED),
    *(
        tabled(codec, 3, "bot", 1, error="contradictory_tables")
        for codec in ("rle", "raw", "deflated_frames")
    ),
    *(tabled("jpeg", count, "bot", 1, error="ambiguous_fragments") for count in (2, 5)),
    *(
        tabled("jpeg", 3, table, 1, error="ambiguous_fragments")
        for table in ("eot", "eot_offsets", "both", "none")
    ),
    *(tabled("jpeg", 3, "bot", declared, error="ambiguous_fragments") for declared in (2,)),
    *(tabled("jpeg", 3, "bot", declared, error="fewer_fragments_than_frames") for declared in (4, 5)),
    tabled("rle", 2, "none", 1, error="ambiguous_fragments"),
    tabled("rle", 3, "none", None, error="ambiguous_fragments"),
    tabled("jpeg", 3, "none", None, error="ambiguous_fragments"),
    *(proven(codec, 3, "bot", None) for codec in CODECS),
    *(proven("jpeg", 3, table, None) for table in ("eot", "both")),
    proven("jpeg", 2, "eot", None),
    proven("jpeg", 5, "bot", None),
    proven("rle", 5, "eot", None),
    proven("jpeg", 3, "bot", "", "number_of_frames_empty"),
    proven("jpeg", 3, "eot", "0", "number_of_frames_zero"),
    replace(
        proven("jpeg", 3, "eot_offsets", None),
        table_serves=False,
    ),
    encapsulated(
        "r_count_1_bot_names_each_fragment_of_one_jpeg",
        [jpeg(60)[:20], jpeg(60)[20:40], jpeg(60)[40:]],
        groups=[[0, 1, 2]],
        bot=(0, 28, 56),
        method="single_frame",
        notes=["bot_rejected"],
    ),
    encapsulated(
        "r_count_absent_bot_of_one",
        [jpeg(60)[:20], jpeg(60)[20:]],
        groups=[[0, 1]],
        declared=None,
        bot=(0,),
        method="bot",
        table_serves=True,
    ),
]

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

# A5: subsampled chroma is told by equality.


def ybr(photometric: str, frames: int, length: int, **outcome: Any) -> Case:
    """A value of ``length`` bytes of 4 x 4 pixels of three samples."""
    sampled = 32 if photometric.endswith("422") else 24
    full = outcome.pop("full", False)
    return native(
        f"r_{photometric.lower()}_{frames}f_{length}",
        frames=frames,
        frame_bytes=48 if full else sampled,
        value=pattern(length, 3),
        attributes={"samples": 3, "photometric": photometric, "planar": 0},
        **({"notes": ["ybr422_declared_but_full"]} if full else {}),
        **outcome,
    )


SAMPLING = [
    *(
        ybr(photometric, frames, size * frames)
        for photometric, size in (("YBR_PARTIAL_422", 32), ("YBR_FULL_420", 24), ("YBR_PARTIAL_420", 24))
        for frames in (1, 2, 5)
    ),
    *(ybr("YBR_FULL_422", frames, 48 * frames, full=True) for frames in (1, 5)),
    *(ybr("YBR_PARTIAL_420", frames, 48 * frames, full=True) for frames in (1, 2)),
    *(
        ybr(photometric, frames, size * frames + delta, error="ambiguous_frame_size")
        for photometric, size in (("YBR_FULL_422", 32), ("YBR_FULL_422", 48), ("YBR_PARTIAL_420", 24))
        for frames in (1, 2)
        for delta in (-2, 2)
    ),
    ybr("YBR_FULL_422", 1, 52, error="ambiguous_frame_size"),
]

# A6: compressed means compressed, and a frame is an image.


def in_defined_length(codec: str, length: int) -> Case:
    syntax, payload = CODECS[codec]
    return native(
        f"r_raw_{codec}_in_a_defined_length",
        value=payload(length, 0),
        vr="OB",
        syntax=syntax,
        error="not_a_frame",
    )


def in_two(codec: str, frames: int, **outcome: Any) -> Case:
    """One frame fewer than declared: the last one lies in two fragments."""
    syntax, payload = CODECS[codec]
    whole = [payload(80, seed) for seed in range(frames - 1)]
    payloads = [*whole[:-1], whole[-1][:40], whole[-1][40:]]
    return encapsulated(f"r_one_{codec}_as_two_of_{frames}_frames", payloads, syntax=syntax, **outcome)


def with_empty(codec: str, at: int) -> Case:
    payloads = frames_of(codec, 3)
    payloads[at] = b""
    return encapsulated(f"r_empty_frame_{at}_{codec}", payloads, syntax=CODECS[codec][0], error="not_a_frame")


COMPRESSED = [
    *(in_defined_length(codec, 500) for codec in CODECS),
    native("r_exact_size_in_a_compressed_syntax", frames=2, syntax=RLE, notes=["native_in_encapsulated_ts"]),
    *(in_two(codec, frames, error="not_a_frame") for codec in (*MARKED, "rle") for frames in (2, 3)),
    *(with_empty(codec, at) for codec in ("jpeg", "j2k", "rle", "raw") for at in (0, 1, 2)),
    encapsulated("r_single_empty_frame", [b""], error="not_a_frame"),
    encapsulated("r_single_frame_of_empty_fragments", [b"", b""], groups=[[0, 1]], error="not_a_frame"),
    encapsulated("r_empty_frame_of_a_bot", [b"", jpeg(20)], bot=(0, 8), error="not_a_frame"),
    encapsulated("r_raw_of_any_beginning", [rle(70, 0), raw(70, 1)], syntax=ENCAPSULATED_RAW),
    encapsulated(
        "r_rle_in_three_fragments",
        [rle(90, 0)[:66], rle(90, 0)[66:80], rle(90, 0)[80:]],
        groups=[[0, 1, 2]],
        syntax=RLE,
        method="single_frame",
    ),
    make(
        "r_pixels_before_the_number_of_frames",
        dicom(
            [
                element("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7.4"),
                element("PixelData", Fragments(frames_of("jpeg", 3)), "OB"),
                *image(frames=3),
            ],
            JPEG,
        ),
        error="missing_image_attributes",
    ),
]

# A8: one-bit frames that each begin with a byte of their own.


def one_bit(rows: int, columns: int, frames: int, length: int, **outcome: Any) -> Case:
    return native(
        f"r_one_bit_{rows}x{columns}_{frames}f_{length}",
        frames=frames,
        frame_bytes=0,
        value=pattern(length, 5),
        attributes={"rows": rows, "columns": columns, "bits": 1},
        **outcome,
    )


ALIGNED = [
    # 50 bits and a pad byte, or two frames of 4 bytes: the standard knows the first only.
    packed("r_one_bit_5x5_2f_8", 5, 5, 2),
    one_bit(5, 5, 3, 12, error="ambiguous_frame_size"),
    one_bit(5, 5, 5, 20, error="ambiguous_frame_size"),
    one_bit(1, 5, 3, 4, error="ambiguous_frame_size"),
    one_bit(3, 3, 4, 8, error="ambiguous_frame_size"),
]

CASES: list[Case] = [*NUMBERS, *COUNTS, *NESTING, *ZEROS, *SAMPLING, *COMPRESSED, *ALIGNED]
