"""Sequences, the order of attributes, pixels and URIs: what stands where in the JSON (PS3.18 F.2.2)."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import pytest

from frames.dicom.metadata.reading import read_exactly
from support.builders import (
    DEFLATED_LE,
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    ITEM_END,
    JPEG,
    SEQUENCE_END,
    UNDEFINED,
    Element,
    Fragments,
    Items,
    Syntax,
    dicom,
    element,
    encode,
    image,
    item_header,
    jpeg,
)
from voxtier.errors import FormatError
from voxtier.frames import read_metadata, read_metadata_json

SYNTAXES = {"explicit": EXPLICIT_LE, "big": EXPLICIT_BE, "implicit": IMPLICIT_LE, "deflated": DEFLATED_LE}
CODE = Element(0x00080100, "SH", "x ")
CODE_JSON = {"00080100": {"vr": "SH", "Value": ["x"]}}
SEQUENCE = 0x00081032


def read(*elements: Element, syntax: Syntax = EXPLICIT_LE, **options: Any) -> dict[str, Any]:
    return read_exactly(dicom(elements, syntax).content, **options)


def sequence(value: Items | bytes, length: int | None = None) -> Element:
    return Element(SEQUENCE, "SQ", value, length)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_nest_and_may_be_empty(undefined: bool, syntax: str) -> None:
    def items(*content: list[Element]) -> Items:
        return Items(content, undefined=undefined)

    deep = [Element(0x0040A043, "SQ", items([CODE], [])), Element(0x0040A730, "SQ", items())]
    found = read(
        sequence(items([], [CODE], deep)), Element(0x00081140, "SQ", items()), syntax=SYNTAXES[syntax]
    )
    nested = {"0040A043": {"vr": "SQ", "Value": [CODE_JSON, {}]}, "0040A730": {"vr": "SQ"}}
    assert found == {
        "00081032": {"vr": "SQ", "Value": [{}, CODE_JSON, nested]},
        "00081140": {"vr": "SQ"},
    }


@pytest.mark.parametrize("explicit_inside", [False, True])
def test_un_of_undefined_length_is_a_sequence(explicit_inside: bool) -> None:
    """PS3.5 6.2.2 (CP-246); and writers that ignore what it says of the Items."""
    content = Items([[CODE]], undefined=True, syntax=EXPLICIT_LE if explicit_inside else IMPLICIT_LE)
    for tag in (SEQUENCE, 0x00091010):
        found = read(Element(tag, "UN", content.encode(EXPLICIT_LE), UNDEFINED))
        assert found == {f"{tag:08X}": {"vr": "SQ", "Value": [CODE_JSON]}}


def test_private_sequence_of_undefined_length_in_implicit_vr() -> None:
    found = read(Element(0x00091010, "SQ", Items([[CODE]], undefined=True)), syntax=IMPLICIT_LE)
    assert found == {"00091010": {"vr": "SQ", "Value": [CODE_JSON]}}


ODD_DELIMITERS = {
    "an Item with a length and a delimiter": (
        item_header(10) + encode([CODE]) + item_header(0, "<", ITEM_END) + item_header(0, "<", SEQUENCE_END)
    ),
    "the delimiter of an Item for that of the sequence": (
        item_header(UNDEFINED) + encode([CODE]) + item_header(0, "<", ITEM_END) * 2
    ),
    "the delimiter of the sequence for that of the Item too": (
        item_header(UNDEFINED) + encode([CODE]) + item_header(0, "<", SEQUENCE_END)
    ),
    "the delimiter of the sequence for that of the Item": (
        item_header(UNDEFINED) + encode([CODE]) + item_header(0, "<", SEQUENCE_END) * 2
    ),
}


@pytest.mark.parametrize("name", ODD_DELIMITERS)
def test_delimiters_that_the_frame_table_accepts_are_accepted(name: str) -> None:
    found = read(sequence(ODD_DELIMITERS[name], UNDEFINED), Element(0x00180015, "CS", "HEAD"))
    assert found == {
        "00081032": {"vr": "SQ", "Value": [CODE_JSON]},
        "00180015": {"vr": "CS", "Value": ["HEAD"]},
    }


def test_a_delimiter_behind_an_item_that_ends_its_sequence() -> None:
    content = item_header(10) + encode([CODE]) + item_header(0, "<", ITEM_END)
    assert read(sequence(content)) == {"00081032": {"vr": "SQ", "Value": [CODE_JSON]}}


BAD = {
    "an element where an Item must be": (encode([CODE]), None, "bad_item_tag"),
    "an Item directly inside an Item": (item_header(8) + item_header(0), None, "bad_item_tag"),
    "a delimiter inside an Item with a length": (
        item_header(18) + encode([CODE]) + item_header(0, "<", ITEM_END),
        None,
        "bad_item_tag",
    ),
    "an Item longer than its sequence": (item_header(99) + encode([CODE]), None, "value_past_end"),
    "an element longer than its Item": (item_header(9) + encode([CODE]), None, "value_past_end"),
    "a header longer than its Item": (item_header(5) + encode([CODE]), None, "truncated_header"),
    "rest of a sequence": (item_header(0) + b"\xfe\xff\x00", None, "truncated_header"),
    "no delimiter": (item_header(10) + encode([CODE]), UNDEFINED, "truncated_header"),
}


@pytest.mark.parametrize("name", BAD)
def test_sequences_that_do_not_fit_are_refused_with_their_place(name: str) -> None:
    content, length, kind = BAD[name]
    file = dicom([sequence(content, length)]).content
    with pytest.raises(FormatError) as refused:
        read_metadata(file)
    assert refused.value.kind == kind
    assert refused.value.offset is not None
    assert len(file) - len(content) <= refused.value.offset < len(file) or kind == "truncated_header"


def test_elements_behind_misread_delimiters_are_refused() -> None:
    """As the frame table refuses them: they may be nested ones."""
    content = ODD_DELIMITERS["the delimiter of the sequence for that of the Item too"]
    with pytest.raises(FormatError, match="bad_nesting"):
        read_metadata(dicom([sequence(content, UNDEFINED), element("Modality", "CT")]).content)


def test_items_outside_of_a_sequence_and_zeros_before_bytes_are_refused() -> None:
    for trailing, kind in ((item_header(0), "bad_item_tag"), (bytes(8) + b"x", "misplaced_element")):
        with pytest.raises(FormatError, match=kind):
            read_metadata(dicom([CODE], trailing=trailing).content)
    assert read_exactly(dicom([CODE], trailing=bytes(100)).content) == CODE_JSON
    stray = item_header(0, "<", SEQUENCE_END)
    assert read_exactly(dicom([CODE], trailing=stray).content) == CODE_JSON


ATTRIBUTES = [
    Element(0x00080020, "DA", "20200101"),
    Element(0x00080060, "CS", "CT"),
    Element(SEQUENCE, "SQ", Items([[CODE]])),
    Element(0x00100020, "LO", "1 "),
]


def test_attributes_ascend_whatever_their_order_in_the_file() -> None:
    expected = read_metadata_json(dicom(ATTRIBUTES).content)
    for order in itertools.permutations(ATTRIBUTES):
        assert read_metadata_json(dicom(order).content) == expected
        nested = dicom([Element(0x0040A730, "SQ", Items([order, []]))]).content
        assert b'"Value":[' + expected + b",{}]" in read_metadata_json(nested)


def test_an_attribute_that_stands_twice_is_one_or_refused() -> None:
    """PS3.5 7.1. Readers take the first or the last of two."""
    one, other = Element(0x00080060, "CS", "CT"), Element(0x00080060, "CS", "MR")
    assert read(one, one) == {"00080060": {"vr": "CS", "Value": ["CT"]}}
    for elements in ((one, other), (one, CODE, other)):
        with pytest.raises(FormatError, match=r"\(0008,0060\) stands twice"):
            read(*elements)
        with pytest.raises(FormatError, match=r"\(0008,0060\) stands twice"):
            read(sequence(Items([elements])))


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (Element(0x00081030, "LO", b"\xb1 "), Element(0x00080005, "CS", "ISO_IR 144")),
        (Element(0x00280120, "US", 1), Element(0x00280103, "US", 1)),
        (Element(0x00283006, "US", 1), Element(0x00283002, "US", (1, 0, 16))),
    ],
)
def test_what_says_how_others_are_read_must_stand_before_them(before: Element, behind: Element) -> None:
    with pytest.raises(FormatError, match="misplaced_element"):
        read(before, behind)


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("others", [[], [0x00080001], [0x00082111], [0x00089007], [0x00080001, 0x00100020]])
def test_available_transfer_syntax_is_added_in_its_place(others: list[int], existing: bool) -> None:
    """PS3.3 Table C.12-1 and PS3.18 10.6.3: the file's own attribute of that tag gives way."""
    elements = [Element(tag, "LO", "a ") for tag in others]
    if existing:
        elements.append(Element(0x00083002, "UI", "1.2\0"))
    elements.sort(key=lambda each: each.tag)
    for syntax in SYNTAXES.values():
        if elements:
            found = read(*elements, syntax=syntax, with_transfer_syntax=True)
            assert found["00083002"] == {"vr": "UI", "Value": [syntax.uid]}
            assert sorted(found) == sorted({f"{tag:08X}" for tag in (*others, 0x00083002)})
    nested = read(sequence(Items([[Element(0x00083002, "UI", "1.2\0")]])), with_transfer_syntax=True)
    assert nested["00081032"]["Value"] == [{"00083002": {"vr": "UI", "Value": ["1.2"]}}]


