"""Use a wheel with each Python that it is for: ``matrix.py WHEEL``; exit code 1 where one fails.

Where this machine has the interpreter, on the PATH or among those of pyenv, the wheel is installed with all
extras into an environment of its own and tested; for the others their packages are resolved.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[3]
CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
UV = str(Path(sys.executable).with_name("uv"))
CONSTRAINTS = ["--constraint", "constraints.txt"]
GROUPS = ["--group", "dev", "--group", "test"]
# Each room, the command line, the core's threads and forks.
TESTS = os.environ.get(
    "MATRIX_TESTS",
    "tests/frames/dicom tests/frames/store/rows tests/frames/indexing tests/frames/serving tests/cli "
    "tests/volumes/store tests/volumes/volume tests/tensors/engine tests/tensors/dataset",
).split()


def versions() -> list[str]:
    """Return the versions that the package says it is for."""
    found = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", each) for each in CLASSIFIERS]
    return [each[1] for each in found if each]


def interpreter(version: str) -> str | None:
    """Return an interpreter of this machine that runs, whatever stands for it on the PATH."""
    name = f"python{version}"
    kept = Path.home().glob(f".pyenv/versions/{version}.*/bin/{name}")
    for path in [shutil.which(name), *map(str, kept)]:
        if (
            path
            and subprocess.run([path, "-c", "import venv"], capture_output=True, check=False).returncode == 0
        ):
            return path
    return None


def test(python: str, wheel: Path, folder: Path) -> int:
    """Install the wheel and run the tests; return their exit code."""
    subprocess.run([UV, "venv", "--quiet", "--python", python, folder], check=True)
    own = str(folder / "bin" / "python")
    install = [UV, "pip", "install", "--quiet", "--python", own, *CONSTRAINTS]
    command = [*install, *GROUPS, f"voxtier[all] @ {wheel.as_uri()}"]
    if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
        return code
    options = ["-q", "-m", "not soak", "--dist", "loadscope", "--numprocesses", "auto", "--maxprocesses", "4"]
    # Each room for itself, as `make test` does: the volumes' folders lie in memory, and no frame is read at
    # once there.
    for _, room in groupby(TESTS, lambda path: path.split("/")[1]):
        if code := subprocess.run([own, "-m", "pytest", *options, *room], cwd=ROOT, check=False).returncode:
            return code
    return 0


def resolve(version: str) -> int:
    """Resolve the packages of all extras for a Python that is not here."""
    options = ["--quiet", "--all-extras", *GROUPS, *CONSTRAINTS, "--python-version", version]
    command = [UV, "pip", "compile", *options, "--output-file", os.devnull, "pyproject.toml"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def main(wheel: Path) -> int:
    """Go through the versions."""
    failed = []
    for version in versions():
        if python := interpreter(version):
            print(f"[{version}] {python}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                code = test(python, wheel, Path(folder) / "venv")
        else:
            print(f"[{version}] not on this machine: its packages are resolved", flush=True)
            code = resolve(version)
        if code:
            failed.append(version)
    print(f"failed: {', '.join(failed)}" if failed else f"works with {', '.join(versions())}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
