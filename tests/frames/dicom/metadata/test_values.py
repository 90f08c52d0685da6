"""Values by VR (PS3.18 F.2.2 to F.2.7), each in every byte order, against what the clause says."""

from __future__ import annotations

import base64
import struct
from decimal import Decimal
from typing import Any

import pytest

from frames.dicom.metadata.reading import read_exactly
from support.builders import (
    DEFLATED_LE,
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    Element,
    Items,
    Syntax,
    dicom,
)

SYNTAXES = {"explicit": EXPLICIT_LE, "big": EXPLICIT_BE, "implicit": IMPLICIT_LE, "deflated": DEFLATED_LE}
EXPLICIT = {name: syntax for name, syntax in SYNTAXES.items() if syntax.explicit}


def read(*elements: Element, syntax: Syntax = EXPLICIT_LE, **options: Any) -> dict[str, Any]:
    return read_exactly(dicom(elements, syntax).content, **options)


def base64_of(value: bytes) -> str:
    return base64.b64encode(value).decode()


# Tag of the dictionary, VR, value as it is written, what stands in JSON beside the VR.
TEXTS: list[tuple[int, str, bytes, Any]] = [
    (0x00080055, "AE", b" STATION \\ B  ", ["STATION", "B"]),
    (0x00101010, "AS", b"018Y", ["018Y"]),
    (0x00080008, "CS", b"ORIGINAL\\PRIMARY \\\\AXIAL ", ["ORIGINAL", "PRIMARY", None, "AXIAL"]),
    (0x00080020, "DA", b"20200131", ["20200131"]),
    (0x0008002A, "DT", b"20200131101500.000000+0100", ["20200131101500.000000+0100"]),
    (0x00080030, "TM", b"101500.5 ", ["101500.5"]),
    (0x00081030, "LO", b"  two  words ", ["  two  words"]),
    (0x00081030, "LO", b'say "no"\\to', ['say "no"', "to"]),
    (0x00102000, "LO", b"\\\\", [None, None, None]),
    (0x00104000, "LT", b" one\\text\r\n\tof lines ", [" one\\text\r\n\tof lines"]),
    (0x00080050, "SH", b"A1\\B2", ["A1", "B2"]),
    (0x00081048, "PN", b"A^B\\=I=P\\==P\\\\ ", None),
    (0x00080081, "ST", b"a\\b ", ["a\\b"]),
    (0x00080119, "UC", b"a\\b ", ["a", "b"]),
    (0x00080018, "UI", b"1.2.3\0", ["1.2.3"]),
    (0x00081190, "UR", b"http://x/\\y ", ["http://x/\\y"]),
    (0x0040A160, "UT", b"a\\b\x01", ["a\\b\x01"]),
]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("tag", "vr", "value", "expected"), TEXTS)
def test_a_text_is_split_and_without_padding(
    tag: int, vr: str, value: bytes, expected: Any, syntax: str
) -> None:
    if vr == "PN":
        expected = [
            {"Alphabetic": "A^B"},
            {"Ideographic": "I", "Phonetic": "P"},
            {"Phonetic": "P"},
            None,
            None,
        ]
    value += b" " * (len(value) % 2)
    found = read(Element(tag, vr, value), syntax=SYNTAXES[syntax])
    assert found == {f"{tag:08X}": {"vr": vr, "Value": expected}}


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("value", [b"", b"  ", b"\0\0", b" \0"])
def test_an_empty_value_has_a_vr_and_nothing_else(value: bytes, syntax: str) -> None:
    """PS3.18 F.2.5."""
    for tag, vr, *_ in TEXTS:
        assert read(Element(tag, vr, value), syntax=SYNTAXES[syntax]) == {f"{tag:08X}": {"vr": vr}}
    for tag, vr, _ in NUMBERS:
        assert read(Element(tag, vr, b""), syntax=SYNTAXES[syntax]) == {f"{tag:08X}": {"vr": vr}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"A^B=I=P=Q ", {"Alphabetic": "A^B", "Ideographic": "I", "Phonetic": "P=Q"}),
        (b"A^^^^ ", {"Alphabetic": "A^^^^"}),
        (b"A= ", {"Alphabetic": "A"}),
        (b"==", None),
    ],
)
def test_groups_of_a_name(value: bytes, expected: Any) -> None:
    assert read(Element(0x00100010, "PN", value))["00100010"]["Value"] == [expected]


