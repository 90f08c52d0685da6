"""Blocks of pages: taken out, run in one process, and their commands held against the command line.

As a program: reads ``{page: [[language, text], ...]}`` from stdin, runs every page in a folder of its own,
from top to bottom with one namespace, and prints ``{page: fault or null}``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
_ENDS = re.compile(r"\s#|\s*(?:\|\|?|&&?|;|>|2>)(?:\s|$)")


def blocks_of(page: Path) -> list[list[str]]:
    """Return the blocks of Python and of the shell that a page promises to work, as (language, text)."""
    found = re.findall(r"^```(python|sh)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [list(each) for each in found]


def commands_of(page: Path) -> Iterator[str]:
    """Yield every command line of voxtier on a page: lines of blocks, and what stands in backticks."""
    text = page.read_text()
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for line in [*lines, *re.findall(r"`([^`\n]+)`", prose)]:
        for part in re.split(r"\s*(?:\|\|?|&&)\s*", line.strip()):
            if part.startswith("voxtier "):
                yield _ENDS.split(part)[0]


def fault_of_command(line: str | list[str]) -> str | None:
    """Return what a command line says that the help does not show; None where all of it is there."""
    from voxtier.cli.commands import cli

    words = shlex.split(line)[1:] if isinstance(line, str) else line
    command: click.Command = cli
    while words and isinstance(command, click.Group):
        name, *words = words
        if not re.fullmatch(r"[a-z]+", name):  # a place holder, or an option of the group
            return None
        context = click.Context(command)
        if name not in command.list_commands(context):
            return f"no command {name}"
        found = command.get_command(context, name)
        assert found is not None
        command = found
    shown = {"--help", "-h", "--version"} | {
        word
        for each in command.params
        if isinstance(each, click.Option) and not each.hidden
        for word in [*each.opts, *each.secondary_opts]
    }
    unknown = [word for word in words if re.match(r"--?[a-z]", word) and word.split("=")[0] not in shown]
    return f"{command.name} has no {', '.join(unknown)}" if unknown else None


def run_page(name: str, blocks: list[list[str]]) -> str | None:
    """Run the blocks of a page in the current folder; return the first fault with its block."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, (language, text) in enumerate(blocks, 1):
        if language == "sh":
            done = subprocess.run(["bash", "-ec", text], capture_output=True, text=True, timeout=120)
            if done.returncode:
                return f"block {number}: exit code {done.returncode}\n{text}\n{done.stdout}{done.stderr}"
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("error")
                exec(compile(text, f"{name}, block {number}", "exec"), namespace)
        except BaseException:
            return f"block {number}:\n{text}\n{traceback.format_exc()}"
    return None


def main() -> None:
    """Run all pages that stdin names."""
    faults: dict[str, str | None] = {}
    start = Path.cwd()
    for name, blocks in json.load(sys.stdin).items():
        folder = start / re.sub(r"\W", "_", name)
        folder.mkdir()
        os.chdir(folder)
        began = time.monotonic()
        faults[name] = run_page(name, blocks)
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
    print(json.dumps(faults))


if __name__ == "__main__":
    main()
