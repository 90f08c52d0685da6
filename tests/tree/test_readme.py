"""Every block of README.md runs: Python as it stands, shell commands with the installed `voxtier`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `images/`, an embedded server of its own, and voxtier on the PATH."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("CT_small.dcm", "SC_rgb_jpeg_dcmtk.dcm", "rtplan_truncated.dcm"):
        shutil.copy(get_testdata_file(name), images)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOXTIER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VOXTIER_DSN", raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_the_readme_has_blocks_of_both_kinds() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "sh"}


@pytest.mark.parametrize(("language", "block"), BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_a_block_of_the_readme_runs(folder: Path, language: str, block: str) -> None:
    command = [sys.executable, "-W", "error", "-c", block] if language == "python" else ["bash", "-ec", block]
    # Exit code 3 is documented: the folder holds a file that must be refused.
    command = (
        command
        if language == "python"
        else [*command[:2], block.replace("index images ", "index images || [ $? = 3 ] ")]
    )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
