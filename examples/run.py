"""Run the notebooks: ``run.py [NAME...]``, each in an empty folder; exit code 1 when one fails.

A cell that ends in an expression shows it, as a notebook would: `_repr_html_` is called.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOTEBOOKS = Path(__file__).parent.resolve() / "notebooks"


def run(notebook: Path) -> None:
    """Run the cells of one notebook in this process, in the current folder."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for cell in notebook.read_text().split("\n# %%\n")[1:]:
        body = ast.parse(cell, str(notebook)).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), str(notebook), "exec"), namespace)
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), str(notebook), "eval"), namespace)
            if hasattr(shown, "_repr_html_"):
                sys.stdout.write(f"{shown._repr_html_()[:200]}...\n")


def main(names: list[str]) -> int:
    """Run the named notebooks, or all, each in a process of its own."""
    failed = 0
    for notebook in sorted(NOTEBOOKS.glob("*.py")):
        if names and notebook.stem not in names:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "VOXTIER_HOME": f"{folder}/home"}
            command = [sys.executable, str(Path(__file__).resolve()), "--cells", str(notebook)]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        failed += done.returncode != 0
        result = "ok" if done.returncode == 0 else f"FAILED\n{done.stdout}{done.stderr}"
        sys.stdout.write(f"{notebook.stem:10} {time.monotonic() - started:5.1f} s  {result}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cells"]:
        run(Path(sys.argv[2]))
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