NUMBERS: list[tuple[int, str, list[tuple[Any, Any]]]] = [
    (0x00280010, "US", [(0, 0), (65535, 65535)]),
    (0x00281041, "SS", [(-32768, -32768), (32767, 32767)]),
    (0x00209057, "UL", [(0, 0), (2**32 - 1, 2**32 - 1)]),
    (0x00186020, "SL", [(-(2**31), -(2**31)), (2**31 - 1, 2**31 - 1)]),
    (0x00720082, "SV", [(-(2**53), -(2**53)), (-(2**63), str(-(2**63))), (2**53 + 1, str(2**53 + 1))]),
    (0x00720083, "UV", [(2**53, 2**53), (2**64 - 1, str(2**64 - 1))]),
    (0x00720076, "FL", [(0.5, 0.5), (-1e38, None), (float("inf"), "Infinity"), (1.4e-45, None)]),
    (
        0x00720074,
        "FD",
        [
            (0.1, Decimal("0.1")),
            (-1e300, Decimal("-1e300")),
            (5e-324, Decimal("5e-324")),
            (float("nan"), "NaN"),
            (float("inf"), "Infinity"),
            (float("-inf"), "-Infinity"),
            (-0.0, Decimal("-0.0")),
        ],
    ),
]
CODES = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "SV": "q", "UV": "Q", "FL": "f", "FD": "d"}


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("tag", "vr", "values"), NUMBERS)
def test_numbers(tag: int, vr: str, values: list[tuple[Any, Any]], syntax: str) -> None:
    """PS3.18 F.2.3: a string where a reader of JSON would round, or where JSON has no number."""
    order = SYNTAXES[syntax].order
    numbers = [number for number, _ in values]
    value = struct.pack(f"{order}{len(values)}{CODES[vr]}", *numbers)
    found = read(Element(tag, vr, value), syntax=SYNTAXES[syntax])
    assert list(found) == [f"{tag:08X}"]
    assert found[f"{tag:08X}"]["vr"] == vr
    written = found[f"{tag:08X}"]["Value"]
    for (number, expected), got in zip(values, written, strict=True):
        if expected is None:
            assert struct.pack("<f", got) == struct.pack("<f", number)
        else:
            assert (got, type(got) is str) == (expected, type(expected) is str)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("count", [1, 3, 24_575, 24_577, 70_000])
def test_long_lists_of_numbers(count: int, syntax: str) -> None:
    """Lists that are read in several pieces."""
    numbers = [number % 65536 for number in range(count)]
    order = SYNTAXES[syntax].order
    value = struct.pack(f"{order}{count}H", *numbers)
    element = Element(0x00281201, "OW", value)
    swapped = struct.pack(f"<{count}H", *numbers)
    expected = {"vr": "OW", "InlineBinary": base64_of(swapped)}
    assert read(element, syntax=SYNTAXES[syntax]) == {"00281201": expected}
    if count < 2**15:
        found = read(Element(0x00280010, "US", value), syntax=SYNTAXES[syntax])
        assert found == {"00280010": {"vr": "US", "Value": numbers}}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_tags(syntax: str) -> None:
    order = SYNTAXES[syntax].order
    value = struct.pack(f"{order}4H", 0x0018, 0x00FF, 0x7FE0, 0xABCD)
    found = read(Element(0x00280009, "AT", value), syntax=SYNTAXES[syntax])
    assert found == {"00280009": {"vr": "AT", "Value": ["001800FF", "7FE0ABCD"]}}


@pytest.mark.parametrize("syntax", EXPLICIT)
@pytest.mark.parametrize(
    ("vr", "size"), [("OB", 1), ("OW", 2), ("OF", 4), ("OL", 4), ("OD", 8), ("OV", 8), ("UN", 1)]
)
def test_words_are_little_endian(vr: str, size: int, syntax: str) -> None:
    """PS3.18 F.2.7: base64 of the value as it is in little endian."""
    value = bytes(range(48))
    words = [value[at : at + size] for at in range(0, 48, size)]
    little = b"".join(word[::-1] for word in words) if syntax == "big" else value
    found = read(Element(0x00091010, vr, value), syntax=SYNTAXES[syntax])
    assert found == {"00091010": {"vr": vr, "InlineBinary": base64_of(little)}}


DECIMALS = {
    " 1.50": Decimal("1.50"),
    "+1.5 ": Decimal("1.5"),
    ".5": Decimal("0.5"),
    "-.5": Decimal("-0.5"),
    "5.": Decimal(5),
    "007": Decimal(7),
    "-0": Decimal("-0"),
    "1E+5": Decimal("1E+5"),
    "0.12345678901234567890": Decimal("0.12345678901234567890"),
    "1,5": "1,5",
    "1 2": "1 2",
    "NaN": "NaN",
    "1e999": "1e999",
    "0x10": "0x10",
}


@pytest.mark.parametrize("text", DECIMALS)
@pytest.mark.parametrize("vr", ["DS", "IS"])
def test_decimal_strings_keep_their_digits_or_stay_strings(text: str, vr: str) -> None:
    """PS3.18 F.2.3; no reader of JSON refuses them, and none is rounded on the way."""
    value = text.encode() + b" " * (len(text) % 2)
    tag = 0x00280030 if vr == "DS" else 0x00200013
    (found,) = read(Element(tag, vr, value))[f"{tag:08X}"]["Value"]
    assert (str(found), type(found)) == (str(DECIMALS[text]), type(DECIMALS[text]))


def test_an_integer_that_readers_would_round_is_a_string() -> None:
    value = b"999999999999999\\9007199254740993 "
    found = read(Element(0x00200013, "IS", value))["00200013"]["Value"]
    assert found == [999999999999999, "9007199254740993"]


