"""Files that attack the writer of DICOM JSON: cuts, lengths that lie, deep nesting, endless lists."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from pydicom.data import get_charset_files

from frames.dicom.cases import CASES
from frames.dicom.metadata.reading import in_ranges, read_exactly
from frames.dicom.peak_memory import peak_kib
from support.builders import (
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    ITEM_END,
    SEQUENCE_END,
    UNDEFINED,
    Element,
    Items,
    Syntax,
    dicom,
    element,
    encode,
    image,
    item_header,
)
from voxtier._core import ERROR_KINDS
from voxtier.errors import FormatError
from voxtier.frames import read_metadata, read_metadata_json, read_table

SYNTAXES = {"explicit": EXPLICIT_LE, "big": EXPLICIT_BE, "implicit": IMPLICIT_LE}
DEEPEST = 64


def everything(syntax: Syntax) -> bytes:
    """Return a file with every form of value, sequences of both kinds and pixels."""
    inner = [Element(0x00080100, "SH", "a\\b "), Element(0x00080104, "LO", b"\xb1 ")]
    elements = [
        Element(0x00080005, "CS", "ISO_IR 144"),
        *image(),
        Element(0x00100010, "PN", "A^B=C "),
        Element(0x00200032, "DS", "1.5\\-2\\+3"),
        Element(0x00280009, "AT", b"\x18\0\x63\x10"),
        Element(0x00281201, "OW", bytes(range(20))),
        Element(0x00400260, "SQ", Items([inner, []])),
        Element(0x00400275, "SQ", Items([inner, []], undefined=True)),
        Element(0x00720074, "FD", struct.pack(f"{syntax.order}d", 0.1)),
        element("PixelData", bytes(16), "OW"),
    ]
    return dicom(sorted(elements, key=lambda each: each.tag), syntax).content


def sorted_elements(content: bytes) -> dict[str, Any] | None:
    """Return the attributes, None where the file is refused for a reason of the closed list."""
    try:
        return read_exactly(content, bulk_data_uri="u", inline_limit=32)
    except FormatError as refused:
        assert refused.kind in ERROR_KINDS
        return None


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_file_cut_at_any_byte_is_refused_or_has_the_first_attributes(syntax: str) -> None:
    content = everything(SYNTAXES[syntax])
    whole = sorted_elements(content)
    assert whole is not None
    answered = set()
    for length in range(len(content)):
        found = sorted_elements(content[:length])
        if found is not None:
            assert list(found.items()) == list(whole.items())[: len(found)]
            answered.add(len(found))
    # Between any two attributes, and anywhere in the pixels.
    assert answered >= set(range(1, len(whole)))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_length_made_hostile_is_refused_or_answered_in_json(syntax: str) -> None:
    content = everything(SYNTAXES[syntax])
    lengths = [0, 1, 7, 0xFFFE, 2**31, 2**32 - 16, 2**32 - 2, 2**32 - 1]
    refused = 0
    for at in range(132, len(content) - 4):
        for length in lengths:
            mutated = content[:at] + struct.pack("<I", length) + content[at + 4 :]
            refused += sorted_elements(mutated) is None
    assert refused > len(content)


def test_mutants_are_answered_alike_from_memory_and_in_pieces_and_as_the_table_says() -> None:
    """What two readers of one header say of it must be the same."""
    chance = random.Random(5)
    seeds = [case.content for case in CASES if 0 < len(case.content) < 4_000]
    seeds += [Path(name).read_bytes()[:3_000] for name in get_charset_files() if name.endswith(".dcm")]
    seeds += [everything(syntax) for syntax in SYNTAXES.values()]
    agreed = 0
    for number in range(6_000):
        content = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 4)):
            damage(chance, content)
        mutated = bytes(content)
        found = sorted_elements(mutated)
        assert found == sorted_elements_in_pieces(mutated), number
        if found is not None:
            agreed += agrees_with_table(mutated, found)
    assert agreed > 500


def damage(chance: random.Random, content: bytearray) -> None:
    at = chance.randrange(len(content))
    match chance.randrange(4):
        case 0:
            content[at] ^= 1 << chance.randrange(8)
        case 1:
            content[at : at + 4] = struct.pack("<I", chance.choice([0, 1, 8, 0xFFFF, 2**31, UNDEFINED]))
        case 2:
            content[at : at + 4] = bytes.fromhex(
                chance.choice(["FEFF00E0", "FEFFDDE0", "FEFF0DE0", "08000500"])
            )
        case _:
            start = chance.randrange(len(content))
            content[at:at] = content[start : start + chance.randrange(40)]


def sorted_elements_in_pieces(content: bytes) -> dict[str, Any] | None:
    try:
        return read_exactly(in_ranges(content), bulk_data_uri="u", inline_limit=32)
    except FormatError:
        return None


def agrees_with_table(content: bytes, found: dict[str, Any]) -> bool:
    try:
        table = read_table(content)
    except FormatError:
        return False
    for tag, vr, value in [
        ("00080018", "UI", table.sop_instance_uid),
        ("00280010", "US", table.rows),
        ("00280011", "US", table.columns),
    ]:
        attribute = found.get(tag, {})
        if attribute.get("vr") == vr and len(attribute.get("Value", [])) == 1 and value:
            (got,) = attribute["Value"]
            assert (got.strip("\0 ") if vr == "UI" else got) == value
    return True


def nested(depth: int, *, undefined: bool) -> bytes:
    """Return a data set with sequences in sequences, written from the inside."""
    content = encode([Element(0x00080100, "SH", "x ")])
    for _ in range(depth):
        end = item_header(0, "<", ITEM_END) if undefined else b""
        length = UNDEFINED if undefined else len(content)
        value = item_header(length) + content + end
        if undefined:
            value += item_header(0, "<", SEQUENCE_END)
        header = Element(0x0040A730, "SQ", b"", UNDEFINED if undefined else len(value)).header(EXPLICIT_LE)
        content = header + value
    return encode([Element(0x00080060, "CS", "CT")]) + content


@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_nest_as_deep_as_readers_of_json_follow(undefined: bool) -> None:
    found = read_metadata(nested(DEEPEST, undefined=undefined))
    for _ in range(DEEPEST):
        (found,) = found["0040A730"]["Value"]
    assert found == {"00080100": {"vr": "SH", "Value": ["x"]}}
    for deeper in (DEEPEST + 1, 300):
        with pytest.raises(FormatError, match="nesting_too_deep"):
            read_metadata(nested(deeper, undefined=undefined))
    bomb = (
        nested(1, undefined=undefined)[:10]
        + (Element(0x0040A730, "SQ", b"", UNDEFINED).header(EXPLICIT_LE) + item_header(UNDEFINED)) * 100_000
    )
    with pytest.raises(FormatError, match="nesting_too_deep"):
        read_metadata(bomb)


@pytest.mark.parametrize(
    ("vr", "value", "count"),
    [
        ("UC", b"\\" * 2_000_000, 2_000_001),
        ("UC", b"\x1b$B\\\\\x1b(B\\" * 300_000, 300_000),
        ("LO", b"\\" * 65_534, 65_535),
        ("PN", b"=\\" * 32_767, 32_767),
        ("DS", b"1\\" * 32_767, 32_767),
        ("UI", b"\\\0" * 32_767, 32_767),
    ],
)
def test_endless_lists_of_values(vr: str, value: bytes, count: int) -> None:
    """In time that grows with the value alone."""
    content = encode([Element(0x00080005, "CS", "\\ISO 2022 IR 87"), Element(0x00091010, vr, value)])
    values = read_metadata(content)["00091010"]["Value"]
    assert len(values) in (count, count + 1)


def test_endless_items_and_attributes() -> None:
    items = item_header(0) * 300_000
    content = encode([Element(0x0040A730, "SQ", items), Element(0x00090010, "LO", "a ")])
    assert len(read_metadata(content)["0040A730"]["Value"]) == 300_000
    attributes = [Element(0x00091000 + number, "LO", b"") for number in range(0xEFFF, 0, -1)]
    found = json.loads(read_metadata_json(encode([Element(0x00080060, "CS", "CT"), *attributes])))
    assert list(found) == sorted(found)
    assert len(found) == 0xF000


@pytest.mark.parametrize("vr", ["LO", "PN", "UT", "CS", "IS", "UI"])
def test_random_bytes_in_any_character_set_are_text(vr: str) -> None:
    chance = random.Random(7)
    sets = ["", "ISO_IR 13", "ISO_IR 100", "ISO_IR 127", "ISO_IR 166", "ISO_IR 192", "GB18030", "GBK"]
    sets += ["\\ISO 2022 IR 87\\ISO 2022 IR 159", "\\ISO 2022 IR 149", "\\ISO 2022 IR 58", "\x1b$B", "\xff"]
    escapes = [b"\x1b" + rest for rest in (b"", b"$", b"$B", b"$(D", b"$)C", b"$)A", b"(B", b")I", b"-L")]
    for _ in range(3_000):
        parts = [chance.randbytes(chance.randrange(6)) + chance.choice(escapes) for _ in range(4)]
        value = b"".join(parts)
        charset = Element(0x00080005, "CS", chance.choice(sets).encode("latin-1"))
        text = read_metadata_json(encode([charset, Element(0x00091010, vr, value)]))
        assert json.loads(text.decode("utf-8"))


def test_memory_never_follows_a_declared_length(tmp_path: Path) -> None:
    """4 GiB are declared, 3 GiB are there as a hole in the file: refused, or named, for next to nothing."""
    paths = []
    for name, vr, length in [("lie", "OB", 2**32 - 2), ("text", "UT", 2**32 - 2), ("items", "SQ", 2**32 - 2)]:
        paths.append(tmp_path / name)
        paths[-1].write_bytes(dicom([*image(), Element(0x00720069, vr, b"", length)]).content)
    for vr in ("OB", "UT", "FD", "UN"):
        paths.append(tmp_path / f"hole-{vr}")
        head = dicom([*image(), Element(0x00720069, "UN" if vr == "FD" else vr, b"", 3 * 2**30)]).content
        with paths[-1].open("wb") as file:
            file.write(head)
            file.truncate(len(head) + 3 * 2**30)
    script = """
from voxtier.frames import read_metadata_json
for path in sys.argv[1:]:
    try:
        read_metadata_json(path)
        raise SystemExit("answered")
    except VoxtierError as refused:
        assert refused.kind in ("limit_exceeded", "value_past_end"), refused
    if "hole-OB" in path:
        assert b"u/00720069" in read_metadata_json(path, bulk_data_uri="u")
"""
    assert peak_kib(script, *map(str, paths)) < 8 * 1024
