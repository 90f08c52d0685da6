"""Specific Character Set (PS3.3 C.12.1.1.2): every term, every character, Python's codecs as oracle."""

from __future__ import annotations

import unicodedata

import pytest

from frames.dicom.metadata.reading import read_exactly
from support.builders import Element, Items, encode

LONG_TEXT, LONG_STRING, NAME = 0x0040A160, 0x00081030, 0x00100010

# Term, codec of Python, the escape sequence that designates the set.
SINGLE_BYTE = {
    100: ("latin_1", b"\x1b-A"),
    101: ("iso8859_2", b"\x1b-B"),
    109: ("iso8859_3", b"\x1b-C"),
    110: ("iso8859_4", b"\x1b-D"),
    126: ("iso8859_7", b"\x1b-F"),
    127: ("iso8859_6", b"\x1b-G"),
    138: ("iso8859_8", b"\x1b-H"),
    144: ("iso8859_5", b"\x1b-L"),
    148: ("iso8859_9", b"\x1b-M"),
    166: ("tis_620", b"\x1b-T"),
    203: ("iso8859_15", b"\x1b-b"),
    13: ("shift_jis", b"\x1b)I"),
}
# Term, codec, escape sequence, what ends it for the codec.
DOUBLE_BYTE = {
    87: ("iso2022_jp", b"\x1b$B", 0x00),
    159: ("iso2022_jp_2", b"\x1b$(D", 0x00),
    149: ("euc_kr", b"\x1b$)C", 0x80),
    58: ("gb2312", b"\x1b$)A", 0x80),
}
# Python's codec is an older edition of the same set.
NEWER = {
    58: {"a1a4": "\u00b7", "a1aa": "\u2014"},  # as GB 18030 has them, which is the successor of GB 2312
}


def text(charset: str, value: bytes, *, vr: str = "UT", tag: int = LONG_TEXT) -> list[object]:
    """Return the values of a text attribute of a data set with that Specific Character Set."""
    attributes = [Element(0x00080005, "CS", charset), Element(tag, vr, value + b" " * (len(value) % 2))]
    found = read_exactly(encode(sorted(attributes, key=lambda each: each.tag)))
    values: list[object] = found[f"{tag:08X}"]["Value"]
    return values


def decoded(value: bytes, codec: str) -> str | None:
    try:
        return value.decode(codec)
    except UnicodeDecodeError:
        return None


@pytest.mark.parametrize("number", SINGLE_BYTE)
@pytest.mark.parametrize("form", ["alone", "with code extension", "designated"])
def test_every_character_of_a_single_byte_set(number: int, form: str) -> None:
    codec, escape = SINGLE_BYTE[number]
    term = {
        "alone": f"ISO_IR {number}",
        "with code extension": f"ISO 2022 IR {number}",
        "designated": f"ISO 2022 IR 6\\ISO 2022 IR {number}",
    }[form]
    for byte in range(0xA0, 0x100):
        value = bytes([byte])
        expected = decoded(value, codec)
        found = text(term, (escape if form == "designated" else b"") + value)
        if expected is None:
            assert found == ["\N{REPLACEMENT CHARACTER}"] or (number, byte) == (166, 0xA0)
        else:
            assert found == [expected], hex(byte)


@pytest.mark.parametrize("number", DOUBLE_BYTE)
def test_every_character_of_a_double_byte_set(number: int) -> None:
    codec, escape, high = DOUBLE_BYTE[number]
    count = 0
    for row in range(0x21, 0x7F):
        pairs = [bytes([row | high, cell | high]) for cell in range(0x21, 0x7F)]
        for_codec = [pair if high else escape + pair + b"\x1b(B" for pair in pairs]
        expected = {pair: decoded(value, codec) for pair, value in zip(pairs, for_codec, strict=True)}
        known = [pair for pair in pairs if expected[pair] is not None]
        if not known:
            continue
        (found,) = text(f"\\ISO 2022 IR {number}", escape + b"".join(known))
        right = "".join(NEWER.get(number, {}).get(pair.hex(), expected[pair]) for pair in known)
        assert found == right
        count += len(known)
    assert count > 6000


