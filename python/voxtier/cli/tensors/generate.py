"""``voxtier tensors generate`` and ``voxtier tensors plan``."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK
from voxtier.cli.options import AS_JSON, DRY_RUN, SIZE, say
from voxtier.cli.tensors.options import volume_list
from voxtier.errors import ConfigError
from voxtier.system.progress import Progress
from voxtier.system.text import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import Config
    from voxtier.tensors.making.plan import Plan
    from voxtier.tensors.making.run import Generator


@click.command("generate")
@volume_list
@click.option(
    "--clean-local-raw-files",
    is_flag=True,
    help="Also remove your own raw files, once their tensors are verified.",
)
@DRY_RUN
@click.option(
    "-y", "--yes", is_flag=True, help="Do not ask; needed where nobody can answer and raw files are removed."
)
@click.option("--min-free", type=SIZE, default="1GiB", help="Disk space that stays free.")
@click.option("--max-raw-bytes", type=SIZE, help="Bytes of downloaded raw files at once, at most.")
@click.option("--until-full", is_flag=True, help="Start although the disk cannot hold everything.")
@click.option(
    "--accept",
    default="",
    help="Make tensors in spite of these findings, with commas: constant, nan, 4d, affine, damaged.",
)
@click.option(
    "--engine",
    type=click.Choice(["fused", "stock", "check"]),
    help="Who makes the tensors: the core where it gives MONAI's bits, MONAI alone, or both, compared."
    "  [default: engine of the configuration]",
)
@click.option(
    "--check-every",
    type=click.IntRange(1),
    default=500,
    help="Of so many volumes that the core makes, MONAI makes one as well, and the two are compared.",
)
@click.option("--json", "as_json", is_flag=True, help="Write plan, progress and result as lines of JSON.")
def generate_command(
    config: Path,
    num_workers: int,
    batch_size: int,
    num_shards: int,
    shard_id: int,
    clean_local_raw_files: bool,
    dry_run: bool,
    yes: bool,
    min_free: int,
    max_raw_bytes: int | None,
    until_full: bool,
    accept: str,
    engine: str | None,
    check_every: int,
    as_json: bool,
) -> int:
    """Make every tensor that the CSV files ask for and the cache lacks.

    \b
    voxtier tensors generate --config config.yaml --workers 8

    Downloads what is not on disk, resumes what was interrupted, shares the work with other runs of the same
    configuration. A first Ctrl-C finishes the current volumes, a second stops at once.

    No tensor is made of a volume whose voxels are all equal, NaN or infinite, that has several time points or
    channels, or whose affine is singular: the run goes on, names it at the end, and keeps its raw file.

    Exit code 0: all there, 1: the lists name no volume, 2: configuration, 3: some failed, 4: the hub is
    down, 130/143: interrupted.
    """
    from voxtier.tensors.identity.config import load_config
    from voxtier.tensors.making.run import Generator, Options

    options = Options(
        workers=num_workers,
        batch_size=batch_size,
        clean_raw=clean_local_raw_files,
        num_shards=num_shards,
        shard_id=shard_id,
        min_free=min_free,
        max_raw_bytes=max_raw_bytes,
        until_full=until_full,
        accepted=_parse_accepted(accept),
        engine=engine,
        check_every=check_every,
    )
    generator = Generator(load_config(config), options)
    plan = generator.plan()
    _show_plan(plan, as_json=as_json)
    if not plan.listed:
        return _nothing_listed(generator.config)
    if dry_run:
        return EXIT_OK
    if not yes and (plan.names or clean_local_raw_files):
        if sys.stdin is not None and sys.stdin.isatty():
            click.confirm("Go on?", abort=True, err=True)
        elif clean_local_raw_files:
            raise ConfigError(
                "--clean-local-raw-files removes your raw files, and nobody can confirm that, because stdin"
                " is not a terminal: repeat with --yes"
            )
    progress = Progress(
        "volumes done", len(plan.names), machine=as_json, stream=sys.stdout if as_json else sys.stderr
    )

    def outcome() -> str:
        return f", {generator.result.made} made, {len(generator.result.failed)} failed"

    generator.on_item = lambda size: progress.advance(note=outcome(), byte_count=size)
    received = _listen(generator)
    result = generator.run(plan)
    progress.close(outcome())
    for name, reason in result.failed.items():
        row = {"volume": name, "failed": reason}
        say(json.dumps(row) if as_json else f"failed: {name}: {reason}", err=not as_json)
    counts = {  # names that scripts of version 0.1 read
        "made": result.made,
        "elsewhere": result.made_by_others,
        "failed": len(result.failed),
        "raws_removed": result.raw_files_removed,
    }
    if as_json:
        engines = {"engines": dict(result.engines), "engine_difference": result.engine_difference}
        say(json.dumps({"result": counts, "stop_reason": result.stop_reason, **engines}))
    else:
        say(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items()), err=True)
        if summary := result.engine_summary():
            say(f"engine: {summary}", err=True)
        if result.engine_difference:
            say(
                f"engine: core and MONAI differ, so MONAI made the rest: {result.engine_difference}", err=True
            )
        if result.stop_reason:
            say(f"stopped: {result.stop_reason}", err=True)
    if generator.abort.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + received[0])  # an ordinary exit waits for downloads, and these for a silent server
    return 128 + received[0] if received else result.exit_code()


def _parse_accepted(text: str) -> frozenset[str]:
    from voxtier.tensors.states import FINDINGS

    words = frozenset(word.strip().lower() for word in text.split(",")) - {""}
    if unknown := sorted(words - set(FINDINGS)):
        raise click.UsageError(f"--accept knows {', '.join(FINDINGS)}, found {', '.join(unknown)}")
    return words


def _listen(generator: Generator) -> list[int]:
    """Let the first SIGINT or SIGTERM end the run after the current volumes, the second at once.

    A signal may come while this thread holds the lock of an event or of stderr, and a handler that wants the
    lock would wait for ever. So the handler only writes a byte to a pipe, and another thread reads it.

    Returns
    -------
    list of int
        The numbers of the signals so far; it grows.
    """
    received: list[int] = []
    read_end, write_end = os.pipe()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        os.write(write_end, b"!")

    def stop_and_abort() -> None:
        os.read(read_end, 1)
        click.echo("\nfinishing the current volumes; once more to stop at once", err=True)
        generator.stop.set()
        os.read(read_end, 1)
        generator.abort.set()

    threading.Thread(target=stop_and_abort, name="voxtier-signals", daemon=True).start()
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return received


@click.command("plan")
@volume_list
@AS_JSON
def plan_command(
    config: Path, num_workers: int, batch_size: int, num_shards: int, shard_id: int, as_json: bool
) -> int:
    """Say what generate would do, and change nothing.

    \b
    voxtier tensors plan --config config.yaml

    Exit code 1 when the lists name no volume.
    """
    from voxtier.tensors.identity.config import load_config
    from voxtier.tensors.making.run import Generator, Options

    options = Options(workers=num_workers, batch_size=batch_size, num_shards=num_shards, shard_id=shard_id)
    generator = Generator(load_config(config), options)
    plan = generator.plan()
    _show_plan(plan, as_json=as_json)
    return EXIT_OK if plan.listed else _nothing_listed(generator.config)


def _nothing_listed(config: Config) -> int:
    """Say that there is no work, and return the exit code of that."""
    from voxtier.tensors.identity.keys import COLUMN

    lists = ", ".join(map(str, config.subsets))
    say(f"nothing to make: no name of a volume below {COLUMN} in {lists}", err=True)
    return EXIT_FINDINGS


def _show_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        say(plan.as_json())
        return
    for warning in plan.warnings:
        say(f"warning: {warning}", err=True)
    click.echo(
        f"cache        {plan.folder}\n"
        f"volumes      {plan.required} asked for, {plan.present} present, {plan.missing} missing"
        f" ({plan.local_raw_files} on disk, {plan.to_download} to download, {plan.unavailable} unavailable)"
        f"{f', {plan.unreadable} unreadable' if plan.unreadable else ''}\n"
        f"orphans      {plan.orphans}\n"
        f"download     {format_bytes(plan.download_bytes)}\n"
        f"output       {format_bytes(plan.output_bytes)}, at most {format_bytes(plan.peak_disk_bytes)} with"
        f" raw files; {format_bytes(plan.free_disk_bytes)} free\n"
        f"engine       {plan.engine}, {plan.oblique} of {plan.local_raw_files} volumes on disk are oblique\n"
        f"time         about {format_duration(plan.seconds)} with {format_count(plan.workers, 'worker')}",
        err=True,
    )
