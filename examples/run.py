"""Run the notebooks: ``run.py [NAME...]``, each in an empty folder; exit code 1 when one fails.

Each leaves a page in ``build/notebooks``: its cells, what they printed and showed, and the pictures that they
wrote. A cell that ends in an expression shows it, as a notebook would: `_repr_html_` is called.
"""

from __future__ import annotations

import ast
import contextlib
import html
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

NOTEBOOKS = Path(__file__).parent.resolve() / "notebooks"
PAGES = NOTEBOOKS.parents[1] / "build" / "notebooks"
CELL = re.compile(r"^# %%( \[markdown\])?\n", re.M)


def run(notebook: Path, page: Path) -> None:
    """Run the cells of one notebook in this process, in the current folder, and write its page."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    head = f'<!doctype html><meta charset="utf-8"><title>{notebook.stem}</title>'
    style = "body{max-width:60em;margin:auto;font-family:sans-serif}img{min-width:20em}"
    parts = [head, f"<style>{style}</style>"]
    _, *pieces = CELL.split(notebook.read_text())
    for kind, cell in zip(pieces[::2], pieces[1::2], strict=True):
        if kind:
            parts += prose(cell)
            continue
        parts.append(f"<pre style='background:#eee'>{html.escape(cell.strip())}</pre>")
        before, printed = pictures(), io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                shown = execute(cell, str(notebook), namespace)
        finally:
            sys.stdout.write(printed.getvalue())
        parts.append(f"<pre>{html.escape(printed.getvalue())}</pre>")
        if hasattr(shown, "_repr_html_"):
            parts.append(shown._repr_html_())
        elif shown is not None:
            parts.append(f"<pre>{html.escape(repr(shown))}</pre>")
        for path in pictures().items() - before.items():
            content = b64encode(Path(path[0]).read_bytes()).decode()
            parts.append(f'<img alt="{path[0]}" src="data:image/png;base64,{content}">')
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts))


def prose(cell: str) -> Iterator[str]:
    """Yield the paragraphs of a cell of text."""
    for paragraph in re.sub(r"(?m)^# ?", "", cell).strip().split("\n\n"):
        title = paragraph.removeprefix("# ")
        name = "p" if title == paragraph else "h1"
        yield f"<{name}>{html.escape(title)}</{name}>"


def execute(cell: str, name: str, namespace: dict[str, object]) -> object:
    """Run a cell; return the value of the expression that it ends in, or None."""
    body = ast.parse(cell, name).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), name, "exec"), namespace)
    return eval(compile(ast.Expression(last.value), name, "eval"), namespace) if last is not None else None


def pictures() -> dict[str, int]:
    """Return the pictures of the current folder, and when each was written."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(Path().glob("*.png"))}


def main(names: list[str]) -> int:
    """Run the named notebooks, or all, each in a process of its own."""
    failed = 0
    for notebook in sorted(NOTEBOOKS.glob("*.py")):
        if names and notebook.stem not in names:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "VOXTIER_HOME": f"{folder}/home"}
            page = str(PAGES / f"{notebook.stem}.html")
            command = [sys.executable, str(Path(__file__).resolve()), "--cells", str(notebook), page]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        failed += done.returncode != 0
        result = "ok" if done.returncode == 0 else f"FAILED\n{done.stdout}{done.stderr}"
        sys.stdout.write(f"{notebook.stem:10} {time.monotonic() - started:5.1f} s  {result}\n")
    sys.stdout.write(f"pages with pictures: {PAGES}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cells"]:
        run(Path(sys.argv[2]), Path(sys.argv[3]))
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
