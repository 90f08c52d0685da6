"""Structured changes of meaning: a sound file that says something else, which no reader can know.

What is still demanded of these: an answer that does not differ by ``verify=``, and frames that two other
readers do not contradict.
"""

from __future__ import annotations

import random
import struct

from frames.dicom.campaign.damage import NUMBER_OF_FRAMES, Mutator, items_of, offsets_of
from frames.dicom.campaign.seeds import Seed

TRANSFER_SYNTAX = 0x00020010
SYNTAXES = [
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5",
]


def fewer_frames_than_there_are(chance: random.Random, seed: Seed) -> bytes | None:
    part = seed.element(NUMBER_OF_FRAMES)
    n = seed.number_of_frames
    if part is None or n < 2:
        return None
    text = str(chance.choice([1, n // 2, n - 1])).encode()
    return seed.with_element(part, b"IS", text + b" " * (len(text) % 2))


def another_table_of_real_items(chance: random.Random, seed: Seed) -> bytes | None:
    """A Basic Offset Table of other Items, or of the same in another order."""
    if len(seed.payloads) < 3:
        return None
    _, *payloads = seed.payloads
    offsets = offsets_of(payloads)
    count = chance.choice([len(offsets), min(seed.number_of_frames, len(offsets)), chance.randrange(1, 4)])
    wrong = [0, *chance.sample(offsets[1:], min(count, len(offsets)) - 1)]
    chance.shuffle(wrong)
    return seed.with_items(items_of([struct.pack(f"<{len(wrong)}I", *wrong), *payloads]))


def a_fragment_is_missing(chance: random.Random, seed: Seed) -> bytes | None:
    if len(seed.payloads) < 2:
        return None
    at = chance.randrange(1, len(seed.payloads))
    return seed.with_items(items_of([*seed.payloads[:at], *seed.payloads[at + 1 :]]))


def a_fragment_twice(chance: random.Random, seed: Seed) -> bytes | None:
    if len(seed.payloads) < 2:
        return None
    at = chance.randrange(1, len(seed.payloads))
    return seed.with_items(items_of([*seed.payloads[: at + 1], *seed.payloads[at:]]))


def a_fragment_without_its_bytes(chance: random.Random, seed: Seed) -> bytes | None:
    if len(seed.payloads) < 2:
        return None
    at = chance.randrange(1, len(seed.payloads))
    return seed.with_items(items_of([*seed.payloads[:at], b"", *seed.payloads[at + 1 :]]))


def another_transfer_syntax(chance: random.Random, seed: Seed) -> bytes | None:
    part = seed.element(TRANSFER_SYNTAX)
    if part is None:
        return None
    uid = chance.choice(SYNTAXES).encode()
    value = uid + b"\0" * (len(uid) % 2)
    head = struct.pack("<HH2sH", 0x0002, 0x0010, b"UI", len(value))
    return seed.content[: part.start] + head + value + seed.content[part.end :]


MUTATORS: list[Mutator] = [
    fewer_frames_than_there_are,
    another_table_of_real_items,
    a_fragment_is_missing,
    a_fragment_twice,
    a_fragment_without_its_bytes,
    another_transfer_syntax,
]
