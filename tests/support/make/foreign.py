"""Try what is built for other systems: ``foreign.py DIST FOLDER``; exit code 1 where something fails.

aarch64 runs under qemu, its Python and its C library come from Debian; the tests with musl are programs of
their own, which run on any Linux of their machine; for macOS the code is compiled and linted, and nothing
runs. What cannot be had here is left out, and said. FOLDER keeps what was downloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from debian import unpack

from voxtier.postgres.embedded import EmbeddedServer

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
CARGO = [str(BIN / "cargo-zigbuild")]
ENVIRONMENT = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYO3_PYTHON": sys.executable}
RELEASE = "bookworm"
PYTHON = "3.11"  # of that release, and the oldest one that the wheel is for
# pydicom and the builder of cases as oracles of tables, frames and headers; no process is started, which an
# emulated one cannot.
TESTS = os.environ.get(
    "FOREIGN_TESTS",
    "tests/frames/dicom/reading/test_oracle_pydicom.py tests/frames/dicom/reading/test_aligned_frames.py "
    "tests/frames/dicom/metadata/test_pydicom_files.py",
).split()
# qemu takes some ten times as long: an eighth of the cases of each property.
FEWER = {"PROPTEST_CASES": "32"}


class UnavailableError(Exception):
    """Something cannot be had on this machine."""


def core(target: str, runner: list[str]) -> None:
    """Run the core's own tests."""
    need_target(target)
    variable = f"CARGO_TARGET_{target.upper().replace('-', '_')}_RUNNER"
    environment = ENVIRONMENT | ({variable: " ".join(runner), **FEWER} if runner else {})
    command = [*CARGO, "test", "--quiet", "--lib", "--tests", "--target", target, "--features", "server"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def need_target(target: str) -> None:
    """Leave out what rustup has not installed."""
    found = subprocess.run(
        ["rustup", "target", "list", "--installed"], capture_output=True, text=True, check=False
    )
    if target not in found.stdout.split():
        raise UnavailableError(f"rustup target add {target}")


def emulator(folder: Path) -> tuple[list[str], Path]:
    """Return the command that runs a program of aarch64, and the root of its system."""
    try:
        unpack(folder / "qemu", RELEASE, "qemu-user-static")
        packages = (f"python{PYTHON}", f"python{PYTHON}-minimal", "libstdc++6")
        unpack(folder / "arm64", RELEASE, *packages, architecture="arm64")
    except RuntimeError as error:
        raise UnavailableError(f"qemu or Debian's arm64 cannot be downloaded: {error}") from error
    qemu = folder / "qemu" / "usr" / "bin" / "qemu-aarch64-static"
    return [str(qemu), "-L", str(folder / "arm64")], folder / "arm64"


def core_of_aarch64(folder: Path, _: Path) -> None:
    """Run the core's tests under qemu."""
    core("aarch64-unknown-linux-gnu", emulator(folder)[0])


def core_of_musl(_: Path, __: Path) -> None:
    """Run the core's tests with musl."""
    core(f"{os.uname().machine}-unknown-linux-musl", [])


def wheel_of_aarch64(folder: Path, built: Path) -> None:
    """Install the wheel for a Python of aarch64; run tests of the tree, and the gateway over a database."""
    wheels = sorted(built.glob("voxtier-*-manylinux_2_28_aarch64.whl"))
    if not wheels:
        raise UnavailableError(f"{built} holds no wheel for it: make release")
    runner, root = emulator(folder)
    packages = folder / "packages"
    shutil.rmtree(packages, ignore_errors=True)
    wanted = [
        f"voxtier[dicom,frames] @ {wheels[0].absolute().as_uri()}",
        "hypothesis",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
    ]
    platform = [
        "--python-platform",
        "aarch64-manylinux_2_28",
        "--python-version",
        PYTHON,
        "--only-binary",
        ":all:",
    ]
    install = [BIN / "uv", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", *platform]
    subprocess.run([*install, "--target", packages, *wanted], check=True)
    environment = ENVIRONMENT | {"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    python = [*runner, str(root / "usr" / "bin" / f"python{PYTHON}")]
    with tempfile.TemporaryDirectory() as home:
        server = EmbeddedServer(Path(home))
        server.attach()
        try:
            program = Path(__file__).with_name("use_gateway.py")
            subprocess.run([*python, program, server.conninfo()], env=environment, check=True)
        finally:
            server.detach()
    command = [*python, "-m", "pytest", "-q", "-m", "not soak", "--timeout", "1200", *TESTS]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def compiled_for_macos(_: Path, __: Path) -> None:
    """Compile and lint everything for macOS."""
    need_target("aarch64-apple-darwin")
    options = ["--quiet", "--all-targets", "--target", "aarch64-apple-darwin", "--features", "python,server"]
    subprocess.run(
        [*CARGO, "clippy", *options, "--", "-D", "warnings"], cwd=ROOT, env=ENVIRONMENT, check=True
    )


STEPS: dict[str, Callable[[Path, Path], None]] = {
    "macOS: compiled, linted": compiled_for_macos,
    "musl: the core's tests": core_of_musl,
    "aarch64: the wheel": wheel_of_aarch64,
    "aarch64: the core's tests": core_of_aarch64,
}


def main(built: Path, folder: Path) -> int:
    """Go through the steps; none hides what another finds."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {}
    for name, step in STEPS.items():
        print(f"[foreign] {name}", flush=True)
        try:
            step(folder.absolute(), built)
            said[name] = "ok"
        except UnavailableError as reason:
            said[name] = f"left out: {reason}"
        except (OSError, subprocess.CalledProcessError) as error:
            said[name] = f"FAILED: {error}"
    for name, result in said.items():
        print(f"{name}: {result}")
    return 1 if any(result.startswith("FAILED") for result in said.values()) else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
