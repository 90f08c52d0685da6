"""The files of the package and of the core, and which file names which: read from the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "voxtier"
CORE = ROOT / "rust" / "src"


class Import(NamedTuple):
    """One imported name: its full name, and whether it is imported when the file is."""

    module: str
    at_import: bool


@cache
def imports(path: Path) -> list[Import]:
    """Return every import of a Python file of the package, those inside functions too."""
    return list(_imports(path))


def _imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text())
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(node)
        for inner in ast.walk(node)
    }
    package = ["voxtier", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, id(node) not in late)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", id(node) not in late)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


@cache
def python_edges() -> dict[str, set[str]]:
    """Return for each file of the package, as ``frames/store/store.py``, the files that it imports."""
    files = {_module_name(path): path for path in PACKAGE.rglob("*.py")}
    edges = {}
    for path in files.values():
        found = {_file_of(module, files) for module, _ in imports(path)}
        edges[name_of(path)] = {name_of(file) for file in found if file is not None and file != path}
    return edges


def name_of(path: Path) -> str:
    """Return a file's place in the package."""
    return path.relative_to(PACKAGE).as_posix()


def _module_name(path: Path) -> str:
    parts = ["voxtier", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _file_of(module: str, files: Mapping[str, Path]) -> Path | None:
    while module:
        if module in files:
            return files[module]
        module = module.rpartition(".")[0]
    return None


@cache
def rust_edges() -> dict[str, set[str]]:
    """Return for each module of the core, as ``frames::row``, the modules whose items it names.

    A parent that declares ``mod child;`` and nothing else does not name it; unit tests do not count.
    """
    modules = {_rust_module(path): path for path in CORE.rglob("*.rs")}
    edges = {}
    for module, path in modules.items():
        if module and module[-1] != "tests":
            found = {_resolve(written, module, modules) for written in _paths(path, module, modules)}
            edges["::".join(module)] = {"::".join(to) for to in found if to and to != module}
    return edges


def _rust_module(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(CORE).with_suffix("").parts
    return parts[:-1] if parts[-1] in ("mod", "lib") else parts


def rust_code(path: Path) -> str:
    """Return a Rust file without comments, strings and its unit tests."""
    text = re.sub(r"//[^\n]*", "", path.read_text())
    text = re.sub(r'"(?:\\.|[^"\\])*"', '""', text)
    return text.partition("#[cfg(test)]\nmod tests {")[0]


def _paths(path: Path, module: tuple[str, ...], modules: Iterable[tuple[str, ...]]) -> list[str]:
    """Return every path of a file that may lead to another module: of `use`, or written out."""
    code = rust_code(path)
    use = re.compile(r"\buse\s+([^;]+);")
    found = [each for match in use.finditer(code) for each in _expand(re.sub(r"\s+", "", match[1]))]
    rest = use.sub("", code)
    children = {name[-1] for name in modules if name and name[:-1] == module}
    found += re.findall(r"\b(?:crate|super|self)(?:::\w+)+", rest)
    found += [m[0] for m in re.finditer(r"(?<![\w:])(\w+)(?:::\w+)+", rest) if m[1] in children]
    return found


def _expand(path: str) -> list[str]:
    """Take ``a::{b,c::{d}}`` apart: ``a::b``, ``a::c::d``."""
    head, brace, rest = path.partition("{")
    if not brace:
        return [path]
    parts, depth = [""], 0
    for character in rest[: rest.rindex("}")]:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [each for part in parts if part for each in _expand(head + part)]


def _resolve(path: str, module: tuple[str, ...], modules: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    parts = path.split("::")
    if parts[0] == "crate":
        full = parts[1:]
    elif parts[0] == "super":
        ups = next(n for n, part in enumerate([*parts, ""]) if part != "super")
        full = [*module[: len(module) - ups], *parts[ups:]]
    else:
        full = [*module, *parts[parts[0] == "self" :]]
        if tuple(full[: len(module) + 1]) not in modules:
            return ()
    return next((tuple(full[:n]) for n in range(len(full), 0, -1) if tuple(full[:n]) in modules), ())


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of files that reach one another (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(file: str) -> None:
        index[file] = low[file] = len(index)
        stack.append(file)
        for other in sorted(edges.get(file, ())):
            if other not in index:
                visit(other)
                low[file] = min(low[file], low[other])
            elif other in stack:
                low[file] = min(low[file], index[other])
        if low[file] == index[file]:
            cut = stack.index(file)
            group = stack[cut:]
            del stack[cut:]
            if len(group) > 1:
                found.append(sorted(group))

    for file in sorted(edges):
        if file not in index:
            visit(file)
    return found
