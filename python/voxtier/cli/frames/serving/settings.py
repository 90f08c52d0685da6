"""What ``voxtier serve`` is told by files and the environment: options, tokens, folders."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import click

from voxtier.cli.options import GivenPath, Size
from voxtier.errors import ConfigError


def read_config(context: click.Context, _parameter: click.Parameter, path: str | None) -> None:
    """Take the defaults of the other options from a TOML file: its keys are their names."""
    if path is None:
        return
    try:
        settings = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.UsageError(f"--config {path}: {error}") from None
    named = {
        name.removeprefix("--").replace("-", "_"): parameter
        for parameter in context.command.params
        for name in parameter.opts
        if parameter.name != "config"
    }
    defaults: dict[str, Any] = {}
    for key, value in settings.items():
        parameter = named.get(key.replace("-", "_"))
        if parameter is None:
            known = ", ".join(sorted(named))
            raise click.UsageError(f"--config {path}: {key!r} is no option of serve: {known}")
        one = not isinstance(value, list)
        if isinstance(value, dict) or not (one or _takes_many(parameter)):
            raise click.UsageError(f"--config {path}: {key!r} is one value, such as a text or a number")
        values = [_as_given(path, key, parameter, each) for each in ([value] if one else value)]
        if parameter.name == "prepare" and os.environ.get("VOXTIER_PREPARE"):
            continue  # the environment goes before the file: see `dsn_options`
        defaults[str(parameter.name)] = values if _takes_many(parameter) else values[0]
    context.default_map = {**(context.default_map or {}), **defaults}


def _as_given(path: str, key: str, parameter: click.Parameter, value: Any) -> str | bool:
    """Return a value as the command line gives it, which is checked likewise; refuse one of another type."""
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    is_number = isinstance(parameter.type, click.IntRange | Size)
    allowed = (bool, str) if is_flag else (int, str) if is_number else (str,)
    if type(value) not in allowed:
        wanted = (
            "true or false" if is_flag else "a whole number" if is_number else "a text in quotation marks"
        )
        raise click.UsageError(f"--config {path}: {key} = {value}: must be {wanted}")
    if isinstance(value, str) and "\0" in value:  # a command line and an environment cannot hold it
        raise click.UsageError(f"--config {path}: {key} = {value!r}: must hold no null character")
    return value if isinstance(value, bool) else str(value)


def _takes_many(parameter: click.Parameter) -> bool:
    return parameter.multiple or parameter.nargs == -1


class FolderOrPrefix(GivenPath):
    """A path that exists, or a prefix of a store, which may be empty today."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path or the address."""
        from voxtier.frames.sources.address import is_address

        return value if is_address(str(value)) else super().convert(value, param, ctx)

    def split_envvar_value(self, rv: str) -> list[str]:
        """Split at colons, but not at that of ``s3://``."""
        return [each for each in re.split(r":(?!//)", rv) if each]


def read_tokens(path: str) -> dict[str, list[str]]:
    """Return the tokens of a file, and the sources that each is good for; for all, where it names none.

    A line is a token, and behind blanks the names of sources with commas between them; ``#`` at the beginning
    or behind a blank begins a comment. The sources of two lines of one token add up.

    Raises
    ------
    ConfigError
        Names the line.
    """
    from voxtier.frames.gateway.gateway import token_fault

    tokens: dict[str, list[str]] = {}
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path}: {error}") from None
    for number, line in enumerate(text.split("\n"), 1):
        words = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].split(maxsplit=1)
        if not words:
            continue
        token, sources = words[0], [name.strip() for name in "".join(words[1:]).split(",")]
        place = f"--token-file {path}: line {number}"
        if (fault := token_fault(token)) is not None:
            raise ConfigError(f"{place}: {fault}")
        named = [name for name in sources if name]
        if words[1:] and not named:
            raise ConfigError(f"{place}: there is no name between the commas: leave them out for all sources")
        if token in tokens and bool(named) != bool(tokens[token]):
            raise ConfigError(
                f"{place}: the token stands in another line too, and one of them names no sources, which is "
                "all of them: leave one line"
            )
        tokens[token] = list(dict.fromkeys([*tokens.get(token, []), *named]))
    if not tokens:
        raise ConfigError(f"--token-file {path}: there is no token in it")
    return tokens
