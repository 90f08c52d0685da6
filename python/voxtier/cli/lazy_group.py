"""A group of commands, each imported only when it runs: help stays instant, and needs no extra."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import click


class LazyGroup(click.Group):
    """A group whose commands live in other modules.

    Parameters
    ----------
    package : str
        Package of the modules.
    places : mapping of str to (str, str)
        By name of the command: where it is, as ``module:attribute``, and its line in the overview.
    old : mapping of str to str
        By name that a command had before: its name today, from this group on. No help lists them.
    **options
        As for `click.Group`.
    """

    def __init__(
        self,
        *,
        package: str,
        places: Mapping[str, tuple[str, str]],
        old: Mapping[str, str] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.package = package
        self.places = places
        self.old = old

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names in the order of the table, not sorted."""
        return list(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name in self.old:
            command: click.Command | None = self
            for name in self.old[cmd_name].split():
                assert isinstance(command, click.Group)
                command = command.get_command(ctx, name)
            return command
        if cmd_name not in self.places:
            return None
        module, _, attribute = self.places[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"{self.package}.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the overview without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.places.items()])
