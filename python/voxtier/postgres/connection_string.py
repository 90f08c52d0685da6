"""Connection strings: checked, without secrets, and with voxtier's own option ``prepare``.

``prepare=off`` in a connection string keeps voxtier from preparing statements; libpq does not know the word,
so it is taken out here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from voxtier.errors import ConfigError

Prepare = Literal["auto", "off"]

# A peer that vanished is noticed within seconds instead of the two hours of TCP's own keepalive.
_DEFAULTS: Mapping[str, str | int] = {
    "application_name": "voxtier",
    "connect_timeout": 15,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}
# COPY sends UTF-8, and psycopg encodes every other text as the session says: neither the string nor the
# environment nor the role decides.
_FIXED: Mapping[str, str | int] = {"client_encoding": "UTF8"}
# As if neither string nor environment named them; of these libpq has no default that can be written.
_UNSET = {"sslcertmode": "disable", "min_protocol_version": "3.0", "max_protocol_version": "3.0"}
_IN_URI = re.compile(r"(?<=[?&])prepare=([^&#]*)(?:&|\Z)")
# One ``key = value`` of libpq's other form: the value plain or in quotes, with backslashes.
_SETTING = re.compile(r"\s*(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)*)", re.DOTALL)


class ConnectionString(NamedTuple):
    """What libpq reads, and what the string says of prepared statements; None: nothing."""

    libpq: str
    prepare: Prepare | None


def parse(dsn: str) -> ConnectionString:
    """Check a connection string and take ``prepare`` out of it.

    Raises
    ------
    ConfigError
        It is not a connection string; the message does not quote it, as it may hold a password.
    """
    if dsn.startswith(("postgresql://", "postgres://")):
        said = _IN_URI.findall(dsn)
        dsn = _IN_URI.sub("", dsn).rstrip("?&") if said else dsn
    else:
        settings = list(_SETTING.finditer(dsn))
        said = [match[2].strip("'") for match in settings if match[1] == "prepare"]
        for match in reversed(settings):
            if match[1] == "prepare":
                dsn = f"{dsn[: match.start()]} {dsn[match.end() :]}".strip()
    try:
        conninfo_to_dict(dsn)
    except ProgrammingError:
        raise ConfigError(
            "--dsn or VOXTIER_DSN is not a connection string: write postgresql://user@host:5432/database or "
            "'host=... dbname=...'"
        ) from None
    return ConnectionString(dsn, check_prepare(said[-1]) if said else None)


def check_prepare(value: str) -> Prepare:
    """Return the value of the option ``prepare``.

    Raises
    ------
    ConfigError
        It is neither ``auto`` nor ``off``.
    """
    if value not in ("auto", "off"):
        raise ConfigError(f"prepare={value[:20]!r}: write prepare=auto or prepare=off")
    return cast(Prepare, value)


def complete(dsn: str, credentials: Mapping[str, Any], **changes: str | int) -> str:
    """Return what to connect with: credentials, then what the string says, then voxtier's defaults.

    Parameters
    ----------
    dsn : str
        What libpq reads.
    credentials : mapping
        Parameters that win over those of `dsn`.
    changes : str or int
        Parameters that win over these; the client encoding, UTF8, wins over all.

    Returns
    -------
    str
        A connection string; it may hold a password.
    """
    given = {name: value for name, value in conninfo_to_dict(dsn).items() if value is not None}
    return make_conninfo("", **{**_DEFAULTS, **given, **credentials, **changes, **_FIXED})


def without_environment(dsn: str) -> str:
    """Return a connection string that says all that libpq would else take from the environment.

    libpq looks up the service of ``PGSERVICE`` whatever the string says, and refuses to connect where it is
    not defined; of one that is nothing remains.
    """
    names_service = "PGSERVICE" in os.environ
    said = {
        option.keyword.decode(): (option.compiled or b"").decode()
        for option in Conninfo.get_defaults()
        if option.envvar and (names_service or option.envvar.decode() in os.environ)
    }
    for name in ("service", *_DEFAULTS):  # what `complete` adds wins over the environment too
        said.pop(name, None)
    unset = {name: _UNSET.get(name, default) for name, default in said.items()}
    return make_conninfo("", **{**unset, **conninfo_to_dict(dsn)})


def split_secrets(dsn: str) -> tuple[str, dict[str, str]]:
    """Split a connection string into one without secrets, and the passwords that it held, by their names."""
    libpq, prepare = parse(dsn)
    parts = {name: str(value) for name, value in conninfo_to_dict(libpq).items() if value is not None}
    secrets = {str(name): parts.pop(name) for name in ("password", "sslpassword") if name in parts}
    plain = make_conninfo("", **parts)
    if prepare:
        return f"{plain} prepare={prepare}".strip(), secrets
    return plain or "postgresql://", secrets  # empty, it would name another database


def database_name(dsn: str) -> str | None:
    """Return the name of the database in a connection string, if it has one."""
    name = conninfo_to_dict(parse(dsn).libpq).get("dbname")
    return None if name is None else str(name)


def describe(dsn: str) -> str:
    """Return host, port and name of a database, without secrets."""
    parts = conninfo_to_dict(dsn)
    place = ":".join(str(parts[name]) for name in ("host", "port") if parts.get(name))
    return f"{place or 'the local socket'}, database {parts.get('dbname') or 'by default'}"