@pytest.mark.parametrize("syntax", [*SYNTAXES.values(), JPEG], ids=lambda syntax: syntax.uid)
def test_pixels_have_a_uri_or_are_left_out(syntax: Syntax) -> None:
    content = Fragments([jpeg(16)]) if syntax is JPEG else bytes(16)
    pixels = element("PixelData", content, "OB" if syntax is JPEG else "OW")
    icon = Element(0x00880200, "SQ", Items([[CODE, pixels]], undefined=True))
    without = read(*image(), icon, pixels, syntax=syntax)
    assert "7FE00010" not in without
    assert without["00880200"]["Value"] == [CODE_JSON]
    found = read(*image(), icon, pixels, syntax=syntax, bulk_data_uri="x/y", inline_limit=1 << 30)
    vr = "OB" if syntax is JPEG else "OW"
    assert found["7FE00010"] == {"vr": vr, "BulkDataURI": "x/y/7FE00010"}
    in_icon = found["00880200"]["Value"][0]["7FE00010"]
    assert in_icon == {"vr": vr, "BulkDataURI": "x/y/00880200/1/7FE00010"}
    assert list(found)[:-1] == list(without)


@pytest.mark.parametrize(("tag", "vr"), [(0x7FE00008, "OF"), (0x7FE00009, "OD")])
def test_float_pixels_are_pixels(tag: int, vr: str) -> None:
    pixels = Element(tag, vr, bytes(16))
    assert f"{tag:08X}" not in read(*image(), pixels)
    found = read(*image(), pixels, bulk_data_uri="")
    assert found[f"{tag:08X}"] == {"vr": vr, "BulkDataURI": f"/{tag:08X}"}


