"""Native Pixel Data: sizes, NumberOfFrames, the end of the file, containers, what precedes the pixels."""

from __future__ import annotations

from frames.dicom.cases.model import Case, make, native
from support.builders import (
    DEFLATED_LE,
    EXPLICIT_BE,
    EXPLICIT_LE,
    GE_PRIVATE,
    IMPLICIT_LE,
    ITEM_END,
    SEQUENCE_END,
    Element,
    Fragments,
    Items,
    element,
    encode,
    file_meta,
    image,
    item_header,
    jpeg,
    pattern,
)

PREAMBLE = bytes(128)


def bits(count: int) -> bytes:
    """``count`` single-bit pixels, continuous over frames (PS3.5 8.2), padded to an even length."""
    length = -(-count // 8)
    return pattern(length + length % 2, 5)


def one_bit(name: str, rows: int, columns: int, frames: int) -> Case:
    value = bits(rows * columns * frames)
    case = native(
        name,
        frames=frames,
        frame_bytes=0,
        value=value,
        attributes={"rows": rows, "columns": columns, "bits": 1},
    )
    start = case.ranges[0][0][0]
    firsts = [index * rows * columns for index in range(frames)]
    spans = [(first // 8, -(-(first + rows * columns) // 8)) for first in firsts]
    return make(
        name,
        case.content,
        kind="native",
        method="native",
        number_of_frames=frames,
        ranges=tuple(((start + a, start + b),) for a, b in spans),
        pixels=tuple(value[a:b] for a, b in spans),
        bit_offsets=tuple(first % 8 for first in firsts),
        pixel_tag=case.pixel_tag,
    )


def icon(*, undefined: bool = False, pixels: Element | None = None) -> Element:
    """An icon (PS3.3 F.7) whose pixels are not the image's."""
    small = element("PixelData", pattern(64, 9), "OB") if pixels is None else pixels
    return element("IconImageSequence", Items([[*image(rows=8, columns=8), small]], undefined=undefined))


def nested(depth: int, innermost: Element) -> Element:
    """Sequences in sequences, written from the inside out so that depth costs no recursion here."""
    closing = item_header(0, "<", ITEM_END) + item_header(0, "<", SEQUENCE_END)
    opening = Element(0x00291010, "SQ", b"", length=0xFFFFFFFF).header(EXPLICIT_LE) + item_header(0xFFFFFFFF)
    return Element(
        0x00291010,
        "SQ",
        opening[12:] + (opening * (depth - 1)) + encode([innermost]) + closing * depth,
        0xFFFFFFFF,
    )


def private(length: int, *, vr: str = "OB", number: int = 0x00091010) -> Element:
    return Element(number, vr, pattern(length, 3))


CT = {"bits": 16}
BARE = {"start": b""}
LONG_ICON = Fragments([jpeg(20, 7), jpeg(12, 8)])
PIXEL_TAG_BYTES = bytes.fromhex("e07f1000") + b"OB\0\0" + bytes.fromhex("10000000")

PLAIN = [
    native("n01_explicit_le"),
    native("n02_implicit_le_3f", frames=3, syntax=IMPLICIT_LE),
    native("n03_explicit_be_2f", frames=2, frame_bytes=32, syntax=EXPLICIT_BE, attributes=CT),
    native(
        "n13_rgb_planar1",
        frames=2,
        frame_bytes=48,
        attributes={"samples": 3, "photometric": "RGB", "planar": 1},
    ),
    native(
        "n14_float_2f", frames=2, frame_bytes=64, keyword="FloatPixelData", vr="OF", attributes={"bits": 32}
    ),
    native(
        "n15_double_2f",
        frames=2,
        frame_bytes=128,
        keyword="DoubleFloatPixelData",
        vr="OD",
        attributes={"bits": 64},
    ),
    native("n16_32bit_2f", frames=2, frame_bytes=64, attributes={"bits": 32}),
    native("n43_pixel_vr_un", vr="UN"),
    native("n49_12bit_packed_2f", frames=2, frame_bytes=24, attributes={"bits": 12}),
]

NUMBER_OF_FRAMES = [
    native("n04_nf_absent", declared=None),
    native("n05_nf_empty", declared="", notes=["number_of_frames_empty"]),
    native("n06_nf_zero", declared="0", notes=["number_of_frames_zero"]),
    native("n07_nf_padded", frames=2, declared=b" 2"),
    native("n08_nf_plus", frames=2, declared="+2"),
    native("n09_nf_null_padded", frames=3, declared=b"3\0"),
]

SIZES = [
    one_bit("n10_1bit_unaligned_4f", 1, 5, 4),
    one_bit("n11_1bit_aligned_3f", 8, 8, 3),
    native(
        "n12_ybr422_2f",
        frames=2,
        frame_bytes=32,
        attributes={"samples": 3, "photometric": "YBR_FULL_422", "planar": 0},
    ),
    native(
        "n17_odd_length_unpadded",
        frame_bytes=15,
        attributes={"rows": 3, "columns": 5},
        notes=["odd_pixel_length"],
    ),
    native(
        "n18_odd_frame_padded",
        frames=3,
        frame_bytes=15,
        value=pattern(46, 2),
        attributes={"rows": 3, "columns": 5},
    ),
    native("n19_excess_in_value", value=pattern(36, 2), notes=["excess_pixel_data"]),
]

END_OF_FILE = [
    native("n20_trailing_padding_element", after=[element("DataSetTrailingPadding", bytes(64))]),
    native("n21_trailing_garbage", file={"trailing": pattern(13, 4)}),
    native(
        "n22_truncated_native",
        frames=3,
        file={"cut": 28},
        status="truncated",
        truncated_from=1,
        notes=["pixel_data_truncated"],
    ),
    native(
        "n44_empty_pixel_data",
        value=b"",
        status="no_pixels",
        kind="none",
        method="none",
        ranges=(),
        pixels=(),
        notes=["no_pixel_bytes"],
    ),
    native("n45_rows_missing", attributes={"rows": None}, error="missing_image_attributes"),
]

CONTAINER = [
    native("n23_no_preamble_with_meta", file={"start": file_meta()}, notes=["no_preamble"]),
    native(
        "n24_no_meta_implicit", syntax=IMPLICIT_LE, file=BARE, notes=["no_preamble", "ts_guessed_implicit_le"]
    ),
    native("n25_no_meta_explicit", file=BARE, notes=["no_preamble", "ts_guessed_explicit_le"]),
    native(
        "n26_no_meta_explicit_be",
        frame_bytes=32,
        attributes=CT,
        syntax=EXPLICIT_BE,
        file=BARE,
        notes=["no_preamble", "ts_guessed_explicit_be"],
    ),
    native(
        "n27_dicm_no_meta_explicit",
        file={"start": PREAMBLE + b"DICM"},
        notes=["ts_guessed_explicit_le"],
    ),
    native(
        "n28_dicm_inside_data",
        file={"start": Element(0x00080005, "LT", pattern(120) + b"DICM" + pattern(32)).encode(EXPLICIT_LE)},
        notes=["no_preamble", "dicm_inside_data", "ts_guessed_explicit_le"],
    ),
    native("n29_meta_no_group_length", file={"start": PREAMBLE + b"DICM" + file_meta(group_length=None)}),
    native(
        "n30_meta_wrong_group_length",
        file={"start": PREAMBLE + b"DICM" + file_meta(group_length=-20)},
        notes=["wrong_group_length"],
    ),
    native(
        "n31_ts_missing_explicit",
        file={"start": PREAMBLE + b"DICM" + file_meta(None)},
        notes=["ts_guessed_explicit_le"],
    ),
    native(
        "n47_explicit_in_implicit_ts",
        syntax=IMPLICIT_LE,
        file={"written_as": EXPLICIT_LE},
        notes=["vr_mode_differs_from_ts"],
    ),
    native("n48_ge_private_implicit_be_pixels", frame_bytes=32, syntax=GE_PRIVATE, attributes=CT),
    native("n50_deflated_2f", frames=2, syntax=DEFLATED_LE),
]

BEFORE_THE_PIXELS = [
    native("n32_icon_defined", before=[icon()]),
    native("n33_icon_undefined", before=[icon(undefined=True)]),
    native(
        "n34_icon_encapsulated_inside",
        before=[icon(undefined=True, pixels=element("PixelData", LONG_ICON, "OB"))],
        notes=["undefined_length_on_vr"],
    ),
    native(
        "n35_un_undefined_implicit",
        before=[
            Element(
                0x00291010,
                "UN",
                Items([[*image(), element("PixelData", pattern(16, 8))]], undefined=True, syntax=IMPLICIT_LE),
            )
        ],
    ),
    native(
        "n36_un_blob_with_pixel_tag",
        before=[Element(0x00291010, "UN", pattern(10) + PIXEL_TAG_BYTES + pattern(16) + PIXEL_TAG_BYTES)],
    ),
    native("n37_nested_20", before=[nested(20, element("PixelData", pattern(16, 8), "OB"))]),
    native(
        "n38_private_ob_undefined_fragments",
        before=[Element(0x00291010, "OB", Fragments([pattern(20), PIXEL_TAG_BYTES]))],
        notes=["undefined_length_on_vr"],
    ),
    native("n39_header_200k", before=[private(200_000, number=0x00291010)]),
    native("n40_header_3m", before=[private(3_000_000, number=0x00291010)]),
    native("n41_unknown_vr", before=[Element(0x00291010, "QQ", pattern(10))], notes=["unknown_vr"]),
    native(
        "n42_implicit_element_in_explicit",
        before=[Element(0x00291010, "LO", pattern(8), explicit=False)],
        notes=["implicit_element_in_explicit"],
    ),
    native(
        "n46_item_delim_in_place_of_seq_delim",
        before=[
            element(
                "IconImageSequence",
                Items([[*image(rows=8, columns=8)]], undefined=True, delimiter=ITEM_END),
            )
        ],
        notes=["item_delim_instead_of_seq_delim"],
    ),
]

CASES = [*PLAIN, *NUMBER_OF_FRAMES, *SIZES, *END_OF_FILE, *CONTAINER, *BEFORE_THE_PIXELS]
