"""An interpreter with packages of its own, driven by lines of JSON: for rivals whose pins are not ours."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any, Self

from benches.measure import ROOT


def python_of(environment: str, variable: str) -> str | None:
    """Return the interpreter that a variable names, else the one that ``make bench`` has installed."""
    installed = ROOT / ".venv" / environment / "bin" / "python"
    return os.environ.get(variable) or (str(installed) if installed.exists() else None)


class Elsewhere:
    """A process that answers each line of its input by one; it takes its own times."""

    def __init__(self, python: str | None, program: str, *arguments: str, **environment: str) -> None:
        assert python is not None
        self._process = subprocess.Popen(
            [python, "-W", "ignore", "-c", program, *arguments], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **environment},
        )  # fmt: skip

    def ask(self, **question: Any) -> Any:
        """Return the answer to one question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question, default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{type(self).__module__} ended with {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()
