"""``voxtier db`` and ``voxtier doctor`` as a user meets them: output, exit codes, nothing left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.running import Done, finish, start
from voxtier.frames.store.grants import grants, search_grants
from voxtier.postgres.embedded import EmbeddedServer


def voxtier(*arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"VOXTIER_HOME": str(home)} if home else {})}
    command = [sys.executable, "-m", "voxtier", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all tests of this module, so that one initdb serves them."""
    return tmp_path_factory.mktemp("home")


def test_db_start_status_path_and_stop_of_one_server(home: Path) -> None:
    before = voxtier("db", "status", home=home)
    assert before.returncode == 1
    assert "not running" in before.stdout

    assert voxtier("db", "start", home=home).returncode == 0
    status = voxtier("db", "status", home=home)
    assert status.returncode == 0
    for word in ("running", "process", "psql", str(home)):
        assert word in status.stdout
    row = json.loads(voxtier("db", "status", "--json", home=home).stdout)
    assert row["running"]
    assert row["kept"]
    assert row["pid"] == EmbeddedServer(home).status().pid

    path = voxtier("db", "path", home=home)
    assert path.stdout.strip() == row["folder"] == str(home / "postgres")

    stopped = voxtier("db", "stop", home=home)
    assert (stopped.returncode, stopped.stderr) == (0, "stopped\n")
    again = voxtier("db", "stop", home=home)
    assert (again.returncode, again.stderr) == (0, "not running\n")
    row = json.loads(voxtier("db", "status", "--json", home=home).stdout)
    assert (row["running"], row["pid"], row["dsn"]) == (False, None, None)


def test_db_stop_refuses_while_a_process_uses_the_server(home: Path) -> None:
    server = EmbeddedServer(home)
    server.attach()
    refused = voxtier("db", "stop", home=home)
    assert refused.returncode == 2
    assert str(os.getpid()) in refused.stderr
    assert "--force" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert voxtier("db", "stop", "--force", home=home).returncode == 0
    assert not server.status().running
    server.detach()


def test_a_home_that_is_a_file_exits_4_and_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failed = voxtier("db", "start", home=tmp_path / "file")
    assert failed.returncode == 4
    assert "VOXTIER_HOME" in failed.stderr
    assert "Traceback" not in failed.stderr


HOMELESS = """
import os, pwd
def getpwuid(number): raise KeyError(number)
pwd.getpwuid = getpwuid
for name in ("HOME", "VOXTIER_HOME"): os.environ.pop(name, None)
"""


def homeless(*arguments: str) -> Done:
    """Run a command as an account that the machine does not know, as containers and jobs have it."""
    return finish(start(*arguments, first=HOMELESS))


@pytest.mark.parametrize(
    "command", ["index .", "serve --port 0", "db status", "db path", "frames stats", "frames top --count 1"]
)
def test_an_account_without_a_home_is_told_the_variable(command: str) -> None:
    failed = homeless(*command.split())
    assert failed.code == 2
    assert "VOXTIER_HOME" in failed.err


def test_doctor_of_an_account_without_a_home_exits_4() -> None:
    assert homeless("doctor").code == 4


def test_an_account_without_a_home_uses_a_server_of_elsewhere(dsn: str) -> None:
    for command in ("doctor", "frames errors", "frames priority"):
        done = homeless(*command.split(), "--dsn", dsn)
        assert done.code in (0, 1), done
    served = start("serve", "--dsn", dsn, "--port", "0", first=HOMELESS)
    assert served.stdout is not None
    assert b"DICOMweb root" in served.stdout.readline()
    served.terminate()
    assert finish(served).code == 0


def test_a_home_of_an_account_that_is_not_known_is_named() -> None:
    failed = voxtier("db", "path", home=Path("~nobody-knows/x"))
    assert failed.returncode == 2
    assert "VOXTIER_HOME=~nobody-knows/x" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_db_grants_prints_grant_lines_and_refuses_a_name_with_sql() -> None:
    printed = voxtier("db", "grants", "reader", "viewer").stdout.splitlines()
    assert printed
    assert all(line.startswith("GRANT ") and line.endswith(' TO "viewer";') for line in printed)
    assert not any("voxtier_search" in line for line in printed)  # names and dates of patients
    for duty, may_fill in (("reader", False), ("builder", True)):
        lines = voxtier("db", "grants", duty, "viewer", "--search").stdout.splitlines()
        assert lines[: -len(search_grants("viewer", may_fill=may_fill))] == grants("viewer", duty)
        assert lines[-2:] == search_grants("viewer", may_fill=may_fill)
    refused = voxtier("db", "grants", "builder", 'x"; DROP SCHEMA voxtier; --')
    assert (refused.returncode, refused.stdout) == (2, "")


def test_db_help_names_every_action() -> None:
    text = voxtier("db", "--help").stdout
    for word in ("start", "stop", "status", "path", "VOXTIER_HOME"):
        assert word in text


def test_doctor_of_a_working_machine_exits_0_and_leaves_no_server(home: Path) -> None:
    report = voxtier("doctor", home=home)
    assert report.returncode == 0, report.stdout
    for topic in ("voxtier", "frames", "limits", "disk", "postgresql", "server", "database", "schema"):
        assert f" {topic} " in report.stdout
    assert not EmbeddedServer(home).status().running


def test_doctor_json_is_one_row_a_topic(home: Path) -> None:
    rows = [json.loads(line) for line in voxtier("doctor", "--json", home=home).stdout.splitlines()]
    assert {row["verdict"] for row in rows} <= {"ok", "note"}
    assert all(row["topic"] and row["text"] for row in rows)


def test_a_damaged_folder_exits_4_with_the_reason(tmp_path: Path) -> None:
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_bytes(b"")
    for command in ("doctor", "db status", "db start", "frames summary"):
        done = voxtier(*command.split(), home=tmp_path)
        assert done.returncode == 4, command
        assert f"{data}/PG_VERSION names no version of PostgreSQL" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_doctor_of_a_named_server_does_not_look_at_the_embedded_one(dsn: str) -> None:
    report = voxtier("doctor", "--dsn", dsn)
    assert report.returncode == 0
    assert "round trip" in report.stdout
    assert "postgresql" not in report.stdout


def test_doctor_of_a_server_that_is_down_exits_4_without_the_password() -> None:
    report = voxtier("doctor", "--dsn", "postgresql://me:hunter2@127.0.0.1:1/x")
    assert report.returncode == 4
    assert "DOWN  database" in report.stdout
    assert "hunter2" not in report.stdout + report.stderr


def test_doctor_of_a_mistyped_dsn_exits_1_without_printing_it() -> None:
    report = voxtier("doctor", "--dsn", "hunter2")
    assert report.returncode == 1
    assert "WRONG database" in report.stdout
    assert "hunter2" not in report.stdout + report.stderr
