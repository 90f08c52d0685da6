"""Cases beyond the tick list: every refusal and every note of the closed lists, and what the wild holds."""

from __future__ import annotations

from frames.dicom.cases.encapsulated import BOT_A, LENGTHS_A, rle
from frames.dicom.cases.model import M_GROUPS, A, Case, M, encapsulated, make, native, split, starts
from frames.dicom.cases.native import PREAMBLE, icon
from frames.dicom.cases.without_pixels import DOCUMENT, SPECTRA, no_pixels, refused
from support.builders import (
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG,
    JPEG_XL,
    RLE,
    SEQUENCE_END,
    TAGS,
    Element,
    Fragments,
    Items,
    Syntax,
    dicom,
    element,
    encode,
    file_meta,
    image,
    item_header,
    jpeg,
    pattern,
    tiff_directories,
)

UNKNOWN_SYNTAX = Syntax("1.2.826.0.1.3680043.9.9999.1")
JPIP = Syntax("1.2.840.10008.1.2.4.94")
YBR_422 = {"samples": 3, "photometric": "YBR_FULL_422", "planar": 0}
ICON = 0x00880200
PROVEN_BY_LENGTH = ["bad_number_of_frames", "number_of_frames_from_length"]
PIXEL_HEADER_LENGTH = 12  # tag, OB, two reserved bytes, length


def pixel_value(name: str, value: bytes, **outcome: object) -> Case:
    """An encapsulated image whose whole pixel value, delimiter and all, is given."""
    layout = dicom([*image(), Element(0x7FE00010, "OB", value, 0xFFFFFFFF)], JPEG)
    return make(name, layout, pixel_tag=layout.pixel_tag, **outcome)


def tiff(
    name: str,
    *,
    order: str = "<",
    big: bool = False,
    thumbnail_first: bool = False,
    shift: tuple[int, int, int] = (0, 0, 0),
    counts: tuple[int, int, int] = LENGTHS_A,
    bot: tuple[int, ...] = (),
    **outcome: object,
) -> Case:
    """A TIFF dual-personality file (PS3.10 7.1): TileOffsets point at payloads, not at Item tags."""

    def build(offsets: list[int], at: int) -> Case:
        directories = [([7] * 2, [9] * 2)] if thumbnail_first else []
        header, body = tiff_directories([*directories, (offsets, counts)], at, order=order, big=big)
        padding = element("DataSetTrailingPadding", body)
        return encapsulated(name, A, bot=bot, after=[padding], file={"preamble": header}, **outcome)

    # The directory's place depends on nothing but the length of what lies before it.
    draft = build([0, 0, 0], 8)
    payloads = [ranges[0][0] for ranges in encapsulated("", A, bot=bot).ranges]
    end_of_pixels = payloads[-1] + len(A[-1]) + 8
    offsets = [payload + moved for payload, moved in zip(payloads, shift, strict=True)]
    case = build(offsets, end_of_pixels + PIXEL_HEADER_LENGTH)
    assert len(case.content) == len(draft.content)
    return case


def early_item(shift: int) -> Case:
    """Each Item length counts ``shift`` bytes too many: the next Item stands early (GDCM, Leica)."""
    return encapsulated(
        f"x_leica_items_{shift}_early",
        A,
        item_lengths={index: len(payload) + shift for index, payload in enumerate(A)},
        notes=["bad_fragment_tag", "odd_fragment_length"] if shift % 2 else ["bad_fragment_tag"],
    )


def functional_groups(count: int, *, undefined: bool) -> Element:
    """One small item a frame, as enhanced multi-frame objects have them (PS3.3 C.7.6.16)."""
    once = Items([[element("Modality", "OT"), element("Rows", 4)]], undefined=undefined).encode(EXPLICIT_LE)
    end = len(once) - 8 * undefined  # of the item, before the sequence's delimiter
    tag, vr = TAGS["PerFrameFunctionalGroups"]
    return Element(tag, vr, once[:end] * count + once[end:], 0xFFFFFFFF if undefined else None)


CONTAINER = [
    native("x_dicm_without_preamble", file={"start": b"DICM" + file_meta()}, notes=["dicm_without_preamble"]),
    native(
        "x_group2_implicit",
        file={"start": PREAMBLE + b"DICM" + Element(0x00020010, "UI", EXPLICIT_LE.uid).encode(IMPLICIT_LE)},
        notes=["implicit_group2"],
    ),
    native(
        "x_big_endian_in_little_endian_ts",
        frame_bytes=32,
        attributes={"bits": 16},
        file={"written_as": EXPLICIT_BE},
        notes=["endianness_differs_from_ts"],
    ),
    native("x_implicit_in_explicit_ts", file={"written_as": IMPLICIT_LE}, notes=["vr_mode_differs_from_ts"]),
    native("x_unknown_transfer_syntax", syntax=UNKNOWN_SYNTAX),
    encapsulated("x_unknown_transfer_syntax_encapsulated", A, syntax=UNKNOWN_SYNTAX),
    refused("x_truncated_meta", (PREAMBLE + b"DICM" + file_meta())[:-4], "truncated_meta"),
    refused("x_one_byte", b"\x08", "not_dicom"),
    refused("x_132_zeros", bytes(132), "not_dicom"),
]

