"""The commands of ``voxtier``, and what their errors become: one line on stderr and an exit code."""

from __future__ import annotations

import signal
import sys
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
    is_absent,
)
from voxtier.cli.lazy_group import LazyGroup
from voxtier.cli.options import say
from voxtier.cli.streams import outlive_readers
from voxtier.errors import (
    BackendError,
    ConfigError,
    MissingExtraError,
    NotFoundError,
    SourceError,
    VoxtierError,
)

# By name: where the command is, and its line in the overview.
_COMMANDS: dict[str, tuple[str, str]] = {
    "index": ("frames.index:index", "index the frames of every DICOM file below a folder"),
    "serve": ("frames.serving.serve:serve", "serve frames to viewers by DICOMweb"),
    "explain": ("frames.files:explain", "explain one file on one page"),
    "doctor": ("doctor:doctor", "check the installation, its limits and its database"),
    "db": ("db:db", "start, stop and inspect voxtier's own database server"),
    "frames": ("frames:frames", "look into DICOM files, and look after their index"),
    "volumes": ("volumes:volumes", "ingest, read, verify and export radiology volumes in TileDB"),
    "tensors": ("tensors:tensors", "make, check and keep a MONAI PersistentDataset cache"),
}
# Spellings of version 0.1.
_OLD = {
    "table": "frames table",
    "metadata": "frames metadata",
    "frame": "frames read",
    "summary": "frames summary",
    "errors": "frames errors",
    "priority": "frames priority",
    "preload": "frames preload",
    "top": "frames top",
    "forget": "frames forget",
    "cache": "frames",
    "volume": "volumes",
}

# What the rooms need beyond voxtier itself, by the names under which it is imported.
_EXTRAS = {
    **dict.fromkeys(("psycopg", "psycopg_pool", "platformdirs"), "frames"),
    "tiledb": "volumes",
    "obstore": "cloud",
    **dict.fromkeys(("torch", "monai", "huggingface_hub", "nibabel", "yaml", "dotenv"), "tensors"),
    "pyspark": "spark",
    "pyarrow": "arrow",
    "pandas": "pandas",
    "torchio": "torchio",
    "blosc2": "nnunet",
    "pydicom": "dicom",
    "databricks": "databricks",
}
# `voxtier ... | head`: these have nothing to do but to print, and end when the reader has seen enough.
_LISTINGS = frozenset(
    (
        *("frames table", "frames metadata", "frames errors", "frames priority", "frames top"),
        *("tensors ls", "volumes info", "volumes stats", "volumes bench"),
    )
)
_IS_LISTING = "voxtier.is_listing"


def _goes_on() -> bool:
    """Return whether the running command works to its end, and by its exit code, when nobody reads on."""
    context = click.get_current_context(silent=True)
    if context is None:  # on another thread
        return True
    name = context.command_path.removeprefix(context.find_root().command_path).strip()
    first, _, rest = name.partition(" ")
    name = f"{_OLD.get(first, first)} {rest}".strip()
    context.meta[_IS_LISTING] = name in _LISTINGS
    return name not in _LISTINGS and name != "index"  # what it has not read, the next run will


class _Cli(LazyGroup):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            discard_stdout()
            return EXIT_OK if ctx.meta.get(_IS_LISTING) else EXIT_PARTIAL


@click.group(
    cls=_Cli,
    package="voxtier.cli",
    places=_COMMANDS,
    old=_OLD,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="voxtier")
def cli() -> None:
    """Find any frame, slice or training tensor of a medical image at once, and checked.

    \b
    voxtier index /data/dicom
    voxtier serve /data/dicom
    voxtier explain /data/dicom/slide.dcm
    voxtier frames read /data/dicom/slide.dcm 17 -o tile.jpg
    voxtier COMMAND --help

    Options mean the same in every command: --workers is what happens at once, --dry-run changes nothing,
    --fix repairs what is damaged, --yes does not ask, and --json writes one JSON object a line.

    Exit codes: 0 ok, 1 findings or nothing to work on, 2 usage, configuration or a path that is not there, 3
    partial, 4 backend down, 130 and 143 interrupted.
    """


def main() -> NoReturn:
    """Run the command line; errors become one line on stderr and an exit code, never a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    outlive_readers(_goes_on)
    try:
        code = cli.main(standalone_mode=False)
    except (click.Abort, KeyboardInterrupt) as error:
        code = 130
        if isinstance(error.__cause__, EOFError):  # no answer at a prompt is an Abort without a cause
            place = sys.pycache_prefix or sys.prefix
            code = _fail(
                f"{error.__cause__}: a compiled Python file seems to be cut off, as a full disk leaves it: "
                f"remove the folders __pycache__ below {place}, or install anew",
                EXIT_USAGE,
            )
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (ConfigError, MissingExtraError, NotFoundError) as error:
        code = _fail(str(error), EXIT_USAGE)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        code = _fail(str(MissingExtraError(package, _EXTRAS[package])), EXIT_USAGE)
    except BackendError as error:
        code = _fail(str(error), EXIT_BACKEND)
    except SourceError as error:  # nothing was found out, neither good nor bad
        code = _fail(str(error), EXIT_USAGE if is_absent(error) else EXIT_PARTIAL)
    except VoxtierError as error:
        code = _fail(str(error), EXIT_USAGE if is_absent(error) else EXIT_FINDINGS)
    except MemoryError:
        code = _fail(
            "there is not enough memory: see `ulimit -v` and the limit of the container", EXIT_PARTIAL
        )
    except OSError as error:
        place = f"{error.filename or 'output'}: {error.strerror or error}"
        code = _fail(place, EXIT_USAGE if is_absent(error) else EXIT_PARTIAL)
    sys.exit(code if isinstance(code, int) else EXIT_OK)


def _fail(message: str, code: int) -> int:
    say(f"voxtier: {message}", err=True)
    return code


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(143)
