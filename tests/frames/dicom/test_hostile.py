"""Attacks on the parser, each with its outcome: a clear refusal, within little memory and little work."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from builders import (
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
from frames.dicom.cases import CASES
from frames.dicom.sources import Store
from peak import PEAK_KIB
from voxtier._core import ERROR_KINDS
from voxtier.errors import FormatError, SourceError
from voxtier.frames import RangedSource, read_frame, read_table, read_tables

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


def kind_of(content: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        read_table(content, verify="all")
    return caught.value.kind


def peak_kib(script: str, *arguments: str) -> int:
    """Peak memory that a script takes beyond the import of voxtier, in a process of its own."""
    whole = f"""
import sys
from voxtier.frames import read_table, read_frame
from voxtier.errors import VoxtierError
{PEAK_KIB}
before = peak_kib()
{script}
print(peak_kib() - before)
"""
    done = subprocess.run([sys.executable, "-c", whole, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


class TestLengthsThatLie:
    @pytest.mark.parametrize("name", SMALL)
    def test_every_length_field(self, name: str) -> None:
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
                    assert all(
                        end <= len(mutated) for index in range(whole) for _, end in table.ranges(index)
                    )

    def test_memory_never_follows_a_declared_length(self, tmp_path: Path) -> None:
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

    def test_sparse_giant_tables_cost_no_memory(self, tmp_path: Path) -> None:
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
            head = dicom(
                [*image(frames=3), Element(0x7FE00010, "OB", item_header(3 * gib), 0xFFFFFFFF)], JPEG
            )
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


class TestSizesThatOverflow:
    @pytest.mark.parametrize("frames", [1, 4096, 2**31 - 1])
    def test_largest_frame_there_is(self, frames: int) -> None:
        """Rows x Columns x Samples x Bits x Frames leaves 64 bits behind when all are at their largest."""
        attributes = image(rows=65535, columns=65535, samples=65535, bits=65535, frames=frames)
        content = dicom([*attributes, element("PixelData", pattern(64))]).content
        try:
            table = read_table(content)
        except FormatError as refused:
            assert refused.kind in {"limit_exceeded", "frames_exceed_pixel_data"}
        else:
            assert (table.status, table.truncated_from) == ("truncated", 0)

    def test_rows_as_long(self) -> None:
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
    def test_extended_offsets_that_wrap(self, offset: int) -> None:
        tables = [
            element("ExtendedOffsetTable", (0, offset)),
            element("ExtendedOffsetTableLengths", (20, 2**64 - 1)),
        ]
        content = dicom(
            [*image(frames=2), *tables, element("PixelData", Fragments([jpeg(20)] * 2), "OB")], JPEG
        )
        for verify in ("all", "ends"):
            table = read_table(content.content, verify=verify)
            assert "eot_rejected" in table.notes
            assert table.method == "one_fragment_per_frame"

    def test_two_billion_native_frames_are_arithmetic(self) -> None:
        """One-bit frames of one pixel: 4,096 frames in a few bytes, none of them a row in memory."""
        value = pattern(512)
        attributes = image(rows=1, columns=1, bits=1, frames=4096)
        table = read_table(dicom([*attributes, element("PixelData", value)]).content)
        assert len(table) == 4096
        assert (table.ranges(4095)[0][1] - table.ranges(0)[0][0], table.bit_offset(4095)) == (512, 7)


class TestBombs:
    def test_deflate_bomb(self, tmp_path: Path) -> None:
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

    def test_deep_nesting_in_defined_lengths(self) -> None:
        """Three hundred levels of defined lengths cost nothing: they are skipped whole."""
        inner = encode([element("Modality", "OT")])
        for _ in range(300):
            inner = Element(0x00291010, "SQ", item_header(len(inner)) + inner).encode(EXPLICIT_LE)
        content = dicom(
            [*image(), Element(0x00291010, "SQ", inner), element("PixelData", pattern(16))]
        ).content
        assert len(read_table(content)) == 1

    def test_endless_empty_fragments(self) -> None:
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


class TestWork:
    """Deterministic counters instead of clocks: how often and how much the parser asks of its source."""

    @staticmethod
    def requests(content: bytes, verify: str = "all") -> Store:
        store = Store(content)
        read_table(store.source, verify=verify)
        return store

    def test_small_file_is_one_request(self) -> None:
        content = dicom([*image(), element("PixelData", pattern(100_000))]).content
        assert len(self.requests(content).requests) == 1

    def test_defined_lengths_are_jumped_over(self) -> None:
        """A private element of 50 MB before the pixels costs two requests, not 50 MB."""
        ballast = Element(0x00291010, "OB", bytes(50_000_000))
        content = dicom([*image(), ballast, element("PixelData", pattern(16))]).content
        store = self.requests(content)
        assert len(store.requests) <= 3
        assert store.bytes_asked < 200_000

    @pytest.mark.parametrize("undefined", [False, True])
    def test_nested_items_are_read_once(self, undefined: bool) -> None:
        """Twice the functional groups, twice the bytes asked: nothing is read again and again."""
        asked = []
        for count in (5_000, 10_000, 20_000):
            items = Items([[element("Modality", "OT")]] * count, undefined=undefined)
            groups = element("PerFrameFunctionalGroups", items)
            content = dicom([*image(), groups, element("PixelData", pattern(16))]).content
            asked.append(self.requests(content).bytes_asked / len(content))
        assert max(asked) < 1.5

    @pytest.mark.parametrize("verify", ["ends", "all"])
    @pytest.mark.parametrize("wrong", [False, True])
    def test_walk_is_linear(self, verify: str, wrong: bool) -> None:
        """Bytes asked per fragment do not grow with their number, nor when a table has to be rejected."""
        per_fragment = []
        for count in (1_000, 10_000):
            payloads = [jpeg(20)] * count
            bot = [28 * index for index in range(count)]
            if wrong:
                bot[count // 2] += 2
            pixels = element("PixelData", Fragments(payloads, bot), "OB")
            content = dicom([*image(frames=count), pixels], JPEG).content
            store = self.requests(content, verify)
            per_fragment.append(store.bytes_asked / count)
            assert len(store.requests) < 40 + count
        assert per_fragment[1] < 2 * per_fragment[0]
        assert per_fragment[1] < 200

    def test_markers_are_looked_at_once(self) -> None:
        """Markers cost at most two small requests a fragment."""
        payloads = [jpeg(20)[:10], jpeg(20)[10:]] * 2_000
        pixels = element("PixelData", Fragments(payloads), "OB")
        store = self.requests(dicom([*image(frames=2_000), pixels], JPEG).content)
        assert len(store.requests) < 3 * len(payloads)


class TestReadersThatMisbehave:
    CONTENT = NAMED["e04_bot_multifrag"].content

    def test_short_read_is_an_error(self) -> None:
        """A reader that gives less than is there must not lead to bytes that nobody read."""
        table = read_table(self.CONTENT)
        source = RangedSource(
            lambda offset, length: self.CONTENT[offset : offset + length // 2], len(self.CONTENT)
        )
        with pytest.raises(SourceError):
            read_frame(source, table, 1)

    def test_longer_answer_than_asked(self) -> None:
        source = RangedSource(
            lambda offset, length: self.CONTENT[offset : offset + length + 9], len(self.CONTENT)
        )
        with pytest.raises((SourceError, ValueError)):
            read_frame(source, read_table(self.CONTENT), 0)

    def test_size_that_lies(self) -> None:
        source = RangedSource(lambda offset, length: self.CONTENT[offset : offset + length], 2**62)
        with pytest.raises((SourceError, FormatError)):
            read_table(source, verify="all")

    def test_exception_of_the_reader_comes_through(self) -> None:
        def read(offset: int, length: int) -> bytes:
            raise PermissionError(13, "the bucket is closed")

        with pytest.raises((SourceError, PermissionError), match="bucket is closed"):
            read_table(RangedSource(read, 1000))

    def test_answer_that_is_no_bytes(self) -> None:
        source = RangedSource(lambda offset, length: "text", 1000)  # type: ignore[arg-type, return-value]
        with pytest.raises((SourceError, TypeError)):
            read_table(source)

    def test_negative_size(self) -> None:
        with pytest.raises((ValueError, OverflowError, FormatError)):
            read_table(RangedSource(lambda offset, length: b"", -1))

    @pytest.mark.parametrize("source", [None, 1.5, object(), -1, 10**6])
    def test_what_is_no_source(self, source: object) -> None:
        with pytest.raises((TypeError, SourceError, ValueError)):
            read_table(source)

    def test_file_opened_for_writing_only(self, tmp_path: Path) -> None:
        descriptor = os.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT)
        try:
            os.write(descriptor, self.CONTENT)
            with pytest.raises(SourceError):
                read_table(descriptor)
        finally:
            os.close(descriptor)

    def test_file_position_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "image.dcm"
        path.write_bytes(self.CONTENT)
        with path.open("rb") as file:
            file.seek(7)
            table = read_table(file.fileno())
            assert read_frame(file.fileno(), table, 0) == NAMED["e04_bot_multifrag"].pixels[0]
            assert file.tell() == 7

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_buffers(self, kind: type) -> None:
        case = NAMED["e04_bot_multifrag"]
        assert read_frame(kind(case.content), read_table(kind(case.content)), 2) == case.pixels[2]

    def test_buffer_with_holes_is_refused_or_right(self) -> None:
        spread = memoryview(
            bytes(byte for pair in zip(self.CONTENT, self.CONTENT, strict=True) for byte in pair)
        )[::2]
        try:
            table = read_table(spread)
        except (TypeError, ValueError, BufferError):
            return
        assert len(table) == 3


class TestFilesThatChange:
    def test_between_table_and_frame(self, tmp_path: Path) -> None:
        case = NAMED["n02_implicit_le_3f"]
        path = tmp_path / "image.dcm"
        path.write_bytes(case.content)
        table = read_table(path)
        path.write_bytes(case.content[:-16])
        os.utime(path, ns=(1, 1))
        with pytest.raises(SourceError) as caught:
            read_frame(path, table, 0)
        assert caught.value.kind == "changed_during_read"

    def test_same_size_other_time(self, tmp_path: Path) -> None:
        case = NAMED["n02_implicit_le_3f"]
        path = tmp_path / "image.dcm"
        path.write_bytes(case.content)
        table = read_table(path)
        os.utime(path, ns=(table.mtime_ns, table.mtime_ns + 1))
        with pytest.raises(SourceError) as caught:
            read_frame(path, table, 0)
        assert caught.value.kind == "changed_during_read"

    def test_cut_while_it_is_walked(self, tmp_path: Path) -> None:
        """A writer truncates the file under the reader: refused, no crash (a mapping would end in SIGBUS)."""
        payloads = [jpeg(2000)] * 5_000
        content = dicom([*image(frames=5_000), element("PixelData", Fragments(payloads), "OB")], JPEG).content
        path = tmp_path / "image.dcm"
        path.write_bytes(content)
        script = """
