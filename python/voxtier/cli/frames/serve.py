"""``voxtier serve``: the DICOMweb gateway on the command line."""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
import tomllib
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from voxtier.cli.options import DSN, SIZE, open_store
from voxtier.errors import BackendError, ConfigError, SourceError
from voxtier.system.home import default_home
from voxtier.system.text import format_bytes, format_count

if TYPE_CHECKING:
    from voxtier.frames.gateway.gateway import Gateway
    from voxtier.frames.store.store import FrameStore

_PREFIX = "VOXTIER_SERVE_"
_DESCRIPTORS = 16_384


def _read_config(context: click.Context, _parameter: click.Parameter, path: str | None) -> None:
    """Take the defaults of the other options from a TOML file: keys are their names with underscores."""
    if path is None:
        return
    try:
        settings = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.UsageError(f"--config {path}: {error}") from None
    known = {each.name for each in context.command.params} - {"config", "help"}
    for key in settings:
        if key not in known:
            raise click.UsageError(
                f"--config {path}: {key!r} is no option of serve: {', '.join(sorted(map(str, known)))}"
            )
    context.default_map = {**(context.default_map or {}), **settings}


def _env(name: str) -> str:
    return _PREFIX + name


class _FolderOrPrefix(click.Path):
    """A path that exists, or a prefix of a store, which may be empty today."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from voxtier.frames.sources.address import is_address

        return value if is_address(str(value)) else super().convert(value, param, ctx)


@click.command()
@click.argument("folders", nargs=-1, type=_FolderOrPrefix(exists=True), envvar=_env("FOLDERS"))
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    envvar=_env("CONFIG"),
    help="TOML file with options as keys: port = 8042.",
)
@click.option("--host", default="127.0.0.1", envvar=_env("HOST"), help="Address to listen on.")
@click.option(
    "--port",
    default=8042,
    type=click.IntRange(0, 65_535),
    envvar=_env("PORT"),
    help="Port; 0 takes any free one.",
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    default=["default"],
    envvar=_env("SOURCE"),
    help="Source to serve; the first is the default one.",
)
@DSN
@click.option("--budget", default="256MiB", type=SIZE, envvar=_env("BUDGET"), help="Memory for frame tables.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False),
    envvar=_env("TOKEN_FILE"),
    help="Lines of: TOKEN [SOURCE,SOURCE...]. Clients must send one as a Bearer token.",
)
@click.option(
    "--trust-proxy",
    is_flag=True,
    envvar=_env("TRUST_PROXY"),
    help="A proxy in front checks who asks: listen on other addresses without tokens.",
)
@click.option(
    "--groups-header",
    envvar=_env("GROUPS_HEADER"),
    help="Header line in which the proxy names the user's groups, such as X-Forwarded-Groups.",
)
@click.option(
    "--log-json",
    is_flag=True,
    envvar=_env("LOG_JSON"),
    help="Write a JSON object a line to stdout for each request, without UIDs and paths.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    envvar=_env("CORS_ORIGIN"),
    help="Origin of web pages that may ask, such as https://viewer.example.",
)
@click.option(
    "--viewer",
    type=click.Path(file_okay=False, exists=True),
    envvar=_env("VIEWER"),
    help="Folder of a built viewer (OHIF's dist), served at /.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    envvar=_env("WORKERS"),
    help="Threads that serve. [half the cores]",
)
@click.option(
    "--ext", "extension", default=".dcm", envvar=_env("EXT"), help="Index files whose names end so."
)
@click.option(
    "--all-files", is_flag=True, envvar=_env("ALL_FILES"), help="Index every file, whatever its name."
)
def serve(
    folders: tuple[str, ...],
    extension: str,
    *,
    all_files: bool,
    dsn: str | None,
    sources: tuple[str, ...],
    **options: Any,
) -> int:
    """Serve frames to viewers by DICOMweb.

    \b
    voxtier serve /data/dicom
    voxtier serve s3://bucket/prefix
    voxtier serve --port 8080 --viewer ohif/dist

    With folders or prefixes of stores, indexes what is new in them in the background and serves from the
    first second; without, serves what the index holds. Only this machine is served, unless --token-file or
    --trust-proxy says who may ask. SIGTERM and Ctrl-C finish open requests; a second Ctrl-C stops at once.
    """
    stopping = threading.Event()
    _raise_file_limit()
    with open_store(dsn) as store:
        gateway = _gateway(store, sources, folders, options)
        with _signals(stopping, gateway):
            gateway.start()
            _announce(gateway, options)
            if folders:
                wanted = None if all_files else extension
                target = lambda: _index(store, sources[0], folders, wanted, stopping)  # noqa: E731
                threading.Thread(target=target, name="voxtier-index-run", daemon=True).start()
            stopping.wait()
            click.echo("stopping: open requests have 10 s; Ctrl-C stops at once", err=True)
            gateway.stop(drain_seconds=10)
    return 0


def _gateway(
    store: FrameStore, sources: tuple[str, ...], folders: tuple[str, ...], options: dict[str, Any]
) -> Gateway:
    from voxtier.frames.gateway.gateway import Gateway

    return Gateway(
        store,
        sources,
        host=options["host"],
        port=options["port"],
        roots=folders,
        tokens=None if options["token_file"] is None else _read_tokens(options["token_file"]),
        cors_origins=options["cors_origins"],
        viewer=options["viewer"],
        workers=options["workers"],
        budget_bytes=options["budget"],
        hot_set=default_home() / "hot" / f"{'+'.join(quote(name, safe='') for name in sources)}.hot",
        is_private=options["trust_proxy"],
        groups_header=options["groups_header"],
        access_log=sys.stdout.fileno() if options["log_json"] else None,
    )


def _raise_file_limit() -> None:
    """Allow more descriptors than the usual 1,024: a connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _read_tokens(path: str) -> dict[str, list[str]]:
    """Return the tokens of a file, and the sources that each is good for."""
    tokens: dict[str, list[str]] = {}
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path}: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        token, _, sources = line.strip().partition(" ")
        if not token or token.startswith("#"):
            continue
        if len(token) < 16:
            raise ConfigError(f"--token-file {path}: line {number}: a token has 16 characters at least")
        tokens[token] = [each for each in sources.strip().split(",") if each]
    if not tokens:
        raise ConfigError(f"--token-file {path}: there is no token in it")
    return tokens


