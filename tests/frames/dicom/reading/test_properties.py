"""Random images of every shape, held against a computation that takes no short cut."""

from __future__ import annotations

import struct
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.builders import (
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG,
    JPEG_2000,
    RLE,
    Element,
    Fragments,
    dicom,
    element,
    image,
)
from support.depth import depth
from support.oracles import bits_of_a_frame
from voxtier.errors import FormatError
from voxtier.frames import FrameTable, read_frame, read_table

# Payload bytes without FF: markers are put where a test wants them and nowhere else.
FILLER = st.binary(min_size=0, max_size=40).map(lambda raw: raw.replace(b"\xff", b"\0"))
START, END = {JPEG: b"\xff\xd8", JPEG_2000: b"\xff\x4f"}, b"\xff\xd9"


@st.composite
def fragmented(draw: st.DrawFn, syntax: object = JPEG) -> list[list[bytes]]:
    """Frames, each a list of even fragments, the first with a start marker, the last with an end marker."""
    frames = []
    for _ in range(draw(st.integers(1, 6))):
        pieces = draw(st.lists(FILLER, min_size=1, max_size=4))
        pieces = [piece + bytes(len(piece) % 2) for piece in pieces]
        pieces[0] = START[syntax] + pieces[0]
        pieces[-1] += END
        frames.append(pieces)
    return frames


def flat(frames: list[list[bytes]]) -> list[bytes]:
    return [piece for frame in frames for piece in frame]


def first_items(frames: list[list[bytes]]) -> list[int]:
    """Offset of the Item tag of each frame's first fragment, added up one by one."""
    found, position = [], 0
    for frame in frames:
        found.append(position)
        for piece in frame:
            position += 8 + len(piece)
    return found


def encapsulated(
    frames: list[list[bytes]], *, bot: list[int] | tuple[int, ...] = (), extra: tuple[Element, ...] = ()
) -> bytes:
    pixels = element("PixelData", Fragments(flat(frames), bot), "OB")
    return dicom([*image(frames=len(frames)), *extra, pixels], JPEG).content


def check(content: bytes, frames: list[list[bytes]], table: FrameTable) -> None:
    assert [read_frame(content, table, index) for index in range(len(table))] == [
        b"".join(frame) for frame in frames
    ]


def pieces_of(content: bytes, table: FrameTable) -> list[list[bytes]]:
    return [[content[start:end] for start, end in table.ranges(index)] for index in range(len(table))]


def kept(frames: list[list[bytes]]) -> list[list[bytes]]:
    """Empty fragments carry nothing and are left out of frames that hold others."""
    return [[piece for piece in frame if piece] for frame in frames]


@given(fragmented())
def test_markers_find_the_frames(frames: list[list[bytes]]) -> None:
    content = encapsulated(frames)
    table = read_table(content, verify="all")
    assert pieces_of(content, table) == kept(frames)
    check(content, frames, table)


@given(fragmented())
def test_a_basic_offset_table_finds_the_frames(frames: list[list[bytes]]) -> None:
    content = encapsulated(frames, bot=first_items(frames))
    whole = read_table(content, verify="all")
    assert whole.method == "bot"
    assert pieces_of(content, whole) == kept(frames)
    for verify in ("none", "ends", "all"):
        check(content, frames, read_table(content, verify=verify))


@given(fragmented(), st.data())
def test_wrong_basic_table_changes_nothing(frames: list[list[bytes]], data: st.DataObject) -> None:
    """Any table with an entry that is no Item tag is rejected; the markers still tell the frames."""
    right = first_items(frames)
    at = data.draw(st.integers(0, len(right) - 1))
    wrong = right.copy()
    wrong[at] += data.draw(st.integers(1, 7))
    content = encapsulated(frames, bot=wrong)
    table = read_table(content, verify="all")
    assert "bot_rejected" in table.notes
    assert pieces_of(content, table) == kept(frames)
    check(content, frames, read_table(content, verify="ends"))


@given(fragmented(), st.data())
def test_any_table_of_numbers_is_harmless(frames: list[list[bytes]], data: st.DataObject) -> None:
    numbers = data.draw(
        st.lists(st.integers(0, 2**32 - 1) | st.sampled_from(first_items(frames)), max_size=8)
    )
    content = encapsulated(frames, bot=numbers)
    table = read_table(content, verify="all")
    if table.method != "bot":
        assert pieces_of(content, table) == kept(frames)
    else:
        assert len(numbers) == len(frames)
        assert sorted(flat(pieces_of(content, table))) == sorted(flat(kept(frames)))


