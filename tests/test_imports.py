"""Who may import whom: every import of the package is read and held against the map of the rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "python" / "voxtier"
RUST = Path(__file__).parents[1] / "rust" / "src"
ROOMS = {"frames", "volumes", "tensors"}

# What runs a user's transforms and hands out tensors.
TRAINING = {
    "tensors/dataset.py",
    "tensors/identity/pipeline.py",
    "tensors/saving.py",
    "tensors/making/worker.py",
}
# One door per foreign system: which files may import it, at any depth.
DOORS = {
    "psycopg": {"postgres/database.py", "frames/store/store.py", "frames/store/uuids.py"},
    "psycopg_pool": {"postgres/database.py", "frames/store/store.py"},
    "pyspark": {"frames/databricks/spark.py", "frames/databricks/spark_task.py"},
    "databricks": {"frames/databricks/lakebase/credentials.py"},
    "tiledb": {"volumes/tiledb/session.py", "volumes/tiledb/tables.py", "volumes/tiledb/arrays.py"},
    "torch": {*TRAINING, "volumes/training/loaders.py"},
    "monai": {*TRAINING, "tensors/keeping/migrate.py", "volumes/training/loaders.py"},
    "huggingface_hub": {"tensors/making/hub.py"},
}
# Never while voxtier or its command line is imported: seconds each.
HEAVY = ("torch", "monai", "tiledb", "pyspark", "databricks", "huggingface_hub")
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every imported module of a file by its full name, and whether that happens at import."""
    tree = ast.parse(path.read_text())
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)
        for inner in ast.walk(node)
    }
    here = ["voxtier", *path.relative_to(PACKAGE).with_suffix("").parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in late
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module, id(node) not in late
            for alias in node.names:
                yield f"{module}.{alias.name}", id(node) not in late


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_doors(path: Path) -> None:
    for module, _ in imports(path):
        door = DOORS.get(module.split(".")[0])
        assert door is None or name_of(path) in door, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_do_not_know_each_other(path: Path) -> None:
    room = name_of(path).split("/")[0]
    for module, at_import in imports(path):
        parts = module.split(".")
        if parts[0] != "voxtier" or len(parts) < 2:
            continue
        if room in ROOMS:
            assert parts[1] not in (ROOMS | {"cli"}) - {room}, f"{name_of(path)} imports {module}"
        if room == "errors.py":
            raise AssertionError(f"errors imports {module}")
        if room == "cli":
            assert not (at_import and parts[1] in ROOMS), f"{name_of(path)} imports {module} at its top"


def test_only_the_bindings_import_pyo3() -> None:
    for path in RUST.rglob("*.rs"):
        if path.relative_to(RUST).parts[0] != "python":
            assert "pyo3" not in code_of(path), f"{path.name} names pyo3"


def code_of(path: Path) -> str:
    """A Rust file without its comments."""
    return "\n".join(line.split("//")[0] for line in path.read_text().splitlines())


@pytest.mark.parametrize("module", ["voxtier", "voxtier.cli", "voxtier.frames", "voxtier.tensors"])
def test_import_is_light(module: str) -> None:
    script = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_voxtier_needs_numpy_alone() -> None:
    """Everything that ``import voxtier`` loads is the standard library, numpy, or voxtier's own."""
    script = (
        "import sys; before = set(sys.modules); import voxtier; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - sys.stdlib_module_names <= {"numpy", "voxtier"}
