"""Files that attack the parser: lengths that lie, sizes that overflow, bombs, endless work."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from frames.dicom.cases import CASES
from frames.dicom.peak_memory import peak_kib
from frames.dicom.sources import Store
from support.builders import (
    DEFLATED_LE,
    EXPLICIT_LE,
    JPEG,
    Element,
    Fragments,
    Items,
    dicom,
    element,
    encode,
    file_meta,
    image,
    item_header,
    jpeg,
    pattern,
)
from voxtier._core import ERROR_KINDS
from voxtier.errors import FormatError
from voxtier.frames import RangedSource, read_table

NAMED = {case.name: case for case in CASES}

HOSTILE_LENGTHS = [0, 1, 7, 0xFFFE, 2**31 - 1, 2**31, 2**32 - 16, 2**32 - 2, 2**32 - 1]


SMALL = [
    "n01_explicit_le",
    "n02_implicit_le_3f",
    "n33_icon_undefined",
    "e04_bot_multifrag",
    "e10_eot",
    "e31_video_1frag_100f",
]


@pytest.mark.parametrize("name", SMALL)
def test_every_length_field_made_hostile_is_refused_or_read_inside_the_file(name: str) -> None:
    """Every four bytes of the file in turn become a length that reaches beyond everything."""
    content = NAMED[name].content
    for at in range(128, len(content) - 4):
        for length in HOSTILE_LENGTHS:
            mutated = content[:at] + struct.pack("<I", length) + content[at + 4 :]
            try:
                table = read_table(mutated, verify="all")
            except FormatError as refused:
                assert refused.kind in ERROR_KINDS
                continue
            whole = len(table) if table.truncated_from is None else table.truncated_from
            if whole < 1000:
                assert all(end <= len(mutated) for index in range(whole) for _, end in table.ranges(index))


def test_memory_never_follows_a_declared_length(tmp_path: Path) -> None:
    """4 GiB are declared by a table, a value and a fragment; the process takes next to nothing."""
    four_gib = 0xFFFFFFFE
    elements = {
        "table": [element("ExtendedOffsetTable", b""), element("PixelData", Fragments([jpeg(20)]), "OB")],
        "value": [Element(0x00291010, "OB", b"", four_gib)],
        "text": [Element(0x00280008, "UT", b"", four_gib)],
        "bot": [Element(0x7FE00010, "OB", item_header(four_gib), 0xFFFFFFFF)],
        "item": [Element(0x7FE00010, "OB", item_header(0) + item_header(four_gib), 0xFFFFFFFF)],
    }
    elements["table"][0] = Element(0x7FE00001, "OV", bytes(8), four_gib)
    for name, extra in elements.items():
        (tmp_path / name).write_bytes(dicom([*image(), *extra], JPEG).content)
    script = """
for path in sys.argv[1:]:
    try:
        read_table(path, verify="all")
    except VoxtierError:
        pass
"""
    assert peak_kib(script, *(str(tmp_path / name) for name in elements)) < 8 * 1024


def test_offset_tables_of_3_gib_cost_no_memory(tmp_path: Path) -> None:
    """The declared bytes are really there, as a hole of 3 GiB in the file."""
    gib = 2**30
    offsets = Element(0x7FE00001, "OV", b"", 3 * gib)
    head = dicom([*image(frames=3), offsets], JPEG).content
    pixels = element("PixelData", Fragments([jpeg(20)] * 3), "OB").encode(EXPLICIT_LE)
    path = tmp_path / "eot"
    with path.open("wb") as file:
        file.write(head)
        file.seek(len(head) + 3 * gib)
        file.write(pixels)
    assert peak_kib("assert len(read_table(sys.argv[1])) == 3", str(path)) < 8 * 1024
    matching = dicom([*image(frames=3 * gib // 8), offsets], JPEG).content
    with path.open("r+b") as file:
        file.write(matching)
        file.seek(len(matching) + 3 * gib)
        file.write(pixels)
    refused = """
try:
    read_table(sys.argv[1])
except VoxtierError as refused:
    assert refused.kind == "fewer_fragments_than_frames", refused
