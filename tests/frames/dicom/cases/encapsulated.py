"""Encapsulated Pixel Data: fragments, offset tables right and wrong, damage, video."""

from __future__ import annotations

from itertools import accumulate

from frames.dicom.cases.model import M_GROUPS, A, Case, M, encapsulated, native, split, starts
from frames.dicom.cases.native import icon
from support.builders import (
    DEFLATED_FRAMES,
    ENCAPSULATED_RAW,
    EXPLICIT_LE,
    HTJ2K,
    IMPLICIT_LE,
    ITEM,
    JPEG,
    JPEG_2000,
    JPEG_XL,
    MPEG4,
    MPEG4_FRAGMENTABLE,
    RLE,
    SEQUENCE_END,
    Fragments,
    Syntax,
    element,
    item_header,
    jpeg,
    pattern,
)

BOT_A = (0, 28, 62)
BOT_M = (0, 36, 70)
LENGTHS_A = (20, 26, 30)
j2k, jxl = starts(b"\xff\x4f\xff\x51"), starts(b"\xff\x0a")
rle = starts(b"\1\0\0\0\x40\0\0\0")
raw = starts(b"")

THOUSAND = [jpeg(6 + 2 * (seed % 5), seed) for seed in range(1000)]
THOUSAND_OFFSETS = tuple(accumulate((8 + len(each) for each in THOUSAND[:-1]), initial=0))

ONE_TO_ONE = [
    encapsulated("e01_bot_1to1", A, bot=BOT_A, method="bot", table_serves=True),
    encapsulated("e02_nobot_1to1", A),
    encapsulated("e03_rle_nobot", [rle(20, 0), rle(26, 1), rle(30, 2)], syntax=RLE),
    encapsulated("e43_vr_ow_encapsulated", A, bot=BOT_A, vr="OW", method="bot", table_serves=True),
    encapsulated("e44_vr_un_encapsulated", A, bot=BOT_A, vr="UN", method="bot", table_serves=True),
    encapsulated(
        "e51_icon_encaps_and_frames",
        A,
        before=[icon(pixels=element("PixelData", Fragments([jpeg(24, 9)]), "OB"))],
    ),
    encapsulated("e34_htj2k_1to1", [j2k(20, 0), j2k(26, 1)], syntax=HTJ2K),
    encapsulated("e36_encaps_uncompressed_98", [raw(16, 0), raw(16, 1)], syntax=ENCAPSULATED_RAW),
    encapsulated("e37_deflated_image_frame", [raw(20, 0), raw(24, 1)], syntax=DEFLATED_FRAMES),
    encapsulated(
        "e38_encaps_in_native_ts",
        A[:1],
        syntax=EXPLICIT_LE,
        method="single_frame",
        notes=["encapsulated_in_native_ts"],
    ),
    native("e39_native_in_jpeg_ts", syntax=JPEG, notes=["native_in_encapsulated_ts"]),
    encapsulated(
        "e52_implicit_vr_jpeg_ts",
        A[:1],
        file={"written_as": IMPLICIT_LE},
        method="single_frame",
        notes=["vr_mode_differs_from_ts"],
    ),
    encapsulated("e48_1000_frames_bot", THOUSAND, bot=THOUSAND_OFFSETS, method="bot", table_serves=True),
    encapsulated("e49_1000_frames_nobot", THOUSAND),
    encapsulated(
        "e50_1000_frames_eot",
        THOUSAND,
        eot=(THOUSAND_OFFSETS, [len(each) for each in THOUSAND]),
        method="eot",
        table_serves=True,
    ),
]

JPEG_WITH_THUMBNAIL = jpeg(20, 4) + pattern(8, 4) + b"\xff\xd9"

FRAGMENTS = [
    encapsulated("e04_bot_multifrag", M, groups=M_GROUPS, bot=BOT_M, method="bot", table_serves=True),
    encapsulated("e05_nobot_multifrag_jpeg", M, groups=M_GROUPS, method="start_markers"),
    encapsulated(
        "e06_nobot_multifrag_j2k",
        split([j2k(20, 0), j2k(26, 1), j2k(30, 2)], [10, 10], [26], [8, 12, 10]),
        groups=M_GROUPS,
        syntax=JPEG_2000,
        method="start_markers",
    ),
    encapsulated(
        "e35_jxl_nobot_multifrag",
        split([jxl(30, 0), jxl(22, 1)], [20, 10], [22]),
        groups=[[0, 1], [2]],
        syntax=JPEG_XL,
        method="start_markers",
    ),
    encapsulated(
        "e45_eoi_in_mid_fragment",
        split([JPEG_WITH_THUMBNAIL, jpeg(26, 5)], [20, 10], [26]),
        groups=[[0, 1], [2]],
        method="start_markers",
    ),
    encapsulated(
        "e07_nobot_multifrag_rle_ambiguous",
        split([rle(20, 0), rle(26, 1), rle(30, 2)], [10, 10], [26], [8, 12, 10]),
        groups=M_GROUPS,
        syntax=RLE,
        error="ambiguous_fragments",
    ),
    encapsulated(
        "e08_single_5frags_nobot",
        split([jpeg(60, 3)], [12, 12, 12, 12, 12]),
        groups=[range(5)],
        method="single_frame",
    ),
    encapsulated(
        "e09_single_rle_frags",
        split([rle(40, 3)], [20, 12, 8]),
        groups=[range(3)],
        syntax=RLE,
        method="single_frame",
    ),
]


