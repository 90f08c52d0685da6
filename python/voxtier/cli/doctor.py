"""``voxtier doctor``: what an installation has and lacks, and how fast its database answers."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from voxtier import __version__
from voxtier.cli.exit_codes import EXIT_BACKEND, EXIT_FINDINGS
from voxtier.cli.frames.search import DETACHED
from voxtier.cli.options import AS_JSON, DSN, open_store
from voxtier.errors import BackendError, ConfigError, MissingExtraError
from voxtier.system.text import format_bytes, format_count, on_one_line

if TYPE_CHECKING:
    from voxtier.frames.store.store import FrameStore
    from voxtier.postgres.connection import Connection
    from voxtier.postgres.database import Database

_LOW_DISK = 1 << 30
_LOADING = "waits for its index or loads tables"
_FEW_FILES = 1024
# Of a line of a package's requirements: the name with its extras, the extra that brings it, the platform.
_NAME = re.compile(r"([\w.-]+)(?:\[([^]]*)\])?")
_EXTRA = re.compile(r"""\bextra == ['"]([^'"]+)""")
_PLATFORM = re.compile(r"""\bsys_platform == ['"]([^'"]+)""")
_COUNTS = """
SELECT source.name, count(f.key), count(f.error_kind), coalesce(sum(f.frame_count), 0)
FROM voxtier.source LEFT JOIN voxtier.file AS f USING (source_id)
GROUP BY 1 ORDER BY 1
"""
_STATE = """
SELECT (SELECT max(version) FROM voxtier.schema_version),
    has_table_privilege('voxtier.file', 'INSERT, UPDATE'),
    pg_is_in_recovery(),
    current_setting('transaction_read_only') = 'on'
"""


class Finding(NamedTuple):
    """One line of the report; `verdict` is ``ok``, ``note``, ``wrong`` or ``down``."""

    topic: str
    verdict: str
    text: str


@click.command()
@DSN
@AS_JSON
def doctor(*, dsn: str | None, as_json: bool) -> int:
    """Check the installation, its limits, its database, the search index and running gateways.

    \b
    voxtier doctor
    voxtier doctor --dsn postgresql://user@host/database

    Without --dsn, voxtier's own database is started and stopped again. Exit code 0 if all is well, 1 if
    something is wrong, 4 if the database cannot be reached.
    """
    verdicts = set()
    for finding in _findings(dsn):
        verdicts.add(finding.verdict)
        if as_json:
            click.echo(json.dumps(finding._asdict()))
        else:
            mark = {"ok": "ok   ", "note": "note ", "wrong": "WRONG", "down": "DOWN "}[finding.verdict]
            click.echo(f"{mark} {finding.topic:<11} {finding.text}")
    return EXIT_BACKEND if "down" in verdicts else EXIT_FINDINGS if "wrong" in verdicts else 0


def _findings(dsn: str | None) -> Iterator[Finding]:
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding(
        "voxtier", "ok", f"{__version__}, {machine}, {format_count(os.cpu_count() or 1, 'processor')}"
    )
    yield from _extras()
    yield _open_files()
    if dsn is None:
        yield from _own_server()
    yield from _database(dsn)
    yield from _gateways()