"""
    assert peak_kib(refused, str(path)) < 8 * 1024
    path = tmp_path / "bot"
    with path.open("wb") as file:
        head = dicom([*image(frames=3), Element(0x7FE00010, "OB", item_header(3 * gib), 0xFFFFFFFF)], JPEG)
        file.write(head.content)
        file.seek(len(head.content) + 3 * gib)
        file.write(Fragments([jpeg(20)] * 3).encode(EXPLICIT_LE)[8:])
    script = """
try:
    assert len(read_table(sys.argv[1])) == 3
except VoxtierError as refused:
    assert refused.kind == "limit_exceeded"
"""
    assert peak_kib(script, str(path)) < 8 * 1024


@pytest.mark.parametrize("frames", [1, 4096, 2**31 - 1])
def test_the_largest_frame_that_attributes_allow_does_not_overflow(frames: int) -> None:
    """Rows x Columns x Samples x Bits x Frames leaves 64 bits behind when all are at their largest."""
    attributes = image(rows=65535, columns=65535, samples=65535, bits=65535, frames=frames)
    content = dicom([*attributes, element("PixelData", pattern(64))]).content
    try:
        table = read_table(content)
    except FormatError as refused:
        assert refused.kind in {"limit_exceeded", "frames_exceed_pixel_data"}
    else:
        assert (table.status, table.truncated_from) == ("truncated", 0)


def test_rows_and_columns_of_32_bits_do_not_overflow() -> None:
    """UL where US is due, 2^32 - 1 rows and columns."""
    kept = [each for each in image() if each.tag not in (0x00280010, 0x00280011)]
    giant = [Element(0x00280010, "UL", 2**32 - 1), Element(0x00280011, "UL", 2**32 - 1)]
    elements = sorted([*kept, *giant], key=lambda each: each.tag)
    content = dicom([*elements, element("PixelData", pattern(64))]).content
    try:
        table = read_table(content)
    except FormatError as refused:
        assert refused.kind in {"limit_exceeded", "frames_exceed_pixel_data"}
    else:
        assert (table.status, table.truncated_from) == ("truncated", 0)


@pytest.mark.parametrize("offset", [2**32 - 8, 2**63, 2**64 - 8, 2**64 - 1])
def test_extended_offsets_that_wrap_are_rejected(offset: int) -> None:
    tables = [
        element("ExtendedOffsetTable", (0, offset)),
        element("ExtendedOffsetTableLengths", (20, 2**64 - 1)),
    ]
    content = dicom([*image(frames=2), *tables, element("PixelData", Fragments([jpeg(20)] * 2), "OB")], JPEG)
    for verify in ("all", "ends"):
        table = read_table(content.content, verify=verify)
        assert "eot_rejected" in table.notes
        assert table.method == "one_fragment_per_frame"


def test_one_bit_frames_are_addressed_by_arithmetic() -> None:
    """One-bit frames of one pixel: 4,096 frames in a few bytes, none of them a row in memory."""
    value = pattern(512)
    attributes = image(rows=1, columns=1, bits=1, frames=4096)
    table = read_table(dicom([*attributes, element("PixelData", value)]).content)
    assert len(table) == 4096
    assert (table.ranges(4095)[0][1] - table.ranges(0)[0][0], table.bit_offset(4095)) == (512, 7)


def test_a_deflate_bomb_is_refused_or_read_in_bounded_memory(tmp_path: Path) -> None:
    """2 GiB of zeros in 2 MB: refused or read, in any case without holding them."""
    deflater = zlib.compressobj(9, wbits=-15)
    pixels = Element(0x7FE00010, "OW", b"", 2**31)
    start = deflater.compress(encode(image()) + pixels.header(EXPLICIT_LE))
    start += deflater.flush(zlib.Z_FULL_FLUSH)
    # A flushed block stands for itself, so that one of 16 MiB can be repeated.
    block = deflater.compress(bytes(2**24)) + deflater.flush(zlib.Z_FULL_FLUSH)
    body = [start, *[block] * 2**7, deflater.flush()]
    path = tmp_path / "bomb.dcm"
    path.write_bytes(bytes(128) + b"DICM" + file_meta(DEFLATED_LE) + b"".join(body))
    script = """
