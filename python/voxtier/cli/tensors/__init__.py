"""``voxtier tensors``: make, check and keep a MONAI cache."""

from __future__ import annotations

import click

from voxtier.cli.lazy_group import LazyGroup

_COMMANDS = {
    "init": ("init:init_command", "print a starting configuration, every key explained"),
    "generate": (
        "generate:generate_command",
        "make every tensor that the CSV files ask for and the cache lacks",
    ),
    "plan": ("generate:plan_command", "say what generate would do: counts, bytes, peak disk, time"),
    "verify": ("verify:verify_command", "check every file; with --fix, quarantine the bad ones"),
    "map": ("manifest:map_command", "write which file is which volume"),
    "adopt": ("manifest:adopt_command", "build or rebuild the manifest of a cache made by anyone"),
    "migrate": ("migrate:migrate_command", "rename or convert a cache of another MONAI version"),
    "explain": ("manifest:explain_command", "say which files would be made differently today, and why"),
    "ls": ("disk_usage:ls_command", "list cache folders with their parameters"),
    "du": ("disk_usage:du_command", "say where the space is"),
    "gc": ("disk_usage:gc_command", "remove orphans, temporaries of dead runs, dead claims"),
    "evict": ("disk_usage:evict_command", "shrink a cache to a budget"),
}


@click.group(cls=LazyGroup, package="voxtier.cli.tensors", places=_COMMANDS)
def tensors() -> None:
    """Make, check and keep a MONAI PersistentDataset cache.

    \b
    voxtier tensors init     > config.yaml
    voxtier tensors plan     --config config.yaml
    voxtier tensors generate --config config.yaml
    voxtier tensors verify   /data/cache            (no torch needed, nothing is unpickled)
    voxtier tensors verify   /data/cache --fix      (bad files go to quarantine)
    """
