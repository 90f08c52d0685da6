"""The main job on real files (`make demo`): index, summarise, read frames back, serve them, next to pydicom.

The input is the DICOM files that pydicom ships and a slide of 50,000 frames without an offset table. Works
offline, in a temporary folder; the database is voxtier's embedded one.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import pydicom  # noqa: E402
from pydicom.data import get_testdata_files  # noqa: E402
from pydicom.encaps import get_frame  # noqa: E402

from benches.inputs.files import Slide, slide  # noqa: E402
from benches.journeys.dicom.slides import with_pydicom  # noqa: E402
from support.oracles import pydicom_truth  # noqa: E402
from voxtier.frames import FrameTable, read_frame, read_table, read_tables  # noqa: E402

SLIDE_FRAMES = 50_000
SOURCE = "demo"
VOXTIER = [sys.executable, "-m", "voxtier"]
BOLD, DIM, GOOD, PLAIN = ("\033[1m", "\033[2m", "\033[32m", "\033[0m") if sys.stdout.isatty() else ("",) * 4


def main() -> None:
    """Run the parts in order."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="voxtier-demo-") as name:
        folder = Path(name)
        os.environ["VOXTIER_HOME"] = str(folder / "home")
        os.environ.pop("VOXTIER_DSN", None)
        files = sorted({Path(path) for path in get_testdata_files() if Path(path).is_file()})
        heading("The input")
        made, seconds = timed(lambda: slide(folder / "slide.dcm", SLIDE_FRAMES, 4_000, "none"))
        say(f"{len(files)} files that ship with pydicom: odd, broken, and some that are no DICOM at all")
        megabytes = made.path.stat().st_size / 1e6
        say(f"a slide of {SLIDE_FRAMES:,} frames, {megabytes:.0f} MB, without offset table ({seconds:.1f} s)")
        listing = folder / "paths.txt"
        listing.write_text("\n".join(map(str, [*files, made.path])))
        try:
            with_database(files, made, listing)
        finally:
            subprocess.run([*VOXTIER, "db", "stop"], capture_output=True)
        beside_pydicom(files, made)
    print(f"\n{BOLD}Done{PLAIN} in {time.perf_counter() - started:.0f} s. Everything it made is gone again.")
    print("Next:  voxtier serve YOUR-FOLDER  ·  voxtier explain FILE  ·  voxtier frames read FILE 1 -o f.bin")


def with_database(files: list[Path], made: Slide, listing: Path) -> None:
    """Index into the embedded database, show its summary, and read every frame back through it."""
    heading("The index, in a Postgres server that voxtier runs for you")
    command(["index", "--all-files", "--source", SOURCE, "-"], listing)
    say("Again: what has not changed is not read again.")
    command(["index", "--all-files", "--source", SOURCE, "-"], listing)
    command(["frames", "summary", "--source", SOURCE])

    from voxtier.frames.store.store import FrameStore

    with FrameStore() as store:
        heading("Refused, each with its reason")
        reasons = defaultdict(list)
        for error in store.refused_files(SOURCE):
            reasons[error.kind].append(Path(error.path).name)
        for kind, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
            shown = ", ".join(sorted(set(names))[:5]) + (", ..." if len(set(names)) > 5 else "")
            say(f"{kind:<26}{len(names):>3}  {DIM}{shown}{PLAIN}")
        heading("Frames, read back through the index")
        read_back(store, files, made)
        preload(store, made)
    served(made)


def read_back(store: Any, files: list[Path], made: Slide) -> None:
    """Compare every frame that pydicom can cut out of its own files, and a sample of the slide."""
    compared = unread = 0
    tables = store.get_many(SOURCE, list(map(str, files)))
    for path, table in zip(files, tables, strict=True):
        if not isinstance(table, FrameTable) or len(table) == 0 or table.status != "ok":
            continue
        try:
            truth = pydicom_truth(path.read_bytes())
        except Exception:  # pydicom's refusals have no common root
            truth = None
        if truth is None:
            unread += 1
            continue
        frames = [read_frame(path, table, index) for index in range(len(table))]
        if frames != truth.frames:
            raise SystemExit(f"{path.name}: a frame differs from pydicom's")
        compared += len(frames)
    alone = f" ({unread} more files that pydicom cannot cut)" if unread else ""
    say(f"{compared} frames of pydicom's files: {GOOD}every byte equal{PLAIN}{alone}")
    table = store.get(SOURCE, str(made.path))
    chosen = random.Random(1).sample(range(made.frames), 500)
    content = made.path.read_bytes()
    for index in chosen:
        start, end = table.ranges(index)[0]
        frame = read_frame(made.path, table, index)
        if frame != content[start:end] or not (frame.startswith(b"\xff\xd8") and frame.endswith(b"\xff\xd9")):
            raise SystemExit(f"frame {index} of the slide is not what was written")
    say(f"{len(chosen)} frames of the slide, at random: {GOOD}every byte equal{PLAIN}")
    say(f"The slide's table: {len(table.packed) / made.frames:.1f} bytes a frame in the database")


