"""Frames that come straight into their `bytes`: many at once, in any order, in pieces, of a wrong table."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from support.builders import EXPLICIT_LE, JPEG, Fragments, dicom, element, image
from voxtier.errors import FormatError, SourceError
from voxtier.frames import FrameCache, FrameReader, RangedSource, read_frames, read_table

FRAMES, EACH = 700, 300
Read = Callable[[Path, Sequence[int]], list[bytes]]


def native() -> tuple[bytes, list[bytes]]:
    pixels = random.Random(1).randbytes(FRAMES * EACH)
    attributes = image(rows=15, columns=20, bits=8, frames=FRAMES)
    content = dicom([*attributes, element("PixelData", pixels, "OB")], EXPLICIT_LE).content
    return content, [pixels[first : first + EACH] for first in range(0, len(pixels), EACH)]


def compressed() -> tuple[bytes, list[bytes]]:
    """One Item a frame, of lengths from 6 bytes on."""
    frames = [
        b"\xff\xd8" + index.to_bytes(2, "little") + bytes(2 * (index % 90)) + b"\xff\xd9"
        for index in range(FRAMES)
    ]
    content = dicom(
        [*image(frames=FRAMES), element("PixelData", Fragments(frames, table=[]), "OB")], JPEG
    ).content
    return content, frames


def in_pieces() -> tuple[bytes, list[bytes]]:
    """Of one to three Items a frame."""
    _, frames = compressed()
    pieces = [
        [frame] if index % 3 == 0 or len(frame) < 30 else [frame[:10], frame[10:12], frame[12:]]
        for index, frame in enumerate(frames)
    ]
    items = [piece for each in pieces for piece in each]
    content = dicom(
        [*image(frames=FRAMES), element("PixelData", Fragments(items, table=[]), "OB")], JPEG
    ).content
    return content, frames


def by_reader(path: Path, wanted: Sequence[int]) -> list[bytes]:
    with FrameReader(publish=False, verify="all") as reader:
        reader.table(str(path))  # into memory
        return reader.frames(str(path), wanted)


def at_once(path: Path, wanted: Sequence[int]) -> list[bytes]:
    with FrameReader(publish=False, verify="all") as reader:
        reader.table(str(path))
        return asyncio.run(reader.aframes(str(path), wanted))


def by_descriptor(path: Path, wanted: Sequence[int]) -> list[bytes]:
    table = read_table(path, verify="all")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_frames(descriptor, table, wanted)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("make", [native, compressed, in_pieces])
@pytest.mark.parametrize("read", [by_reader, at_once, by_descriptor])
def test_many_frames_at_once_are_those_of_the_file(
    make: Callable[[], tuple[bytes, list[bytes]]], read: Read, tmp_path: Path
) -> None:
    content, frames = make()
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    some = random.Random(2)
    for wanted in (
        range(FRAMES),
        range(FRAMES - 1, -1, -1),
        some.choices(range(FRAMES), k=900),
        [5, 5, 5],
        [0],
        [],
    ):
        assert read(path, wanted) == [frames[index] for index in wanted]


def test_another_header_amid_many_frames_lets_none_of_them_out() -> None:
    content, frames = compressed()
    table = read_table(content, verify="all")
    cache = FrameCache(1 << 24)
    cache.put_table("a", table)
    damaged = bytearray(content)
    damaged[table.ranges(600)[0][0] - 4] ^= 2  # the length that its Item has
    wanted = list(range(FRAMES))
    with pytest.raises(FormatError):
        cache.read("a", bytes(damaged), wanted)
    with pytest.raises(SourceError):
        read_frames(bytes(damaged), table, wanted)
    assert read_frames(bytes(damaged), table, wanted[:600]) == frames[:600]


@pytest.mark.parametrize("align", [False, True])
def test_more_of_a_remote_object_than_is_kept_takes_no_byte_three_times(align: bool) -> None:
    """It asked for one block again and again, which was given up as soon as it came."""
    count, each = 130, 1 << 20
    pixels = b"".join(index.to_bytes(1, "big") * each for index in range(count))
    attributes = image(rows=1024, columns=1024, bits=8, frames=count)
    content = dicom([*attributes, element("PixelData", pixels, "OB")], EXPLICIT_LE).content
    moved = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal moved
        moved += length
        assert moved < 3 * len(content), "it goes on for ever"
        return content[offset : offset + length]

    cache = FrameCache(1 << 24)
    cache.put_table("a", read_table(content, verify="all"))
    order = [*range(count - 10, count), *range(count)]
    found = cache.read("a", RangedSource(read, len(content)), order, align=align)
    assert [frame[:1] + frame[-1:] for frame in found] == [bytes([index, index]) for index in order]
    moved = 0
    found = read_frames(
        RangedSource(read, len(content)), read_table(content, verify="all"), range(count), align=align
    )
    assert [frame[0] for frame in found] == list(range(count))
    assert all(len(frame) == each for frame in found)
