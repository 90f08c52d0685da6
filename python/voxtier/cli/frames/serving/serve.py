"""``voxtier serve``: the DICOMweb gateway on the command line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from voxtier.cli.exit_codes import EXIT_OK
from voxtier.cli.frames.serving.index_run import IndexRun
from voxtier.cli.frames.serving.settings import FolderOrPrefix, read_config, read_tokens
from voxtier.cli.options import SIZE, GivenPath, dsn_options, open_store, say
from voxtier.errors import ConfigError
from voxtier.system.home import home_if_any
from voxtier.system.text import format_bytes, format_count, on_one_line

if TYPE_CHECKING:
    from voxtier.frames.gateway.gateway import Gateway
    from voxtier.frames.store.store import FrameStore

_PREFIX = "VOXTIER_SERVE_"
_DESCRIPTORS = 16_384
_LONGEST_NAME = 150  # bytes; those of a file end at 255
_RUN_ENDS_WITHIN = 1.0  # seconds, for the end of the index run
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of mallopt(3)


def _env(name: str) -> str:
    return _PREFIX + name


@click.command()
@click.argument("folders", nargs=-1, type=FolderOrPrefix(exists=True), envvar=_env("FOLDERS"))
@click.option(
    "--config",
    type=GivenPath(dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=read_config,
    envvar=_env("CONFIG"),
    help='TOML file with options as keys: port = 8042, cors-origin = ["https://viewer.example"].',
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
@dsn_options(_PREFIX)
@click.option("--budget", default="256MiB", type=SIZE, envvar=_env("BUDGET"), help="Memory for frame tables.")
@click.option(
    "--token-file",
    type=GivenPath(dir_okay=False),
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
    type=GivenPath(file_okay=False, exists=True),
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

    With folders, files or prefixes of stores, indexes what is new in them in the background and serves them
    from the first second, and nothing else of the source; without, serves what the index holds. Only this
    machine is served, unless --token-file or --trust-proxy says who may ask. SIGTERM and Ctrl-C finish open
    requests; a second Ctrl-C stops at once.

    Each option may stand in the environment too, as VOXTIER_SERVE_PORT, VOXTIER_SERVE_CORS_ORIGIN and so on
    (several values with blanks between them, folders with colons), or in the file of --config. What the
    command line says goes first, then the environment, then the file.
    """
    if folders and len(sources) > 1:
        raise click.UsageError(
            f"folders are of one source, and {len(sources)} are named: index them (`voxtier index --source "
            f"{sources[0]} ...`), then serve all sources without folders"
        )
    _check_extras(folders)
    stopping = threading.Event()
    _raise_file_limit()
    bound_free_memory()
    with open_store(dsn) as store:
        gateway = _gateway(store, sources, folders, options)
        with _signals(stopping, gateway):
            try:
                gateway.start()
            except OSError as error:
                raise ConfigError(
                    f"--host {options['host']} --port {options['port']}: {error.strerror or error}"
                ) from None
            _announce(gateway, options)
            run = IndexRun(store, sources[0], folders, None if all_files else extension, stopping)
            if folders:
                run.start()
            else:
                _name_unknown(store, sources)
            stopping.wait()
            click.echo("stopping: open requests have 10 s; Ctrl-C stops at once", err=True)
            gateway.stop(drain_seconds=10)
            if folders:
                run.join(_RUN_ENDS_WITHIN)
        if run.missing is not None:
            raise run.missing
    _end_at_once_if_a_thread_waits()
    return EXIT_OK


def _check_extras(folders: tuple[str, ...]) -> None:
    """Refuse prefixes of stores that cannot be read at the start: none of their files would be served."""
    from voxtier.frames.sources.address import is_address
    from voxtier.frames.sources.stores import load_obstore

    if any(map(is_address, folders)):
        load_obstore()


def _gateway(
    store: FrameStore, sources: tuple[str, ...], folders: tuple[str, ...], options: dict[str, Any]
) -> Gateway:
    from voxtier.frames.gateway.gateway import Gateway

    home = home_if_any()
    tokens = None if options["token_file"] is None else read_tokens(options["token_file"])
    useless = sum(bool(named) and not set(named) & set(sources) for named in (tokens or {}).values())
    if useless:
        served = "no source that is served: name theirs with --source"
        say(f"voxtier: --token-file: {format_count(useless, 'token')} of it open {served}", err=True)
    return Gateway(
        store,
        sources,
        host=options["host"],
        port=options["port"],
        roots=folders,
        tokens=tokens,
        cors_origins=options["cors_origins"],
        viewer=options["viewer"],
        workers=options["workers"],
        budget_bytes=options["budget"],
        hot_set=None if home is None else home / "hot" / hot_set_name(sources),
        is_private=options["trust_proxy"],
        groups_header=options["groups_header"],
        access_log=sys.stdout.fileno() if options["log_json"] else None,
    )


def hot_set_name(sources: Sequence[str]) -> str:
    """Return the name of the file that keeps the hot set of some sources."""
    names = "+".join(quote(name, safe="") for name in sources)
    if len(names) > _LONGEST_NAME:
        names = f"{names[:_LONGEST_NAME]}-{hashlib.blake2b(names.encode(), digest_size=8).hexdigest()}"
    return f"{names}.hot"


def _name_unknown(store: FrameStore, sources: tuple[str, ...]) -> None:
    """Name sources that the index does not hold yet: a mistyped name would show an empty list of studies."""
    known = store.sources()
    for source in sources:
        if source not in known:
            held = f"it holds {', '.join(map(on_one_line, known))}" if known else "it is empty"
            text = f"the index has no source of the name {source!r} yet; {held}: see `voxtier index --source`"
            click.echo(f"voxtier: {text}", err=True)


def _raise_file_limit() -> None:
    """Allow more descriptors than the usual 1,024: a connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def bound_free_memory() -> None:
    """Let the C library keep at most 16 MiB of freed memory in each of two arenas.

    glibc has eight arenas for each core, and each keeps up to twice the largest block that was freed: 24 slow
    readers of frames that are changed to little endian made the process grow by 49 to 96 MB where 21 were in
    use. It grows by 29 so, and answers take the same time; with every block of 128 KiB given back they take
    1.4 to 1.7 times as long.
    """
    with contextlib.suppress(AttributeError, ImportError):  # another C library, a Python without libffi
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_TRIM_THRESHOLD, 16 << 20)
        mallopt(_M_MMAP_THRESHOLD, 4 << 20)


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


def _end_at_once_if_a_thread_waits() -> None:
    """End the process where a thread still waits for a database or a store that does not answer.

    All is closed by now, and Python would wait for the threads of pools, daemons or not.
    """
    if threading.active_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_OK)
