"""Run journeys, write their JSON, draw the report: ``python -m benches [JOURNEY ...] [--quick]``."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benches.measure import RESULTS, Result, machine, say
from benches.report import write_report

# name -> module below benches.journeys
JOURNEYS = {
    "small_files": "dicom.small_files",
    "slides": "dicom.slides",
    "functional_groups": "dicom.functional_groups",
    "pydicom_files": "dicom.pydicom_files",
    "metadata": "dicom.metadata",
    "tables": "frames.tables",
    "frames_cloud": "frames.cloud",
    "gateway": "frames.gateway",
    "index_run": "frames.index_run",
    "memory": "frames.memory",
    "ranking": "frames.ranking",
    "preprocess": "preprocess",
    "replay": "frames.replay",
    "sick_database": "frames.sick_database",
    "spark_job": "frames.spark_job",
    "tensors": "tensors",
    "volume_reads": "volumes.reads",
    "volume_writes": "volumes.writes",
    "volume_s3": "volumes.s3",
    "training": "volumes.training",
}


def verdicts(found: list[Result]) -> None:
    """Print every goal of this run again, one per line: reached or missed, and the number."""
    goals = [(race, goal) for race in found for goal in race.goals]
    print(f"\n{sum(goal['met'] for _, goal in goals)} of {len(goals)} goals reached", file=sys.stderr)
    for race, goal in goals:
        mark = "reached" if goal["met"] else "MISSED "
        print(f"  {mark} {race.title}: {goal['text']}: {goal['shown']}", file=sys.stderr)


def main() -> int:
    """Run the journeys that were asked for."""
    options = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    options.add_argument("journeys", nargs="*", metavar="JOURNEY", help=f"some of: {', '.join(JOURNEYS)}")
    options.add_argument("--quick", action="store_true", help="small sizes, about a minute in all")
    options.add_argument("--rounds", type=int, default=5, help="laps of every way (the best one counts)")
    options.add_argument("--folder", type=Path, help="where files are made (a real disk; removed at the end)")
    chosen = options.parse_args()
    unknown = set(chosen.journeys) - set(JOURNEYS)
    if unknown:
        options.error(f"no such journey: {', '.join(sorted(unknown))}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    found: list[Result] = []
    for name in chosen.journeys or JOURNEYS:
        with tempfile.TemporaryDirectory(prefix="voxtier-bench-", dir=chosen.folder or "/var/tmp") as folder:
            races: list[Result] = []
            journey = importlib.import_module(f"benches.journeys.{JOURNEYS[name]}")
            for race in journey.run(Path(folder), quick=chosen.quick, rounds=chosen.rounds):
                say(race)
                races.append(race)
        found += races
        content = {"machine": machine(), "quick": chosen.quick, "races": [asdict(race) for race in races]}
        (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    verdicts(found)
    report = write_report(RESULTS, list(JOURNEYS))
    print(f"\n{time.perf_counter() - started:.0f} s; report: {report}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