def _extras() -> Iterator[Finding]:
    """Tell of each extra which packages of it are there; one that a command needs is missed below, too."""
    extras = dict.fromkeys(found[1] for line in _requirements("voxtier") if (found := _EXTRA.search(line)))
    if not extras:
        yield Finding("extras", "note", "not known: voxtier was not installed as a package")
    for extra in extras:
        if extra == "all":
            continue
        versions = {name: _version(name) for name in _brought_by("voxtier", extra)}
        missing = [name for name, version in versions.items() if version is None]
        if missing:
            text = f"without {', '.join(missing)}: pip install 'voxtier[{extra}]'"
            yield Finding(extra, "note", text)
        else:
            yield Finding(extra, "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def _brought_by(package: str, extra: str) -> Iterator[str]:
    """Yield the packages that an extra brings here, with those of the extras that it names itself."""
    for line in _requirements(package):
        of_extra, of_platform, named = _EXTRA.search(line), _PLATFORM.search(line), _NAME.match(line)
        is_wanted = of_extra is not None and of_extra[1] == extra
        if not is_wanted or named is None or (of_platform is not None and of_platform[1] != sys.platform):
            continue
        if named[1] != package:
            yield named[1]
        for inner in filter(None, (named[2] or "").split(",")):
            yield from _brought_by(named[1], inner.strip())


def _requirements(package: str) -> list[str]:
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = f": raise it (ulimit -n {min(hard, 65536)})" if soft < _FEW_FILES else ""
    return Finding("limits", "note" if advice else "ok", f"{soft} open files, at most {hard}{advice}")


def _own_server() -> Iterator[Finding]:
    from voxtier.postgres.embedded import embedded_server
    from voxtier.postgres.embedded.programs import find_account, find_programs, major_of

    try:
        folder = embedded_server().folder
        existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        free = shutil.disk_usage(existing).free
        verdict = "note" if free < _LOW_DISK else "ok"
        yield Finding("disk", verdict, f"{format_bytes(free)} free for {folder}")
        programs = find_programs(major_of(folder / "data"))
        way = find_account(programs, existing).prefix[:1]
        account = {(): "as you", ("unshare",): "in a user namespace", ("setpriv",): "as another account"}[way]
        yield Finding("postgresql", "ok", f"{programs.version} in {programs.folder}, runs {account}")
        server = embedded_server().status()
        state = f"running, process {server.pid}" if server.running else "not running, started when needed"
        yield Finding("server", "ok", f"{state}, {format_bytes(server.bytes_on_disk)} in {folder}")
    except (BackendError, ConfigError, MissingExtraError) as error:
        yield Finding("postgresql", "down", str(error))


def _database(dsn: str | None) -> Iterator[Finding]:
    try:
        import voxtier.frames.store.store  # noqa: F401 - open_store needs it
    except MissingExtraError as error:
        yield Finding("database", "down", str(error))
        return
    started = time.perf_counter()
    try:
        with open_store(dsn) as store:
            # By itself: its time is that of the connection, and every role may ask.
            [version] = _query(store.database, "SELECT current_setting('server_version')")
            opened = time.perf_counter() - started
            text = f"{store.database.describe()}: PostgreSQL {version}, opened in {opened * 1e3:.0f} ms"
            yield Finding("database", "ok", text)
            round_trip = min(_seconds(lambda: _query(store.database, "SELECT 1")) for _ in range(20))
            verdict = "note" if round_trip > 0.01 else "ok"
            yield Finding("round trip", verdict, f"{round_trip * 1e6:.0f} µs for a statement and its answer")
            schema, may_write, is_standby, is_read_only = _query(store.database, _STATE)
            rights = f"this role {'may write' if may_write else 'may only read'}"
            if is_standby:
                rights = "this server is a standby: it only reads"
            elif is_read_only:
                rights = "sessions are read-only (default_transaction_read_only)"
            yield Finding("schema", "ok", f"version {schema}, {rights}")
            for name, files, errors, frames in store.database.run(_count):
                held = f"{format_count(files, 'file')}, {errors:,} of them refused"
                text = f"{name}: {held}, {format_count(frames, 'frame')}"
                yield Finding("index", "ok", text)
            yield from _search_index(store)
    except BackendError as error:
        yield Finding("database", "down", str(error))
    except ConfigError as error:
        yield Finding("database", "wrong", str(error))


def _search_index(store: FrameStore) -> Iterator[Finding]:
    from voxtier.frames.store.search_index import Making, SearchIndex

    index = SearchIndex(store)
    made = index.making()
    is_current = made is Making.CURRENT
    for each in [] if made in (Making.NONE, Making.DETACHED) else index.sources():
        state = "complete" if each.is_complete else "incomplete, headers are read: run `voxtier index`"
        if each.unread:
            state += f"; {format_count(each.unread, 'file')} could not be read, `voxtier index` tries again"
        if not is_current:
            state = f"of another version of voxtier, headers are read: {made.remedy}"
        is_well = each.is_complete and not each.unread and is_current
        text = f"{each.source}: {each.instances:,} instances of {each.studies:,} studies, {state}"
        yield Finding("search", "ok" if is_well else "note", text)
    if made is Making.DETACHED:
        text = f"{DETACHED}, headers are read: run `voxtier index --search` for each source"
        yield Finding("search", "note", text)
    if size := index.bytes_on_disk():
        rights = "" if made is not Making.NONE else ", which this role may not read"
        text = f"schema voxtier_search{rights}: {format_bytes(size)}, names patients"
        yield Finding("search", "note", f"{text}; `voxtier frames forget --search` removes it")
    else:
        text = "no search index: searches read headers of files; `voxtier index --search` makes one"
        yield Finding("search", "ok", text)


def _gateways() -> Iterator[Finding]:
    from voxtier.frames.serving.status_files import own_folder, read_statuses

    folder = own_folder()
    if folder is None:
        yield Finding("gateway", "note", "no home folder, no status of gateways: see VOXTIER_HOME")
        return
    running = [each for each in read_statuses(folder) if "gateway" in each.content["stats"]]
    if not running:
        yield Finding("gateway", "ok", f"none runs that has its status in {folder}")
    for each in running:
        stats = each.content["stats"]
        url = stats["gateway"]["url"]
        state = _ask(f"{url}/ready")
        refused = sum(route["refused"] for route in stats["gateway"]["routes"].values())
        used, budget = (format_bytes(stats["cache"][name], binary=True) for name in ("used", "budget"))
        text = (
            f"{on_one_line(url)} serves {on_one_line(each.content['source'])}, process {each.pid}, {state}: "
            f"{stats['requests']:,} requests, {refused:,} refused, {used} of {budget} for tables"
        )
        verdict = {"ready": "ok", _LOADING: "note"}.get(state, "wrong")
        yield Finding("gateway", verdict, text)


def _ask(url: str) -> str:
    """Return what a gateway says of itself."""
    from urllib.error import HTTPError, URLError
    from urllib.request import ProxyHandler, build_opener

    try:
        with build_opener(ProxyHandler({})).open(url, timeout=2):
            return "ready"
    except HTTPError:
        return _LOADING
    except (URLError, OSError, ValueError) as error:
        return f"does not answer ({getattr(error, 'reason', error)})"


def _count(connection: Connection) -> list[tuple[str, int, int, int]]:
    return connection.execute(_COUNTS.encode()).fetchall()


def _query(database: Database, statement: str) -> tuple[Any, ...]:
    """Return the one row of a statement."""
    rows: list[tuple[Any, ...]] = database.run(lambda each: each.execute(statement.encode()).fetchall())
    return rows[0]


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
