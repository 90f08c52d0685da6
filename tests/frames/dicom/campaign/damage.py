"""Structured damage: a broken file, for which the old frames, a part of them, or a refusal are right."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

from frames.dicom.campaign.seeds import Seed
from support.builders import ITEM, ITEM_END, SEQUENCE_END, UNDEFINED, item_header

Mutator = Callable[[random.Random, Seed], bytes | None]
"""The damaged file, or None where this seed has nothing to damage in this way."""

NUMBER_OF_FRAMES, SAMPLES_PER_PIXEL = 0x00280008, 0x00280002
ICON_SEQUENCE = 0x00880200
# Attributes and pixels of an icon: what must not be taken for the image's own.
ICON = (
    struct.pack("<HH2sHH", 0x0028, 0x0010, b"US", 2, 2)
    + struct.pack("<HH2sHH", 0x0028, 0x0011, b"US", 2, 2)
    + struct.pack("<HH2sHH", 0x0028, 0x0100, b"US", 2, 8)
    + struct.pack("<HH2sHI4s", 0x7FE0, 0x0010, b"OB", 0, 4, b"ICON")
)


def sequence(tag: int, length: int, value: bytes) -> bytes:
    """A sequence in explicit VR whose length may lie."""
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, b"SQ", 0, length) + value


def insert(content: bytes, at: int, what: bytes) -> bytes:
    return content[:at] + what + content[at:]


def insert_in_order(seed: Seed, tag: int, element: bytes) -> bytes | None:
    """Put an element where its tag belongs."""
    later = [part.start for part in seed.parts if part.depth == 0 and part.tag > tag]
    return insert(seed.content, min(later), element) if later else None


def any_border(chance: random.Random, seed: Seed) -> int:
    """Where an element, an item or a delimiter begins."""
    return chance.choice(seed.parts).start


def any_delimiter(chance: random.Random, seed: Seed) -> tuple[int, int, int] | None:
    """Start, end and tag of a delimiter."""
    ends = [part for part in seed.parts if part.tag in (ITEM_END, SEQUENCE_END)]
    part = chance.choice(ends) if ends else None
    return None if part is None else (part.start, part.value, part.tag)


def items_of(payloads: Sequence[bytes]) -> bytes:
    return b"".join(item_header(len(payload)) + payload for payload in payloads)


# Elements of the data set.


def repeat_an_element(chance: random.Random, seed: Seed) -> bytes | None:
    part = chance.choice(seed.top)
    end = seed.end_of(part)
    return insert(seed.content, end, seed.content[part.start : end])


def repeat_an_element_with_another_value(chance: random.Random, seed: Seed) -> bytes | None:
    part = chance.choice(seed.top)
    if part.is_open or part.length == 0:
        return None
    end = seed.end_of(part)
    again = bytearray(seed.content[part.start : end])
    again[part.value - part.start] ^= 1 << chance.randrange(4)
    return insert(seed.content, end, bytes(again))


def leave_out_an_element(chance: random.Random, seed: Seed) -> bytes | None:
    """Any element that does not tell how the pixels lie."""
    part = chance.choice([part for part in seed.top if part.tag >> 16 not in (0x0028, 0x7FE0)])
    return seed.content[: part.start] + seed.content[seed.end_of(part) :]


def swap_two_elements(chance: random.Random, seed: Seed) -> bytes | None:
    if len(seed.top) < 2:
        return None
    first = chance.randrange(len(seed.top) - 1)
    one, two = seed.top[first], seed.top[first + 1]
    content, end = seed.content, seed.end_of(two)
    return content[: one.start] + content[two.start : end] + content[one.start : two.start] + content[end:]


def move_an_element_behind_the_pixels(chance: random.Random, seed: Seed) -> bytes | None:
    part = chance.choice(seed.top)
    content, end, behind = seed.content, seed.end_of(part), seed.end_of(seed.pixels)
    return content[: part.start] + content[end:behind] + content[part.start : end] + content[behind:]


def an_attribute_again_behind_the_pixels(chance: random.Random, seed: Seed) -> bytes | None:
    again = [
        (0x00280010, b"US", b"\3\0"),
        (0x00280011, b"US", b"\2\0"),
        (0x00280100, b"US", b"\x10\0"),
        (NUMBER_OF_FRAMES, b"IS", b"7 "),
        (0x00080018, b"UI", b"1.2.3.4.5.6\0"),
    ]
    return insert(seed.content, seed.end_of(seed.pixels), seed.written(*chance.choice(again)))


def pixels_twice(chance: random.Random, seed: Seed) -> bytes | None:
    start, end = seed.pixels.start, seed.end_of(seed.pixels)
    again = seed.content[start:end]
    if chance.random() < 0.6:
        again = seed.written(0x7FE00010, b"OW", chance.randbytes(2 * chance.randrange(40)))
    return insert(seed.content, chance.choice([start, end]), again)


def another_vr(chance: random.Random, seed: Seed) -> bytes | None:
    if not seed.explicit:
        return None
    part = chance.choice([*seed.top, seed.pixels])
    vr = chance.choice([b"\0\0", b"UN", b"OB", b"SQ", b"US", b"??", b"ow"])
    return seed.content[: part.start + 4] + vr + seed.content[part.start + 6 :]


def a_value_edited_without_its_length(chance: random.Random, seed: Seed) -> bytes | None:
    """As an anonymiser does that knows nothing of sequences: some bytes of a value go, or come."""
    parts = [
        part for part in seed.parts if 4 <= part.length < 1000 and part.tag != ITEM and not part.is_pixels
    ]
    if not parts:
        return None
    at = chance.choice(parts).value
    if chance.random() < 0.5:
        return seed.content[:at] + seed.content[at + chance.choice([2, 4]) :]
    return insert(seed.content, at, b"XY" * chance.choice([1, 2]))


def number_of_frames_as_others_write_it(chance: random.Random, seed: Seed) -> bytes | None:
    part = seed.element(NUMBER_OF_FRAMES)
    if part is None:
        return None
    n = seed.number_of_frames
    forms = [f"{n}.000", f"{n}.0", f"\t{n}", f"{n}\n", f"{n}.", f" {n} ", f"+{n}", f"0{n}", f"{n}\r\n"]
    text = chance.choice(forms).encode()
    return seed.with_element(part, b"IS", text + b" " * (len(text) % 2))


def more_frames_than_there_are(chance: random.Random, seed: Seed) -> bytes | None:
    """So many that no padding holds them."""
    part = seed.element(NUMBER_OF_FRAMES)
    has_room = not seed.pixels.is_open and seed.pixels.length > 2 * sum(map(len, seed.frames))
    if part is None or has_room:
        return None
    n = seed.number_of_frames
    text = str(n * chance.choice([3, 10])).encode()
    return seed.with_element(part, b"IS", text + b" " * (len(text) % 2))


def samples_per_pixel_of_another_length(chance: random.Random, seed: Seed) -> bytes | None:
    part = seed.element(SAMPLES_PER_PIXEL)
    if part is None or not seed.explicit:
        return None
    return seed.with_element(part, b"US", chance.choice([b"\3", b"\1\0\0\0", b"", b"1 "]))


# Sequences and delimiters.


def stray_delimiter_or_item(chance: random.Random, seed: Seed) -> bytes | None:
    item_end, sequence_end = item_header(0, "<", ITEM_END), item_header(0, "<", SEQUENCE_END)
    strays = [
        *(item_header(length) for length in (0, 8, UNDEFINED)),
        *(item_end, sequence_end, sequence_end * 2, item_end + sequence_end),
    ]
    return insert(seed.content, any_border(chance, seed), chance.choice(strays))


def delimiter_left_out(chance: random.Random, seed: Seed) -> bytes | None:
    found = any_delimiter(chance, seed)
    return None if found is None else seed.content[: found[0]] + seed.content[found[1] :]


def delimiter_of_the_other_kind(chance: random.Random, seed: Seed) -> bytes | None:
    found = any_delimiter(chance, seed)
    if found is None:
        return None
    start, end, tag = found
    other = item_header(0, "<", ITEM_END if tag == SEQUENCE_END else SEQUENCE_END)
    return seed.content[:start] + other + seed.content[end:]


def delimiter_twice(chance: random.Random, seed: Seed) -> bytes | None:
    found = any_delimiter(chance, seed)
    return None if found is None else seed.content[: found[1]] + seed.content[found[0] :]


def a_sequence_with_a_length_that_lies(chance: random.Random, seed: Seed) -> bytes | None:
    """An icon in a sequence whose own length is 0, ends inside the icon, or goes beyond it."""
    if not seed.explicit:
        return None
    item = item_header(len(ICON)) + ICON
    lengths = [0, 8, 18, 28, 38, *(len(item) + delta for delta in (-8, -4, 4, 8))]
    tag = chance.choice([0x00081140, 0x00400555, ICON_SEQUENCE, 0x52009229])
    return insert_in_order(seed, tag, sequence(tag, chance.choice(lengths), item))


def a_sequence_with_broken_delimiters(chance: random.Random, seed: Seed) -> bytes | None:
    """An icon behind a sequence of undefined length whose delimiters are wrong, missing, or one too many."""
    if not seed.explicit:
        return None
    broken = [
        (SEQUENCE_END, SEQUENCE_END),
        (ITEM_END, ITEM_END),
        (ITEM_END, SEQUENCE_END, SEQUENCE_END),
        (ITEM_END, ITEM_END, SEQUENCE_END),
        (SEQUENCE_END,),
        (ITEM_END,),
    ]
    ends = b"".join(item_header(0, "<", tag) for tag in chance.choice(broken))
    uid = struct.pack("<HH2sH4s", 0x0008, 0x1150, b"UI", 4, b"1.2\0")
    body = sequence(0x00081140, UNDEFINED, item_header(UNDEFINED) + uid + ends) + ICON
    for _ in range(chance.randrange(1, 4)):
        closing = item_header(0, "<", ITEM_END) + item_header(0, "<", SEQUENCE_END)
        body = sequence(ICON_SEQUENCE, UNDEFINED, item_header(UNDEFINED) + body + closing)
    return insert_in_order(seed, ICON_SEQUENCE, body)


def an_item_with_both_length_and_delimiter(chance: random.Random, seed: Seed) -> bytes | None:
    if not seed.explicit:
        return None
    item = item_header(len(ICON)) + ICON + item_header(0, "<", ITEM_END)
    tag = chance.choice([0x00081140, ICON_SEQUENCE, 0x52009229])
    value = item * chance.randrange(1, 3) + item_header(0, "<", SEQUENCE_END)
    return insert_in_order(seed, tag, sequence(tag, UNDEFINED, value))


# Bytes that come or go.


def zeros_between_elements(chance: random.Random, seed: Seed) -> bytes | None:
    at = chance.choice([*seed.top, seed.pixels]).start
    return insert(seed.content, at, bytes(chance.choice([8, 16, 512, 4096])))


def the_rest_is_zeros(chance: random.Random, seed: Seed) -> bytes | None:
    at = chance.choice(seed.top).start
    return seed.content[:at] + bytes(len(seed.content) - at) if seed.is_image_before(at) else None


def ends_at_a_border(chance: random.Random, seed: Seed) -> bytes | None:
    at = chance.choice(seed.parts[1:]).start
    return seed.content[:at] if seed.is_image_before(at) else None


def ends_anywhere(chance: random.Random, seed: Seed) -> bytes | None:
    at = chance.randrange(133, len(seed.content))
    return seed.content[:at] if seed.is_image_before(at) else None


def a_few_bytes_too_many(chance: random.Random, seed: Seed) -> bytes | None:
    what = chance.choice([b"\0", b"\0\0", b"\xff", chance.randbytes(4)])
    return insert(seed.content, any_border(chance, seed), what)


def a_few_bytes_missing(chance: random.Random, seed: Seed) -> bytes | None:
    at = any_border(chance, seed)
    return seed.content[:at] + seed.content[at + chance.choice([1, 2, 4, 8]) :]


def garbage_behind_the_pixels(chance: random.Random, seed: Seed) -> bytes | None:
    length = chance.randrange(1, 600)
    return seed.content + chance.choice([bytes(length), chance.randbytes(length)])


# Fragments and tables.


def a_fragment_in_two(chance: random.Random, seed: Seed) -> bytes | None:
    """A frame may lie in several fragments, but the table or the count now says something else."""
    if len(seed.payloads) < 2:
        return None
    table, *payloads = seed.payloads
    at = chance.randrange(len(payloads))
    half = len(payloads[at]) // 4 * 2
    return seed.with_items(
        items_of([table, *payloads[:at], payloads[at][:half], payloads[at][half:], *payloads[at + 1 :]])
    )


def two_fragments_in_one(chance: random.Random, seed: Seed) -> bytes | None:
    if len(seed.payloads) < 3:
        return None
    table, *payloads = seed.payloads
    at = chance.randrange(len(payloads) - 1)
    joined = payloads[at] + payloads[at + 1]
    return seed.with_items(items_of([table, *payloads[:at], joined, *payloads[at + 2 :]]))


def an_empty_fragment_too_many(chance: random.Random, seed: Seed) -> bytes | None:
    if not seed.payloads:
        return None
    at = chance.randrange(1, len(seed.payloads) + 1)
    return seed.with_items(items_of([*seed.payloads[:at], b"", *seed.payloads[at:]]))


def offsets_of(payloads: Sequence[bytes]) -> list[int]:
    """Where each fragment's Item stands, from the first one on."""
    offsets, at = [], 0
    for payload in payloads:
        offsets.append(at)
        at += 8 + len(payload)
    return offsets


