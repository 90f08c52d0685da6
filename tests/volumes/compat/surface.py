"""What RadiObject's users can name, and what of it voxtier.volumes.compat lacks.

The surface of the registry's release is walked in an environment that has it (`pip install radiobject torch
monai torchio`), and frozen in origin_surface.json; that of the origin's present head was listed by
introspection on 2026-11-27. No test needs the origin.

Usage: python tests/volumes/compat/surface.py                  what is missing, and a percentage
       python tests/volumes/compat/surface.py renew PYTHON     walk the origin with another interpreter
"""

from __future__ import annotations

import enum
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FROZEN = Path(__file__).with_name("origin_surface.json")
RELEASE = "0.1.1"
ORIGIN, OURS = "radiobject", "voxtier.volumes.compat"

Surface = dict[str, dict[str, Any]]
"""Module -> name -> None for a value, a list of parameters for a function, a dict of members for a class.

The parameters of a class stand under ``()``.
"""


def is_public(name: str) -> bool:
    """Return whether users may name this: neither private, nor what pydantic calls its own."""
    return not name.startswith(("_", "model_"))


def parameters(thing: Any) -> list[str]:
    """Return the names of the parameters that a caller may give."""
    try:
        found = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        p.name for p in found if p.kind not in kinds and p.name not in ("self", "cls") and is_public(p.name)
    ]


def members(kind: type) -> dict[str, Any]:
    """Return the public members of a class that the origin defines, those of its bases among them."""
    inside = [base for base in kind.__mro__ if base.__module__.split(".")[0] == ORIGIN]
    names = {name for base in inside for name in vars(base) if is_public(name)}
    names |= {name for base in inside for name in getattr(base, "__annotations__", {}) if is_public(name)}
    found: dict[str, Any] = {"()": [] if issubclass(kind, enum.Enum) else parameters(kind)}
    for name in sorted(names - set(found["()"])):
        member = getattr(kind, name, None)
        found[name] = parameters(member) if inspect.isroutine(member) else None
    return found


def walk() -> Surface:
    """Return the surface of the origin that this interpreter has."""
    package = importlib.import_module(ORIGIN)
    names = [ORIGIN, *(m.name for m in pkgutil.walk_packages(package.__path__, f"{ORIGIN}."))]
    surface: Surface = {}
    for name in names:
        module = importlib.import_module(name)
        listed = getattr(module, "__all__", ())
        found: dict[str, Any] = {}
        for key, thing in sorted(vars(module).items()):
            is_defined = getattr(thing, "__module__", None) == name and not inspect.ismodule(thing)
            is_constant = key.isupper() and len(key) > 1 and key != "TYPE_CHECKING"
            if is_public(key) and (key in listed or is_defined or is_constant):
                found[key] = (
                    members(thing)
                    if inspect.isclass(thing)
                    else (parameters(thing) if inspect.isroutine(thing) else None)
                )
        if found:
            surface[name.removeprefix(ORIGIN)] = found
    return surface


def accepts(thing: Any, name: str) -> bool:
    """Return whether a caller may give a parameter by name."""
    try:
        found = inspect.signature(thing).parameters
    except (TypeError, ValueError):
        return False
    return name in found or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found.values())


def compare(surface: Surface) -> Iterator[tuple[str, bool]]:
    """Yield each name, member and parameter of a surface, and whether ours has it."""
    for module, names in surface.items():
        try:
            ours: Any = importlib.import_module(f"{OURS}{module}")
        except ModuleNotFoundError:
            ours = None
        for name, shape in names.items():
            written = f"{module or '.'}:{name}"
            thing = getattr(ours, name, None)
            has = ours is not None and hasattr(ours, name)
            yield written, has
            for key, inner in shape.items() if isinstance(shape, dict) else (("()", shape),):
                if key != "()":
                    slots = getattr(thing, "__dataclass_fields__", {})
                    has_member = has and (hasattr(thing, key) or key in slots)
                    yield f"{written}.{key}", has_member
                target = thing if key == "()" else getattr(thing, key, None)
                for parameter in inner or ():
                    where = written if key == "()" else f"{written}.{key}"
                    yield f"{where}({parameter})", has and accepts(target, parameter)


def merged() -> Surface:
    """Return the frozen surface: that of the release, and what the head has beside it."""
    frozen: dict[str, Surface] = json.loads(FROZEN.read_text())
    total: Surface = {}
    for surface in (frozen[RELEASE], frozen["head"]):
        for module, names in surface.items():
            here = total.setdefault(module, {})
            for name, shape in names.items():
                old = here.get(name)
                here[name] = {**old, **shape} if isinstance(old, dict) and isinstance(shape, dict) else shape
    return total


def report() -> tuple[list[str], float]:
    """Return what is missing, and the percentage of the surface that is there."""
    found = dict(compare(merged()))
    missing = sorted(name for name, is_there in found.items() if not is_there)
    return missing, 100 * (1 - len(missing) / len(found))


def renew(interpreter: str) -> None:
    """Walk the origin with another interpreter, and freeze what it has."""
    done = subprocess.run([interpreter, __file__, "walk"], check=True, capture_output=True, text=True)
    frozen = json.loads(FROZEN.read_text()) if FROZEN.exists() else {}
    FROZEN.write_text(
        json.dumps({**frozen, RELEASE: json.loads(done.stdout)}, indent=1, sort_keys=True) + "\n"
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["walk"]:
            print(json.dumps(walk()))
        case ["renew", interpreter]:
            renew(interpreter)
        case _:
            missing, percentage = report()
            print(*missing, sep="\n")
            print(f"{percentage:.1f} % of {sum(1 for _ in compare(merged()))} names, members and parameters")
