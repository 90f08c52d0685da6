"""Options, and the reading of a configuration, that several ``voxtier tensors`` commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK, EXIT_PARTIAL
from voxtier.cli.options import GivenPath, RenamedOption
from voxtier.errors import ConfigError
from voxtier.system.text import parse_share

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import Config

FOLDER = GivenPath(path_type=Path, file_okay=False, exists=True)
NEW_FOLDER = GivenPath(path_type=Path, file_okay=False)


def config_option(why: str, *, required: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option --config with what a command uses it for."""
    return click.option("--config", type=GivenPath(path_type=Path), required=required, help=why)


def exit_code(states: Iterable[str]) -> int:
    """Return the exit code for the states of files: findings, else files that could not be read, else ok."""
    from voxtier.tensors.states import FINE, NOTED, UNREADABLE

    found = set(states) - FINE - NOTED
    if found - UNREADABLE:
        return EXIT_FINDINGS
    return EXIT_PARTIAL if found else EXIT_OK


def _take_shard(context: click.Context, _parameter: click.Parameter, text: str | None) -> None:
    """Take ``2/4`` for the second of four shares: the options of version 0.1 count from 0."""
    if text is None:
        return
    try:
        number, shares = parse_share(text)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    context.params |= {"shard_id": number - 1, "num_shards": shares}


def volume_list(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which volumes are asked for, and how many at once."""
    for option in (
        click.option("--shard-id", default=0, hidden=True, help="Which share of the list, from 0."),
        click.option("--num-shards", default=1, hidden=True, help="Number of shares."),
        click.option(
            "--shard",
            metavar="I/N",
            expose_value=False,
            callback=_take_shard,
            help="Only the I-th of N shares of the list; with more than one nothing is downloaded.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(1),
            default=100,
            help="Downloaded raw files on disk at once, at most.",
        ),
        click.option(
            "-w",
            "--workers",
            "num_workers",
            cls=RenamedOption,
            old=["--num-workers"],
            type=click.IntRange(1, 512),
            default=8,
            help="Volumes transformed at once, at most; fewer when memory is short.",
        ),
        click.option(
            "--config",
            type=GivenPath(path_type=Path),
            default="configs/config.yaml",
            help="File with lists, folders and image processing.",
        ),
    ):
        command = option(command)
    return command


def load_cache(
    config_path: Path, *, lists_optional: bool = False
) -> tuple[Config, Path, dict[str, str], dict[str, Path]]:
    """Return the configuration, its cache folder, and volumes and raw files by key.

    Where a list of volumes cannot be read, that is an error, or there are none by `lists_optional`.
    """
    from voxtier.tensors.identity.config import load_config
    from voxtier.tensors.identity.folders import item_folder
    from voxtier.tensors.identity.keys import item_key, raw_path, read_volume_names

    config = load_config(config_path)
    names: list[str] = []
    with suppress(ConfigError) if lists_optional else nullcontext():
        names = read_volume_names(config.subsets)
    volumes = {item_key(name): name for name in names}
    raw_files = {key: raw_path(config.img_dir, name, config.dir_structure) for key, name in volumes.items()}
    return config, item_folder(config), volumes, raw_files
