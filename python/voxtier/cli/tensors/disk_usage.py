"""``voxtier tensors ls | du | gc | evict``: what a cache takes on the disk, and what can be removed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK, EXIT_PARTIAL
from voxtier.cli.options import AS_JSON, DRY_RUN, SIZE, YES, is_confirmed, say
from voxtier.cli.tensors.options import FOLDER, config_option, load_cache
from voxtier.system.text import format_bytes, format_count

if TYPE_CHECKING:
    from voxtier.tensors.keeping.disk_usage import Garbage
    from voxtier.tensors.keeping.verify import FileState


@click.command("ls")
@click.argument("folder", type=FOLDER)
@AS_JSON
def ls_command(folder: Path, as_json: bool) -> int:
    """List cache folders: files, size, last use, parameters; of several, what they differ in.

    \b
    voxtier tensors ls /data/cache

    Exit code 1 when there is no cache, 3 when a folder could not be read.
    """
    from voxtier.tensors.keeping.disk_usage import list_cache_folders
    from voxtier.tensors.keeping.migrate import parameter_differences

    unreadable: list[FileState] = []
    rows = list(list_cache_folders(folder, unreadable.append))
    for row in rows:
        if as_json:
            say(json.dumps(row))
            continue
        used = time.strftime("%Y-%m-%d", time.localtime(row["last_used"]))
        parameters = ", ".join(f"{name} {value}" for name, value in row["parameters"].items())
        size = f"{format_count(row['files'], 'file')}, {format_bytes(row['bytes'])}"
        say(f"{row['folder']}: {size}, used {used}; {parameters}")
    if not as_json:
        folders = [Path(row["folder"]) for row in rows if row["parameters"]]
        for other in folders[1:]:
            for line in parameter_differences(folders[0], other):
                say(f"  {folders[0].name} -> {other.name}: {line}")
    for state in unreadable:
        say(f"not listed: {state.path}: {state.detail}", err=True)
    if unreadable:
        return EXIT_PARTIAL
    if not rows:
        say(f"voxtier: {folder}: there is no cache folder", err=True)
    return EXIT_OK if rows else EXIT_FINDINGS


@click.command("du")
@click.argument("folder", type=FOLDER)
@AS_JSON
def du_command(folder: Path, as_json: bool) -> int:
    """Say how many bytes tensors, temporary files, quarantine and the rest take.

    \b
    voxtier tensors du /data/cache

    Exit code 3: a folder could not be read, and its files are not counted.
    """
    from voxtier.tensors.keeping.disk_usage import measure_usage

    errors: list[OSError] = []
    totals = measure_usage(folder, errors.append)
    for error in errors:
        say(f"not counted: {error.filename}: {error.strerror}", err=True)
    if as_json:
        say(json.dumps(totals))
    else:
        for kind, size in totals.items():
            say(f"{kind:12} {format_bytes(size)}")
    return EXIT_PARTIAL if errors else EXIT_OK


@click.command("gc")
@click.argument("folder", type=FOLDER, required=False)
@config_option("Also find orphans and unfinished downloads.")
@click.option("--force", is_flag=True, help="Also remove orphans that cannot be made again.")
@DRY_RUN
@YES
@AS_JSON
def gc_command(
    folder: Path | None, config: Path | None, force: bool, dry_run: bool, yes: bool, as_json: bool
) -> int:
    """Remove temporary files and claims of dead runs, and empty folders.

    \b
    voxtier tensors gc --config config.yaml
    voxtier tensors gc --config config.yaml --yes

    With --config also orphans, and unfinished downloads of `generate` and of the hub's client. An orphan is
    a tensor that no list of the configuration asks for. It is kept unless its source is known to exist: the
    lists may be the wrong ones. What would be removed is listed before it is asked for. Exit code 3 when
    something could not be removed, or a folder could not be read.
    """
    from voxtier.tensors.keeping.disk_usage import find_garbage
    from voxtier.tensors.manifest import Manifests

    wanted = frozenset[str]()
    images = None
    if config is not None:
        settings, own, volumes, _ = load_cache(config)
        folder = folder or own
        wanted = frozenset(f"{key}.pt" for key in volumes)
        images = settings.img_dir
    if folder is None:
        raise click.UsageError("name a cache folder, or a configuration with --config")
    errors: list[OSError] = []
    found = find_garbage(
        folder,
        wanted=wanted,
        can_be_remade=Manifests().has_source,
        images=images,
        unreadable=errors.append,
    )
    garbage = list(found)
    for text in dict.fromkeys(f"{error.filename}: {error.strerror}" for error in errors):
        say(f"not looked into: {text}", err=True)
    code = _remove_all(garbage, force=force, dry_run=dry_run, yes=yes, as_json=as_json)
    return EXIT_PARTIAL if errors and code == EXIT_OK else code


@click.command("evict")
@click.argument("folder", type=FOLDER)
@click.option("--budget", type=SIZE, required=True, help="Bytes that may stay, such as 500GB.")
@config_option("Never evict what its lists ask for.")
@click.option("--force", is_flag=True, help="Also evict what cannot be made again.")
@DRY_RUN
@YES
@AS_JSON
def evict_command(
    folder: Path, budget: int, config: Path | None, force: bool, dry_run: bool, yes: bool, as_json: bool
) -> int:
    """Shrink a cache to a budget: the least recently used files go first, and only if they can be remade.

    \b
    voxtier tensors evict /data/cache --budget 500GB
    voxtier tensors evict /data/cache --budget 500GB --yes

    What would be removed is listed before it is asked for. Exit code 3 when something could not be removed.
    """
    from voxtier.tensors.keeping.disk_usage import choose_evictions
    from voxtier.tensors.keeping.verify import list_cache
    from voxtier.tensors.manifest import Manifests

    keep = frozenset[str]()
    if config is not None:
        _, _, volumes, _ = load_cache(config)
        keep = frozenset(f"{key}.pt" for key in volumes)
    listing, has_source = list_cache(folder), Manifests().has_source
    evicted = choose_evictions(listing, budget, keep=keep, can_be_remade=has_source, force=force)
    return _remove_all(evicted, force=force, dry_run=dry_run, yes=yes, as_json=as_json)


def _remove_all(garbage: list[Garbage], *, force: bool, dry_run: bool, yes: bool, as_json: bool) -> int:
    """List what goes and what stays, ask, remove; nothing to remove is said, and is no failure."""
    from voxtier.tensors.keeping.disk_usage import remove

    def report(item: Garbage, result: str) -> None:
        row = {"path": str(item.path), "reason": item.reason, "size": item.size, "result": result}
        say(json.dumps(row) if as_json else f"{result}: {item.path} ({item.reason})")

    kept = [item for item in garbage if item.precious and not force]
    goes = [item for item in garbage if force or not item.precious]
    for item in kept:
        report(item, "kept: its source is not known to exist (--force removes it)")
    for item in goes if dry_run or not yes else []:
        report(item, "would be removed")
    if not goes:
        say("nothing to remove", err=True)
        return EXIT_PARTIAL if kept and yes and not dry_run else EXIT_OK
    total = f"{format_count(len(goes), 'file')}, {format_bytes(sum(item.size for item in goes))}"
    if not is_confirmed(f"Remove {total}", yes=yes, dry_run=dry_run):
        say(total, err=True)
        return EXIT_OK
    left = 0
    for item in goes:
        result = remove(item)
        left += result != "removed"
        report(item, result)
    say(f"{total}: {format_count(len(goes) - left, 'file')} removed", err=True)
    return EXIT_PARTIAL if kept or left else EXIT_OK