BEFORE_THE_PIXELS = [
    native(
        "x_un_undefined_explicit_inside",
        before=[
            Element(
                0x00291010,
                "UN",
                Items([[*image(), element("PixelData", pattern(16, 8))]], undefined=True, syntax=EXPLICIT_LE),
            )
        ],
        notes=["un_undefined_length_explicit_inside"],
    ),
    native(
        "x_seq_delim_in_place_of_item_delim",
        before=[
            Element(
                ICON,
                "SQ",
                item_header(0xFFFFFFFF) + encode(image(rows=8)) + item_header(0, "<", SEQUENCE_END),
                0xFFFFFFFF,
            )
        ],
        notes=["seq_delim_instead_of_item_delim"],
    ),
    native(
        "x_stray_delimiter",
        before=[Element(0xFFFEE00D, "", b"", explicit=False)],
        notes=["stray_delimiter"],
    ),
    native(
        "x_tags_not_ascending",
        before=[element("Modality", "OT")],
        notes=["tags_not_ascending"],
    ),
    native("x_functional_groups_20000_defined", before=[functional_groups(20_000, undefined=False)]),
    native("x_functional_groups_20000_undefined", before=[functional_groups(20_000, undefined=True)]),
    native("x_icon_implicit_vr", syntax=IMPLICIT_LE, before=[icon(undefined=True)]),
    refused(
        "x_bad_item_tag",
        dicom([*image(), Element(ICON, "SQ", pattern(16), 0xFFFFFFFF)]).content,
        "bad_item_tag",
    ),
    refused(
        "x_unterminated_sequence",
        dicom([*image(), Element(ICON, "SQ", item_header(0xFFFFFFFF), 0xFFFFFFFF)]).content,
        "truncated_header",
    ),
    refused(
        "x_item_past_end",
        dicom([*image(), Element(ICON, "SQ", item_header(1000) + bytes(20), 0xFFFFFFFF)]).content,
        "value_past_end",
    ),
    no_pixels("x_spectra", dicom(SPECTRA).content),
    no_pixels(
        "x_pixel_data_url",
        dicom([*image(), element("PixelDataProviderURL", "http://localhost/x")], JPIP).content,
        "pixel_data_url",
        syntax=JPIP.uid,
    ),
    no_pixels("x_trailing_zeros_of_a_report", dicom(DOCUMENT, trailing=bytes(32)).content, "trailing_bytes"),
    refused(
        "x_trailing_zeros_without_pixels",
        dicom(image(), trailing=bytes(32)).content,
        "missing_pixel_data",
    ),
]

NATIVE = [
    native(
        "x_ybr422_stored_as_3_samples",
        frames=2,
        frame_bytes=48,
        attributes=YBR_422,
        notes=["ybr422_declared_but_full"],
    ),
    native(
        "x_number_of_frames_is_junk", declared="many", notes=[*PROVEN_BY_LENGTH, "number_of_frames_unusual"]
    ),
    native(
        "x_number_of_frames_negative", declared="-3", notes=[*PROVEN_BY_LENGTH, "number_of_frames_unusual"]
    ),
    # For readers that end a text at a NUL this is empty.
    native("x_number_of_frames_behind_a_nul", frames=3, declared="\0003", notes=PROVEN_BY_LENGTH),
    native(
        "x_color_without_samples_per_pixel",
        frame_bytes=48,
        attributes={"samples": None, "photometric": "RGB"},
        error="missing_image_attributes",
    ),
    native("x_frames_2_31_native", declared=2**31 - 1, error="frames_exceed_pixel_data"),
    native(
        "x_short_pixel_data",
        frames=3,
        value=pattern(32),
        status="truncated",
        truncated_from=2,
        notes=["short_pixel_data"],
    ),
    native(
        "x_65535_squared",
        frame_bytes=65535 * 65535 * 8,
        value=pattern(64),
        attributes={"rows": 65535, "columns": 65535, "bits": 64},
        status="truncated",
        truncated_from=0,
        notes=["short_pixel_data"],
    ),
    native("x_bits_allocated_zero", attributes={"bits": 0}, error="missing_image_attributes"),
]