def wrong_eot(name: str, offsets: tuple[int, ...], lengths: tuple[int, ...] = LENGTHS_A) -> Case:
    return encapsulated(name, A, eot=(offsets, lengths), notes=["eot_rejected"])


def wrong_bot(name: str, bot: tuple[int, ...]) -> Case:
    return encapsulated(name, A, bot=bot, notes=["bot_rejected"])


TABLES = [
    encapsulated("e10_eot", A, eot=(BOT_A, LENGTHS_A), method="eot", table_serves=True),
    encapsulated(
        "e11_eot_and_bot",
        A,
        bot=BOT_A,
        eot=(BOT_A, LENGTHS_A),
        method="eot",
        table_serves=True,
        notes=["eot_and_bot"],
    ),
    encapsulated(
        "e12_eot_lengths_unpadded",
        A,
        eot=(BOT_A, (19, 26, 29)),
        method="eot",
        table_serves=True,
        notes=["eot_length_excludes_padding"],
    ),
    wrong_eot("e13_eot_wrong_count", (0, 28), (20, 26)),
    wrong_eot("e14_eot_bogus_offsets", (0, 5, 9)),
    encapsulated("e15_eot_without_lengths", A, eot=(BOT_A, None), method="eot_offsets_only"),
    wrong_bot("e16_bot_bogus_1to1", (0, 3, 11)),
    encapsulated(
        "e17_bot_per_fragment",
        M,
        groups=M_GROUPS,
        bot=(0, 18, 36, 70, 86, 106),
        method="start_markers",
        notes=["bot_rejected"],
    ),
    wrong_bot("e18_bot_biased_by_bot_item", (20, 48, 82)),
    encapsulated(
        "e19_bot_out_of_order",
        A,
        groups=[[1], [0], [2]],
        bot=(28, 0, 62),
        method="bot",
        notes=["table_not_ascending"],
    ),
    wrong_bot("e20_bot_all_zero", (0, 0, 0)),
    wrong_bot("e21_bot_too_short_table", (0,)),
    wrong_bot("e22_bot_extra_entry", (0, 28, 62, 100)),
    encapsulated(
        "e46_bot_len_not_multiple_4",
        A,
        bot=Fragments([], BOT_A).table_bytes + b"\0\0",
        method="bot",
        table_serves=True,
        notes=["bot_length_not_multiple_of_4"],
    ),
]

DELIMITER_BYTES = item_header(0, "<", SEQUENCE_END) + item_header(4, "<", ITEM)

DAMAGE = [
    encapsulated("e23_no_delimiter", A, delimiter=b"", notes=["no_sequence_delimiter"]),
    encapsulated(
        "e24_delimiter_nonzero_length",
        A,
        delimiter=item_header(4, "<", SEQUENCE_END),
        notes=["seq_delim_nonzero_length"],
    ),
    encapsulated("e25_zeros_instead_of_delimiter", A, delimiter=bytes(8), notes=["no_sequence_delimiter"]),
    encapsulated(
        "e26_truncated_last_fragment",
        A,
        delimiter=b"",
        file={"cut": 12},
        status="truncated",
        truncated_from=2,
        notes=["last_fragment_truncated"],
    ),
    encapsulated(
        "e27_odd_fragment_length",
        [jpeg(21, 0), jpeg(27, 1), jpeg(30, 2)],
        notes=["odd_fragment_length"],
    ),
    encapsulated(
        "e28_trailing_empty_fragment",
        [*A, b""],
        groups=[[0], [1], [2]],
        notes=["trailing_empty_fragment"],
    ),
    encapsulated("e29_empty_fragment_mid", [A[0], b"", A[2]], error="not_a_frame"),
    encapsulated(
        "e40_delimiter_bytes_in_payload",
        [jpeg(20, 0), b"\xff\xd8" + DELIMITER_BYTES + pattern(8) + b"\xff\xd9", jpeg(30, 2)],
    ),
    encapsulated(
        "e30_undefined_item_length", A, item_lengths={1: 0xFFFFFFFF}, error="undefined_fragment_length"
    ),
    encapsulated("e41_fewer_fragments_than_frames", A, declared=5, error="fewer_fragments_than_frames"),
    encapsulated("e42_more_fragments_1extra_nonempty", A, declared=2, error="ambiguous_fragments"),
    encapsulated(
        "e47_no_bot_item_first_is_frame",
        [],
        bot=jpeg(20),
        declared=1,
        error="no_bot_item",
    ),
]


def video(name: str, payloads: list[bytes], frames: int, syntax: Syntax) -> Case:
    return encapsulated(
        name,
        payloads,
        groups=[range(len(payloads))],
        declared=frames,
        syntax=syntax,
        kind="video",
        method="video_stream",
        number_of_frames=frames,
    )


STREAM = pattern(300, 6)
VIDEO = [
    video("e31_video_1frag_100f", [STREAM], 100, MPEG4),
    video("e32_video_3frag_100f", split([STREAM], [100, 100, 100]), 100, MPEG4),
    video("e33_video_frag_mpeg_01", split([STREAM], [64, 128, 108]), 50, MPEG4_FRAGMENTABLE),
]

CASES: list[Case] = [*ONE_TO_ONE, *FRAGMENTS, *TABLES, *DAMAGE, *VIDEO]
