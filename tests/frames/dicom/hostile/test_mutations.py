"""Tens of thousands of damaged files in seconds: no panic, no hang, no range outside the file."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import pytest

from frames.dicom.cases import CASES
from voxtier._core import ERROR_KINDS
from voxtier.errors import FormatError, SourceError
from voxtier.frames import FrameTable, read_frame, read_table

MUTANTS_A_SHARD = 20_000
SEEDS = [case.content for case in CASES if 0 < len(case.content) < 4_000]
LENGTHS = [0, 1, 2, 3, 7, 8, 0x7F, 0xFF, 0xFFFE, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
TAGS = ["FEFF00E0", "FEFFDDE0", "FEFF0DE0", "E07F1000", "E07F0100", "E07F0200", "28000800", "28001000"]

Mutation = Callable[[random.Random, bytearray], None]


def flip(chance: random.Random, content: bytearray) -> None:
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def overwrite_length(chance: random.Random, content: bytearray) -> None:
    value = struct.pack(chance.choice(["<I", ">I"]), chance.choice(LENGTHS))
    at = chance.randrange(len(content))
    content[at : at + 4] = value


def overwrite_tag(chance: random.Random, content: bytearray) -> None:
    at = chance.randrange(len(content))
    content[at : at + 4] = bytes.fromhex(chance.choice(TAGS))


def insert(chance: random.Random, content: bytearray) -> None:
    at = chance.randrange(len(content))
    content[at:at] = chance.randbytes(chance.randrange(1, 20))


def remove(chance: random.Random, content: bytearray) -> None:
    at = chance.randrange(len(content))
    del content[at : at + chance.randrange(1, 40)]


def cut(chance: random.Random, content: bytearray) -> None:
    del content[chance.randrange(len(content)) :]


def repeat(chance: random.Random, content: bytearray) -> None:
    start, end = sorted(chance.randrange(len(content)) for _ in range(2))
    content[start:start] = content[start : min(end, start + 200)]


def splice(chance: random.Random, content: bytearray) -> None:
    other = chance.choice(SEEDS)
    at = chance.randrange(len(content))
    content[at:] = other[min(at, len(other) - 1) :]


MUTATIONS: list[Mutation] = [flip, overwrite_length, overwrite_tag, insert, remove, cut, repeat, splice]


def mutant(seed: int) -> bytes:
    chance = random.Random(seed)
    content = bytearray(chance.choice(SEEDS))
    for _ in range(chance.choice([1, 1, 1, 2, 3, 8])):
        if content:
            chance.choice(MUTATIONS)(chance, content)
    return bytes(content)


def check_inside(content: bytes, table: FrameTable) -> None:
    """Whatever a table says of a hostile file, it must not lead outside of it."""
    readable = len(table) if table.truncated_from is None else table.truncated_from
    for index in range(min(readable, 50)):
        ranges = table.ranges(index)
        assert ranges
        assert all(0 <= start <= end for start, end in ranges)
        if table.offsets_in == "file":
            assert all(end <= len(content) for _, end in ranges)
            length = sum(end - start for start, end in ranges)
            frame = read_frame(content, table, index)
            if table.verified == "all":
                assert len(frame) == length
            elif len(frame) > length:  # the table's span was refuted by its items: the walk's frame is served
                assert frame == read_frame(content, read_table(content, verify="all"), index)
    assert len(table.offsets) == len(table.lengths) == table.fragment_count
    firsts = table.frame_first.tolist()
    assert len(firsts) == len(table) + 1
    assert all(first < second for first, second in pairwise(firsts))


def run(seeds: range) -> set[str]:
    """Read every mutant at both depths; return the kinds of refusal that were seen."""
    seen = set()
    for seed in seeds:
        content = mutant(seed)
        for verify in ("all", "ends"):
            try:
                table = read_table(content, verify=verify)
                if table.number_of_frames <= 100_000:
                    check_inside(content, table)
            except FormatError as refused:
                assert refused.kind in ERROR_KINDS, f"seed {seed}"
                assert refused.offset is None or refused.offset >= 0
                seen.add(refused.kind)
            except BaseException as other:
                other.add_note(f"mutant({seed}), verify={verify!r}")
                raise
    return seen


@pytest.mark.parametrize("shard", range(5))
def test_mutants_are_refused_or_read_inside_the_file(shard: int) -> None:
    seen = run(range(shard * MUTANTS_A_SHARD, (shard + 1) * MUTANTS_A_SHARD))
    assert len(seen) >= 13, "the mutants must reach most of the refusals"


def test_a_table_refuted_by_its_items_is_replaced_by_the_walk() -> None:
    """A mutant that a soak found: its offset table passes at both ends and is wrong in between."""
    run(range(1795335484044337571, 1795335484044337572))


@pytest.mark.soak
def test_millions_of_mutants_are_refused_or_read_inside_the_file() -> None:
    """Other seeds on every run; a failure names its seed."""
    first = time.time_ns()
    run(range(first, first + 3_000_000))


def test_both_depths_of_verification_give_equal_bytes() -> None:
    """What the quick look serves of a damaged file, the whole walk serves too, or it refuses the file."""
    for seed in range(MUTANTS_A_SHARD):
        content = mutant(seed)
        try:
            quick, whole = read_table(content, verify="ends"), read_table(content, verify="all")
        except FormatError:
            continue
        assert len(quick) == len(whole)
        if quick.truncated_from is not None or whole.truncated_from is not None:
            assert quick.truncated_from == whole.truncated_from
        readable = len(whole) if whole.truncated_from is None else whole.truncated_from
        for index in range(min(readable, 50)):
            frame = read_frame(content, whole, index)
            with suppress(SourceError):  # the Item before it is not what the quick look assumed: refused
                assert read_frame(content, quick, index) == frame, f"mutant({seed})"


def test_a_seed_gives_the_same_mutant_again() -> None:
    assert [mutant(seed) for seed in range(50)] == [mutant(seed) for seed in range(50)]
