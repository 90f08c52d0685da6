"""``voxtier tensors verify``: check every file of a cache, and quarantine the bad ones."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS
from voxtier.cli.options import AS_JSON, GivenPath, say
from voxtier.cli.tensors.options import config_option, exit_code, load_cache
from voxtier.system.progress import Progress
from voxtier.system.text import format_count

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import Config
    from voxtier.tensors.keeping.verify import FileState

log = logging.getLogger("voxtier.tensors.verify")
log.addHandler(logging.NullHandler())  # without a log folder there is no log


@click.command("verify")
@click.argument("folders", nargs=-1, type=GivenPath(path_type=Path))
@config_option("Check the cache of this configuration.")
@click.option("--fix", is_flag=True, help="Move bad files to quarantine; without it no file is touched.")
@click.option(
    "--delete", is_flag=True, help="With --fix: delete instead, where the source is known to exist."
)
@click.option("--force", is_flag=True, help="Act even when suspiciously many files are bad.")
@click.option("--max-bad", type=click.IntRange(0), default=1000, help="Refuse to touch more files than this.")
@click.option(
    "-w", "--workers", type=click.IntRange(1, 64), help="Files read at once. Default: 2 a processor, >= 4."
)
@click.option(
    "--quick", is_flag=True, help="Check structure, opcodes and manifest only; payloads are not read."
)
@click.option("--sample", type=click.FloatRange(0, 1), help="Check this share in full, the rest quickly.")
@click.option("--seed", default=0, help="Seed that draws the sample.")
@click.option(
    "--since-last",
    is_flag=True,
    help="Skip files of which all that is asked is known and that were not touched since; bits that rotted"
    " meanwhile stay unseen.",
)
@click.option("--content", is_flag=True, help="Also report constant, NaN and infinite volumes.")
@AS_JSON
def verify_command(
    folders: tuple[Path, ...],
    config: Path | None,
    fix: bool,
    delete: bool,
    force: bool,
    max_bad: int,
    workers: int | None,
    quick: bool,
    sample: float | None,
    seed: int,
    since_last: bool,
    content: bool,
    as_json: bool,
) -> int:
    """Check every .pt file below FOLDERS, or the cache of a configuration.

    \b
    voxtier tensors verify /data/cache
    voxtier tensors verify --config config.yaml --fix

    Checks structure, pickle opcodes, tensor bounds and the CRC-32 of every record, without torch: nothing
    is unpickled, so nothing in a file can run. With --config alone also the shape of every image.

    --fix moves a file on evidence of damage only. Files of other programs, of older versions and with classes
    of your own are reported and stay, and so do files that cannot be read.

    Exit code 0: all right, or all that was found is fixed; 1: findings remain; 3: some files could not be
    read or are of other programs. Nothing to check is said, and is exit code 1.
    """
    from voxtier.tensors.keeping.quarantine import fix as move_to_quarantine
    from voxtier.tensors.keeping.verify import list_cache
    from voxtier.tensors.keeping.verify import verify as verify_files
    from voxtier.tensors.states import FIXABLE

    if delete and not fix:
        raise click.UsageError("--delete needs --fix")
    if quick and sample is not None:
        raise click.UsageError("--quick and --sample exclude each other")
    if sample is not None and sample != sample:
        raise click.UsageError("--sample is a share from 0 to 1, found nan")
    roots, orphans, can_be_remade, shape = _select(folders, config)
    checked = 0
    remaining: list[str] = []
    for root in roots:
        listing = list_cache(root)
        for lmdb in listing.lmdb:
            say(f"note: {lmdb} is an LMDB cache, which is not checked", err=True)
        results = verify_files(
            listing,
            mode="quick" if quick else "full",
            sample=sample,
            seed=seed,
            since_last=since_last,
            content=content,
            shape=shape,
            threads=workers,
            orphans=orphans,
        )
        states = _report_each(results, len(listing.files), as_json=as_json)
        _record(states, content=content)
        if not as_json:
            _summarize(root, states)
        fixed: set[str] = set()
        if fix:
            for result in move_to_quarantine(
                listing.root, states, delete=delete, can_be_remade=can_be_remade, force=force, max_bad=max_bad
            ):
                log.warning("%s: %s %s", result.action, result.path, result.moved_to or result.detail)
                say(result.as_json() if as_json else f"{result.action}: {result.path} {result.detail}")
                if result.action != "left":
                    fixed.add(result.path)
        elif any(state.state in FIXABLE for state in states) and not as_json:
            say("nothing was changed; --fix moves the bad files to quarantine", err=True)
        remaining += [state.state for state in states if state.path not in fixed]
        checked += len(states)
    if not checked:
        say("voxtier: there is no file to check", err=True)
        return EXIT_FINDINGS
    return exit_code(remaining)


def _select(
    folders: tuple[Path, ...], config_path: Path | None
) -> tuple[list[Path], frozenset[str], Callable[[Path], bool], tuple[int, ...] | None]:
    """Return folders, the names that no list asks for, whether a file can be remade, the images' shape."""
    from voxtier.tensors.manifest import Manifests

    has_source = Manifests().has_source
    if config_path is None:
        if not folders:
            raise click.UsageError("name a cache folder, or a configuration with --config")
        return list(folders), frozenset(), has_source, None
    from voxtier.tensors.identity.keys import missing_keys

    # The lists are needed for orphans and sources only.
    config, folder, volumes, raw_files = load_cache(config_path, lists_optional=True)
    _log_to(config)
    roots = [*folders] or [folder]

    def can_be_remade(path: Path) -> bool:
        raw = raw_files.get(path.stem)
        return (raw is not None and raw.is_file()) or has_source(path)

    orphans = frozenset(missing_keys([*volumes.values()], folder).orphans) if volumes else frozenset[str]()
    # Other folders may be of other configurations.
    shape = None if folders else config.processing.target_shape_dhw
    return roots, orphans, can_be_remade, shape


