"""The commands of ``voxtier``, each loaded only when it runs, and their errors as exit codes."""

from __future__ import annotations

import importlib
import signal
import sys
from io import TextIOWrapper
from types import FrameType
from typing import Any, NoReturn

import click

from voxtier import __version__
from voxtier.cli.exit_codes import (
    EXIT_BACKEND,
    EXIT_FINDINGS,
    EXIT_OK,
    EXIT_PARTIAL,
    EXIT_USAGE,
    forget_stdout,
)
from voxtier.errors import BackendError, ConfigError, MissingExtraError, VoxtierError

# name -> (module, one line for the overview). The module is imported when the command runs.
_COMMANDS: dict[str, tuple[str, str]] = {
    "index": ("voxtier.cli.frames.index", "index the frames of every DICOM file below a folder"),
    "summary": ("voxtier.cli.frames.index", "count what is indexed"),
    "errors": ("voxtier.cli.frames.index", "list the files that were refused, each with its reason"),
    "table": ("voxtier.cli.frames.files", "the frame table of each file, without a database"),
    "frame": ("voxtier.cli.frames.files", "the bytes of one frame"),
    "explain": ("voxtier.cli.frames.files", "one page about one file"),
    "priority": ("voxtier.cli.frames.memory", "which files deserve memory, and why"),
    "preload": ("voxtier.cli.frames.memory", "what a preload would hold in memory"),
    "cache": ("voxtier.cli.frames.memory", "memory of the running readers; replay a trace under budgets"),
    "top": ("voxtier.cli.frames.readers", "watch the running readers: requests a second, tiers, memory"),
    "doctor": ("voxtier.cli.doctor", "check the installation, its limits and its database"),
    "db": ("voxtier.cli.db", "start, stop and look at voxtier's own database server"),
    "volume": ("voxtier.cli.volumes", "radiology volumes in TileDB: ingest, info, slice, verify, export"),
    "tensors": ("voxtier.cli.tensors", "a MONAI PersistentDataset cache: generate, verify, map, keep"),
}

# What the rooms need beyond voxtier itself, by the names under which it is imported.
_EXTRAS = {
    **dict.fromkeys(("psycopg", "psycopg_pool", "platformdirs"), "frames"),
    **dict.fromkeys(("tiledb", "nibabel"), "volumes"),
    **dict.fromkeys(("torch", "monai", "huggingface_hub", "yaml"), "tensors"),
    **dict.fromkeys(("pyspark", "pyarrow"), "spark"),
    "pydicom": "dicom",
    "databricks": "databricks",
}


class _LazyGroup(click.Group):
    """A group whose commands live in modules that are imported on use, so that help stays instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name][0])
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `voxtier ... | head`: the reader has seen enough
            forget_stdout()
            return EXIT_OK

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="voxtier")
def cli() -> None:
    """Find any frame, slice or training tensor of a medical image at once, and checked.

    Exit codes: 0 ok, 1 findings, 2 usage or configuration, 3 partial, 4 backend down,
    130 and 143 interrupted.
    """


def main() -> NoReturn:
    """Run the command line; errors become one line on stderr and an exit code, never a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a path need not be text, nor a terminal show all of it
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (ConfigError, MissingExtraError) as error:
        code = _fail(str(error), EXIT_USAGE)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        code = _fail(str(MissingExtraError(package, _EXTRAS[package])), EXIT_USAGE)
    except BackendError as error:
        code = _fail(str(error), EXIT_BACKEND)
    except VoxtierError as error:
        code = _fail(str(error), EXIT_FINDINGS)
    except OSError as error:
        code = _fail(f"{error.filename or 'output'}: {error.strerror}", EXIT_PARTIAL)
    sys.exit(code if isinstance(code, int) else EXIT_OK)


def _fail(message: str, code: int) -> int:
    click.echo(f"voxtier: {message}", err=True)
    return code


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(143)