def preload(store: Any, made: Slide) -> None:
    """Read some files, list which rank first, and start a reader whose memory is filled in that order."""
    from voxtier.frames import FrameReader
    from voxtier.frames.memory.ranking import ranked_files

    heading("What a server would load into memory at its start")
    with FrameReader(store, SOURCE) as reader:
        for index in (0, 1, SLIDE_FRAMES - 1):
            reader.frame(str(made.path), index)
        reader.flush()
    best = ranked_files(store, SOURCE, limit=1000)
    say(f"{'score':>6}  {'label':<10} {'table':>9}  file")
    for row in best[:5]:
        say(f"{row.score:6.3f}  {row.label:<10} {row.table_bytes:>7,} B  {Path(row.path).name}")
    say(f"... and {len(best) - 5} more of equal rank: the slide leads because it was used a moment ago")
    with FrameReader(store, SOURCE, budget_bytes=1 << 20) as reader:
        reader.preload.start()
        reader.preload.wait(30)
        frame = reader.frame(str(made.path), 4711)
        stats = reader.stats()
    cache = stats["cache"]
    used, budget = cache["used"], cache["budget"]
    tier = "memory, no question to the database" if stats["tier1"] else "the database"
    say(f"preloaded {cache['entries']} tables, {used:,} of {budget:,} bytes; frame 4,712 came from {tier}")
    say(f"and is {len(frame):,} bytes long")


def served(made: Slide) -> None:
    """Serve what was indexed, and fetch it back with a DICOMweb client of others."""
    from dicomweb_client.api import DICOMwebClient

    heading("Served by DICOMweb, fetched back with dicomweb-client")
    say(f"$ voxtier serve --source {SOURCE}")
    arguments = [*VOXTIER, "serve", "--source", SOURCE, "--port", "0"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        try:
            assert running.stdout is not None
            root = running.stdout.readline().split()[-1]
            client = DICOMwebClient(url=root)
            studies = client.search_for_studies(limit=1000)
            series = [each for each in client.search_for_series(limit=1000) if "00080060" in each]
            say(
                f"{len(studies)} studies; modalities {', '.join(sorted({modality(each) for each in series}))}"
            )
            uids = read_table(made.path)
            instance = (uids.study_instance_uid, uids.series_instance_uid, uids.sop_instance_uid)
            chosen = random.Random(3).sample(range(made.frames), 200)
            asked = [number + 1 for number in chosen]
            media = [("image/jpeg", uids.transfer_syntax_uid)]
            frames, seconds = timed(
                lambda: client.retrieve_instance_frames(*instance, asked, media_types=media)
            )
        finally:
            running.terminate()
    if frames != [read_frame(made.path, uids, number) for number in chosen]:
        raise SystemExit("a frame that the gateway served differs from the file's")
    say(f"{len(chosen)} frames of the slide in {seconds * 1e3:.0f} ms: {GOOD}every byte equal{PLAIN}")


def modality(series: dict[str, Any]) -> str:
    return str((series["00080060"].get("Value") or ["?"])[0])


def beside_pydicom(files: list[Path], made: Slide) -> None:
    """Race pydicom: best of three, in turns, on this machine."""
    heading("Beside pydicom")
    readable = [path for path in files if pydicom_reads(path)]
    value = pydicom.dcmread(made.path).PixelData
    table = read_table(made.path)
    indices = random.Random(2).sample(range(made.frames), 5)
    races: list[tuple[str, Callable[[], Any], Callable[[], Any], int]] = [
        (
            f"table of {len(readable)} files",
            lambda: list(read_tables(readable)),
            lambda: [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in readable],
            1,
        ),
        (
            "table of the slide",
            lambda: read_table(made.path),
            lambda: with_pydicom(made.path),
            1,
        ),
        (
            "one frame of the slide (voxtier: indexed)",
            lambda: [read_frame(made.path, table, index) for index in indices],
            lambda: [get_frame(value, index, number_of_frames=SLIDE_FRAMES) for index in indices],
            len(indices),
        ),
    ]
    say(f"{'':<40}{'voxtier':>12}{'pydicom':>12}")
    for title, ours, theirs, amount in races:
        laps = [(timed(ours)[1], timed(theirs)[1]) for _ in range(3)]
        mine, other = (min(column) / amount for column in zip(*laps, strict=True))
        say(f"{title:<40}{mine * 1e3:>9.3f} ms{other * 1e3:>9.2f} ms   {BOLD}{other / mine:,.0f}x{PLAIN}")
    held = f"{len(value) / 1e6:.0f} MB"
    say(f"{DIM}For its frames pydicom holds all {held} in memory, voxtier reads the file.{PLAIN}")
    say(f"{DIM}More journeys, rivals and floors: make bench{PLAIN}")


def pydicom_reads(path: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return "Rows" in pydicom.dcmread(path, stop_before_pixels=True)
        except Exception:
            return False


def command(arguments: list[str], listing: Path | None = None) -> None:
    """Run the command line as a user would, and print it."""
    shown = " ".join(arguments) + (" < paths.txt" if listing else "")
    print(f"\n  {BOLD}$ voxtier {shown}{PLAIN}", flush=True)
    with open(listing or os.devnull, "rb") as paths:
        done = subprocess.run([*VOXTIER, *arguments], stdin=paths, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(f"voxtier {shown}: exit code {done.returncode}")
    width = shutil.get_terminal_size().columns - 4
    for line in done.stdout.splitlines():
        print(f"  {line[:width]}" if sys.stdout.isatty() else f"  {line}")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        answer = work()
        return answer, time.perf_counter() - start


def heading(words: str) -> None:
    print(f"\n{BOLD}{words}{PLAIN}", flush=True)


def say(words: str) -> None:
    print(f"  {words}", flush=True)


if __name__ == "__main__":
    main()
