"""The header before a frame is read with it and must be the table's, whatever the clocks say."""

from __future__ import annotations

import pytest

from frames.dicom.cases import CASES
from frames.dicom.cases.model import Case, native
from frames.dicom.cases.model import encapsulated as fragmented
from support.builders import EXPLICIT_BE, IMPLICIT_LE, RLE, jpeg, pattern
from voxtier.errors import FormatError, SourceError, VoxtierError
from voxtier.frames import FrameCache, FrameTable, RangedSource, read_frame, read_table
from voxtier.frames.dicom.table import Verify

READABLE = [case for case in CASES if case.error is None and case.pixels]
DEPTHS: list[Verify] = ["all", "ends"]
PIECES = [jpeg(20, 0), pattern(10, 1), jpeg(26, 2), pattern(12, 3), pattern(8, 4), jpeg(30, 5)]
GROUPS = [[0, 1], [2, 3, 4], [5]]


def has_header(case: Case, table: FrameTable, index: int) -> bool:
    """Native frames behind the first have no header of their own."""
    return case.kind != "native" or table.ranges(index)[0][0] == table.ranges(0)[0][0]


@pytest.mark.parametrize("verify", DEPTHS)
@pytest.mark.parametrize("case", READABLE, ids=repr)
def test_bytes_that_moved_are_refused(case: Case, verify: Verify) -> None:
    """The same size, no times to compare, every byte two places later: nothing but the header tells."""
    table = read_table(case.content, verify=verify)
    moved = case.content[-2:] + case.content[:-2]
    cache = FrameCache(1 << 24)
    cache.put_table("a", table)
    for index in range(len(case.pixels)):
        if has_header(case, table, index):
            with pytest.raises(VoxtierError):
                read_frame(moved, table, index)
            with pytest.raises(VoxtierError):
                cache.read("a", moved, [index])


@pytest.mark.parametrize("verify", DEPTHS)
@pytest.mark.parametrize("case", READABLE, ids=repr)
def test_every_frame_is_read_by_its_table_and_from_memory(case: Case, verify: Verify) -> None:
    """Also where an Item counts a few bytes too many, which the walk has put right."""
    table = read_table(case.content, verify=verify)
    cache = FrameCache(1 << 24)
    cache.put_table("a", table)
    kept = cache.table("a")
    assert kept is not None
    order = [*range(len(case.pixels)), *reversed(range(len(case.pixels)))]
    wanted = [case.pixels[index] for index in order]
    assert [read_frame(case.content, table, index) for index in order] == wanted
    assert [read_frame(case.content, kept, index) for index in order] == wanted
    try:
        assert cache.read("a", case.content, order) == wanted
    except FormatError as error:  # the file's own table is wrong in the middle: a walk is asked for
        assert (error.kind, verify) == ("bad_table", "ends")


def walked() -> tuple[bytes, FrameTable]:
    case = fragmented("a", PIECES, groups=GROUPS)
    return case.content, read_table(case.content, verify="all")


@pytest.mark.parametrize("byte", range(8))
def test_damage_of_any_byte_of_an_item_header_is_noticed(byte: int) -> None:
    content, table = walked()
    cache = FrameCache(1 << 20)
    cache.put_table("a", table)
    for index in range(len(table)):
        for start, _ in table.ranges(index):
            damaged = bytearray(content)
            damaged[start - 8 + byte] ^= 0x10
            with pytest.raises(SourceError, match="changed_during_read"):
                read_frame(bytes(damaged), table, index)
            for frames in ([index], [0, 1, 2], [2, 1, 0]):
                with pytest.raises(FormatError, match="bad_table"):
                    cache.read("a", bytes(damaged), frames)


@pytest.mark.parametrize("frames", [[0], [1], [0, 1, 2, 3], [3, 2], [1, 2]])
def test_each_header_within_a_run_of_neighbours_is_compared(frames: list[int]) -> None:
    case = fragmented("a", [pattern(20 + 2 * n, n) for n in range(4)], syntax=RLE)
    table = read_table(case.content, verify="all")
    cache = FrameCache(1 << 20)
    cache.put_table("a", table)
    assert cache.read("a", case.content, frames) == [case.pixels[index] for index in frames]
    for index in range(4):
        damaged = bytearray(case.content)
        damaged[table.ranges(index)[0][0] - 4] += 2
        if index in frames:
            with pytest.raises(FormatError, match="bad_table"):
                cache.read("a", bytes(damaged), frames)
        else:
            assert cache.read("a", bytes(damaged), frames) == [case.pixels[index] for index in frames]


@pytest.mark.parametrize(
    "case", [native("le"), native("i", syntax=IMPLICIT_LE), native("be", syntax=EXPLICIT_BE)]
)
def test_first_native_frame_has_pixel_data_before_it(case: Case) -> None:
    table = read_table(case.content)
    assert read_frame(case.content, table, 0) == case.pixels[0]
    assert table.pixel_data_pos is not None
    for byte in range(4):
        damaged = bytearray(case.content)
        damaged[table.pixel_data_pos + byte] ^= 0x40
        with pytest.raises(SourceError, match="changed_during_read"):
            read_frame(bytes(damaged), table, 0)


@pytest.mark.parametrize("content", [walked()[0], native("a", frames=3).content], ids=["items", "native"])
def test_header_costs_no_request_of_its_own(content: bytes) -> None:
    table = read_table(content, verify="all")
    asked: list[int] = []

    def read(offset: int, length: int) -> bytes:
        asked.append(length)
        return content[offset : offset + length]

    for index in range(len(table)):
        asked.clear()
        assert read_frame(RangedSource(read, len(content)), table, index) == read_frame(content, table, index)
        ranges = table.ranges(index)
        assert len(asked) == 1  # fragments that lie together are asked for together
        assert sum(asked) - sum(end - start for start, end in ranges) <= 12 * len(ranges)
