"""``voxtier db``: voxtier's own database server, and the rights of others on theirs."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS
from voxtier.cli.options import AS_JSON
from voxtier.system.text import format_bytes

if TYPE_CHECKING:
    from voxtier.frames.store.grants import Duty
    from voxtier.postgres.embedded import EmbeddedServer


@click.group()
def db() -> None:
    """Look after the PostgreSQL server that voxtier runs for you when no --dsn names another.

    Any command starts it when it needs it, and the last one to finish stops it: none of these is ever
    necessary. It lives in VOXTIER_HOME, by default your data folder, and listens on a private unix socket.
    """


@db.command()
def start() -> None:
    """Start the server and keep it running after the last command, until `voxtier db stop`.

    Saves each command the start, a few hundredths of a second.
    """
    server = _server()
    server.keep()
    click.echo(f"running, and kept running, in {server.folder}", err=True)


@db.command()
@click.option("--force", is_flag=True, help="Also when other processes use it: their questions fail once.")
def stop(*, force: bool) -> None:
    """Stop the server."""
    click.echo("stopped" if _server().stop(force=force) else "it was not running", err=True)


@db.command()
@AS_JSON
def status(*, as_json: bool) -> int:
    """Say whether the server runs, where, and who uses it. Exit code 0 if it runs, 1 if not."""
    server = _server()
    found = server.status()
    if as_json:
        row = {
            "running": found.running, "pid": found.pid, "postgresql": found.version, "kept": found.kept,
            "users": found.users, "folder": str(found.folder), "bytes_on_disk": found.bytes_on_disk,
            "dsn": server.conninfo() if found.running else None,
        }  # fmt: skip
        click.echo(json.dumps(row))
    elif found.running:
        users = ", ".join(map(str, found.users)) or "nobody"
        kept = "until `voxtier db stop`" if found.kept else "until its last user leaves"
        click.echo(f"running   PostgreSQL {found.version}, process {found.pid}, {kept}")
        click.echo(f"used by   {users}")
        click.echo(f"folder    {found.folder} ({format_bytes(found.bytes_on_disk)})")
        click.echo(f'look in   psql "{server.conninfo()}"')
    else:
        version = f", PostgreSQL {found.version}" if found.version else ", not yet made"
        click.echo(f"not running: the next command starts it ({found.folder}{version})")
    return 0 if found.running else EXIT_FINDINGS


@db.command()
def path() -> None:
    """Print the server's folder; delete it, while the server is stopped, to begin anew."""
    sys.stdout.buffer.write(os.fsencode(_server().folder) + b"\n")


@db.command()
@click.argument("duty", type=click.Choice(["reader", "builder"]))
@click.argument("role")
def grants(duty: Duty, role: str) -> None:
    """Print the SQL that lets ROLE read the index, or build it; pipe it into psql.

    A reader finds frames and counts accesses; a builder also writes and prunes. Whoever opens a database
    first owns the index and needs neither.
    """
    from voxtier.frames.store.grants import grants

    click.echo("\n".join(grants(role, duty)))


def _server() -> EmbeddedServer:
    from voxtier.postgres.embedded import embedded_server

    return embedded_server()
