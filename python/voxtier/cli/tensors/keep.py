"""``voxtier tensors adopt | migrate | explain | ls | du | gc | evict``: dry runs unless told otherwise."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK, EXIT_PARTIAL
from voxtier.cli.options import SIZE
from voxtier.cli.tensors.options import APPLY, AS_JSON, FOLDER, config_option, exit_code, say
from voxtier.errors import ConfigError
from voxtier.system.text import format_bytes

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import Config
    from voxtier.tensors.keeping.disk_usage import Garbage
    from voxtier.tensors.keeping.migrate import Move


def _load(path: Path) -> tuple[Config, Path, dict[str, str], dict[str, Path]]:
    """Return the configuration, its cache folder, and volumes and raw files by key."""
    from voxtier.tensors.identity.config import load_config
    from voxtier.tensors.identity.folders import item_folder
    from voxtier.tensors.identity.keys import item_key, raw_path, read_volume_names

    config = load_config(path)
    volumes = {item_key(name): name for name in read_volume_names(config.subsets)}
    raws = {key: raw_path(config.img_dir, name, config.dir_structure) for key, name in volumes.items()}
    return config, item_folder(config), volumes, raws


@click.command("adopt")
@click.argument("folder", type=FOLDER, required=False)
@config_option("Take folder, volume names and sources from it.")
@click.option("--same-pipeline", is_flag=True, help="The files were made with today's reader and versions.")
@click.option("--duplicates", is_flag=True, help="Also report files of equal content.")
def adopt_command(folder: Path | None, config: Path | None, same_pipeline: bool, duplicates: bool) -> int:
    """Check a cache that anybody made, and record what it holds.

    The manifest (in .voxtier beside the cache folder) makes --since-last, --quick, explain and evict work.
    """
    from voxtier.tensors.identity.fingerprint import fingerprint
    from voxtier.tensors.keeping.adopt import adopt
    from voxtier.tensors.keeping.disk_usage import duplicates as equal
    from voxtier.tensors.keeping.verify import FINE
    from voxtier.tensors.manifest import Manifest

    volumes: dict[str, str] = {}
    raws: dict[str, Path] = {}
    today = None
    if config is not None:
        settings, own, volumes, raws = _load(config)
        folder = folder or own
        raws = {key: path for key, path in raws.items() if path.is_file()}
        today = fingerprint(settings) if same_pipeline else None
    if folder is None:
        raise click.UsageError("name a cache folder, or a configuration with --config")
    counts: Counter[str] = Counter()
    present: dict[Path, set[str]] = {}
    for state in adopt(folder, volumes=volumes, sources=raws, fingerprint=today):
        counts[state.state] += 1
        path = Path(state.path)
        present.setdefault(path.parent, set()).add(path.stem)
        if state.state not in FINE:
            say(f"{state.state}: {state.path}: {state.detail}")
    say(", ".join(f"{count} {name}" for name, count in counts.most_common()) or "no files")
    if duplicates:
        for parent, keys in sorted(present.items()):
            known = Manifest(parent).read()
            for group in equal({key: known[key] for key in keys & known.keys()}):
                say("equal: " + " ".join(group))
    return exit_code(counts)


@click.command("migrate")
@click.argument("folder", type=FOLDER)
@click.option("--items", type=click.Path(path_type=Path, exists=True),
              help="JSON list of the items: rename md5 names (to MONAI 1.6.0) to sha256.")  # fmt: skip
@click.option("--old-prefix", help="With --items: the path prefix that the items had when they were cached.")
@click.option("--new-prefix", help="With --items: what stands there now.")
@click.option("--from", "old", type=click.Choice(["md5", "sha256"]), default="md5", show_default=True)
@click.option("--to", "new", type=click.Choice(["md5", "sha256"]), default="sha256", show_default=True)
@click.option("--transform-hash", default="", help="Suffix of the names, when hash_transform was used.")
@click.option("--into", type=FOLDER, help="Carry all tensors into this folder (another directory hash).")
@click.option("--make-safe", is_flag=True, help="Rewrite files that weights_only=True refuses (MONAI 1.5.0).")
@APPLY
def migrate_command(
    folder: Path,
    items: Path | None,
    old_prefix: str | None,
    new_prefix: str | None,
    old: str,
    new: str,
    transform_hash: str,
    into: Path | None,
    make_safe: bool,
    apply: bool,
) -> int:
    """Carry a cache over to another MONAI version, place or directory hash; nothing is recomputed."""
    from voxtier.tensors.keeping import migrate as room

    if sum(map(bool, (items, into, make_safe))) != 1:
        raise click.UsageError("choose one of --items, --into, --make-safe")
    if make_safe:
        return _make_safe(folder, apply=apply)
    if into is not None:
        for line in room.parameter_differences(folder, into) if (into / "cache_params.json").exists() else []:
            say(f"differs: {line}")
        moves = room.folder_moves(folder, into)
    else:
        assert items is not None
        moves = _item_moves(folder, items, old_prefix, new_prefix, old, new, transform_hash)
    if not apply:
        for move in moves:
            say(f"would move {move.old.name} -> {move.new}")
        say(f"{len(moves)} files; --apply renames them", err=True)
        return EXIT_OK
    counts: Counter[str] = Counter()
    for move, result in room.carry_out(moves):
        counts[result] += 1
        if result != "moved":
            say(f"{move.old}: {result}")
    say(f"{counts['moved']} moved, {counts.total() - counts['moved']} left")
    return EXIT_OK if counts.total() == counts["moved"] else EXIT_PARTIAL


def _item_moves(
    folder: Path, path: Path, old_prefix: str | None, new_prefix: str | None, old: str, new: str, suffix: str
) -> list[Move]:
    from voxtier.tensors.keeping.migrate import monai_key, rename_moves

    try:
        items = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no JSON: {error}") from None
    if not isinstance(items, list):
        raise ConfigError(f"{path}: must hold a list of items")
    if (old_prefix is None) != (new_prefix is None):
        raise click.UsageError("--old-prefix and --new-prefix belong together")

    def with_prefix(value: object, before: str, after: str) -> object:
        if isinstance(value, dict):
            return {key: with_prefix(item, before, after) for key, item in value.items()}
        if isinstance(value, list):
            return [with_prefix(item, before, after) for item in value]
        if isinstance(value, str) and value.startswith(before):
            return after + value[len(before) :]
        return value

    def old_key(item: object) -> str:
        before = (
            item if old_prefix is None or new_prefix is None else with_prefix(item, new_prefix, old_prefix)
        )
        return monai_key(before, old)  # type: ignore[arg-type]

    return list(rename_moves(folder, items, old_key, lambda item: monai_key(item, new), suffix=suffix))  # type: ignore[arg-type]


def _make_safe(folder: Path, *, apply: bool) -> int:
    from voxtier.tensors.keeping.migrate import make_safe
    from voxtier.tensors.keeping.verify import list_cache, verify

    left = 0
    for state in verify(list_cache(folder), mode="quick"):
        if state.state != "not_weights_only":
            continue
        result = make_safe(Path(state.path)) if apply else "would be converted"
        left += result.startswith("left")
        say(f"{state.path}: {result}")
    if not apply:
        say("--apply converts them", err=True)
    return EXIT_PARTIAL if left else EXIT_OK


@click.command("explain")
@config_option("Its parameters and versions are today's.", required=True)
@AS_JSON
def explain_command(config: Path, as_json: bool) -> int:
    """Say which files would be made differently today, and why.

    The directory hash sees neither the reader nor versions nor the source's bytes; the manifest does.
    """
    from voxtier.tensors.identity.fingerprint import fingerprint
    from voxtier.tensors.keeping.adopt import explain

    settings, folder, _, _ = _load(config)
    stale = 0
    for found in explain(folder, fingerprint(settings)):
        stale += 1
        row = {"key": found.key, "volume": found.volume, "reasons": found.reasons}
        say(json.dumps(row) if as_json else f"{found.key}: {'; '.join(found.reasons)}")
    return EXIT_FINDINGS if stale else EXIT_OK


@click.command("ls")
@click.argument("folder", type=FOLDER)
@AS_JSON
def ls_command(folder: Path, as_json: bool) -> None:
    """List cache folders: files, size, last use, parameters; of several, what they differ in."""
    from voxtier.tensors.keeping.disk_usage import cache_folders
    from voxtier.tensors.keeping.migrate import parameter_differences

    found = list(cache_folders(folder))
    for row in found:
        if as_json:
            say(json.dumps(row))
            continue
        used = time.strftime("%Y-%m-%d", time.localtime(row["last_used"]))
        parameters = ", ".join(f"{name} {value}" for name, value in row["parameters"].items())
        say(f"{row['folder']}: {row['files']} files, {format_bytes(row['bytes'])}, used {used}; {parameters}")
    if not as_json:
        known = [Path(row["folder"]) for row in found if row["parameters"]]
        for other in known[1:]:
            for line in parameter_differences(known[0], other):
                say(f"  {known[0].name} -> {other.name}: {line}")


@click.command("du")
@click.argument("folder", type=FOLDER)
@AS_JSON
def du_command(folder: Path, as_json: bool) -> None:
    """Say where the space is."""
    from voxtier.tensors.keeping.disk_usage import usage

    totals = usage(folder)
    if as_json:
        say(json.dumps(totals))
        return
    for kind, size in totals.items():
        say(f"{kind:12} {format_bytes(size)}")


@click.command("gc")
@click.argument("folder", type=FOLDER, required=False)
@config_option("Also find orphans and unfinished downloads.")
@click.option("--force", is_flag=True, help="Also remove orphans that cannot be made again.")
@APPLY
@AS_JSON
def gc_command(folder: Path | None, config: Path | None, force: bool, apply: bool, as_json: bool) -> int:
    """Remove temporaries and claims of dead runs, and empty folders; with --config also orphans and
    unfinished downloads of `generate` and of the hub's client.

    An orphan is a tensor that no list of the configuration asks for. It is kept where nothing says that it
    can be made again: the lists may be the wrong ones.
    """
    from voxtier.tensors.keeping.disk_usage import find_garbage
    from voxtier.tensors.manifest import known_sources

    wanted: frozenset[str] = frozenset()
    images = None
    if config is not None:
        settings, own, volumes, _ = _load(config)
        folder = folder or own
        wanted = frozenset(f"{key}.pt" for key in volumes)
        images = settings.img_dir
    if folder is None:
        raise click.UsageError("name a cache folder, or a configuration with --config")
    found = find_garbage(folder, wanted=wanted, can_be_remade=known_sources(), images=images)
    return _remove_all(list(found), force=force, apply=apply, as_json=as_json)


@click.command("evict")
@click.argument("folder", type=FOLDER)
@click.option("--budget", type=SIZE, required=True, help="What may stay, such as 500GB.")
@config_option("Never evict what its lists ask for.")
@click.option("--force", is_flag=True, help="Also evict what cannot be made again.")
@APPLY
@AS_JSON
def evict_command(
    folder: Path, budget: int, config: Path | None, force: bool, apply: bool, as_json: bool
) -> int:
    """Shrink a cache to a budget: the least recently used files go first, and only if they can be remade."""
    from voxtier.tensors.keeping.disk_usage import evictions
    from voxtier.tensors.keeping.verify import list_cache
    from voxtier.tensors.manifest import known_sources

    keep: frozenset[str] = frozenset()
    remake: Callable[[Path], bool] = known_sources()
    if config is not None:
        _, _, volumes, _ = _load(config)
        keep = frozenset(f"{key}.pt" for key in volumes)
    chosen = evictions(list_cache(folder), budget, keep=keep, can_be_remade=remake, force=force)
    return _remove_all(chosen, force=force, apply=apply, as_json=as_json)


def _remove_all(garbage: list[Garbage], *, force: bool, apply: bool, as_json: bool) -> int:
    from voxtier.tensors.keeping.disk_usage import remove

    total = count = 0
    for item in garbage:
        if item.precious and not force:
            result = "kept: nothing says that it can be made again (--force removes it)"
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
