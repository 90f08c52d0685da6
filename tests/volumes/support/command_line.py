"""``voxtier volumes`` run in the process of the test."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest

from voxtier.cli import main


@dataclass(frozen=True)
class Done:
    """What a command printed."""

    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of ``--json``."""
        return [json.loads(line) for line in self.out.splitlines()]


def run(*arguments: object, code: int = 0) -> Done:
    """Run a command and check its exit code."""
    before = signal.getsignal(signal.SIGTERM)
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            mock.patch.object(sys, "argv", ["voxtier", "volumes", *map(str, arguments)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (ended.value.code or 0) == code, err.getvalue()
    assert "Traceback" not in err.getvalue()
    return Done(out.getvalue(), err.getvalue())
