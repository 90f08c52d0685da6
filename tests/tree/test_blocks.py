"""Every block of README.md and docs/ runs, and every command line on a page is one that exists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tree.blocks import ROOT, blocks_of, commands_of, fault_of_command

PAGES = [ROOT / "README.md", ROOT / "DEVELOP.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = {page.relative_to(ROOT).as_posix(): blocks_of(page) for page in PAGES if blocks_of(page)}
# They name what version 0.1 called it.
OLD = {"docs/howto/upgrade.md", "docs/decisions/190-one-grammar.md"}


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What went wrong on each page: run by one process, over one embedded server."""
    folder = tmp_path_factory.mktemp("pages")
    environment = {name: value for name, value in os.environ.items() if name != "VOXTIER_DSN"}
    environment["VOXTIER_HOME"] = str(folder / "home")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "voxtier", "db"]
    subprocess.run([*command, "start"], env=environment, check=True, capture_output=True)
    try:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).parent / "blocks.py")],
            input=json.dumps(RUN),
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
        )
    finally:
        subprocess.run([*command, "stop", "--force"], env=environment, check=True, capture_output=True)
    sys.stderr.write(done.stderr)
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run_from_top_to_bottom(faults: dict[str, str | None], page: str) -> None:
    assert faults[page] is None, faults[page]


def test_the_pages_that_promise_to_run_have_blocks() -> None:
    assert {"README.md", "docs/start.md", "docs/howto/cohort-and-train.md", "docs/howto/back-up.md"} <= set(
        RUN
    )
    assert {language for blocks in RUN.values() for language, _ in blocks} == {"python", "sh"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_on_a_page_exists_with_its_options(page: Path) -> None:
    if page.relative_to(ROOT).as_posix() in OLD:
        return
    assert {line: why for line in commands_of(page) if (why := fault_of_command(line))} == {}


def test_commands_that_do_not_exist_are_found() -> None:
    """The rule above must be able to fail."""
    for line in (
        "voxtier table x",
        "voxtier frames tables",
        "voxtier index --threads 2",
        "voxtier volumes gone",
    ):
        assert fault_of_command(line), line
    for line in (
        "voxtier COMMAND --help",
        "voxtier frames read s.dcm 1 -o t.jpg",
        "voxtier index --shard 1/2 x",
    ):
        assert fault_of_command(line) is None, line


def test_every_page_is_in_the_site() -> None:
    """`make docs` is strict; the gate does not build the site, so this is held here."""
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = set(re.findall(r"([\w./-]+\.md)$", nav, re.MULTILINE))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    decisions = {page for page in pages if re.match(r"decisions/\d", page)}
    assert named == pages - decisions
