"""``voxtier db``: voxtier's own database server, and the SQL that grants rights on any other."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS
from voxtier.cli.lazy_group import LazyGroup
from voxtier.cli.options import AS_JSON
from voxtier.system.text import format_bytes

if TYPE_CHECKING:
    from voxtier.frames.store.grants import Duty
    from voxtier.postgres.embedded import EmbeddedServer


_COMMANDS = {
    "status": ("db:status", "say whether the server runs, where, and who uses it"),
    "start": ("db:start", "start the server and keep it running"),
    "stop": ("db:stop", "stop the server"),
    "path": ("db:path", "print the server's folder"),
    "grants": ("db:grants", "print the SQL that lets a role read the index, or build it"),
}


@click.group(cls=LazyGroup, package="voxtier.cli", places=_COMMANDS)
def db() -> None:
    """Look after the PostgreSQL server that voxtier runs for you when no --dsn names another.

    \b
    voxtier db status
    voxtier db stop

    None of these commands is necessary: any command that needs the server starts it, and the last one to
    finish stops it. It lives in VOXTIER_HOME, by default your data folder, and listens on a private unix
    socket.
    """


@click.command()
@AS_JSON
def start(*, as_json: bool) -> None:
    """Start the server and keep it running until `voxtier db stop`.

    \b
    voxtier db start

    Saves each command the start, a few hundredths of a second.
    """
    server = _server()
    server.keep()
    if as_json:
        click.echo(json.dumps({"running": True, "folder": str(server.folder)}))
    click.echo(f"running in {server.folder} until `voxtier db stop`", err=True)


@click.command()
@click.option(
    "--force", is_flag=True, help="Stop it although other processes use it; their current statements fail."
)
@AS_JSON
def stop(*, force: bool, as_json: bool) -> None:
    """Stop the server.

    \b
    voxtier db stop

    A server that does not run is none to stop, and no failure.
    """
    was_running = _server().stop(force=force)
    if as_json:
        click.echo(json.dumps({"stopped": was_running}))
    click.echo("stopped" if was_running else "not running", err=True)


@click.command()
@AS_JSON
def status(*, as_json: bool) -> int:
    """Say whether the server runs, where, and who uses it.

    \b
    voxtier db status --json

    Exit code 0 if it runs, 1 if not.
    """
    server = _server()
    current = server.status()
    if as_json:
        row = {
            "running": current.running,
            "pid": current.pid,
            "postgresql": current.version,
            "kept": current.kept,
            "users": current.users,
            "folder": str(current.folder),
            "bytes_on_disk": current.bytes_on_disk,
            "dsn": server.conninfo() if current.running else None,
        }
        click.echo(json.dumps(row))
    elif current.running:
        users = ", ".join(map(str, current.users)) or "nobody"
        kept = "until `voxtier db stop`" if current.kept else "until its last user leaves"
        click.echo(f"running   PostgreSQL {current.version}, process {current.pid}, {kept}")
        click.echo(f"used by   {users}")
        click.echo(f"folder    {current.folder} ({format_bytes(current.bytes_on_disk)})")
        click.echo(f'connect   psql "{server.conninfo()}"')
    else:
        version = f", PostgreSQL {current.version}" if current.version else ", not yet made"
        click.echo(f"not running: the next command starts it ({current.folder}{version})")
    return 0 if current.running else EXIT_FINDINGS


@click.command()
def path() -> None:
    """Print the server's folder; delete it, while the server is stopped, to begin anew.

    \b
    voxtier db stop && rm -r "$(voxtier db path)"
    voxtier db path
    """
    sys.stdout.buffer.write(os.fsencode(_server().folder) + b"\n")


@click.command()
@click.argument("duty", type=click.Choice(["reader", "builder"]))
@click.argument("role")
@click.option("--search", is_flag=True, help="Also what searching, or filling, the search index takes.")
def grants(duty: Duty, role: str, search: bool) -> None:
    """Print the SQL that lets ROLE read the index, or build it.

    \b
    voxtier db grants reader viewer | psql mydatabase
    voxtier db grants builder nightly --search | psql mydatabase

    A reader finds frames and counts accesses; a builder also writes and prunes. Whoever opens a database
    first owns the index and needs neither. The search index (`voxtier index --search`) holds names and dates
    of patients, and is for nobody but its owner without --search.
    """
    from voxtier.frames.store.grants import grants, search_grants

    statements = grants(role, duty)
    if search:
        statements += search_grants(role, may_fill=duty == "builder")
    click.echo("\n".join(statements))


def _server() -> EmbeddedServer:
    from voxtier.postgres.embedded import embedded_server

    return embedded_server()
