"""A folder shows at most ten names: whoever opens it sees at a glance where to go on."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tree.graph import ROOT

MOST_NAMES = 10
# Not counted: what says nothing of a folder's subject.
UNCOUNTED = {"__init__.py", "conftest.py", "mod.rs", "py.typed", "README.md"}
# The module names of the origin, on purpose; and folders of data, one file a case.
EXEMPT = ("python/voxtier/volumes/compat", "tests/fixtures", "tests/tensors/fixtures")
SUFFIXES = {".py", ".pyi", ".rs", ".js", ".md", ".toml"}


@pytest.mark.parametrize("top", ["rust/src", "python/voxtier", "tests", "benches"])
def test_a_folder_shows_at_most_ten_names(top: str) -> None:
    names: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / top).rglob("*"):
        if path.suffix in SUFFIXES and path.name not in UNCOUNTED and "__pycache__" not in path.parts:
            for inner in [path, *path.parents]:
                if inner == ROOT / top:
                    break
                names[str(inner.parent.relative_to(ROOT))].add(inner.name)
    assert len(names) > 3
    crowded = {
        folder: sorted(inside)
        for folder, inside in names.items()
        if len(inside) > MOST_NAMES and not folder.startswith(EXEMPT)
    }
    assert not crowded