@pytest.mark.parametrize(
    ("charset", "codec"), [("GBK", "gbk"), ("GB18030", "gb18030"), ("ISO 2022 GBK", "gbk")]
)
def test_every_pair_of_bytes_of_gbk_and_gb18030(charset: str, codec: str) -> None:
    newer = 0
    for row in range(0x81, 0xFF):
        pairs = [bytes([row, cell]) for cell in (*range(0x40, 0x7F), *range(0x80, 0xFF))]
        known = [pair for pair in pairs if decoded(pair, codec) is not None]
        (found,) = text(charset, b"".join(known))
        assert isinstance(found, str)
        for pair, character in zip(known, found, strict=True):
            if character != pair.decode(codec):
                # Later editions took over what was private use in the first.
                assert unicodedata.category(pair.decode(codec)) == "Co"
                newer += 1
    assert newer <= 20


def test_utf_8_and_four_bytes_of_gb18030() -> None:
    for character in ("é", "語", "𠀀", "😀", "\u0e01"):
        assert text("ISO_IR 192", character.encode()) == [character]
        assert text("GB18030", character.encode("gb18030")) == [character]


# PS3.5 H.3, I.2, J.1 to J.3, K.2: the examples of the standard.
STANDARD = {
    "H.3.1": (
        "\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"},
    ),
    "H.3.2": (
        "ISO 2022 IR 13\\ISO 2022 IR 87",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
        {"Alphabetic": "ﾔﾏﾀﾞ^ﾀﾛｳ", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"},
    ),
    "I.2": (
        "\\ISO 2022 IR 149",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        {"Alphabetic": "Hong^Gildong", "Ideographic": "洪^吉洞", "Phonetic": "홍^길동"},
    ),
    "J.1": (
        "ISO_IR 192",
        "Wang^XiaoDong=王^小东=".encode(),
        {"Alphabetic": "Wang^XiaoDong", "Ideographic": "王^小东"},
    ),
    "J.3": (
        "GB18030",
        "Wang^XiaoDong=王^小东=".encode("gb18030"),
        {"Alphabetic": "Wang^XiaoDong", "Ideographic": "王^小东"},
    ),
    "K.2": (
        "\\ISO 2022 IR 58",
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
        {"Alphabetic": "Zhang^XiaoDong", "Ideographic": "张^小东"},
    ),
}


@pytest.mark.parametrize("clause", STANDARD)
def test_the_names_of_the_examples_of_the_standard(clause: str) -> None:
    charset, value, expected = STANDARD[clause]
    assert text(charset, value, vr="PN", tag=NAME) == [expected]


def test_a_backslash_separates_values_only_where_it_is_a_character() -> None:
    """PS3.5 6.4 and PS3.18 F.2.4: 5C within a character of two bytes separates nothing."""
    katakana_so = b"\x1b$B%=\x1b(B"  # one byte of it is 3D
    for_names = text("\\ISO 2022 IR 87", b"A=" + katakana_so + b"=B", vr="PN", tag=NAME)
    assert for_names == [{"Alphabetic": "A", "Ideographic": "ソ", "Phonetic": "B"}]
    pairs = [(row, 0x5C) for row in range(0x30, 0x40)]
    value = b"\x1b$B" + b"".join(map(bytes, pairs)) + b"\x1b(B"
    expected = value.decode("iso2022_jp")
    assert text("\\ISO 2022 IR 87", value + b"\\x", vr="LO", tag=LONG_STRING) == [expected, "x"]
    gbk = bytes([0x81, 0x5C, 0x82, 0x5C])
    assert text("GBK", gbk + b"\\" + gbk, vr="LO", tag=LONG_STRING) == [gbk.decode("gbk")] * 2


def test_yen_sign_separates_values_and_stands_in_a_text() -> None:
    """PS3.18 F.2.4: 05/12 separates values whatever it looks like. JIS X 0201 has a yen sign there."""
    assert text("ISO_IR 13", b"\xb1\\\xb2", vr="LO", tag=LONG_STRING) == ["ｱ", "ｲ"]
    assert text("ISO_IR 13", b"a\\b~") == ["a¥b‾"]
    assert text("ISO_IR 100", b"a\\b~") == ["a\\b~"]


def test_delimiters_and_ends_of_lines_go_back_to_value_1() -> None:
    """PS3.5 6.1.2.5.3."""
    greek = "ISO 2022 IR 126\\ISO 2022 IR 144"
    assert text(greek, b"\xe1\x1b-L\xd0\r\n\xe1\x1b-L\xd0\t\xe1") == ["αа\r\nαа\tα"]
    assert text(greek, b"\x1b-L\xd0^\xe1=\xe1", vr="PN", tag=NAME) == [
        {"Alphabetic": "а^α", "Ideographic": "α"}
    ]
    assert text(greek, b"\x1b-L\xd0\\\xe1", vr="LO", tag=LONG_STRING) == ["а", "α"]


