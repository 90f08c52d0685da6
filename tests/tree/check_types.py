"""Check types with one run of mypy: the package, and the blocks of Python of the pages.

`make lint` runs it. Annotations that refuse what a page writes are wrong, whatever the block does when it
runs (`test_blocks.py`). The blocks of a page are one module, whose lines have the numbers of the page.

Usage: python tests/tree/check_types.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "DEVELOP.md", *sorted((ROOT / "docs").rglob("*.md"))]


def module_of(page: Path) -> str:
    """Return the Python of a page: its blocks where they stand, and empty lines for all else."""
    lines: list[str] = []
    is_python = False
    for line in page.read_text().splitlines():
        is_python = line == "```python" or (is_python and line != "```")
        lines.append(line if is_python and line != "```python" else "")
    return "\n".join(lines)


def main() -> int:
    """Run mypy; its messages name the pages."""
    with tempfile.TemporaryDirectory() as folder:
        places: dict[str, str] = {}
        for page in PAGES:
            text, name = module_of(page), page.relative_to(ROOT).as_posix()
            if text.strip():
                file = Path(folder, "page_" + re.sub(r"\W", "_", name) + ".py")
                file.write_text(text)
                places[str(file)] = name
        assert "README.md" in places.values()
        command = [sys.executable, "-m", "mypy", "python/voxtier", *places]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = done.stdout + done.stderr
    for place, name in places.items():
        said = said.replace(place, name)
    print(said, end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
