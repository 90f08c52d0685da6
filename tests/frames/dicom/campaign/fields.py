"""One field of a header wrong: every length by a little, or any byte."""

from __future__ import annotations

import random
from collections.abc import Iterator

from frames.dicom.campaign.seeds import Mutant, Part, Seed

DELTAS = (-12, -8, -4, -2, -1, 1, 2, 4, 8, 12)
SHORT = 16


def wrong_lengths(seed: Seed) -> Iterator[Mutant]:
    """Every length field of the file, too small or too large by each delta."""
    mutants = (_with_length(seed, part, delta) for part in seed.parts for delta in DELTAS)
    return (mutant for mutant in mutants if mutant is not None)


def wrong_length(chance: random.Random, seed: Seed) -> Mutant | None:
    """One of those."""
    return _with_length(seed, chance.choice(seed.parts), chance.choice(DELTAS))


def _with_length(seed: Seed, part: Part, delta: int) -> Mutant | None:
    length = part.length + delta
    if part.is_open or not 0 <= length < 1 << 8 * part.width:
        return None
    field = length.to_bytes(part.width, "little")
    content = seed.content[: part.length_at] + field + seed.content[part.value :]
    return Mutant(seed, f"length of {part.tag:08X} {delta:+d}", content)


def wrong_header_byte(chance: random.Random, seed: Seed) -> Mutant:
    """One byte of a header, or of a value short enough to be a number or a code, replaced."""
    part = chance.choice(seed.parts)
    is_content = part.is_pixels or part.is_fragment or part.end - part.value > SHORT
    end = part.value if is_content else part.end
    at = chance.randrange(part.start, min(end, len(seed.content)))
    content = bytearray(seed.content)
    content[at] ^= chance.choice([0xFF, 1 << chance.randrange(8), chance.randrange(1, 256)])
    return Mutant(seed, f"byte {at - part.start} of {part.tag:08X}", bytes(content))
