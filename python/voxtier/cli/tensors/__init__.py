"""``voxtier tensors``: the MONAI cache, made, checked and kept."""

from __future__ import annotations

import importlib

import click

# name -> (module, one line). A command's module is imported when it runs, so that verify starts at once.
_COMMANDS = {
    "generate": (
        "voxtier.cli.tensors.generate",
        "make every tensor that the CSV files ask for and the cache lacks",
    ),
    "plan": ("voxtier.cli.tensors.generate", "say what generate would do: counts, bytes, peak disk, time"),
    "verify": ("voxtier.cli.tensors.verify", "check every file; with --fix, quarantine the bad ones"),
    "map": ("voxtier.cli.tensors.verify", "write which file is which volume"),
    "adopt": ("voxtier.cli.tensors.keep", "build or rebuild the manifest of a cache made by anyone"),
    "migrate": ("voxtier.cli.tensors.keep", "rename or convert a cache of another MONAI version"),
    "explain": ("voxtier.cli.tensors.keep", "say why a file is stale, or what two caches differ in"),
    "ls": ("voxtier.cli.tensors.keep", "list cache folders with their parameters"),
    "du": ("voxtier.cli.tensors.keep", "say where the space is"),
    "gc": ("voxtier.cli.tensors.keep", "remove orphans, temporaries of dead runs, dead claims"),
    "evict": ("voxtier.cli.tensors.keep", "shrink a cache to a budget"),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(_COMMANDS[cmd_name][0]), f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=_Commands)
def tensors() -> None:
    """Make, check and keep a MONAI PersistentDataset cache.

    \b
    voxtier tensors plan     --config config.yaml
    voxtier tensors generate --config config.yaml
    voxtier tensors verify   /data/cache            (no torch needed, nothing is unpickled)
    voxtier tensors verify   /data/cache --fix      (bad files go to quarantine)
    """
