"""``voxtier tensors ls | du | gc | evict``: what a cache takes on the disk, and what can be removed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from voxtier.cli.exit_codes import EXIT_OK, EXIT_PARTIAL
from voxtier.cli.options import AS_JSON, SIZE
from voxtier.cli.tensors.options import APPLY, FOLDER, config_option, load_cache, say
from voxtier.system.text import format_bytes

if TYPE_CHECKING:
    from voxtier.tensors.keeping.disk_usage import Garbage


@click.command("ls")
@click.argument("folder", type=FOLDER)
@AS_JSON
def ls_command(folder: Path, as_json: bool) -> None:
    """List cache folders: files, size, last use, parameters; of several, what they differ in.

    \b
    voxtier tensors ls /data/cache
    """
    from voxtier.tensors.keeping.disk_usage import list_cache_folders
    from voxtier.tensors.keeping.migrate import parameter_differences

    rows = list(list_cache_folders(folder))
    for row in rows:
        if as_json:
            say(json.dumps(row))
            continue
        used = time.strftime("%Y-%m-%d", time.localtime(row["last_used"]))
        parameters = ", ".join(f"{name} {value}" for name, value in row["parameters"].items())
        say(f"{row['folder']}: {row['files']} files, {format_bytes(row['bytes'])}, used {used}; {parameters}")
    if not as_json:
        folders = [Path(row["folder"]) for row in rows if row["parameters"]]
        for other in folders[1:]:
            for line in parameter_differences(folders[0], other):
                say(f"  {folders[0].name} -> {other.name}: {line}")


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
@APPLY
@AS_JSON
def gc_command(folder: Path | None, config: Path | None, force: bool, apply: bool, as_json: bool) -> int:
    """Remove temporary files and claims of dead runs, and empty folders.

    \b
    voxtier tensors gc --config config.yaml
    voxtier tensors gc --config config.yaml --apply

    With --config also orphans, and unfinished downloads of `generate` and of the hub's client. An orphan is
    a tensor that no list of the configuration asks for. It is kept unless its source is known to exist: the
    lists may be the wrong ones.
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
    garbage = find_garbage(folder, wanted=wanted, can_be_remade=Manifests().has_source, images=images)
    return _remove_all(list(garbage), force=force, apply=apply, as_json=as_json)


@click.command("evict")
@click.argument("folder", type=FOLDER)
@click.option("--budget", type=SIZE, required=True, help="Bytes that may stay, such as 500GB.")
@config_option("Never evict what its lists ask for.")
@click.option("--force", is_flag=True, help="Also evict what cannot be made again.")
@APPLY
@AS_JSON
def evict_command(
    folder: Path, budget: int, config: Path | None, force: bool, apply: bool, as_json: bool
) -> int:
    """Shrink a cache to a budget: the least recently used files go first, and only if they can be remade.

    \b
    voxtier tensors evict /data/cache --budget 500GB
    voxtier tensors evict /data/cache --budget 500GB --apply
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
    return _remove_all(evicted, force=force, apply=apply, as_json=as_json)


def _remove_all(garbage: list[Garbage], *, force: bool, apply: bool, as_json: bool) -> int:
    from voxtier.tensors.keeping.disk_usage import remove

    total = count = 0
    for item in garbage:
        if item.precious and not force:
            result = "kept: its source is not known to exist (--force removes it)"
        else:
            result = remove(item) if apply else "would be removed"
        if not result.startswith(("kept", "left")):
            count += 1
            total += item.size
        row = {"path": str(item.path), "reason": item.reason, "size": item.size, "result": result}
        say(json.dumps(row) if as_json else f"{result}: {item.path} ({item.reason})")
    hint = "" if apply or not count else "; --apply removes them"
    say(f"{count} files, {format_bytes(total)}{hint}", err=True)
    return EXIT_PARTIAL if apply and count < len(garbage) else EXIT_OK