@pytest.mark.parametrize("cut", [1, 15, 16])
def test_cut_pixels_do_not_concern_the_attributes(cut: int) -> None:
    native = dicom([*image(), element("PixelData", bytes(16), "OW")]).content
    compressed = dicom([*image(), element("PixelData", Fragments([jpeg(16)]), "OB")], JPEG).content
    for content in (native, compressed):
        assert read_exactly(content[:-cut]) == read_exactly(content)


SIGNATURES = Element(0xFFFAFFFA, "SQ", Items([[CODE]], undefined=True))
MAC_PARAMETERS = Element(0x4FFE0001, "SQ", Items([[CODE]]))


def test_signatures_behind_the_pixels_are_read() -> None:
    """PS3.3 C.12.1.1.3: they have parameters before the pixels, else fragments need not be walked."""
    native, compressed = bytes(16), Fragments([jpeg(16), jpeg(20)])
    for content, syntax, vr in ((native, EXPLICIT_LE, "OW"), (compressed, JPEG, "OB")):
        pixels = element("PixelData", content, vr)
        found = read(*image(), MAC_PARAMETERS, pixels, SIGNATURES, syntax=syntax)
        assert found["FFFAFFFA"] == {"vr": "SQ", "Value": [CODE_JSON]}


def test_padding_behind_the_pixels_is_left_out() -> None:
    pixels = element("PixelData", bytes(16), "OW")
    expected = read(*image(), pixels)
    padding = Element(0xFFFCFFFC, "OB", bytes(20))
    assert read(*image(), pixels, padding) == expected
    for trailing in (bytes(3), bytes(64), b"\xff" * 40, b"<xml>" * 5, bytes(16) + b"x"):
        assert read_exactly(dicom([*image(), pixels], trailing=trailing).content) == expected