import os, threading
path = sys.argv[1]
content = open(path, "rb").read()
half = len(content) // 2
stop = threading.Event()
def shrink_and_grow():
    with open(path, "r+b") as file:
        while not stop.is_set():
            os.truncate(path, half)
            os.pwrite(file.fileno(), content[half:], half)
thread = threading.Thread(target=shrink_and_grow)
thread.start()
kinds = set()
for _ in range(300):
    try:
        kinds.add(read_table(path, verify="all").status)
    except VoxtierError as refused:
        kinds.add(refused.kind)
stop.set()
thread.join()
# The second row: the writer stood still during a whole read, of a file that really lacks frames, or (it had
# written all but a page) the end of the last ones.
allowed = {"ok", "changed_during_read", "io_error",
           "fewer_fragments_than_frames", "ambiguous_fragments", "truncated"}
assert kinds <= allowed, kinds
assert kinds != {"ok"}, "the race was never met"
"""
        peak_kib(script, str(path))


@pytest.mark.parametrize("kind", ERROR_KINDS)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickling(kind: str, protocol: int) -> None:
    """An exception that does not unpickle hangs a process pool or a data loader for ever."""
    for error in (FormatError(kind, 2**40, "detail"), SourceError(kind, None, "detail", 5)):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is type(error)
        assert (again.kind, again.offset, again.detail, str(again)) == (
            error.kind,
            error.offset,
            error.detail,
            str(error),
        )


def test_raised_errors_survive_pickling() -> None:
    for case in CASES:
        if case.error:
            with pytest.raises(FormatError) as caught:
                read_table(case.content)
            assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


def test_no_patient_and_no_path_in_any_message(tmp_path: Path) -> None:
    """Planted names never come out, whatever is broken (errors end in logs)."""
    patient, folder = "SECRET^PATIENT", tmp_path / "SECRET_FOLDER"
    folder.mkdir()
    attributes = sorted([*image(frames=2), element("PatientName", patient)], key=lambda each: each.tag)
    content = dicom([*attributes, element("PixelData", Fragments([jpeg(20)] * 3), "OB")], JPEG).content
    paths = []
    for index, at in enumerate(range(0, len(content), 5)):
        path = folder / f"{index}.dcm"
        path.write_bytes(content[:at])
        paths.append(path)
    found = io.StringIO()
    for result in read_tables([*paths, folder / "missing.dcm"]):
        print(repr(result.error), result.error, repr(result.table), file=found)
    assert "SECRET" not in found.getvalue()
