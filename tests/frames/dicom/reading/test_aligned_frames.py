"""Frames of pixels that are no whole bytes, moved to bit 0: held against `numpy.unpackbits`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from frames.dicom.cases import CASES
from frames.dicom.cases.model import Case
from support.builders import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, Syntax, dicom, element, image
from support.depth import depth
from voxtier.errors import FormatError
from voxtier.frames import FrameCache, FrameReader, read_frame, read_table


def file_of(bits: NDArray[np.uint8], rows: int, columns: int, each: int, syntax: Syntax, vr: str) -> bytes:
    """A file whose frames are the rows of ``bits``, packed one behind another (PS3.5 8.1.1)."""
    value = np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    attributes = image(rows=rows, columns=columns, bits=each, frames=len(bits))
    pixels = element("PixelData", value + bytes(len(value) % 2), vr)
    return dicom([*attributes, pixels], syntax).content


def random_bits(frames: int, each: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 2, (frames, each), dtype=np.uint8)


def packed(bits: NDArray[np.uint8]) -> bytes:
    """What a frame is when it is moved to bit 0: its bits, then zeros to the end of the last byte."""
    return np.packbits(bits, bitorder="little").tobytes()


@pytest.mark.deep
@settings(max_examples=depth(150, 1000))
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    frames=st.integers(1, 20),
    each=st.sampled_from([1, 1, 1, 12, 8]),
    syntax=st.sampled_from([EXPLICIT_LE, IMPLICIT_LE, DEFLATED_LE, EXPLICIT_BE]),
    seed=st.integers(0, 2**32 - 1),
)
def test_aligned_frame_is_its_bits_from_the_first_and_zeros_behind_them(
    rows: int, columns: int, frames: int, each: int, syntax: Syntax, seed: int
) -> None:
    bits = random_bits(frames, rows * columns * each, seed)
    content = file_of(bits, rows, columns, each, syntax, "OB")
    try:
        table = read_table(content)
    except FormatError as refused:  # as long as if each frame began with a byte of its own
        assert refused.kind == "ambiguous_frame_size"
        return
    assert table.frame_bits == bits.shape[1]
    for index, frame in enumerate(bits):
        assert read_frame(content, table, index, align=True) == packed(frame)
        stored = np.unpackbits(np.frombuffer(read_frame(content, table, index), np.uint8), bitorder="little")
        first = table.bit_offset(index)
        assert np.array_equal(stored[first : first + len(frame)], frame)


@pytest.mark.parametrize(
    ("rows", "columns", "frames"), [(1, 1, 64), (1, 5, 40), (3, 7, 33), (5, 5, 9), (8, 8, 5), (513, 511, 7)]
)
def test_reader_and_memory_align_as_the_file_does(
    tmp_path: Path, rows: int, columns: int, frames: int
) -> None:
    bits = random_bits(frames, rows * columns, rows)
    path = tmp_path / "a.dcm"
    path.write_bytes(file_of(bits, rows, columns, 1, EXPLICIT_LE, "OB"))
    table = read_table(path)
    wanted = [packed(frame) for frame in bits]
    assert [read_frame(path, table, index, align=True) for index in range(frames)] == wanted
    cache = FrameCache(1 << 20)
    cache.put_table("a", table)
    order = [*range(frames), *reversed(range(frames))]
    assert cache.read("a", path, order, align=True) == [wanted[index] for index in order]
    assert cache.read("a", path, order) == [read_frame(path, table, index) for index in order]
    with FrameReader(None, publish=False) as reader:
        assert reader.frames(str(path), order, align=True) == [wanted[index] for index in order]
        assert reader.frame(str(path), frames - 1) == read_frame(path, table, frames - 1)
        assert reader.frame(str(path), frames - 1, align=True) == wanted[-1]
        assert asyncio.run(reader.aframe(str(path), frames - 1, align=True)) == wanted[-1]
    with FrameReader(None, budget_bytes=0, publish=False) as without_memory:
        assert without_memory.frame(str(path), frames - 1, align=True) == wanted[-1]


@pytest.mark.parametrize("case", [case for case in CASES if case.error is None], ids=repr)
def test_frames_of_whole_bytes_stay_as_they_are(case: Case) -> None:
    table = read_table(case.content)
    if (table.frame_bits or 0) % 8:
        return
    for index in range(len(case.pixels)):
        frame = read_frame(case.content, table, index)
        assert read_frame(case.content, table, index, align=True) == frame


@pytest.mark.parametrize(
    ("rows", "columns", "each", "frames", "is_refused"),
    [
        (1, 5, 1, 1, True),
        (1, 5, 1, 4, True),
        (1, 8, 1, 2, True),
        (3, 5, 8, 2, True),
        (4, 4, 1, 3, False),
        (2, 4, 8, 3, False),
        (3, 5, 8, 1, False),
        (1, 3, 16, 5, False),
    ],
)
def test_frames_that_end_within_a_swapped_word_are_refused(
    rows: int, columns: int, each: int, frames: int, *, is_refused: bool
) -> None:
    """A big endian OW swaps the bytes of each word (PS3.5 8.2): half a word is no range of bytes."""
    bits = random_bits(frames, rows * columns * each, 1)
    assert len(read_table(file_of(bits, rows, columns, each, EXPLICIT_BE, "OB"))) == frames
    content = file_of(bits, rows, columns, each, EXPLICIT_BE, "OW")
    if is_refused:
        with pytest.raises(FormatError, match=r"ambiguous_frame_size.*16-bit words"):
            read_table(content)
    else:
        assert len(read_table(content)) == frames
