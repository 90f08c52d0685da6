"""Encapsulated files that end early or go astray: what is certain is served, the rest is known to be lost."""

from __future__ import annotations

from dataclasses import replace

from frames.dicom.cases.encapsulated import BOT_A, BOT_M, LENGTHS_A, rle
from frames.dicom.cases.model import M_GROUPS, A, Case, M, encapsulated, split
from support.builders import RLE, element, jpeg, pattern

CUT, NO_END = "last_fragment_truncated", "no_sequence_delimiter"


def ends(case: Case, at: int, readable: int, *notes: str, then: bytes = b"") -> Case:
    """The file ended at byte ``at`` (and went on with ``then``): the first ``readable`` frames are whole."""
    return replace(
        case,
        content=case.content[:at] + then,
        status="truncated",
        truncated_from=readable,
        pixels=case.pixels[:readable],
        notes=frozenset(notes),
    )


def refused(case: Case, at: int, error: str) -> Case:
    return replace(case, content=case.content[:at], error=error)


def place(case: Case, frame: int, fragment: int = 0, byte: int = 0) -> int:
    """A byte of a fragment of a frame."""
    return case.ranges[frame][fragment][0] + byte


BOT = encapsulated("x_cut_bot", A, bot=BOT_A, method="bot")
EOT = encapsulated("x_cut_eot", A, eot=(BOT_A, LENGTHS_A), method="eot")
BOT_MULTI = encapsulated("x_cut_bot_multifrag", M, groups=M_GROUPS, bot=BOT_M, method="bot")
NO_TABLE = encapsulated("x_cut_without_table", A)
MULTI = encapsulated("x_cut_multifrag", M, groups=M_GROUPS, method="start_markers")
RLE_ONE_EACH = encapsulated("x_cut_rle", [rle(20, 0), rle(26, 1)], syntax=RLE)
TWO = encapsulated("x_cut", split(A[:2], [20], [20, 6]), groups=[[0], [1, 2]], method="start_markers")
SINGLE = encapsulated("x_astray", split([jpeg(60)], [30, 30]), groups=[[0, 1]], method="single_frame")
LOST_ITEM = (
    SINGLE.content[: SINGLE.ranges[0][1][0] - 8] + pattern(8) + SINGLE.content[SINGLE.ranges[0][1][0] :]
)


def named(case: Case, name: str) -> Case:
    return replace(case, name=f"{case.name}_{name}")


CASES = [
    named(ends(BOT, place(BOT, 1, byte=10), 1, CUT), "in_frame_1"),
    named(ends(BOT, place(BOT, 2, byte=10), 2, CUT), "in_frame_2"),
    # Frame 0 may be whole, but only its successor's Item, which is gone, could say so.
    named(ends(BOT, place(BOT, 1, byte=-8), 0, NO_END), "between_items"),
    named(ends(BOT, place(BOT, 2, byte=-5), 1, NO_END), "in_an_item_header"),
    named(ends(BOT, place(BOT, 2, byte=-8), 1, NO_END, then=bytes(500)), "never_finished_download"),
    named(ends(EOT, place(EOT, 1, byte=10), 1, CUT), "in_frame_1"),
    named(ends(BOT_MULTI, place(BOT_MULTI, 2, 1, 5), 2, CUT), "in_frame_2"),
    named(ends(BOT_MULTI, place(BOT_MULTI, 0, 1, 5), 0, CUT), "in_frame_0"),
    named(refused(NO_TABLE, place(NO_TABLE, 1, byte=10), "fewer_fragments_than_frames"), "in_frame_1"),
    # Three fragments are left for three frames, yet only two of them begin an image.
    named(refused(MULTI, place(MULTI, 1, byte=4), "ambiguous_fragments"), "to_the_right_number"),
    named(ends(RLE_ONE_EACH, place(RLE_ONE_EACH, 1, byte=10), 1, CUT), "in_frame_1"),
    # A fragment of which nothing is left is no empty fragment that could be dropped.
    named(ends(TWO, place(TWO, 1, 1), 1, CUT), "before_the_last_fragment"),
    replace(
        SINGLE,
        name="x_astray_in_mid_frame",
        content=LOST_ITEM,
        status="truncated",
        truncated_from=0,
        ranges=(SINGLE.ranges[0][:1],),
        pixels=(),
        notes=frozenset({"astray_after_fragment"}),
    ),
    encapsulated(
        "x_astray_after_the_image",
        split([jpeg(60)], [30, 30]),
        groups=[[0, 1]],
        delimiter=pattern(24),
        method="single_frame",
        notes=["astray_after_fragment"],
    ),
    encapsulated(
        "x_next_element_in_place_of_delimiter",
        split([pattern(60)], [30, 30]),
        groups=[[0, 1]],
        delimiter=b"",
        after=[element("DataSetTrailingPadding", bytes(20))],
        syntax=RLE,
        method="single_frame",
        notes=["astray_after_fragment"],
    ),
]
