"""One grammar: the same word means the same in every command, and ends with the same exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import pytest

from cli.running import OK, USAGE, Cli
from cli.test_help import COMMANDS
from voxtier.cli.commands import _OLD, cli
from voxtier.cli.lazy_group import LazyGroup
from voxtier.cli.options import RenamedOption, Size

LEAVES = {name: command for name, command in COMMANDS.items() if not isinstance(command, click.Group)}
# Their output is what was asked for: bytes, a path, SQL, a configuration, a picture, a running server.
WRITERS = {
    "serve",
    "frames read",
    "db path",
    "db grants",
    "tensors init",
    "volumes slice",
}
# Each word once: a flag, or the kind of its value.
WORDS = {
    "--json": "flag",
    "--dry-run": "flag",
    "--fix": "flag",
    "--yes": "flag",
    "--force": "flag",
    "--workers": "integer range",
    "--shard": "text",
    "--dsn": "text",
    "--obs": "text",
    "--config": "path",
    "--home": "path",
    "--html": "path",
    "--budget": "size",
}
# Other words for these, which no help shows.
GONE = ("--threads", "--num-workers", "--apply", "--repair", "--shard-id", "--num-shards", "--no-act")
# What a command line with a path that is not there looks like, for every command that takes one.
ABSENT = {
    "index": ["absent"],
    "serve": ["absent"],
    "explain": ["absent"],
    "frames table": ["absent"],
    "frames read": ["absent", "1", "-o", "out"],
    "frames metadata": ["absent"],
    "frames export": ["absent/index.parquet"],
    "frames import": ["absent"],
    "frames simulate": ["absent"],
    "volumes ingest": ["store", "absent"],
    "volumes info": ["absent"],
    "volumes slice": ["absent", "out.png"],
    "volumes stats": ["absent"],
    "volumes consolidate": ["absent"],
    "volumes vacuum": ["absent"],
    "volumes verify": ["absent"],
    "volumes export": ["absent", "out.nii.gz"],
    "volumes bench": ["absent"],
    "tensors generate": ["--config", "absent", "--yes"],
    "tensors plan": ["--config", "absent"],
    "tensors verify": ["absent"],
    "tensors map": ["--csv-path", "absent"],
    "tensors adopt": ["absent"],
    "tensors migrate": ["absent", "--make-safe"],
    "tensors explain": ["--config", "absent"],
    "tensors ls": ["absent"],
    "tensors du": ["absent"],
    "tensors gc": ["absent"],
    "tensors evict": ["absent", "--budget", "1GB"],
}
# They take no path, or one that may be absent.
PATHLESS = {
    "doctor",
    "db start",
    "db stop",
    "db status",
    "db path",
    "db grants",
    "frames summary",
    "frames errors",
    "frames forget",
    "frames priority",
    "frames preload",
    "frames stats",
    "frames top",
    "tensors init",
}


def options(command: click.Command) -> list[click.Option]:
    return [each for each in command.params if isinstance(each, click.Option)]


def kind(option: click.Option) -> str:
    if option.is_flag:
        return "flag"
    if isinstance(option.type, click.Path):
        return "path"
    return "size" if isinstance(option.type, Size) else option.type.name


def test_a_word_has_one_kind_in_every_command() -> None:
    kinds: dict[str, set[str]] = defaultdict(set)
    for command in LEAVES.values():
        for option in options(command):
            for word in option.opts:
                kinds[word].add(kind(option))
    assert {word: kinds[word] for word in WORDS} == {word: {each} for word, each in WORDS.items()}
    assert {word for word, found in kinds.items() if len(found) > 1} == set()


def test_every_overview_has_the_same_form() -> None:
    groups = [command for command in [cli, *COMMANDS.values()] if isinstance(command, click.Group)]
    assert len(groups) == 5
    for group in groups:
        assert isinstance(group, LazyGroup)
        for name, (_, line) in group.places.items():
            assert line[0].islower(), f"{name}: {line}"
            assert not line.endswith("."), f"{name}: {line}"
            assert len(line) <= 72, f"{name}: {line}"


@pytest.mark.parametrize("name", LEAVES)
def test_no_help_shows_a_second_word_for_the_same_thing(name: str) -> None:
    command = LEAVES[name]
    shown = {word for option in options(command) if not option.hidden for word in option.opts}
    assert not shown & set(GONE)
    with click.Context(command) as context:
        assert not any(word in command.get_help(context) for word in GONE)


def test_every_command_that_reports_has_json() -> None:
    with_json = {
        name for name, command in LEAVES.items() if any("--json" in o.opts for o in options(command))
    }
    assert set(LEAVES) - with_json == WRITERS


@pytest.mark.parametrize("old", _OLD)
def test_an_old_spelling_is_the_same_command_and_is_not_listed(old: str) -> None:
    context = click.Context(cli)
    assert cli.get_command(context, old) is COMMANDS[_OLD[old]]
    assert old not in cli.list_commands(context)


def test_old_spellings_run(voxtier: Cli, folder: Path) -> None:
    new = voxtier("frames", "table", "--json", folder / "ok.dcm")
    assert new.code == OK
    assert voxtier("table", "--json", folder / "ok.dcm").stdout == new.stdout
    assert voxtier("table", "--threads", 2, folder / "ok.dcm", "--json").stdout == new.stdout
    assert (
        voxtier("frame", folder / "ok.dcm", 1).stdout
        == voxtier("frames", "read", folder / "ok.dcm", 1).stdout
    )
    assert voxtier("cache", "simulate", "-", stdin=b"a 1\n").code == OK
    assert "volumes" in voxtier("volume", "--help").out
    assert "No such command" in voxtier("tables").err


def test_renamed_options_are_taken_by_their_old_names() -> None:
    renamed = [o for command in LEAVES.values() for o in options(command) if isinstance(o, RenamedOption)]
    assert {word for option in renamed for word in option.old} == {
        "--threads",
        "--num-workers",
        "--apply",
        "--repair",
    }
    command = COMMANDS["tensors generate"]
    for given in (["--workers", "3"], ["-w", "3"], ["--num-workers", "3"]):
        assert command.make_context("generate", given).params["num_workers"] == 3
    for given in (["--shard", "2/4"], ["--num-shards", "4", "--shard-id", "1"]):
        found = command.make_context("generate", given).params
        assert (found["shard_id"], found["num_shards"]) == (1, 4)
    with pytest.raises(click.BadParameter, match="no share"):
        command.make_context("generate", ["--shard", "5/4"])
    for given in (["--yes"], ["-y"], ["--apply"]):
        assert COMMANDS["tensors gc"].make_context("gc", given).params["yes"]


def run_all(lines: dict[str, list[str]], folder: Path) -> dict[str, list[Any]]:
    """Run command lines; return exit code and stderr of each.

    They share one process of their own: TileDB is loaded, and the tests beside this one fork.
    """
    script = (
        "import contextlib, io, json, sys\nfrom voxtier.cli import main\nended = {}\n"
        "for name, arguments in json.load(sys.stdin).items():\n"
        "    sys.argv = ['voxtier', *name.split(), *arguments]\n"
        "    err = io.StringIO()\n"
        "    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):\n"
        "        try: main()\n"
        "        except SystemExit as end: ended[name] = end.code, err.getvalue()\n"
        "        except BaseException as error: ended[name] = repr(error), err.getvalue()\n"
        "print(json.dumps(ended))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(lines), cwd=folder, capture_output=True, text=True
    )
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


def with_dsn(lines: dict[str, list[str]], dsn: str) -> dict[str, list[str]]:
    asking = ("index", "serve", "frames export", "frames import")
    return {name: [*line, "--dsn", dsn] if name in asking else line for name, line in lines.items()}


def test_a_path_that_is_not_there_exits_2_in_every_command(tmp_path: Path, dsn: str) -> None:
    assert ABSENT.keys() | PATHLESS == LEAVES.keys()
    ended = run_all(with_dsn(ABSENT, dsn), tmp_path)
    assert {name: end for name, end in ended.items() if end[0] != USAGE} == {}
    for name, (_, err) in ended.items():
        assert "absent" in err or name in ("explain", "frames table", "frames metadata"), (name, err)
    assert list(tmp_path.iterdir()) == []


# Commands of another room, whose paths are not looked at here.
ELSEWHERE = "volumes "


def test_an_empty_path_names_no_folder_in_any_command(tmp_path: Path, dsn: str) -> None:
    """An unset variable was taken for the working folder, in which `tensors verify --fix` then acted."""
    lines = {
        name: ["" if word == "absent" else word for word in line]
        for name, line in ABSENT.items()
        if not name.startswith(ELSEWHERE)
    }
    lines["frames export"] = [""]
    lines["tensors verify"] = ["", "--fix"]
    ended = run_all(with_dsn(lines, dsn), tmp_path)
    assert {name: end for name, end in ended.items() if end[0] != USAGE} == {}
    told = {name for name, (_, err) in ended.items() if "the path is empty" in err}
    assert told == lines.keys() - {"frames simulate"}  # click's own file
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "frames export {}/index.CSV",
        "frames simulate {}/trace --html {}/curves.png",
        "volumes slice {}/absent {}/middle.jpg",
        "volumes export {}/absent {}/x.mha --obs a",
        "volumes export {}/absent {}/x.MHD.gz --obs a",
        "volumes export {}/absent {}/all.zip",
    ],
)
def test_a_name_that_promises_another_format_is_refused(voxtier: Cli, tmp_path: Path, line: str) -> None:
    (tmp_path / "trace").write_text("a 1\n")
    done = voxtier(*line.format(tmp_path, tmp_path).split())
    assert done.code == USAGE
    assert re.search(r"would hold .*: end its name in \.(parquet|html|png|nii\.gz or \.nii)", done.err)
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]


@pytest.mark.parametrize("name", [name for name in LEAVES if not name.startswith(ELSEWHERE)])
def test_every_option_that_names_a_path_refuses_an_empty_one(name: str) -> None:
    for parameter in LEAVES[name].params:
        if isinstance(parameter.type, click.Path):
            with pytest.raises(click.BadParameter, match="the path is empty"):
                parameter.type.convert("", parameter, None)


@pytest.mark.parametrize(
    "line",
    [
        *(f"frames top --count 2 --interval {number}" for number in ("nan", "inf", "-inf", "1e300", "1e7")),
        *(f"frames {command} --limit {10**30}" for command in ("priority", "preload")),
        "frames preload --budget 999999999999999TiB",
        *(f"tensors verify {{}} --sample {number}" for number in ("nan", "inf", "-1")),
    ],
)
def test_a_number_that_no_machine_can_take_exits_2(voxtier: Cli, tmp_path: Path, line: str) -> None:
    done = voxtier(*line.format(tmp_path).split())
    assert (done.code, done.out) == (USAGE, "")
    assert done.err.splitlines()[-1].startswith("Error: ")
