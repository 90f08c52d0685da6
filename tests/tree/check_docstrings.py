"""Check the docstrings of public functions with three or more arguments: `make lint` runs it.

Such a function lists all of its parameters, in the order of its signature, each with a type and a sentence
(shape and unit where it has them), what it returns or yields, and the exceptions that its body raises
(numpydoc). A class documents the parameters of its ``__init__``. Commands are left out: their docstrings
are help texts.

Usage: python tests/tree/check_docstrings.py [FILE_OR_FOLDER ...]     (default: the package but for cli/)
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "python" / "voxtier"
FEWEST = 3
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sections(docstring: str) -> dict[str, list[str]]:
    """Return the lines of each section of a numpydoc docstring by its title."""
    found: dict[str, list[str]] = {}
    lines = inspect.cleandoc(docstring).split("\n")
    title = ""
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if re.fullmatch(r"-{3,}", below) and line:
            title = line
            found[title] = []
        elif title and not re.fullmatch(r"-{3,}", line):
            found[title].append(line)
    return found


def entries(lines: list[str]) -> dict[str, tuple[str, str]]:
    """Return the type and the text of each entry of a section by its name."""
    found: dict[str, tuple[str, str]] = {}
    names: list[str] = []
    for line in lines:
        if line and not line.startswith(" "):
            name, _, kind = line.partition(" : ")
            names = [part.strip().lstrip("*") for part in name.split(",")]
            found |= dict.fromkeys(names, (kind.strip(), ""))
        elif line.strip():
            found |= {name: (found[name][0], f"{found[name][1]} {line.strip()}") for name in names}
    return found


def parameters(function: Function, *, is_method: bool) -> list[str]:
    """Return the names of a function's parameters but for ``self`` and ``cls``."""
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    static = any(ast.unparse(each) == "staticmethod" for each in function.decorator_list)
    if is_method and not static:
        names = names[1:]
    names += [arguments.vararg.arg] if arguments.vararg else []
    names += [each.arg for each in arguments.kwonlyargs]
    names += [arguments.kwarg.arg] if arguments.kwarg else []
    return [name for name in names if not name.startswith("_")]


def raised(function: Function) -> set[str]:
    """Return the names of the exceptions that a body raises itself, nested functions apart."""
    found = set()
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if (
            isinstance(node, ast.Raise)
            and isinstance(node.exc, ast.Call)
            and isinstance(node.exc.func, ast.Name)
        ):
            found.add(node.exc.func.id)
        todo += ast.iter_child_nodes(node)
    return {name for name in found if name[:1].isupper() and name != "AssertionError"}


def faults(function: Function, docstring: str, *, is_method: bool) -> Iterator[str]:
    """Yield what the docstring of a function lacks."""
    names = parameters(function, is_method=is_method)
    if len(names) < FEWEST:
        return
    found = sections(docstring)
    listed = entries(found.get("Parameters", []))
    if list(listed) != names:
        yield f"Parameters {', '.join(listed) or 'are missing'}: the signature has {', '.join(names)}"
    for name, (kind, text) in listed.items():
        if not kind or not text:
            yield f"parameter {name} lacks its {'text' if kind else 'type'}"
    returns = "" if function.returns is None else ast.unparse(function.returns)
    gives = returns not in ("", "None", "NoReturn", "Never", "Self") and function.name != "__init__"
    if gives and not found.get("Returns") and not found.get("Yields"):
        yield f"Returns (or Yields) is missing: {returns}"
    missing = raised(function) - set(entries(found.get("Raises", [])))
    if missing:
        yield f"Raises lacks {', '.join(sorted(missing))}"


def check(path: Path) -> Iterator[str]:
    """Yield the faults of a file, each with its place."""
    tree = ast.parse(path.read_text())
    for owner in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
        if isinstance(owner, ast.ClassDef) and owner.name.startswith("_"):
            continue
        for node in owner.body:
            if not isinstance(node, Function):
                continue
            skipped = {ast.unparse(each) for each in node.decorator_list} & {"overload", "override"}
            is_init = node.name == "__init__"
            if skipped or (node.name.startswith("_") and not is_init):
                continue
            holder = owner if is_init else node
            docstring = ast.get_docstring(holder) or ""  # type: ignore[arg-type]
            for fault in faults(node, docstring, is_method=isinstance(owner, ast.ClassDef)):
                name = node.name if owner is tree else f"{owner.name}.{node.name}"  # type: ignore[attr-defined]
                yield f"{path}:{node.lineno}: {name}: {fault}"


def main(places: list[str]) -> int:
    """Print every fault; the exit code says whether there is one."""
    roots = [Path(place) for place in places] or [PACKAGE]
    files = [file for root in roots for file in ([root] if root.is_file() else sorted(root.rglob("*.py*")))]
    files = [file for file in files if file.suffix in (".py", ".pyi") and "cli" not in file.parts]
    found = [fault for file in files for fault in check(file)]
    print("\n".join(found) or f"{len(files)} files: every docstring says what its function takes and gives")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