ENCAPSULATED = [
    encapsulated(
        "x_end_markers",
        split(
            [b"\xff\xd8" + pattern(16) + b"\xff\xd8" + pattern(8) + b"\xff\xd9", jpeg(26, 5)], [18, 12], [26]
        ),
        groups=[[0, 1], [2]],
        method="end_markers",
    ),
    encapsulated(
        "x_jxl_box_start",
        split(
            [starts(bytes.fromhex("0000000C4A584C20"))(30, seed) for seed in range(2)],
            [20, 10],
            [30],
        ),
        groups=[[0, 1], [2]],
        syntax=JPEG_XL,
        method="start_markers",
    ),
    encapsulated(
        "x_jp2_box_start",
        split(
            [starts(bytes.fromhex("0000000C6A5020200D0A870A"))(30, seed) for seed in range(2)],
            [20, 10],
            [30],
        ),
        groups=[[0, 1], [2]],
        syntax=Syntax("1.2.840.10008.1.2.4.90"),
        method="start_markers",
    ),
    encapsulated(
        "x_rle_trailing_empty",
        [rle(20, 0), rle(26, 1), b""],
        groups=[[0], [1]],
        syntax=RLE,
        notes=["trailing_empty_fragment"],
    ),
    encapsulated(
        "x_empty_fragment_in_frame",
        [M[0], b"", *M[1:]],
        groups=[[0, 2], [3], [4, 5, 6]],
        method="start_markers",
    ),
    encapsulated("x_single_frame_bot", A[:1], bot=(0,), method="bot", table_serves=True),
    encapsulated("x_single_frame_two_jpegs", A[:2], declared=1, error="ambiguous_fragments"),
    encapsulated(
        "x_million_empty_fragments",
        [jpeg(20)],
        delimiter=item_header(0) * 1_000_000 + item_header(0, "<", SEQUENCE_END),
        method="single_frame",
    ),
    encapsulated("x_frames_2_31_encapsulated", A, declared=2**31 - 1, error="fewer_fragments_than_frames"),
    encapsulated(
        "x_eot_multifrag_lengths_of_frames",
        M,
        groups=M_GROUPS,
        eot=((0, 36, 70), LENGTHS_A),
        method="eot_offsets_only",
    ),
    encapsulated(
        "x_eot_length_too_long",
        A,
        eot=(BOT_A, (20, 2600, 30)),
        method="eot_offsets_only",
        notes=["eot_length_exceeds_fragment"],
    ),
    encapsulated(
        "x_eot_wrong_bot_right",
        A,
        bot=BOT_A,
        eot=((0, 5, 9), LENGTHS_A),
        method="bot",
        notes=["eot_rejected", "eot_and_bot"],
    ),
    encapsulated(
        "x_bot_multifrag_out_of_order",
        M,
        groups=[[2], [0, 1], [3, 4, 5]],
        bot=(36, 0, 70),
        method="bot",
        notes=["table_not_ascending"],
    ),
    encapsulated("x_bot_past_end", A, bot=(0, 28, 4_000_000_000), notes=["bot_rejected"]),
    encapsulated(
        "x_encapsulated_with_defined_length",
        A,
        value_length=len(Fragments(A).encode(EXPLICIT_LE)),
        notes=["encapsulated_with_defined_length"],
    ),
    pixel_value("x_no_bot_item", encode(image()), error="no_bot_item"),
    pixel_value("x_truncated_bot", item_header(400) + bytes(40), error="truncated_bot"),
    pixel_value("x_delimiter_first", item_header(0, "<", SEQUENCE_END), error="missing_pixel_data"),
    *(early_item(shift) for shift in (1, 2, 3)),
]

TIFF = [
    tiff("x_tiff_tiles", method="tiff"),
    tiff("x_tiff_big_endian", order=">", method="tiff"),
    tiff("x_tiff_bigtiff", big=True, method="tiff"),
    tiff("x_tiff_second_directory", thumbnail_first=True, method="tiff"),
    tiff("x_tiff_lengths_unpadded", counts=(19, 26, 29), method="tiff"),
    tiff("x_tiff_points_at_item_tags", shift=(-8, -8, -8), notes=["tiff_rejected"]),
    tiff("x_tiff_wrong_counts", counts=(20, 20, 20), notes=["tiff_rejected"]),
    tiff("x_tiff_shared_tile", shift=(0, -28, 0), notes=["tiff_rejected"]),
    tiff("x_tiff_beside_bot", bot=BOT_A, method="bot", table_serves=True),
]

CASES: list[Case] = [*CONTAINER, *BEFORE_THE_PIXELS, *NATIVE, *ENCAPSULATED, *TIFF]