@pytest.mark.parametrize("vr", ["US", "SS", "UL", "SL", "FL", "FD", "SV", "UV", "AT"])
def test_a_value_that_is_no_whole_number_of_numbers_is_unknown(vr: str) -> None:
    """Bytes that the VR cannot be read from are kept as they are (PS3.5 6.2.2)."""
    assert read(Element(0x00091010, vr, b"abc")) == {
        "00091010": {"vr": "UN", "InlineBinary": base64_of(b"abc")}
    }


def test_vrs_of_the_dictionary_in_implicit_vr() -> None:
    """Repeating groups, private creators and attributes that nobody knows (PS3.5 7.6, 7.8.1)."""
    found = read(
        Element(0x00080000, "UL", 12),
        Element(0x00080060, "CS", "CT"),
        Element(0x00090010, "LO", "ACME "),
        Element(0x00091001, "DS", "1.0 "),
        Element(0x00186FFF, "DS", "1.0 "),
        Element(0x00203100, "CS", "A "),
        Element(0x60020010, "US", 7),
        Element(0x60023000, "OW", b"\1\2"),
        syntax=IMPLICIT_LE,
    )
    assert found == {
        "00080060": {"vr": "CS", "Value": ["CT"]},
        "00090010": {"vr": "LO", "Value": ["ACME"]},
        "00091001": {"vr": "UN", "InlineBinary": base64_of(b"1.0 ")},
        "00186FFF": {"vr": "UN", "InlineBinary": base64_of(b"1.0 ")},
        "00203100": {"vr": "CS", "Value": ["A"]},
        "60020010": {"vr": "US", "Value": [7]},
        "60023000": {"vr": "OW", "InlineBinary": base64_of(b"\1\2")},
    }


@pytest.mark.parametrize(("sign", "vr", "number"), [(0, "US", 65535), (1, "SS", -1), (None, "US", 65535)])
def test_pixel_representation_decides_between_us_and_ss(sign: int | None, vr: str, number: int) -> None:
    """PS3.5 8 and PS3.3 C.7.6.3: that of the Item, else of what is around it; also where it stands behind."""
    padding = Element(0x00280120, "US", 65535)
    representation = [] if sign is None else [Element(0x00280103, "US", sign)]
    other = 1 - (sign or 0)
    inside = Items([[padding], [Element(0x00280103, "US", other), padding]])
    found = read(
        Element(0x00189810, "US", 65535), *representation, padding, Element(0x00880200, "SQ", inside),
        syntax=IMPLICIT_LE,
    )  # fmt: skip
    expected = {"vr": vr, "Value": [number]}
    opposite = {"vr": "SS", "Value": [-1]} if other else {"vr": "US", "Value": [65535]}
    assert found["00189810"] == expected
    assert found["00280120"] == expected
    first, second = found["00880200"]["Value"]
    assert first["00280120"] == expected
    assert second["00280120"] == opposite


@pytest.mark.parametrize(("entries", "expected"), [(1, "US"), (2, "OW"), (0, "OW")])
def test_lut_descriptor_decides_between_us_and_ow(entries: int, expected: str) -> None:
    """PS3.3 C.11.1.1.1."""
    item = [Element(0x00283002, "US", (entries, 0, 16)), Element(0x00283006, "US", (7, 8))]
    found = read(Element(0x00283010, "SQ", Items([item])), syntax=IMPLICIT_LE)
    assert found["00283010"]["Value"][0]["00283006"]["vr"] == expected


@pytest.mark.parametrize("syntax", EXPLICIT)
def test_un_of_a_known_attribute_has_its_vr_and_is_little_endian(syntax: str) -> None:
    """PS3.5 6.2.2: whatever the transfer syntax, a UN holds Implicit VR Little Endian."""
    inside = Items([[Element(0x00080100, "SH", "x ")]], syntax=IMPLICIT_LE)
    sequence = inside.encode(IMPLICIT_LE)
    found = read(
        Element(0x00081032, "UN", sequence),
        Element(0x00090010, "UN", b"ACME"),
        Element(0x00091010, "UN", b"\1\2"),
        Element(0x00100010, "UN", b"A^B "),
        Element(0x00280010, "UN", b"\1\0"),
        syntax=SYNTAXES[syntax],
    )
    assert found == {
        "00081032": {"vr": "SQ", "Value": [{"00080100": {"vr": "SH", "Value": ["x"]}}]},
        "00090010": {"vr": "LO", "Value": ["ACME"]},
        "00091010": {"vr": "UN", "InlineBinary": base64_of(b"\1\2")},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A^B"}]},
        "00280010": {"vr": "US", "Value": [1]},
    }


@pytest.mark.parametrize("vr", ["??", "  ", "ZZ"])
def test_a_vr_that_is_none_gives_way_to_the_dictionary(vr: str) -> None:
    known = Element(0x00080060, vr, b"CT")
    unknown = Element(0x00091010, vr, b"CT")
    assert read(known, unknown) == {
        "00080060": {"vr": "CS", "Value": ["CT"]},
        "00091010": {"vr": "UN", "InlineBinary": base64_of(b"CT")},
    }