def a_table_of_no_items(chance: random.Random, seed: Seed) -> bytes | None:
    """A Basic Offset Table with entries at which no Item stands."""
    if len(seed.payloads) < 2:
        return None
    _, *payloads = seed.payloads
    offsets = offsets_of(payloads)
    ways = [
        [each + chance.choice([1, 2, 4, 6]) for each in offsets],
        [each + (8 if number else 0) for number, each in enumerate(offsets)],
        [each + 8 for each in offsets],
        [*offsets, offsets[-1] + 8 + len(payloads[-1])],
        [chance.randrange(1 << 32) for _ in offsets],
    ]
    wrong = chance.choice(ways)
    if set(wrong) <= set(offsets):
        return None
    return seed.with_items(items_of([struct.pack(f"<{len(wrong)}I", *wrong), *payloads]))


def no_item_for_the_table(chance: random.Random, seed: Seed) -> bytes | None:
    return seed.with_items(items_of(seed.payloads[1:])) if len(seed.payloads) > 1 else None


def a_defined_length_for_items(chance: random.Random, seed: Seed) -> bytes | None:
    pixels = seed.pixels
    if not pixels.is_open or not seed.fragments:
        return None
    length = struct.pack("<I", seed.fragments[-1].end + chance.choice([0, 8]) - pixels.value)
    return seed.content[: pixels.length_at] + length + seed.content[pixels.value :]


MUTATORS: list[Mutator] = [
    repeat_an_element,
    repeat_an_element_with_another_value,
    leave_out_an_element,
    swap_two_elements,
    move_an_element_behind_the_pixels,
    an_attribute_again_behind_the_pixels,
    pixels_twice,
    another_vr,
    a_value_edited_without_its_length,
    number_of_frames_as_others_write_it,
    more_frames_than_there_are,
    samples_per_pixel_of_another_length,
    stray_delimiter_or_item,
    delimiter_left_out,
    delimiter_of_the_other_kind,
    delimiter_twice,
    a_sequence_with_a_length_that_lies,
    a_sequence_with_broken_delimiters,
    an_item_with_both_length_and_delimiter,
    zeros_between_elements,
    the_rest_is_zeros,
    ends_at_a_border,
    ends_anywhere,
    a_few_bytes_too_many,
    a_few_bytes_missing,
    garbage_behind_the_pixels,
    a_fragment_in_two,
    two_fragments_in_one,
    an_empty_fragment_too_many,
    a_table_of_no_items,
    no_item_for_the_table,
    a_defined_length_for_items,
]