try:
    read_table(sys.argv[1])
except VoxtierError as refused:
    assert refused.kind == "limit_exceeded", refused
"""
    assert peak_kib(script, str(path)) < 600 * 1024


def test_deep_nesting_of_defined_lengths_is_skipped() -> None:
    """Three hundred levels of defined lengths cost nothing: they are skipped whole."""
    inner = encode([element("Modality", "OT")])
    for _ in range(300):
        inner = Element(0x00291010, "SQ", item_header(len(inner)) + inner).encode(EXPLICIT_LE)
    content = dicom([*image(), Element(0x00291010, "SQ", inner), element("PixelData", pattern(16))]).content
    assert len(read_table(content)) == 1


def test_endless_empty_fragments_end_at_the_limit() -> None:
    """A gigabyte of empty Items, made on demand: the budget ends the walk before memory does."""
    head = dicom([*image(frames=2), Element(0x7FE00010, "OB", item_header(0), 0xFFFFFFFF)], JPEG).content
    items = item_header(0) * 2**17

    def read(offset: int, length: int) -> bytes:
        start = head[offset : offset + length]
        phase = (max(offset, len(head)) - len(head)) % 8
        endless = items * (length // len(items) + 2)
        return start + endless[phase : phase + length - len(start)]

    with pytest.raises(FormatError) as caught:
        read_table(RangedSource(read, 2**30), verify="all")
    assert caught.value.kind == "limit_exceeded"


def requests(content: bytes, verify: str = "all") -> Store:
    store = Store(content)
    read_table(store.source, verify=verify)
    return store


def test_a_small_file_is_read_in_one_request() -> None:
    content = dicom([*image(), element("PixelData", pattern(100_000))]).content
    assert len(requests(content).requests) == 1


def test_defined_lengths_are_jumped_over() -> None:
    """A private element of 50 MB before the pixels costs two requests, not 50 MB."""
    ballast = Element(0x00291010, "OB", bytes(50_000_000))
    content = dicom([*image(), ballast, element("PixelData", pattern(16))]).content
    store = requests(content)
    assert len(store.requests) <= 3
    assert store.bytes_asked < 200_000


@pytest.mark.parametrize("undefined", [False, True])
def test_nested_items_are_read_once(undefined: bool) -> None:
    """Twice the functional groups, twice the bytes asked: nothing is read again and again."""
    asked = []
    for count in (5_000, 10_000, 20_000):
        items = Items([[element("Modality", "OT")]] * count, undefined=undefined)
        groups = element("PerFrameFunctionalGroups", items)
        content = dicom([*image(), groups, element("PixelData", pattern(16))]).content
        asked.append(requests(content).bytes_asked / len(content))
    assert max(asked) < 1.5


@pytest.mark.parametrize("verify", ["ends", "all"])
@pytest.mark.parametrize("wrong", [False, True])
def test_the_walk_over_fragments_reads_linearly_many_bytes(verify: str, wrong: bool) -> None:
    """Bytes asked per fragment do not grow with their number, nor when a table has to be rejected."""
    per_fragment = []
    for count in (1_000, 10_000):
        payloads = [jpeg(20)] * count
        bot = [28 * index for index in range(count)]
        if wrong:
            bot[count // 2] += 2
        pixels = element("PixelData", Fragments(payloads, bot), "OB")
        content = dicom([*image(frames=count), pixels], JPEG).content
        store = requests(content, verify)
        per_fragment.append(store.bytes_asked / count)
        assert len(store.requests) < 40 + count
    assert per_fragment[1] < 2 * per_fragment[0]
    assert per_fragment[1] < 200


def test_markers_cost_at_most_three_requests_a_fragment() -> None:
    """Markers cost at most two small requests a fragment."""
    payloads = [jpeg(20)[:10], jpeg(20)[10:]] * 2_000
    pixels = element("PixelData", Fragments(payloads), "OB")
    store = requests(dicom([*image(frames=2_000), pixels], JPEG).content)
    assert len(store.requests) < 3 * len(payloads)
