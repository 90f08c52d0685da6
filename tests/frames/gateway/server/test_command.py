"""`voxtier serve` as a user meets it: settings, one process with its pages, `top` and `doctor`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from click.testing import CliRunner
from pydicom.data import get_testdata_file

from voxtier.cli.commands import cli
from voxtier.cli.frames.serving.serve import hot_set_name, serve
from voxtier.cli.frames.serving.settings import read_tokens
from voxtier.errors import ConfigError
from voxtier.frames.gateway.gateway import Gateway
from voxtier.frames.gateway.search.statements import is_below
from voxtier.frames.store.store import FrameStore

TOKEN = "a-token-of-the-tests-1"
ORIGIN = "https://viewer.example"


def run(*arguments: str) -> tuple[int, str]:
    """Run a command in this process; return its exit code and what it printed."""
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    return done.return_value or 0, done.output


def settings(*arguments: str) -> dict[str, Any]:
    return serve.make_context("serve", list(arguments)).params


def test_the_command_line_goes_before_the_environment_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "serve.toml"
    config.write_text(
        f"folders = [{str(tmp_path)!r}]\nport = 1\nworkers = 1\nbudget = '1MiB'\nsource = 'one'\n"
        f"cors-origin = ['{ORIGIN}', 'http://a']\ntrust_proxy = true\n"
    )
    monkeypatch.setenv("VOXTIER_SERVE_CONFIG", str(config))
    monkeypatch.setenv("VOXTIER_SERVE_WORKERS", "2")
    monkeypatch.setenv("VOXTIER_SERVE_PORT", "2")
    found = settings("--port", "3")
    assert (found["port"], found["workers"], found["budget"]) == (3, 2, 1 << 20)
    assert (found["sources"], found["folders"]) == (("one",), (str(tmp_path),))
    assert (found["cors_origins"], found["trust_proxy"]) == ((ORIGIN, "http://a"), True)
    monkeypatch.setenv("VOXTIER_SERVE_FOLDERS", f"{tmp_path}:s3://bucket/prefix:{tmp_path}")
    monkeypatch.setenv("VOXTIER_SERVE_SOURCE", "two three")
    found = settings()
    assert found["folders"] == (str(tmp_path), "s3://bucket/prefix", str(tmp_path))
    assert found["sources"] == ("two", "three")


def test_variables_of_serve_name_its_database_before_those_of_all_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("dsn = 'postgresql://file'\nprepare = 'off'\n")

    def named() -> tuple[str, str | None]:
        context = serve.make_context("serve", ["--config", str(config)])
        return context.params["dsn"], context.meta["voxtier.prepare"]

    for variable in ("VOXTIER_DSN", "VOXTIER_SERVE_DSN", "VOXTIER_PREPARE", "VOXTIER_SERVE_PREPARE"):
        monkeypatch.delenv(variable, raising=False)
    assert named() == ("postgresql://file", "off")
    monkeypatch.setenv("VOXTIER_DSN", "postgresql://all")
    monkeypatch.setenv("VOXTIER_PREPARE", "auto")
    assert named() == ("postgresql://all", None)  # the database reads it, behind what the address says
    monkeypatch.setenv("VOXTIER_SERVE_DSN", "postgresql://serve")
    monkeypatch.setenv("VOXTIER_SERVE_PREPARE", "off")
    assert named() == ("postgresql://serve", "off")
    monkeypatch.setenv("VOXTIER_SERVE_PREPARE", "bogus")
    with pytest.raises(click.BadParameter, match="bogus"):
        named()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("prot = 1", "'prot' is no option"),
        ("port = true", "port = True: must be a whole number"),
        ("port = 8042.9", "port = 8042.9: must be a whole number"),
        ("budget = 2.5", "must be a whole number"),
        ("budget = true", "must be a whole number"),
        ("budget = -1", "--budget"),
        ("all_files = 1", "must be true or false"),
        ("trust-proxy = 1", "must be true or false"),
        ("log_json = 'maybe'", "--log-json"),
        ("token_file = 5", "must be a text"),
        ("viewer = true", "must be a text"),
        ("folders = [1]", "must be a text"),
        ("cors_origin = [['a']]", "must be a text"),
        ("host = 2026-11-29", "must be a text"),
        (r'viewer = "a\u0000b"', "must hold no null character"),
        (r'folders = ["a\u0000b"]', "must hold no null character"),
        ("port = [1]", "'port' is one value"),
        ("port = 'a'", "--port"),
        ("port =", "Invalid value"),
        ("[source]\na = 1", "'source' is one value"),
        ("workers = 0", "--workers"),
        ("viewer = '/no/such/folder'", "--viewer"),
    ],
)
def test_a_bad_file_of_settings_is_refused_by_name(tmp_path: Path, text: str, fault: str) -> None:
    config = tmp_path / "serve.toml"
    config.write_text(text)
    with pytest.raises(click.UsageError) as refused:
        settings("--config", str(config))
    assert fault in refused.value.format_message() or fault in str(
        refused.value.param and refused.value.param.opts
    )


@pytest.mark.parametrize(
    "origin", ["*", "https://a/", "https://a/b", "a.example", "https://*.a", "https://a b"]
)
def test_what_no_browser_sends_as_an_origin_is_refused(store: FrameStore, origin: str) -> None:
    with pytest.raises(ConfigError, match="--cors-origin"):
        Gateway(store, cors_origins=[origin])


@pytest.mark.parametrize("host", ["gateway.example", "", "[::1]", "256.1.1.1", "fe80::1%eth0", "10.1"])
def test_what_is_no_ip_address_is_refused_by_name(dsn: str, store: FrameStore, host: str) -> None:
    with pytest.raises(ConfigError, match="is no IP address"):
        Gateway(store, host=host, is_private=True)
    with pytest.raises(ConfigError, match="--host"):
        run("serve", "--host", host, "--trust-proxy", "--port", "0", "--dsn", dsn)


def test_an_open_address_is_refused_by_the_command(dsn: str) -> None:
    with pytest.raises(ConfigError, match="--token-file"):
        run("serve", "--host", "0.0.0.0", "--port", "0", "--dsn", dsn)


T, U = TOKEN, "a-token-of-the-tests-2"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{T} research, teaching", {T: ["research", "teaching"]}),
        (f"{T}\tresearch ,\tteaching\t", {T: ["research", "teaching"]}),
        (f"  {T}   research,,teaching, ", {T: ["research", "teaching"]}),
        (f"{T} one name,research", {T: ["one name", "research"]}),
        (f"{T} research\n{U}\n{T} teaching,research", {T: ["research", "teaching"], U: []}),
        (f"{T}\n{T}", {T: []}),
        (f"# {U}\n\t#{U}\n\n{T} a # of Anna\n{U}#x\t# all", {T: ["a"], f"{U}#x": []}),
        (f"\ufeff{T} a\r\n{U} b#1\r\n", {T: ["a"], U: ["b#1"]}),
        (f"\ufeff# tokens\r\n{T}\r\n", {T: []}),
    ],
)
def test_a_token_file_is_read_as_people_write_it(
    tmp_path: Path, text: str, found: dict[str, list[str]]
) -> None:
    (tmp_path / "tokens").write_bytes(text.encode())
    assert read_tokens(str(tmp_path / "tokens")) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{T}\nshort a", "line 2: a token has 16"),
        (f"{T} ,", "line 1: there is no name between the commas"),
        (f"{U}\n{T} , # x", "line 2: there is no name"),
        (f"{T}\n\n{T} a", "line 3: the token stands in another line"),
        (f"{T} a\n{T}", "line 2: the token stands in another line"),
        ("\ufeff# nothing\r\n\r\n", "there is no token in it"),
    ],
)
def test_a_token_file_that_may_mean_more_than_its_writer_is_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "tokens").write_bytes(text.encode())
    with pytest.raises(ConfigError, match=words) as refused:
        read_tokens(str(tmp_path / "tokens"))
    assert T not in str(refused.value)


def test_folders_of_several_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="voxtier index --source a"):
        run("serve", str(tmp_path), "--source", "a", "--source", "b")


def test_a_path_below_a_root_is_told_from_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "out").symlink_to("/etc/passwd")
    root = os.path.realpath(tmp_path / "root")
    assert is_below(f"{root}/a", [root])
    assert is_below(f"{tmp_path}/link/a", [f"{tmp_path}/link", root])
    assert is_below(root, [root])
    assert is_below("s3://bucket/prefix/a", ["s3://bucket/prefix"])
    assert is_below("/anything", [])
    for outside in (f"{root}x", f"{root}/out", f"{tmp_path}/a", "s3://bucket/prefixed", "/"):
        assert not is_below(outside, [root, "s3://bucket/prefix"])


class Served:
    """A running `voxtier serve`."""

    def __init__(self, process: subprocess.Popen[str], home: Path, files: Path, said: list[str]) -> None:
        self.process, self.home, self.files, self.said = process, home, files, said
        self.lines: list[dict[str, Any]] = [json.loads(process.stdout.readline())]
        self.root = self.lines[0]["dicomweb"].removesuffix("/dicomweb")

    def get(self, path: str, token: str | None = TOKEN, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Ask for a path."""
        sent = headers | ({"Authorization": f"Bearer {token}"} if token else {})
        request = urllib.request.Request(self.root + path, headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, dict(refused.headers), refused.read()


@pytest.fixture(scope="module")
def served(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve a linked folder by a file of settings, the environment and options."""
    made = tmp_path_factory.mktemp("serve")
    (made / "images").mkdir()
    (made / "link").symlink_to(made / "images")
    for name in ("CT_small.dcm", "SC_rgb_jpeg_dcmtk.dcm"):
        (made / "images" / name).write_bytes(Path(str(get_testdata_file(name))).read_bytes())
    (made / "tokens").write_text(f"# for the tests\n\n{TOKEN}\nanother-token-of-tests other\n")
    (made / "serve.toml").write_text(f"token-file = '{made / 'tokens'}'\ncors-origin = '{ORIGIN}'\n")
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE serve_command TEMPLATE template0")
        dsn = psycopg.conninfo.make_conninfo(postgres, dbname="serve_command")
        environment = os.environ | {
            "VOXTIER_HOME": str(made / "home"),
            "VOXTIER_SERVE_CONFIG": str(made / "serve.toml"),
            "VOXTIER_SERVE_PORT": "0",
            "VOXTIER_DSN": dsn,
        }
        command = [sys.executable, "-m", "voxtier", "serve", str(made / "link"), "--log-json"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as running:
            said = []
            while not said or "indexed: 2 files, 2 new, 0 refused" not in said[-1]:
                said.append(running.stderr.readline())
                assert running.poll() is None
            yield Served(running, made / "home", made / "images", said)
            if running.poll() is None:
                running.kill()
        connection.execute("DROP DATABASE serve_command WITH (FORCE)")


def test_pages_for_people_and_machines(served: Served) -> None:
    while served.get("/ready", token=None)[0] == 503:
        time.sleep(0.01)
    for path, text in (("/health", b"ok\n"), ("/ready", b"ready\n")):
        assert served.get(path, token=None)[::2] == (200, text)
    assert served.get("/", token=None)[0] == 401
    assert served.get("/", token="another-token-of-nobody")[0] == 401
    _, headers, page = served.get("/")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert not re.search(rb"""(?:src|href)=["']?(?!data:)[a-z]*:?//""", page)
    _, headers, metrics = served.get("/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"\nvoxtier_memory_budget_bytes 268435456\n" in metrics
    assert re.search(rb'^voxtier_requests_total\{route="page"\} [1-9]', metrics, re.MULTILINE)


def test_a_page_of_the_named_origin_may_ask(served: Served) -> None:
    status, headers, _ = served.get("/dicomweb/studies", Origin=ORIGIN)
    assert (status, headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    assert served.get("/dicomweb/studies", token="another-token-of-tests")[0] == 404


def test_files_below_a_linked_folder_are_served(served: Served) -> None:
    status, _, body = served.get("/dicomweb/instances?includefield=PatientName")
    found = json.loads(body)
    assert (status, len(found)) == (200, 2)
    for each in found:
        path = each["00081190"]["Value"][0]
        assert served.get(f"{path}/frames/1")[0] == 200
        assert each["00100010"]["Value"]


def test_top_and_doctor_know_the_gateway(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXTIER_HOME", str(served.home))
    _, pages = run("frames", "top", "--count", "2", "--interval", "2.5")
    rows = [line.split() for line in pages.splitlines() if served.root in line]
    assert len(rows) == 2
    assert rows[1][:2] == [str(served.process.pid), served.root]
    assert int(rows[1][2]) > 0
    [line] = run("frames", "stats", "--json")[1].splitlines()
    stats = json.loads(line)["stats"]
    assert stats["requests"] == sum(route["requests"] for route in stats["gateway"]["routes"].values())
    assert stats["tier1"] + stats["tier2"] + stats["tier3"] >= 2
    code, report = run("doctor", "--dsn", dsn_of(served))
    [gateway] = [line for line in report.splitlines() if " gateway " in line]
    assert code == 0
    assert gateway.startswith("ok ")
    for word in (served.root, "serves default", f"process {served.process.pid}", "ready", "MiB for tables"):
        assert word in gateway
    os.kill(served.process.pid, signal.SIGSTOP)
    try:
        code, report = run("doctor", "--dsn", dsn_of(served))
    finally:
        os.kill(served.process.pid, signal.SIGCONT)
    assert code == 1
    assert re.search("^WRONG gateway .* does not answer", report, re.MULTILINE)


def dsn_of(served: Served) -> str:
    environment = Path(f"/proc/{served.process.pid}/environ").read_bytes().split(b"\0")
    return next(each for each in environment if each.startswith(b"VOXTIER_DSN=")).partition(b"=")[2].decode()


def test_doctor_tells_of_the_search_index_until_it_is_forgotten(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOXTIER_HOME", str(served.home))
    monkeypatch.setenv("VOXTIER_DSN", dsn_of(served))

    def lines() -> list[str]:
        return [line for line in run("doctor")[1].splitlines() if " search " in line]

    [absent] = lines()
    assert absent.startswith("ok ")
    assert "voxtier index --search" in absent
    assert run("index", str(served.files), "--search")[0] == 0
    [source, schema] = lines()
    assert "default: 2 instances of 2 studies, complete" in source  # each by two paths
    assert schema.startswith("note ")
    assert re.search(r"[0-9.]+ [kM]B, names patients; `voxtier frames forget --search` removes it", schema)
    assert run("frames", "forget", "--search")[0] == 0
    assert lines() == [absent]


def test_sigterm_ends_it_with_a_log_and_a_hot_set(served: Served) -> None:
    """The last test of the process."""
    served.process.send_signal(signal.SIGTERM)
    out, _ = served.process.communicate(timeout=60)
    assert served.process.returncode == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["status"] for row in rows} >= {200, 401, 404}
    assert "1.3.6.1" not in out
    assert (served.home / "hot" / "default.hot").stat().st_size > 0


def test_a_hot_set_has_a_name_of_its_own_however_long_those_of_its_sources_are() -> None:
    wards = [f"hospital-radiology-archive-{number}" for number in range(9)]
    lists = [["a"], ["a", "b"], ["a+b"], ["a/b"], wards, wards[:-1], ["\u6771" * 31], ["\u6771" * 30]]
    names = [hot_set_name(each) for each in lists]
    assert len(set(names)) == len(lists)
    assert max(map(len, names)) <= 200
    assert not any("/" in name for name in names)
    assert hot_set_name(["default"]) == "default.hot"  # as before


def test_a_port_in_use_is_named(dsn: str, tmp_path: Path) -> None:
    with FrameStore(dsn) as store, Gateway(store, port=0) as gateway:
        command = [sys.executable, "-m", "voxtier", "serve", "--port", str(gateway.port), "--dsn", dsn]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"--port {gateway.port}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_tokens_that_open_nothing_are_counted_at_the_start(served: Served) -> None:
    [warning] = [line for line in served.said if "token" in line]
    assert "1 token of it open no source that is served" in warning
    assert "another-token-of-tests" not in warning
