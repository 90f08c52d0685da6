"""The commands of ``voxtier``, and what their errors become: one line on stderr and an exit code."""

from __future__ import annotations

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
    discard_stdout,
)
from voxtier.cli.lazy_group import LazyGroup
from voxtier.errors import BackendError, ConfigError, MissingExtraError, VoxtierError

# By name: where the command is, and its line in the overview.
_COMMANDS: dict[str, tuple[str, str]] = {
    "index": ("frames.index:index", "index the frames of every DICOM file below a folder"),
    "serve": ("frames.serve:serve", "serve frames to viewers by DICOMweb"),
    "forget": ("frames.search:forget", "remove the search index, which names patients"),
    "summary": ("frames.index:summary", "count what is indexed"),
    "errors": ("frames.index:errors", "list the files that were refused, each with its reason"),
    "table": ("frames.files:table", "print the frame table of each file, without a database"),
    "metadata": ("frames.metadata:metadata", "print the attributes of each file"),
    "frame": ("frames.files:frame", "write the bytes of one frame"),
    "explain": ("frames.files:explain", "explain one file on one page"),
    "priority": ("frames.memory:priority", "list the files that deserve memory most, and why"),
    "preload": ("frames.memory:preload", "try out what a preload would hold in memory"),
    "cache": ("frames.memory:cache", "show the memory of running readers, replay a trace"),
    "top": ("frames.readers:top", "watch the running readers: requests a second, tiers, memory"),
    "doctor": ("doctor:doctor", "check the installation, its limits and its database"),
    "db": ("db:db", "start, stop and inspect voxtier's own database server"),
    "frames": ("frames.exchange:frames", "export the index to Parquet, import it again"),
    "volume": ("volumes:volume", "ingest, read, verify and export radiology volumes in TileDB"),
    "tensors": ("tensors:tensors", "make, check and keep a MONAI PersistentDataset cache"),
}

# What the rooms need beyond voxtier itself, by the names under which it is imported.
_EXTRAS = {
    **dict.fromkeys(("psycopg", "psycopg_pool", "platformdirs"), "frames"),
    **dict.fromkeys(("tiledb", "obstore"), "volumes"),
    **dict.fromkeys(("torch", "monai", "huggingface_hub", "nibabel", "yaml", "dotenv"), "tensors"),
    "pyspark": "spark",
    "pyarrow": "arrow",
    "pandas": "pandas",
    "torchio": "torchio",
    "pydicom": "dicom",
    "databricks": "databricks",
}


class _Cli(LazyGroup):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `voxtier ... | head`: the reader has seen enough
            discard_stdout()
            return EXIT_OK


@click.group(
    cls=_Cli,
    package="voxtier.cli",
    places=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="voxtier")
def cli() -> None:
    """Find any frame, slice or training tensor of a medical image at once, and checked.

    \b
    voxtier index /data/dicom
    voxtier frame /data/dicom/slide.dcm 17 -o tile.jpg
    voxtier COMMAND --help

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
