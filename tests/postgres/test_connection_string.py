"""Connection strings: the option prepare, secrets, and which of several values of a parameter counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from voxtier.errors import ConfigError
from voxtier.postgres.connection_string import complete, parse, split_secrets
from voxtier.postgres.database import Database


@pytest.mark.parametrize(
    ("dsn", "libpq", "prepare"),
    [
        ("host=x", "host=x", None),
        ("host=x prepare=off", "host=x", "off"),
        ("prepare = 'off'  host = x", "host = x", "off"),
        ("host=x prepare=off user=y", "host=x  user=y", "off"),
        ("prepare=auto", "", "auto"),
        ("password='a prepare=off' host=x", "password='a prepare=off' host=x", None),
        (r"password='it\'s' prepare=off", r"password='it\'s'", "off"),
        ("postgresql://u:p@h/d?prepare=off", "postgresql://u:p@h/d", "off"),
        ("postgresql://h/d?prepare=off&sslmode=require", "postgresql://h/d?sslmode=require", "off"),
        ("postgres://h/d?sslmode=require&prepare=auto", "postgres://h/d?sslmode=require", "auto"),
        ("postgresql://u:prepare=off@h/d", "postgresql://u:prepare=off@h/d", None),
        ("postgresql://h/?user=prepare%3Doff", "postgresql://h/?user=prepare%3Doff", None),
        ("", "", None),
    ],
)  # fmt: skip
def test_prepare_is_taken_out_of_what_libpq_reads(dsn: str, libpq: str, prepare: str | None) -> None:
    assert parse(dsn) == (libpq, prepare)


@pytest.mark.parametrize("dsn", ["host=x prepare=no", "postgresql://h/d?prepare=", "prepare=on host=x"])
def test_other_values_of_prepare_are_refused(dsn: str) -> None:
    with pytest.raises(ConfigError, match="write prepare=auto or prepare=off"):
        parse(dsn)


@pytest.mark.parametrize(
    "dsn", ["prepare=off hunter2", "host", "prepare=off host=x =", "postgresql://[::1/x"]
)
def test_what_is_no_connection_string_is_refused_without_being_quoted(dsn: str) -> None:
    with pytest.raises(ConfigError, match="is not a connection string") as raised:
        parse(dsn)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("given", [42, b"host=a", ["host=a"], Path("a"), True])
def test_what_is_no_string_and_no_function_is_refused_where_it_is_given(given: Any) -> None:
    with pytest.raises(ConfigError, match="dsn takes a connection string, or a function that makes one"):
        Database(given)


def test_secrets_are_split_off_and_prepare_stays() -> None:
    plain, secrets = split_secrets("postgresql://u:s3cret@h/d?prepare=off")
    assert secrets == {"password": "s3cret"}
    assert parse(plain).prepare == "off"
    assert "s3cret" not in plain
    assert split_secrets("host=x password=y") == ("host=x", {"password": "y"})
    for of_the_environment in ("postgresql://", "password=y"):
        assert split_secrets(of_the_environment)[0] == "postgresql://", (
            "not empty: that is the embedded server"
        )


def test_credentials_win_over_the_string_and_the_string_over_defaults() -> None:
    found = conninfo_to_dict(complete("host=x connect_timeout=3 user=a", {"user": "b"}))
    assert (found["connect_timeout"], found["user"]) == ("3", "b")
    assert (found["keepalives_idle"], found["tcp_user_timeout"]) == ("5", "10000")
    assert found["application_name"] == "voxtier"
    assert conninfo_to_dict(complete("", {}, connect_timeout=2))["connect_timeout"] == "2"


def test_no_string_and_no_credentials_change_the_encoding() -> None:
    found = conninfo_to_dict(complete("host=x client_encoding=LATIN1", {"client_encoding": "auto"}))
    assert found["client_encoding"] == "UTF8"


def test_the_argument_wins_over_the_string_and_the_string_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Database("host=x")._prepare == "auto"
    monkeypatch.setenv("VOXTIER_PREPARE", "off")
    assert Database("host=x")._prepare == "off"
    assert Database("host=x prepare=auto")._prepare == "auto"
    assert Database("host=x prepare=off", prepare="auto")._prepare == "auto"
    monkeypatch.setenv("VOXTIER_PREPARE", "never")
    with pytest.raises(ConfigError, match="prepare='never'"):
        Database("host=x")
