"""Who may import whom: every import of the package and the core, held against the map of the rooms."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys

import pytest

from tree.graph import CORE, PACKAGE, circles, imports, name_of, python_edges, rust_code, rust_edges

MODULES = sorted(PACKAGE.rglob("*.py"))

# Within a room imports go downwards: a file may import what stands on a line below its own, or in its own
# folder. What a line names is a folder or a file of the room.
FLOORS = {
    "frames": [
        {"databricks", "exchange", "gateway", "slides"},
        {"serving"},
        {"indexing", "memory"},
        {"store"},
        {"dicom"},
        {"sources"},
    ],
    "volumes": [
        {"compat"},
        {"training"},
        {"cohort"},
        {"volume"},
        {"reading", "store"},
        {"tiledb", "formats"},
        {"config", "geometry"},
    ],
    "tensors": [
        {"making", "keeping"},
        {"dataset", "preprocessing"},
        {"engine", "saving", "manifest"},
        {"claims", "identity", "states"},
    ],
}
# What the whole package may import: these know no room.
SHARED = {"arguments", "errors", "_core", "system", "postgres", "__init__"}
# Nobody imports these but who is named, and the lines below: they hand rooms to other people's frameworks.
LEAVES: dict[str, tuple[str, ...]] = {
    "frames/databricks": ("cli/", "frames/__init__.py"),
    "frames/exchange": ("cli/", "frames/__init__.py"),
    "frames/gateway": ("cli/", "frames/__init__.py"),
    "volumes/training": ("cli/", "volumes/__init__.py", "volumes/compat/"),
    "volumes/compat": (),
}
# Published methods that live on a lower floor than what they return; each is imported inside its function.
PUBLISHED = {("volumes/cohort/collection.py", "volumes/training/datasets/__init__.py")}

# One door per foreign system: which files or folders may import it, at any depth.
DOORS = {
    "psycopg": {"postgres/", "frames/store/"},
    "psycopg_pool": {"postgres/"},
    "pyspark": {"frames/databricks/"},
    "databricks": {"frames/databricks/"},
    "obstore": {"frames/sources/", "volumes/tiledb/locks/s3_lock.py"},
    "tiledb": {"volumes/tiledb/"},
    "torch": {
        "tensors/dataset.py",
        "tensors/engine/",
        "tensors/saving.py",
        "tensors/making/",
        "tensors/preprocessing.py",
        "tensors/identity/pipeline.py",
        "tensors/identity/sharing.py",
        "volumes/training/",
        "volumes/compat/ml/",
    },
    "monai": {
        "tensors/dataset.py",
        "tensors/engine/",
        "tensors/saving.py",
        "tensors/making/",
        "tensors/identity/pipeline.py",
        "tensors/keeping/migrate.py",
        "volumes/training/",
        "volumes/compat/ml/",
    },
    "torchio": {"volumes/training/", "volumes/compat/ml/"},
    "blosc2": {"volumes/training/nnunet/"},
    "huggingface_hub": {"tensors/making/hub.py"},
    "pyarrow": {"frames/exchange/", "frames/databricks/"},
    "click": {"cli/"},
}
# Never while voxtier or its command line is imported: seconds each.
HEAVY = ("torch", "monai", "tiledb", "pyspark", "databricks", "huggingface_hub")


def floor(name: str) -> tuple[str, int | None]:
    """Return the part of a room that a file belongs to, and its floor counted from the top."""
    room, _, rest = name.partition("/")
    part = rest.partition("/")[0].removesuffix(".py")
    return part, next((n for n, parts in enumerate(FLOORS[room]) if part in parts), None)


def test_a_foreign_system_is_imported_behind_its_door() -> None:
    for path in MODULES:
        name = name_of(path)
        for module, _ in imports(path):
            doors = DOORS.get(module.split(".")[0])
            assert doors is None or any(name.startswith(door) for door in doors), f"{name} imports {module}"


def test_a_room_knows_no_other_and_imports_go_downwards() -> None:
    for name in map(name_of, MODULES):
        knows_no_other_and_goes_downwards(name)


def knows_no_other_and_goes_downwards(name: str) -> None:
    room = name.split("/")[0].removesuffix(".py")
    for other in python_edges()[name]:
        there = other.split("/")[0].removesuffix(".py")
        if there == room and room in FLOORS:
            if name == f"{room}/__init__.py" or (name, other) in PUBLISHED:
                continue
            assert other != f"{room}/__init__.py", f"{name} imports its own room's front: name the file"
            (part, here), (target, below) = floor(name), floor(other)
            assert here is not None, f"{name} stands on no floor of FLOORS"
            assert target == part or (below is not None and here < below), f"{name} imports {other}: upwards"
        elif room in FLOORS or room in SHARED:
            assert there in SHARED, f"{name} imports {other}"


def test_nobody_imports_what_serves_other_frameworks() -> None:
    for name, others in python_edges().items():
        for leaf, users in LEAVES.items():
            inside = {other for other in others if other.startswith(f"{leaf}/")}
            if not name.startswith((f"{leaf}/", *users)):
                assert all((name, other) in PUBLISHED for other in inside), f"{name} imports {inside}"


@pytest.mark.parametrize("room", ["frames", "tensors"])
def test_a_pool_of_threads_works_in_the_context_of_who_submits(room: str) -> None:
    """A plain one would read from the store of the process within a block of ``configured(s3=...)``."""
    plain = {"ThreadPoolExecutor", "to_thread"}
    for path in sorted((PACKAGE / room).rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        names = {getattr(node, "id", None) or getattr(node, "attr", None) for node in nodes}
        assert not names & plain, f"{path}: use voxtier.system.workers.ContextThreads"


def test_errors_imports_nothing_of_voxtier() -> None:
    assert not python_edges()["errors.py"]


def test_the_command_line_imports_rooms_inside_functions() -> None:
    for path in MODULES:
        if name_of(path).startswith("cli/"):
            for module, at_import in imports(path):
                room = [*module.split("."), ""][1] if module.startswith("voxtier.") else ""
                assert not (at_import and room in FLOORS), f"{name_of(path)} imports {module} at its top"


def test_no_circle_of_python_files() -> None:
    edges = python_edges().items()
    assert circles({name: {o for o in others if (name, o) not in PUBLISHED} for name, others in edges}) == []


def test_no_circle_of_rust_files() -> None:
    assert circles(rust_edges()) == []


def test_the_graph_of_the_core_sees_what_it_must() -> None:
    """A graph without edges has no circles: hold some edges that are known."""
    edges = rust_edges()
    assert "base::error" in edges["base::source"]
    assert "dicom::part10" in edges["dicom"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


# What the rooms of the core may name of other rooms, as prefixes. A table is described in `frames`, filled
# by `dicom`, and then packed, kept and served by `frames`.
ROOMS_OF_THE_CORE = {
    "base": (),
    "dicom": ("base", "frames::attributes", "frames::notes", "frames::table"),
    "frames": ("base", "dicom"),
    "tiledb": ("base",),
    "resample": ("base",),
    "torch_file": ("base",),
    "training": ("base", "tiledb"),
    "gateway": ("base", "dicom", "frames"),
    "python": ("base", "dicom", "frames", "gateway", "resample", "tiledb", "torch_file", "training"),
}


def test_rooms_of_the_core_import_downwards() -> None:
    for module, others in rust_edges().items():
        room = module.split("::")[0]
        for other in others:
            allowed = (room, *ROOMS_OF_THE_CORE[room])
            assert any(f"{other}::".startswith(f"{each}::") for each in allowed), f"{module} names {other}"


@pytest.mark.parametrize(
    ("crate", "room"),
    [("pyo3", "python"), ("tokio", "gateway"), ("hyper", "gateway"), ("httparse", "gateway")],
)
def test_one_room_alone_imports_a_foreign_system(crate: str, room: str) -> None:
    for path in CORE.rglob("*.rs"):
        if path.relative_to(CORE).parts[0] != room:
            assert f"{crate}::" not in rust_code(path), f"{path.name} names {crate}"


@pytest.mark.parametrize("module", ["voxtier", "voxtier.cli", "voxtier.frames", "voxtier.tensors"])
def test_import_is_light(module: str) -> None:
    script = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("room", ["frames", "volumes", "tensors"])
def test_a_room_lists_what_it_imports_on_first_use(room: str) -> None:
    """As completion in a notebook asks for it."""
    module = importlib.import_module(f"voxtier.{room}")
    assert set(module.__all__) <= set(dir(module))


def test_voxtier_needs_numpy_alone() -> None:
    """Everything that ``import voxtier`` loads is the standard library, numpy, or voxtier's own."""
    script = (
        "import sys; before = set(sys.modules); import voxtier; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - sys.stdlib_module_names <= {"numpy", "voxtier"}


def test_no_destructor_is_written_in_python() -> None:
    """Python runs one at any place, and a Ctrl-C that comes meanwhile is printed and forgotten."""
    found = [
        name_of(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "__del__"
    ]
    assert found == []