def test_an_attribute_behind_the_pixels_is_refused() -> None:
    pixels = element("PixelData", bytes(16), "OW")
    with pytest.raises(FormatError, match="misplaced_element"):
        read(*image(), pixels, Element(0x00100020, "LO", "1 "))


BULK_VRS = (
    *("DS", "FL", "FD", "IS", "LT", "OB", "OD", "OF", "OL", "OV", "OW"),
    *("SL", "SS", "ST", "SV", "UC", "UL", "UN", "US", "UT", "UV"),
)
INLINE_VRS = ("AE", "AS", "AT", "CS", "DA", "DT", "LO", "PN", "SH", "TM", "UI", "UR")


@pytest.mark.parametrize("vr", [*BULK_VRS, *INLINE_VRS])
def test_a_long_value_has_a_uri_where_its_vr_may(vr: str) -> None:
    """PS3.18 F.2.2 lists the VRs; the limit counts bytes of the value."""
    long, short = Element(0x00091010, vr, b"1" * 24), Element(0x00091011, vr, b"1" * 16)
    empty = Element(0x00091012, vr, b"")
    found = read(long, short, empty, bulk_data_uri="/bulk", inline_limit=16)
    if vr in BULK_VRS:
        assert found["00091010"] == {"vr": vr, "BulkDataURI": "/bulk/00091010"}
    else:
        assert set(found["00091010"]) == {"vr", "Value"}
    assert "BulkDataURI" not in found["00091011"]
    assert len(found["00091011"]) == 2
    assert found["00091012"] == {"vr": vr}


def test_a_uri_names_the_items_on_its_way() -> None:
    document = Element(0x00420011, "OB", bytes(100))
    inner = Element(0x0040A730, "SQ", Items([[], [document]]))
    content = [Element(SEQUENCE, "SQ", Items([[], [], [inner]])), document]
    uri = 'http://h/a"b\\é/bulkdata'
    found = read(*content, bulk_data_uri=uri, inline_limit=99)
    assert found["00420011"]["BulkDataURI"] == uri + "/00420011"
    nested = found["00081032"]["Value"][2]["0040A730"]["Value"][1]["00420011"]
    assert nested["BulkDataURI"] == uri + "/00081032/3/0040A730/2/00420011"
    inline = read(*content, bulk_data_uri=uri, inline_limit=100)
    assert inline["00420011"] == {"vr": "OB", "InlineBinary": base64.b64encode(bytes(100)).decode()}


def test_fragments_of_other_attributes_are_named_or_left_out() -> None:
    for vr in ("OB", "UR"):
        fragments = Element(0x00091010, vr, Fragments([b"ab", b"cd"]))
        assert read(CODE, fragments) == CODE_JSON
        found = read(CODE, fragments, bulk_data_uri="b", inline_limit=1 << 30)
        assert found["00091010"] == {"vr": vr, "BulkDataURI": "b/00091010"}


def test_the_text_is_plain_json_without_blanks() -> None:
    text = read_metadata_json(dicom(ATTRIBUTES).content)
    assert text == json.dumps(json.loads(text), separators=(",", ":")).encode()
