"""The packed table and the record around it: what goes in comes out, and nothing damaged is accepted."""

from __future__ import annotations

import copy
import pickle
import random
import struct

import numpy as np
import pytest

from frames.dicom.cases import CASES, Case
from support.builders import RLE, Element, Fragments, dicom, element, image, pattern
from voxtier.errors import FormatError
from voxtier.frames import FrameTable, read_frame, read_table

SMALL = [case for case in CASES if not case.error]
ATTRIBUTES = [
    name
    for name, value in vars(FrameTable).items()
    if isinstance(value, property) or type(value).__name__ == "getset_descriptor"
]


def everything(table: FrameTable) -> dict[str, object]:
    """Every attribute of a table, arrays as lists."""
    return {
        name: value.tolist() if isinstance(value := getattr(table, name), np.ndarray) else value
        for name in ATTRIBUTES
    }


def test_the_comparison_covers_every_attribute() -> None:
    assert {"status", "offsets", "frame_first", "notes", "mtime_ns", "packed", "truncated_from"} <= set(
        ATTRIBUTES
    )


@pytest.mark.parametrize("verify", ["ends", "all"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_records_pickles_and_copies_give_equal_tables(case: Case, verify: str) -> None:
    table = read_table(case.content, verify=verify)
    for again in (
        FrameTable.from_bytes(table.to_bytes()),
        pickle.loads(pickle.dumps(table)),
        copy.deepcopy(table),
    ):
        assert again == table
        assert hash(again) == hash(table)
        assert everything(again) == everything(table)
        assert again.to_bytes() == table.to_bytes()
        assert [again.ranges(i) for i in range(len(again))] == [table.ranges(i) for i in range(len(table))]
        for index, frame in enumerate(case.pixels):
            assert read_frame(case.content, again, index) == frame


def test_tables_of_different_files_differ() -> None:
    tables = {read_table(case.content) for case in SMALL}
    assert len(tables) > len(SMALL) / 2


def test_a_table_is_immutable() -> None:
    table = read_table(SMALL[0].content)
    with pytest.raises(AttributeError):
        table.status = "ok"  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        table.offsets[0] = 0


def native_golden() -> bytes:
    """Three frames of 512 KiB at byte 1352."""
    attributes = image(rows=512, columns=512, bits=16, frames=3)
    pixels = element("PixelData", b"")
    bare = len(dicom([*attributes, pixels]).content)
    gap = Element(0x00291010, "OB", bytes(1352 - bare - 12))
    layout = dicom([*attributes, gap, element("PixelData", bytes(3 * 524_288))])
    assert layout.value == 1352
    return layout.content


def test_a_packed_native_table_is_these_bytes() -> None:
    table = read_table(native_golden())
    assert table.packed.hex() == "010102009e843e55030000000300000048050000000000000000400000000000"


def checked(packed: bytes) -> bytes:
    """A packed table with its checksum (CRC-32C over the table with that field 0) set right."""
    blank = packed[:4] + bytes(4) + packed[8:]
    return blank[:4] + struct.pack("<I", crc32c(blank)) + blank[8:]


def crc32c(content: bytes) -> int:
    """Castagnoli's polynomial, bit by bit."""
    register = 0xFFFFFFFF
    for byte in content:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize("case", [case for case in SMALL if len(case.ranges) < 20], ids=str)
def test_the_packed_header_holds_version_checksum_and_counts(case: Case) -> None:
    """Version, checksum and counts lie where reference readers (SQL among them) look for them."""
    table = read_table(case.content, verify="all")
    packed = table.packed
    if not packed:
        assert len(table) == 0
        return
    assert packed[0] == 1
    assert packed[1] in {1, 2, 3, 4, 5}
    assert packed == checked(packed)
    items, frames = struct.unpack_from("<II", packed, 8)
    assert (items, frames) == (table.fragment_count, len(table))
    assert len(packed) % 8 == 0


@pytest.mark.parametrize(
    "name",
    [
        "n02_implicit_le_3f",
        "n10_1bit_unaligned_4f",
        "e04_bot_multifrag",
        "e19_bot_out_of_order",
        "e48_1000_frames_bot",
    ],
)
def test_any_flipped_byte_is_refused(name: str) -> None:
    record = read_table(next(case for case in SMALL if case.name == name).content, verify="all").to_bytes()
    for at in range(len(record)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(record)
            damaged[at] ^= flip
            with pytest.raises(FormatError) as caught:
                FrameTable.from_bytes(bytes(damaged))
            assert caught.value.kind == "bad_table"


@pytest.mark.parametrize("name", ["n02_implicit_le_3f", "e04_bot_multifrag", "e48_1000_frames_bot"])
def test_any_cut_or_longer_record_is_refused(name: str) -> None:
    record = read_table(next(case for case in SMALL if case.name == name).content).to_bytes()
    for damaged in [*(record[:length] for length in range(len(record))), record + b"\0", record * 2]:
        with pytest.raises(FormatError) as caught:
            FrameTable.from_bytes(damaged)
        assert caught.value.kind == "bad_table"


def test_random_bytes_are_refused() -> None:
    chance = random.Random(7)
    record = read_table(SMALL[0].content).to_bytes()
    for _ in range(5_000):
        noise = record[: chance.randrange(40)] + chance.randbytes(chance.randrange(200))
        with pytest.raises(FormatError):
            FrameTable.from_bytes(noise)


def test_a_packed_frame_takes_no_bytes_if_native_and_five_if_encapsulated() -> None:
    """What the store holds: nothing a native frame, at most five bytes an encapsulated one."""
    native = read_table(dicom([*image(frames=4000), element("PixelData", pattern(64_000))]).content)
    assert len(native.packed) == 32
    payloads = [pattern(20 + index % 50 * 2) for index in range(4000)]
    content = dicom([*image(frames=4000), element("PixelData", Fragments(payloads), "OB")], RLE).content
    assert len(read_table(content, verify="all").packed) <= 5 * 4000
