"""``voxtier tensors migrate``: a cache of another MONAI version, place or directory hash."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK, EXIT_PARTIAL
from voxtier.cli.options import AS_JSON, DRY_RUN, YES, GivenPath, is_confirmed, say
from voxtier.cli.tensors.options import FOLDER, NEW_FOLDER
from voxtier.errors import ConfigError
from voxtier.system.text import format_count

if TYPE_CHECKING:
    from voxtier.tensors.keeping.migrate import Move


@click.command("migrate")
@click.argument("folder", type=FOLDER)
@click.option(
    "--items",
    type=GivenPath(path_type=Path, exists=True),
    help="JSON list of the items: rename their md5 names (up to MONAI 1.6.0) to sha256.",
)
@click.option("--old-prefix", help="With --items: folder in which the items lay when they were cached.")
@click.option(
    "--new-prefix", help="With --items: folder in which they lie now; /data is not taken for /data2."
)
@click.option(
    "--from", "old", type=click.Choice(["md5", "sha256"]), default="md5", help="Hash of the old names."
)
@click.option(
    "--to", "new", type=click.Choice(["md5", "sha256"]), default="sha256", help="Hash of the new names."
)
@click.option("--transform-hash", default="", help="Suffix of the old names, when hash_transform was used.")
@click.option(
    "--new-transform-hash",
    help="Suffix of the new names: transform_hash of a new PersistentDataset.  [default: the old one]",
)
@click.option("--into", type=NEW_FOLDER, help="Move all tensors into this folder (another directory hash).")
@click.option(
    "--make-safe",
    is_flag=True,
    help="Rewrite files that weights_only=True refuses (MONAI 1.5.0), or of torch < 1.6.",
)
@DRY_RUN
@YES
@AS_JSON
def migrate_command(
    folder: Path,
    items: Path | None,
    old_prefix: str | None,
    new_prefix: str | None,
    old: str,
    new: str,
    transform_hash: str,
    new_transform_hash: str | None,
    into: Path | None,
    make_safe: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Carry a cache over to another MONAI version, place or directory hash; nothing is recomputed.

    \b
    voxtier tensors migrate /data/cache/0a1b2c --items items.json --yes
    voxtier tensors migrate /data/cache/0a1b2c --into /data/cache/3d4e5f --yes
    voxtier tensors migrate /data/cache/0a1b2c --make-safe --yes

    What would be done is listed before it is asked for. Exit code 1 when no file is concerned, 3 when
    something was left as it is or could not be read.
    """
    from voxtier.tensors.keeping.migrate import carry_out, parameter_differences, plan_folder_moves

    if sum(map(bool, (items, into, make_safe))) != 1:
        raise click.UsageError("choose one of --items, --into, --make-safe")
    if make_safe:
        return _make_safe(folder, dry_run=dry_run, yes=yes, as_json=as_json)
    if into is not None:
        for line in parameter_differences(folder, into) if (into / "cache_params.json").exists() else []:
            say(f"differs: {line}", err=as_json)
        moves = plan_folder_moves(folder, into)
    else:
        assert items is not None
        if transform_hash and old != new and new_transform_hash is None:
            raise click.UsageError(
                f"--transform-hash is a part of the {old} names, and MONAI hashes transforms as it hashes"
                " items: give that of the new names too, --new-transform-hash, which is transform_hash of a"
                " PersistentDataset of the new version with these transforms"
            )
        suffixes = transform_hash, new_transform_hash
        moves = _item_moves(folder, items, old_prefix, new_prefix, old, new, suffixes)

    def report(move: Move, result: str) -> None:
        row = {"path": str(move.old), "new": str(move.new), "result": result}
        say(json.dumps(row) if as_json else f"{result}: {move.old.name} -> {move.new}")

    if not moves:
        say(f"voxtier: {folder}: there is no file to rename", err=True)
        return EXIT_FINDINGS
    for move in moves if dry_run or not yes else []:
        report(move, "would be moved")
    if not is_confirmed(f"Rename {format_count(len(moves), 'file')}", yes=yes, dry_run=dry_run):
        return EXIT_OK
    counts: Counter[str] = Counter()
    for move, result in carry_out(moves):
        counts[result] += 1
        if as_json or result != "moved":
            report(move, result)
    say(f"{counts['moved']:,} moved, {counts.total() - counts['moved']:,} left", err=as_json)
    return EXIT_OK if counts.total() == counts["moved"] else EXIT_PARTIAL


def _item_moves(
    folder: Path,
    path: Path,
    old_prefix: str | None,
    new_prefix: str | None,
    old: str,
    new: str,
    suffixes: tuple[str, str | None],
) -> list[Move]:
    from voxtier.tensors.keeping.migrate import change_prefix, monai_key, plan_renames

    try:
        items = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(items, list):
        raise ConfigError(f"{path} must hold a JSON list of items")
    if (old_prefix is None) != (new_prefix is None):
        raise click.UsageError("--old-prefix and --new-prefix belong together")

    def old_key(item: object) -> str:
        is_moved = old_prefix is not None and new_prefix is not None
        return monai_key(change_prefix(item, new_prefix, old_prefix) if is_moved else item, old)  # type: ignore[arg-type]

    def now_key(item: object) -> str:
        return monai_key(item, new)  # type: ignore[arg-type]

    absent: list[object] = []
    suffix, new_suffix = suffixes
    moves = plan_renames(
        folder, items, old_key, now_key, suffix=suffix, new_suffix=new_suffix, on_absent=absent.append
    )
    if absent:
        of = f"{len(absent):,} of {format_count(len(items), 'item')}"
        say(f"without a file under the old or the new name, so to be computed: {of}", err=True)
    return moves


def _make_safe(folder: Path, *, dry_run: bool, yes: bool, as_json: bool) -> int:
    from voxtier.tensors.keeping.migrate import CONVERTIBLE, make_safe
    from voxtier.tensors.keeping.verify import list_cache, verify
    from voxtier.tensors.states import UNREADABLE

    def report(path: str, result: str) -> None:
        say(json.dumps({"path": path, "result": result}) if as_json else f"{path}: {result}")

    states = list(verify(list_cache(folder), mode="quick"))
    unread = [each for each in states if each.state in UNREADABLE]
    for each in unread:
        say(f"{each.state}: {each.path}: {each.detail}", err=True)
    paths = [each.path for each in states if each.state in CONVERTIBLE]
    if not paths:
        say(f"{folder}: there is no file to convert", err=True)
        return EXIT_PARTIAL if unread else EXIT_FINDINGS
    for path in paths if dry_run or not yes else []:
        report(path, "would be converted")
    if not is_confirmed(f"Convert {format_count(len(paths), 'file')}", yes=yes, dry_run=dry_run):
        return EXIT_OK
    left = len(unread)
    for path in paths:
        result = make_safe(Path(path))
        left += result.startswith("left")
        report(path, result)
    return EXIT_PARTIAL if left else EXIT_OK