@given(
    st.lists(FILLER.map(lambda raw: raw + b"\1" * (2 - len(raw) % 2)), min_size=1, max_size=8), st.booleans()
)
def test_an_extended_offset_table_finds_the_frames(payloads: list[bytes], unpadded: bool) -> None:
    frames = [[payload] for payload in payloads]
    offsets = tuple(first_items(frames))
    lengths = tuple(len(payload) - unpadded for payload in payloads)
    tables = (element("ExtendedOffsetTable", offsets), element("ExtendedOffsetTableLengths", lengths))
    content = encapsulated(frames, extra=tables)
    for verify in ("none", "ends", "all"):
        table = read_table(content, verify=verify)
        assert table.method == "eot"
        check(content, frames, table)


@given(
    st.lists(FILLER.map(lambda raw: raw + bytes(len(raw) % 2)), min_size=1, max_size=8), st.integers(1, 10)
)
def test_rle_is_one_to_one_or_refused(payloads: list[bytes], number: int) -> None:
    """RLE has no markers to look for: only counts can tell (PS3.5 A.4.2)."""
    content = dicom([*image(frames=number), element("PixelData", Fragments(payloads), "OB")], RLE).content
    used = list(payloads)
    while len(used) > number and used[-1] == b"":
        used.pop()
    frames = [used] if number == 1 else [[payload] for payload in used]
    expected = None
    if len(frames) != number:
        expected = "ambiguous_fragments" if len(used) > number else "fewer_fragments_than_frames"
    elif any(not b"".join(frame) for frame in frames):
        expected = "not_a_frame"
    try:
        table = read_table(content, verify="all")
    except FormatError as refused:
        assert refused.kind == expected
    else:
        assert expected is None
        check(content, frames, table)


@pytest.mark.deep
@settings(max_examples=depth(150, 1000))
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    frames=st.integers(1, 9),
    samples=st.sampled_from([1, 3]),
    bits=st.sampled_from([1, 8, 12, 16, 32, 64]),
    syntax=st.sampled_from([EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE]),
    missing=st.integers(0, 200),
)
def test_native_frames_are_found_by_arithmetic(
    rows: int, columns: int, frames: int, samples: int, bits: int, syntax: object, missing: int
) -> None:
    """Every frame bit by bit: no rounding, no gap between frames, truncation found to the frame."""
    each = bits_of_a_frame(rows, columns, samples, bits, "")
    length = -(-each * frames // 8)
    value = bytes(index % 251 for index in range(length + length % 2))
    attributes = image(rows=rows, columns=columns, samples=samples, bits=bits, frames=frames)
    # A big endian OW swaps the bytes of its words, so that half a word is no range of bytes.
    vr = "OB" if syntax == EXPLICIT_BE and each % 16 else "OW"
    layout = dicom([*attributes, element("PixelData", value, vr)], syntax)
    missing = min(missing, len(value))
    content = layout.content[: len(layout.content) - missing]
    table = read_table(content)
    present = (len(value) - missing) * 8
    whole = min(frames, present // each)
    assert table.truncated_from == (None if whole == frames else whole)
    for index in range(whole):
        expected = [bit_of(value, index * each + bit) for bit in range(each)]
        frame, shift = read_frame(content, table, index), table.bit_offset(index)
        assert [bit_of(frame, shift + bit) for bit in range(each)] == expected
        assert len(frame) == -(-(shift + each) // 8)


def bit_of(value: bytes, bit: int) -> int:
    """Bits count from the least significant of the first byte (PS3.5 8.1.1)."""
    return value[bit // 8] >> bit % 8 & 1


@given(st.lists(st.integers(0, 400), min_size=1, max_size=700))
def test_long_runs_of_items_are_found(lengths: list[int]) -> None:
    """Walks that cross the windows of the reader: the sum of all lengths is the only oracle needed."""
    payloads = [struct.pack("<I", index)[:2] + bytes(length & ~1) for index, length in enumerate(lengths)]
    content = dicom(
        [*image(frames=len(payloads)), element("PixelData", Fragments(payloads), "OB")], RLE
    ).content
    table = read_table(content, verify="all")
    start = table.ranges(0)[0][0]
    ends = list(accumulate((len(payload) + 8 for payload in payloads), initial=start))
    assert table.offsets.tolist() == ends[:-1]
    assert table.lengths.tolist() == [len(payload) for payload in payloads]