def _announce(gateway: Gateway, options: dict[str, Any]) -> None:
    memory = format_bytes(options["budget"], binary=True)
    if options["log_json"]:
        addresses = {"dicomweb": f"{gateway.url}/dicomweb", "status": f"{gateway.url}/status"}
        click.echo(json.dumps({"event": "listening", **addresses}))
        return
    click.echo(f"DICOMweb root  {gateway.url}/dicomweb")
    click.echo(f"status page    {gateway.url}/status")
    if options["viewer"] is not None:
        click.echo(f"viewer         {gateway.url}/")
    click.echo(
        f"{format_count(gateway.workers, 'worker')}, {memory} for frame tables; Ctrl-C stops", err=True
    )


class _signals:  # noqa: N801 - used as a context
    """Handlers of SIGTERM and SIGINT while the gateway runs: drain, then stop at once."""

    def __init__(self, stopping: threading.Event, gateway: Gateway) -> None:
        self._stopping, self._gateway = stopping, gateway
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._stopping.is_set():
            raise KeyboardInterrupt
        self._stopping.set()


def _index(
    store: FrameStore, source: str, folders: tuple[str, ...], extension: str | None, stopping: threading.Event
) -> None:
    """Index what is new below the folders; a gateway serves meanwhile."""
    from voxtier.frames.indexing.paths import iter_files
    from voxtier.frames.indexing.run import FileIndexer, index_files
    from voxtier.frames.indexing.search import fill_search_index
    from voxtier.frames.sources.address import is_address
    from voxtier.frames.store.search_index import SearchIndex

    files = new = refused = 0
    try:
        for reports in index_files(
            FileIndexer(store, source=source, threads=32 if any(map(is_address, folders)) else 4),
            iter_files(folders, extension=extension),
        ):
            files += len(reports)
            new += sum(report.status != "unchanged" for report in reports)
            refused += sum(report.failed for report in reports)
            if stopping.is_set():
                return
        search = SearchIndex(store)
        if search.holds(source):
            for _ in fill_search_index(search, source):
                if stopping.is_set():
                    return
    except (BackendError, SourceError) as error:
        click.echo(f"voxtier: indexing stopped: {error}", err=True)
        return
    counts = f"{format_count(files, 'file')}, {new:,} new, {refused:,} refused"
    click.echo(f"indexed: {counts} (see `voxtier frames errors`)", err=True)
