"""What voxtier says of a mutant, held against the frames of the file before and against other readers."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from frames.dicom.campaign.damage import Mutator
from frames.dicom.campaign.judges import Judge
from frames.dicom.campaign.seeds import Frames, Mutant, Seed, frames_of
from voxtier.errors import FormatError, SourceError

Reader = Callable[[bytes, str], Frames]
"""All frames of a file at a depth of verification; raises `FormatError`."""


@dataclass(frozen=True)
class Verdict:
    """One word, and the frames that were served."""

    word: str  # same | refused | silent | split
    frames: Frames | None = None


@dataclass
class Tally:
    """Counts of one kind of mutants."""

    words: Counter[str] = field(default_factory=Counter)
    silent: Counter[str] = field(default_factory=Counter)  # by what was done to the file
    wrong: list[Mutant] = field(default_factory=list)
    examples: list[Mutant] = field(default_factory=list)  # silent ones

    @property
    def mutants(self) -> int:
        return self.words.total()

    @property
    def silent_rate(self) -> float:
        return (self.words["silent"] + self.words["split"]) / max(self.mutants, 1)


def is_same(one: Frames, other: Frames) -> bool:
    """Whether these are the same frames; a pad byte more or less is no other frame (PS3.5 A.4)."""
    return len(one) == len(other) and all(map(_is_same_frame, one, other))


def _in_any_order(frames: Frames) -> Frames:
    return tuple(sorted(frames))


def _is_same_frame(one: bytes, other: bytes) -> bool:
    return one == other or one == other + b"\0" or one + b"\0" == other


def judge(mutant: Mutant, read: Reader = frames_of) -> Verdict:
    """Hold the answers at both depths against the frames of the undamaged file."""
    answers: list[Frames | None] = []
    for verify in ("all", "ends"):
        try:
            answers.append(read(mutant.content, verify))
        except (FormatError, SourceError):  # SourceError: the header before a frame is not the table's
            answers.append(None)
    whole, quick = answers
    if whole is not None and quick is not None and whole != quick:
        return Verdict("split", whole)
    served = quick if whole is None else whole
    if served is None:
        return Verdict("refused")
    return Verdict("same" if is_same(served, mutant.seed.frames) else "silent", served)


class Jury:
    """Other readers, each a witness only for the files that it reads right before they are damaged."""

    def __init__(self, judges: Sequence[Judge]) -> None:
        self.judges = judges
        self._witnesses: dict[str, list[Judge]] = {}

    def contradicts(self, mutant: Mutant, served: Frames) -> bool:
        """Whether two witnesses agree on frames that are not the ones served, and no two on those.

        None is a witness of the order: GDCM and dcmdump give fragments as they are stored, without a table.
        """
        answers = [answer for judge in self._of(mutant.seed) if (answer := judge(mutant.content))]
        others = [answer for answer in answers if not is_same(_in_any_order(answer), _in_any_order(served))]
        agree = any(is_same(one, other) for number, one in enumerate(others) for other in others[:number])
        return agree and len(answers) - len(others) < 2

    def _of(self, seed: Seed) -> list[Judge]:
        if seed.name not in self._witnesses:
            answers = [(judge, judge(seed.content)) for judge in self.judges]
            self._witnesses[seed.name] = [
                judge for judge, answer in answers if answer and is_same(answer, seed.frames)
            ]
        return self._witnesses[seed.name]


def run(
    mutants: Iterator[Mutant],
    *,
    seconds: float = float("inf"),
    judges: Sequence[Judge] = (),
    ask_always: bool = False,
    read: Reader = frames_of,
) -> Tally:
    """Judge mutants until they or the time end.

    Parameters
    ----------
    mutants : Iterator[Mutant]
        May be endless where ``seconds`` is not.
    judges : Sequence[Judge]
        Other readers, asked about silent mutants.
    ask_always : bool
        Ask them about every mutant that is not refused.
    read : Reader
        The parser under test.
    """
    tally, jury = Tally(), Jury(judges)
    end = time.monotonic() + seconds
    for mutant in mutants:
        verdict = judge(mutant, read)
        tally.words[verdict.word] += 1
        is_silent = verdict.word in ("silent", "split")
        if is_silent:
            tally.silent[mutant.what] += 1
            tally.examples.append(mutant)
        served = verdict.frames if is_silent or ask_always else None
        if verdict.word == "split" or (served is not None and jury.contradicts(mutant, served)):
            tally.wrong.append(mutant)
        if time.monotonic() > end:
            break
    return tally


def structured(mutators: Sequence[Mutator]) -> Callable[[random.Random, Seed], Mutant | None]:
    """One mutator of several, chosen at random."""

    def make(chance: random.Random, seed: Seed) -> Mutant | None:
        change = chance.choice(mutators)
        content = change(chance, seed)
        return None if content is None or content == seed.content else Mutant(seed, change.__name__, content)

    return make


def random_mutants(
    number: int, files: Sequence[Seed], make: Callable[[random.Random, Seed], Mutant | None]
) -> Iterator[Mutant]:
    """Endless mutants, the same for the same number."""
    chance = random.Random(number)
    while True:
        mutant = make(chance, chance.choice(files))
        if mutant is not None:
            yield mutant
