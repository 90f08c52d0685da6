"""Check what `make release` has built: ``check_distribution.py DIST``; exit code 1 and a line for each fault.

Each wheel: its tags, its size, what it holds, its metadata, which C library its core needs. The wheel of
this machine is installed into a fresh virtual environment, and used there. The sdist: that it holds what a
build needs, and nothing else.
"""

from __future__ import annotations

import email
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Of a wheel, to notice a library or symbols that come along: 3.15 MB in November 2026, 2.3 MB of it the
# core, mostly our own code (some of it twice, for AVX2). What users get for it may raise this number.
MOST_BYTES = 3_500_000
USE = """
import importlib.metadata, sys, voxtier
from voxtier.frames import read_metadata, read_table
assert voxtier.__version__ == importlib.metadata.version("voxtier") == sys.argv[1]
assert read_metadata(b"\\x08\\x00\\x60\\x00CS\\x02\\x00CT")["00080060"]["Value"] == ["CT"]
try:
    read_table(b"no image")
except voxtier.FormatError as error:
    assert error.kind == "not_dicom", error
try:
    from voxtier.frames import FrameReader
except voxtier.MissingExtraError as error:
    assert error.extra == "frames"
else:
    raise AssertionError("an extra came along")
from voxtier._core import Gateway  # the server is built in
"""


# ELF: the machine at offset 18 (ELF specification, e_machine).
MACHINES = {"x86_64": 62, "aarch64": 183}
NEWEST_GLIBC = 28  # 2.28: Debian 10, RHEL 8


def faults_of_core(wheel: str, core: bytes) -> Iterator[str]:
    """Yield where the compiled core is not what the tags of its wheel say."""
    if b"\0.symtab\0" in core:
        yield "the core is not stripped"
    if "macosx" in wheel:
        return
    machine = next((number for name, number in MACHINES.items() if wheel.endswith(f"_{name}.whl")), None)
    if core[:4] != b"\x7fELF" or int.from_bytes(core[18:20], "little") != machine:
        yield "the core is for another machine"
    # The names of the versions lie among the strings of the dynamic symbols.
    versions = sorted({int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)(?:\.\d+)?(?=\0)", core)})
    if "musllinux" in wheel:
        if versions:
            yield f"the core needs glibc 2.{versions[-1]}, and there is musl"
    elif not versions or versions[-1] > NEWEST_GLIBC:
        yield f"the core needs glibc {[f'2.{each}' for each in versions[-1:]]}, allowed is 2.{NEWEST_GLIBC}"


def faults_of_wheel(path: Path) -> Iterator[str]:
    """Yield what is wrong with a wheel."""
    if not re.fullmatch(
        r"voxtier-[\w.]+-cp311-abi3-((manylinux_2_28|musllinux_1_2)_(x86_64|aarch64)|macosx_\w+)\.whl",
        path.name,
    ):
        yield f"{path.name}: its tags are not abi3 of CPython 3.11 on manylinux 2.28, musllinux 1.2 or macOS"
    with zipfile.ZipFile(path) as wheel:
        if wheel.testzip() is not None:
            yield f"{path.name}: damaged"
        sizes = {each.filename: each.file_size for each in wheel.infolist()}
        [metadata] = [name for name in sizes if name.endswith(".dist-info/METADATA")]
        fields = email.message_from_bytes(wheel.read(metadata))
        core = b"".join(wheel.read(name) for name in sizes if name.endswith(".so"))
    yield from (f"{path.name}: {fault}" for fault in faults_of_core(path.name, core))
    cores = [name for name in sizes if name.endswith(".so")]
    if cores != ["voxtier/_core.abi3.so"]:
        yield f"{path.name}: holds the cores {cores}"
    if path.stat().st_size > MOST_BYTES:
        yield f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:g}"
    for name in ("voxtier/py.typed", "voxtier/_core.pyi", metadata.replace("METADATA", "licenses/LICENSE")):
        if name not in sizes:
            yield f"{path.name}: lacks {name}"
    strange = [name for name in sizes if not re.match(r"voxtier(-[\w.]+\.dist-info|\.libs)?/", name)]
    strange += [name for name in sizes if "__pycache__" in name or name.endswith(".pyc")]
    if strange:
        yield f"{path.name}: holds {strange[:3]}"
    if fields["Version"] != PROJECT["version"] or fields["Requires-Python"] != PROJECT["requires-python"]:
        yield f"{path.name}: version {fields['Version']}, Python {fields['Requires-Python']}"
    if set(fields.get_all("Provides-Extra", [])) != set(PROJECT["optional-dependencies"]):
        yield f"{path.name}: other extras than pyproject.toml"
    if fields["Description-Content-Type"] is None or fields["License-Expression"] != PROJECT["license"]:
        yield f"{path.name}: no description or licence"


def faults_of_sdist(path: Path) -> Iterator[str]:
    """Yield what is wrong with a source distribution."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "Cargo.toml",
        "Cargo.lock",
        "pyproject.toml",
        "rust/src/lib.rs",
        "python/voxtier/py.typed",
        "LICENSE",
    ):
        if name not in names:
            yield f"{path.name}: lacks {name}"
    for name in sorted(names):
        if re.match(r"(tests|benches|docs|target|dist)/", name) or name.endswith((".so", ".pyc")):
            yield f"{path.name}: holds {name}"
            break


def faults_of_use(path: Path) -> Iterator[str]:
    """Install a wheel into a fresh virtual environment and use it there."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        for command in (
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", path],
            [python, "-c", USE, PROJECT["version"]],
            [python.with_name("voxtier"), "--help"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
            if done.returncode:
                yield f"{path.name}: {' '.join(map(str, command[1:4]))}: {done.stderr.strip()[-400:]}"
                return


def faults_of_tree() -> Iterator[str]:
    """Yield where the version is told otherwise than in pyproject.toml."""
    version = PROJECT["version"]
    crate = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    if crate != version:
        yield f"Cargo.toml says {crate}, pyproject.toml {version}"
    if f"\nversion: {version}\n" not in (ROOT / "CITATION.cff").read_text():
        yield f"CITATION.cff does not say version {version}"
    if f"\n## {version}" not in (ROOT / "CHANGELOG.md").read_text():
        yield f"CHANGELOG.md has no entry {version}"
    if not (ROOT / "tests" / "fixtures" / "by-version" / ".".join(version.split(".")[:2])).is_dir():
        yield f"no fixtures of version {version}: make fixtures"


def main() -> int:
    """Check the folder that was named."""
    built = Path(sys.argv[1]).resolve()  # what is installed runs in another folder
    wheels, sdists = sorted(built.glob("*.whl")), sorted(built.glob("*.tar.gz"))
    faults = list(faults_of_tree())
    for path in wheels:
        faults += faults_of_wheel(path)
        if f"manylinux_2_28_{platform.machine()}" in path.name:
            faults += faults_of_use(path)
    for path in sdists:
        faults += faults_of_sdist(path)
    if not wheels or len(sdists) != 1:
        faults.append(f"{built} holds {len(wheels)} wheels and {len(sdists)} source distributions")
    for line in faults:
        print(line, file=sys.stderr)
    for path in (*wheels, *sdists):
        print(f"{path.stat().st_size / 2**20:6.2f} MiB  {path.name}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
