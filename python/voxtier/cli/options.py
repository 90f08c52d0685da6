"""Options that several commands share, and the opening of the frame index."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from mimetypes import guess_type
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from voxtier.errors import ConfigError
from voxtier.system.text import on_one_line, parse_bytes

if TYPE_CHECKING:
    from voxtier.frames.store.store import FrameStore


F = TypeVar("F", bound=Callable[..., Any])


class Size(click.ParamType):  # type: ignore[type-arg]  # generic in the stubs only
    """A number of bytes as people write it: ``2GiB``, ``500MB``, ``4096``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        try:
            return value if isinstance(value, int) else parse_bytes(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


SIZE = Size()


class GivenPath(click.Path):
    """A path that is not empty: a variable that is unset would name the working folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if not os.fspath(value):
            self.fail(_EMPTY_PATH, param, ctx)
        with suppress(FileNotFoundError, NotADirectoryError):
            try:
                Path(value).stat()
            except PermissionError as error:  # of which click says that it does not exist
                self.fail(f"{os.fspath(value)}: {error.strerror}", param, ctx)
        return super().convert(value, param, ctx)


class NewFile(GivenPath):
    """A file to write in the one format that there is; a name that promises another one is refused.

    Parameters
    ----------
    what : str
        The format, for messages.
    *suffixes : str
        How names of it end.
    or_folder : bool
        Whether the path may be a folder, and a name without any suffix is one to come.
    """

    def __init__(self, what: str, *suffixes: str, or_folder: bool = False) -> None:
        super().__init__(dir_okay=or_folder, path_type=Path)
        self._what, self._suffixes, self._or_folder = what, suffixes, or_folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        path: Path = super().convert(value, param, ctx)
        if self._or_folder and path.is_dir():
            return path
        if _promises_a_format(path) and not path.name.lower().endswith(self._suffixes):
            ends = " or ".join(self._suffixes)
            self.fail(f"{path} would hold {self._what}: end its name in {ends}", param, ctx)
        return path


# Formats of volumes that `mimetypes` does not know.
_VOLUMES = (".mha", ".mhd", ".nrrd", ".nhdr", ".nii", ".img", ".mgh", ".mnc", ".b2nd", ".zarr")


def _promises_a_format(path: Path) -> bool:
    return any(guess_type(path.name, strict=False)) or path.suffix.lower() in _VOLUMES


class Seconds(click.FloatRange):
    """A time that ends: neither infinite nor NaN, which is below no limit."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        seconds = float(super().convert(value, param, ctx))
        if not seconds <= _LONGEST:
            self.fail(f"{value} is no number of seconds up to {_LONGEST:,}", param, ctx)
        return seconds


_EMPTY_PATH = "the path is empty, as an unset variable leaves it; . names the working folder"
_LONGEST = 1_000_000  # seconds, 11 days: `time.sleep` refuses more than 64 bits of nanoseconds


def refuse_empty_paths(_context: click.Context, _parameter: click.Parameter, given: Any) -> Any:
    """Refuse what `GivenPath` does, where addresses of stores are paths too."""
    for path in [given] if isinstance(given, str) else given:
        if not path:
            raise click.BadParameter(_EMPTY_PATH)
    return given


def _check_utf8(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("the name must be UTF-8") from None
    return name


SOURCE = click.option(
    "--source", default="default", callback=_check_utf8, help="Name under which the files are indexed."
)


def _keep_prepare(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    context.meta[_PREPARE] = value


_PREPARE = "voxtier.prepare"


def dsn_options(*prefixes: str) -> Callable[[F], F]:
    """Let a command name its database, and how it is spoken to: see `open_store`.

    Variables of these prefixes go before those of all commands. ``VOXTIER_PREPARE`` is none of the option,
    which goes before what the address says: `Database` reads it behind that.
    """
    named = click.option(
        "--dsn",
        envvar=[f"{prefix}DSN" for prefix in (*prefixes, "VOXTIER_")],
        help="PostgreSQL to use, as postgresql://... [VOXTIER_DSN]; without it, voxtier runs its own.",
    )
    spoken_to = click.option(
        "--prepare",
        type=click.Choice(["auto", "off"]),
        envvar=[f"{prefix}PREPARE" for prefix in prefixes],
        expose_value=False,
        callback=_keep_prepare,
        help="Prepared statements: off behind a pooler that keeps none; auto finds out. [VOXTIER_PREPARE]",
    )
    return lambda command: named(spoken_to(command))


DSN = dsn_options()


class RenamedOption(click.Option):
    """An option that is also known by names it had before, which help does not show.

    Parameters
    ----------
    *declarations
        As for `click.Option`.
    old : sequence of str
        The earlier names.
    **options
        As for `click.Option`.
    """

    def __init__(self, *declarations: Any, old: Sequence[str], **options: Any) -> None:
        super().__init__(*declarations, **options)
        self.old = old

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Tell the parser all names."""
        shown, self.opts = self.opts, [*self.opts, *self.old]
        super().add_to_parser(parser, ctx)
        self.opts = shown


WORKERS = click.option(
    "--workers",
    cls=RenamedOption,
    old=["--threads"],
    type=click.IntRange(1, 1024),
    help="Files read at once: 16, and 128 where objects of a store are among them.",
)
YES = click.option(
    "-y",
    "--yes",
    cls=RenamedOption,
    old=["--apply"],
    is_flag=True,
    help="Do it without asking; where nobody can be asked, nothing is changed without it.",
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only say what would be done.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def say(line: str, *, err: bool = False) -> None:
    """Print one line, made harmless: names of files, records and volumes may hold anything."""
    click.echo(on_one_line(line), err=err)


def is_confirmed(what: str, *, yes: bool, dry_run: bool) -> bool:
    """Return whether to do what a command has just said it would: ask, unless that is settled."""
    if dry_run or yes:
        return not dry_run
    if sys.stdin is not None and sys.stdin.isatty():
        return click.confirm(f"{what}?", err=True)
    click.echo(f"nothing was changed: repeat with --yes to {what[0].lower()}{what[1:]}", err=True)
    return False


def reading_workers(workers: int | None, paths: Iterable[str]) -> int:
    """Return how many files to read at once: a request to a store waits longer than one to a disk.

    At 20 and 50 ms a request, 128 at once read 1.4 and 1.9 times as many objects as 64; at 5 ms a tenth less.
    """
    from voxtier.frames.sources.address import is_address

    return workers or (128 if any(map(is_address, paths)) else 16)


def holds_source(store: FrameStore, source: str) -> bool:
    """Return whether the index holds a source; if not, and it was not named, say what there is.

    Raises
    ------
    ConfigError
        There is none of the name that was given.
    """
    known = store.sources()
    if source in known:
        return True
    names = f"it holds {', '.join(map(on_one_line, known))}" if known else "it is empty: run `voxtier index`"
    text = f"the index has no source of the name {source!r}; {names}"
    if click.get_current_context().get_parameter_source("source") is not ParameterSource.DEFAULT:
        raise ConfigError(text)
    click.echo(f"voxtier: {text}", err=True)
    return False


def open_store(dsn: str | None) -> FrameStore:
    """Open the frame index, as ``--prepare`` of the running command says."""
    from voxtier.frames.store.store import FrameStore
    from voxtier.postgres.database import Database

    return FrameStore(Database(dsn, prepare=click.get_current_context().meta.get(_PREPARE)))
