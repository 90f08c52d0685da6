"""Help texts: every command teaches, loads nothing heavy, and names an extra that is missing."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import pytest

from cli.running import OK, USAGE, Cli
from voxtier.cli.commands import _COMMANDS, cli


def walk(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Yield every command and group of commands by its full name."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from walk(command, (*path, name))


COMMANDS = dict(walk(cli))


def test_help_lists_every_command_and_the_exit_codes(voxtier: Cli) -> None:
    done = voxtier("--help")
    assert done.code == OK
    for name, (_, line) in _COMMANDS.items():
        assert name in done.out
        assert line in done.out
    assert "Exit codes" in done.out
    assert voxtier("--version").out.startswith("voxtier, version ")


def test_no_command_prints_the_help_and_exits_2(voxtier: Cli) -> None:
    done = voxtier()
    assert done.code == USAGE
    assert "Commands:" in done.err


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_of_a_command_explains_it_and_its_options(voxtier: Cli, name: str) -> None:
    done = voxtier(name, "--help")
    assert done.code == OK
    about, _, options = done.out.partition("Options:")
    assert len(about.split()) > 10, "says what the command does"
    for line in options.splitlines():
        if line.strip().startswith("--"):
            assert "  " in line.strip() or len(line) > 24, f"an option without a word: {line}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_one_imperative_sentence_an_example_and_options_in_sentences(name: str) -> None:
    command = COMMANDS[name]
    assert command.help is not None
    first, *paragraphs = inspect.cleandoc(command.help).split("\n\n")
    first = " ".join(first.split())
    assert first[0].isupper()
    assert first.endswith(".")
    assert not first.split()[0].endswith(("s", "ing")), "an imperative, not a description"
    examples = [line for text in paragraphs if text.startswith("\b") for line in text.split("\n")[1:]]
    assert examples
    assert all(f"voxtier {name.split()[0]}" in line or name == "frames table" for line in examples)
    assert any(f"voxtier {name}" in line for line in examples)
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help is not None, option.name
            assert option.help[0].isupper() or option.help.startswith("voxtier"), option.help
            assert option.help.endswith((".", "]")), option.help


@pytest.mark.parametrize("name", ["", *_COMMANDS])
def test_help_loads_nothing_heavy(name: str) -> None:
    heavy = ("numpy", "psycopg", "pydicom", "torch", "monai", "tiledb", "pyspark", "asyncio", "rich")
    script = (
        f"import sys; sys.argv = {['voxtier', *([name] if name else []), '--help']!r}\n"
        "from voxtier.cli import main\n"
        "try: main()\n"
        f"finally: print(*[name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    ("command", "extra"),
    [("index", "psycopg"), ("frames summary", "psycopg_pool"), ("frames errors", "platformdirs")],
)
def test_a_missing_extra_is_one_line_that_names_the_remedy(tmp_path: Path, command: str, extra: str) -> None:
    script = (
        f"import sys; sys.modules[{extra!r}] = None\n"
        f"sys.argv = ['voxtier', *{command.split()!r}, *{[str(tmp_path)] if command == 'index' else []!r}]\n"
        "from voxtier.cli import main; main()"
    )
    bare = {name: value for name, value in os.environ.items() if name != "VOXTIER_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=bare
    )
    assert done.returncode == USAGE
    [line] = done.stderr.splitlines()
    assert line.startswith("voxtier: ")
    assert "pip install 'voxtier[frames]'" in line


def test_voxtier_table_runs_without_any_extra(folder: Path) -> None:
    script = (
        "import sys\nfor name in ('psycopg', 'platformdirs', 'pydicom'): sys.modules[name] = None\n"
        f"sys.argv = ['voxtier', 'frames', 'table', {str(folder / 'ok.dcm')!r}]\n"
        "from voxtier.cli import main; main()"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


def test_a_compiled_file_that_is_cut_off_is_no_interruption(tmp_path: Path) -> None:
    """A full disk leaves one when a package is imported first; then each command ended by 130 and no word."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "voxtier", "frames", "table", "--help"]
    run = partial(subprocess.run, command, env=environment, capture_output=True, text=True, check=False)
    assert run().returncode == OK
    [compiled] = tmp_path.rglob("voxtier/cli/frames/files.*.pyc")
    compiled.write_bytes(compiled.read_bytes()[:1000])
    done = run()
    assert done.returncode == USAGE
    assert f"remove the folders __pycache__ below {tmp_path}" in done.stderr
    assert "Traceback" not in done.stderr