def _log_to(config: Config) -> None:
    """Log to ``cache_verification.log`` where the log folder exists; verify makes no folders."""
    if config.logs_dir.is_dir():
        from voxtier.tensors.making.runlog import open_log

        try:
            open_log(log, config.logs_dir / "cache_verification.log")
        except OSError as error:
            say(f"note: cannot write a log: {error}", err=True)


def _report_each(states: Iterable[FileState], total: int, *, as_json: bool) -> list[FileState]:
    """Print each state that deserves a line as it comes, and return them all."""
    from voxtier.tensors.keeping.verify import OTHER_FILE
    from voxtier.tensors.states import FINE

    seen: list[FileState] = []
    progress = Progress("verified", total, quiet=as_json)
    for state in states:
        seen.append(state)
        if state.checked:
            progress.advance(byte_count=state.size)
        if as_json:
            say(state.as_json())
        elif state.state not in FINE or state.detail == OTHER_FILE:
            place = f" ({state.record})" if state.record else ""
            say(f"{state.state}{place}: {state.path}: {state.detail}")
        if state.state not in FINE:
            log.warning("%s %s %s: %s", state.state, state.record or "-", state.path, state.detail)
    progress.close()
    return seen


def _record(states: Iterable[FileState], *, content: bool) -> None:
    """Tell the manifests, where there are any, what was checked in full of the files that they describe."""
    from voxtier.tensors.keeping.verify import OTHER_FILE, image_tensors
    from voxtier.tensors.manifest import Manifest
    from voxtier.tensors.states import FINE

    rows_of: dict[Path, list[dict[str, object]]] = {}
    for state in states:
        if state.checked == "full" and state.detail != OTHER_FILE:  # said each time
            path = Path(state.path)
            row: dict[str, object] = {"key": path.stem, "state": state.state}
            row |= {"size": state.size, "mtime_ns": state.mtime_ns}
            if state.report is not None:
                row["ctime_ns"] = state.report.ctime_ns
                if state.report.state in FINE:
                    row["tensors"] = image_tensors(state.report)
                    row |= {"content_ctime_ns": state.report.ctime_ns} if content else {}
            rows_of.setdefault(path.parent, []).append(row)
    for folder, rows in rows_of.items():
        manifest = Manifest(folder)
        if manifest.exists():
            with contextlib.suppress(OSError):  # a read-only cache is verified all the same
                manifest.record(rows)


def _summarize(root: Path, states: list[FileState]) -> None:
    counts = Counter(state.state for state in states)
    text = ", ".join(f"{count:,} {name}" for name, count in counts.most_common()) or "no files"
    say(f"{root}: {text}")
    raw = sum(
        state.state == "ok" and state.report is not None and not state.report.tensors for state in states
    )
    if raw:
        say(
            f"note: {format_count(raw, 'file')} without a tensor: MONAI caches the raw item when the first"
            " transform is a bare function; wrap it in monai.transforms.Lambda",
            err=True,
        )