def test_a_designation_lasts_where_value_1_has_no_upper_half() -> None:
    """A writer that forgets the escape sequence, or to repeat it, leaves only one reading."""
    for korean in (b"\x1b$)C\xfb\xf3^\xd1\xce\xd4\xd7", b"\xfb\xf3^\xd1\xce\xd4\xd7"):
        assert text("\\ISO 2022 IR 149", korean, vr="PN", tag=NAME) == [{"Alphabetic": "洪^吉洞"}]
    russian = b"\x1b-L\xb1^\xb1"
    assert text("\\ISO 2022 IR 126\\ISO 2022 IR 144", russian, vr="PN", tag=NAME) == [{"Alphabetic": "Б^Б"}]


@pytest.mark.parametrize(
    "term",
    [
        "ISO-IR 144",
        "ISO IR 144",
        "iso_ir 144",
        "ISO_IR_144",
        "ISO 2022 IR 144",
        "ISO_2022_IR_144",
        "ISO_IR 144 ",
    ],
)
def test_terms_as_writers_spell_them(term: str) -> None:
    assert text(term, b"\xb1") == ["Б"]


@pytest.mark.parametrize(
    "term", ["", "ISO_IR 6", "ISO 2022 IR 6", "ISO_IR 999", "nonsense", "ISO_IR", "ISO_IR 99999999", "\\"]
)
def test_without_a_known_term_the_upper_half_is_latin_1(term: str) -> None:
    assert text(term, b"caf\xe9") == ["café"]
    assert read_exactly(encode([Element(LONG_TEXT, "UT", b"caf\xe9")]))[f"{LONG_TEXT:08X}"]["Value"] == [
        "café"
    ]


def test_what_is_no_character_is_a_replacement_character_and_nothing_else_is_lost() -> None:
    for charset, value in [
        ("ISO_IR 192", b"a\xffb\xe9"),
        ("GB18030", b"a\xff\xffb"),
        ("\\ISO 2022 IR 87", b"a\x1b$B!\x1b(Bb"),
        ("\\ISO 2022 IR 149", b"a\x1b$)C\xa1\x1b(Bb"),
        ("ISO_IR 127", b"a\xffb "),
    ]:
        (found,) = text(charset, value)
        assert isinstance(found, str)
        assert found.startswith("a")
        assert "b" in found
        assert "\N{REPLACEMENT CHARACTER}" in found


def test_an_escape_sequence_that_no_set_has_stays_as_it_is() -> None:
    assert text("ISO_IR 100", b"a\x1b[31mb\x1b") == ["a\x1b[31mb\x1b"]


def test_an_item_inherits_the_character_set_or_has_its_own() -> None:
    """PS3.5 7.5.3."""
    russian = [Element(0x00080005, "CS", "ISO_IR 144"), Element(LONG_STRING, "LO", b"\xb1 ")]
    nested = [Element(0x00080104, "LO", b"\xe1 "), Element(0x00081140, "SQ", Items([russian]))]
    content = [
        Element(0x00080005, "CS", "ISO_IR 126"),
        Element(0x00081110, "SQ", Items([nested], undefined=True)),
        Element(0x00081030, "LO", b"\xe1 "),
    ]
    found = read_exactly(encode(sorted(content, key=lambda each: each.tag)))
    item = found["00081110"]["Value"][0]
    assert found["00081030"]["Value"] == ["α"]
    assert item["00080104"]["Value"] == ["α"]
    assert item["00081140"]["Value"][0]["00081030"]["Value"] == ["Б"]


def test_character_sets_apply_to_their_vrs_alone() -> None:
    """PS3.5 6.1.2.2: not to CS, nor to other texts that the default repertoire is enough for."""
    attributes = [Element(0x00080005, "CS", "ISO_IR 144"), Element(0x00080060, "CS", b"\xb1 ")]
    assert read_exactly(encode(attributes))["00080060"]["Value"] == ["±"]


def test_specific_character_set_keeps_what_the_file_says() -> None:
    """PS3.18 F.2.2 note 3 (CP-2518): it tells of the source; JSON is UTF-8 whatever it says."""
    found = read_exactly(encode([Element(0x00080005, "CS", "ISO 2022 IR 6\\ISO 2022 IR 87")]))
    assert found == {"00080005": {"vr": "CS", "Value": ["ISO 2022 IR 6", "ISO 2022 IR 87"]}}
