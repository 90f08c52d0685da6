"""Print the requirements of the named extras of pyproject.toml (self-references resolved), one a line.

The Makefile installs them without voxtier itself, so that a change of the Rust core rebuilds nothing else.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]


def requirements(extra: str) -> set[str]:
    """Return the requirements of one extra."""
    found = set()
    for line in extras[extra]:
        inner = re.fullmatch(r"voxtier\[([\w,]+)\]", line)
        found |= set().union(*(requirements(name) for name in inner[1].split(","))) if inner else {line}
    return found


print("\n".join(sorted(set(project["dependencies"]).union(*map(requirements, sys.argv[1:])))))
