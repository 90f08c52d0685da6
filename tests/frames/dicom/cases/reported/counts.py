"""How many frames: kinds A1 and A2, Number of Frames as others write it and tables that say more."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

from frames.dicom.cases.encapsulated import j2k, jxl, raw
from frames.dicom.cases.model import Case, encapsulated, native
from support.builders import (
    DEFLATED_FRAMES,
    DEFLATED_LE,
    ENCAPSULATED_RAW,
    EXPLICIT_BE,
    HTJ2K,
    IMPLICIT_LE,
    JPEG,
    JPEG_2000,
    JPEG_XL,
    RLE,
    Element,
    Syntax,
    jpeg,
    pattern,
)

JPEG_LS = Syntax("1.2.840.10008.1.2.4.80")
NUMBER_OF_FRAMES = 0x00280008
UNUSUAL = "number_of_frames_unusual"


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

CASES: list[Case] = [*NUMBERS, *COUNTS]
