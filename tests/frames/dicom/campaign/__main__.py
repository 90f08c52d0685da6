"""Run the campaign: ``PYTHONPATH=tests python -m frames.dicom.campaign [--seconds N] [--seed N]``.

Prints the rates of each kind; exits 1 where two other readers contradict voxtier or an answer differs by
``verify=``. `test_campaign.py` runs a slice in ``make test``, ``make fuzz`` an hour.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from frames.dicom.campaign import damage, meaning
from frames.dicom.campaign.fields import wrong_header_byte, wrong_lengths
from frames.dicom.campaign.judges import available
from frames.dicom.campaign.seeds import Mutant, Seed, seeds
from frames.dicom.campaign.verdict import Tally, random_mutants, run, structured


def kinds(number: int, files: list[Seed]) -> dict[str, tuple[float, Iterator[Mutant]]]:
    """Goal for the silent rate and mutants of each kind; those of lengths end, the others do not."""
    in_any_order = random.Random(number).sample(files, len(files))
    return {
        "one length field wrong": (0.001, chain.from_iterable(map(wrong_lengths, in_any_order))),
        "one structured damage": (0.001, random_mutants(number, files, structured(damage.MUTATORS))),
        "one header byte wrong": (0.013, random_mutants(number, files, wrong_header_byte)),
        "one change of meaning": (1.0, random_mutants(number, files, structured(meaning.MUTATORS))),
    }


def report(name: str, goal: float, tally: Tally, show: int) -> None:
    """Print the counts of one kind."""
    share = tally.words["refused"] / max(tally.mutants, 1)
    print(
        f"{name}: {tally.mutants:,} mutants, {share:.1%} refused, {tally.silent_rate:.3%} silent"
        f" (goal {goal:.1%}), {tally.words['split']} differ by verify=, {len(tally.wrong)} wrong",
        flush=True,
    )
    for what, count in tally.silent.most_common(show):
        print(f"    {count:6} {what}")
    for mutant in tally.wrong[:show]:
        print(f"    WRONG  {mutant.seed}: {mutant.what}")


def write(folder: Path, name: str, mutants: list[Mutant]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, mutant in enumerate(mutants):
        stem = f"{name} {number} {mutant.seed} {mutant.what}".replace("/", "_")
        (folder / f"{stem}.dcm").write_bytes(mutant.content)


def main() -> int:
    """Run every kind and print its rates."""
    options = argparse.ArgumentParser(description="Damaged files against silent wrong answers.")
    options.add_argument("--seconds", type=float, default=240.0, help="in all (240)")
    options.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="the clock's by default")
    options.add_argument("--show", type=int, default=12, help="silent kinds and wrong mutants to list (12)")
    options.add_argument("--no-judges", action="store_true", help="do not ask other readers")
    options.add_argument(
        "--ask-always", action="store_true", help="ask about mutants that changed nothing, too"
    )
    options.add_argument("--write", type=Path, help="folder for wrong and silent mutants")
    chosen = options.parse_args()
    warnings.simplefilter("ignore")
    files = seeds()
    judges = [] if chosen.no_judges else available()
    names = ", ".join(judge.judge.__name__.removeprefix("by_") for judge in judges) or "none"
    print(f"{len(files)} files, seed {chosen.seed}, judges: {names}", flush=True)
    failed = False
    end = time.monotonic() + chosen.seconds
    of_each = kinds(chosen.seed, files)
    for left, (name, (goal, mutants)) in zip(range(len(of_each), 0, -1), of_each.items(), strict=True):
        seconds = max(end - time.monotonic(), 0) / left
        tally = run(mutants, seconds=seconds, judges=judges, ask_always=chosen.ask_always)
        report(name, goal, tally, chosen.show)
        if chosen.write:
            write(chosen.write, f"wrong {name}", tally.wrong)
            write(chosen.write, f"silent {name}", tally.examples[:200])
        failed |= bool(tally.wrong) or tally.silent_rate > goal
    for judge in judges:
        print(f"{judge.judge.__name__}: lost {judge.lost} times")
        judge.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
