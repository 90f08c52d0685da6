"""A slice of the campaign against silent wrong answers, and proof that it would see them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest

from frames.dicom.campaign import damage, meaning
from frames.dicom.campaign.fields import wrong_header_byte, wrong_length, wrong_lengths
from frames.dicom.campaign.judges import Guarded, available
from frames.dicom.campaign.seeds import Frames, Mutant, Seed, frames_of, seeds
from frames.dicom.campaign.verdict import Tally, is_same, random_mutants, run, structured
from voxtier.errors import FormatError

SEED = 20261127
KINDS = {
    "length": (wrong_length, 20_000, 0.001),
    "damage": (structured(damage.MUTATORS), 20_000, 0.001),
    "byte": (wrong_header_byte, 20_000, 0.013),
    "meaning": (structured(meaning.MUTATORS), 5_000, 1.0),
}


@pytest.fixture(scope="module")
def files() -> list[Seed]:
    return seeds()


def slice_of(kind: str, files: list[Seed], count: int) -> Iterator[Mutant]:
    return islice(random_mutants(SEED, files, KINDS[kind][0]), count)


def worst(tally: Tally) -> list[str]:
    """Silent mutants as a failing test shows them."""
    return [f"{mutant.seed}: {mutant.what}" for mutant in tally.examples[:20]]


@pytest.mark.parametrize("kind", KINDS)
def test_silent_rate_is_below_its_goal(kind: str, files: list[Seed]) -> None:
    _, count, goal = KINDS[kind]
    tally = run(slice_of(kind, files, count))
    assert tally.mutants == count
    assert tally.words["split"] == 0, worst(tally)
    assert tally.silent_rate <= goal, worst(tally)


def test_files_are_many_and_of_every_kind(files: list[Seed]) -> None:
    names = {seed.name for seed in files}
    assert len(names) > 250
    assert {"CT_small.dcm", "SC_rgb_rle_2frame.dcm", "e10_eot", "n02_implicit_le_3f"} <= names
    assert any(seed.fragments for seed in files)
    assert any(part.depth > 1 for seed in files for part in seed.parts)


def test_every_mutator_finds_files(files: list[Seed]) -> None:
    """A mutator that never applies is a hole in the campaign."""
    for change in [*damage.MUTATORS, *meaning.MUTATORS]:
        assert next(random_mutants(SEED, files, structured([change]))).what == change.__name__


def test_every_length_field_is_damaged(files: list[Seed]) -> None:
    seed = next(seed for seed in files if seed.name == "n33_icon_undefined")
    tags = {mutant.what.split()[2] for mutant in wrong_lengths(seed)}
    assert tags == {f"{part.tag:08X}" for part in seed.parts if not part.is_open}


def half_of_each(content: bytes, verify: str) -> Frames:
    return tuple(frame[: len(frame) // 2] for frame in frames_of(content, verify))


def first_alone(content: bytes, verify: str) -> Frames:
    return frames_of(content, verify)[:1]


def nothing(content: bytes, verify: str) -> Frames:
    frames_of(content, verify)
    return ()


def other_at_the_ends(content: bytes, verify: str) -> Frames:
    frames = frames_of(content, verify)
    return frames if verify == "all" else frames[::-1]


@pytest.mark.parametrize("bad", [half_of_each, first_alone, nothing])
def test_a_bad_parser_is_silent(bad: object, files: list[Seed]) -> None:
    several = [seed for seed in files if len(seed.frames) > 1]
    good = run(slice_of("damage", several, 300))
    tally = run(slice_of("damage", several, 300), read=bad)  # type: ignore[arg-type]
    assert tally.words["refused"] == good.words["refused"]
    assert tally.words["silent"] >= good.words["same"] > 50


def test_a_parser_that_differs_by_depth_is_wrong(files: list[Seed]) -> None:
    several = [seed for seed in files if len(set(seed.frames)) > 1]
    tally = run(slice_of("damage", several, 300), read=other_at_the_ends)
    assert tally.words["split"] == len(tally.wrong) > 50


def test_a_parser_that_refuses_all_is_not_silent(files: list[Seed]) -> None:
    def refuse(content: bytes, verify: str) -> Frames:
        raise FormatError("not_dicom", None, "")

    assert run(slice_of("damage", files, 50), read=refuse).words == {"refused": 50}


def test_two_judges_contradict_and_one_does_not(files: list[Seed]) -> None:
    several = [seed for seed in files if len(seed.frames) > 1]

    def honest(content: bytes) -> Frames | None:
        try:
            return frames_of(content)
        except FormatError:
            return None

    def liar(content: bytes) -> Frames | None:
        return (b"the same", b"for all")

    def wrong_with(*judges: object) -> int:
        mutants = slice_of("damage", several, 100)
        return len(run(mutants, read=first_alone, judges=judges).wrong)  # type: ignore[arg-type]

    assert wrong_with(honest, honest) > 20
    assert wrong_with(honest, liar) == 0
    assert wrong_with(liar, liar) == 0, "who misreads the undamaged file is no witness"
    assert wrong_with(honest) == 0


def test_a_judge_that_crashes_or_hangs_is_started_again() -> None:
    """`eval` is a judge whose files say what it shall do."""
    judge = Guarded(eval, seconds=1.5)
    try:
        assert judge(b"(b'frame',)") == (b"frame",)
        assert judge(b"__import__('os')._exit(1)") is None
        assert judge(b"(b'again',)") == (b"again",)
        assert judge(b"__import__('time').sleep(60)") is None
        assert judge(b"1 / 0") is None
        assert judge(b"(b'still',)") == (b"still",)
        assert judge.lost == 2
    finally:
        judge.close()


def test_judges_read_what_is_sound(files: list[Seed]) -> None:
    sound = [seed for seed in files if seed.name in ("CT_small.dcm", "n02_implicit_le_3f", "e01_bot_1to1")]
    judges = available()
    try:
        assert len(sound) == 3
        assert len(judges) >= 2
        for judge in judges:
            agree = [seed for seed in sound if is_same(judge(seed.content) or (), seed.frames)]
            assert len(agree) >= 2, judge.judge
    finally:
        for judge in judges:
            judge.close()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((b"ab",), (b"ab",), True),
        ((b"ab\0",), (b"ab",), True),
        ((b"ab",), (b"ab\0",), True),
        ((b"ab\0\0",), (b"ab",), False),
        ((b"abc",), (b"ab",), False),
        ((b"ab", b"cd"), (b"ab",), False),
    ],
)
def test_a_pad_byte_is_no_other_frame(one: Frames, other: Frames, same: bool) -> None:
    assert is_same(one, other) is same
