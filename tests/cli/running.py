"""Running the command line in tests: what a command left behind, and processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.builders import dicom, element, image, pattern

OK, FINDINGS, USAGE, PARTIAL, DOWN = range(5)
# Interactive shells and test runners differ in what a child does on Ctrl-C.
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from voxtier.cli import main; main()"
)
Cli = Callable[..., "Done"]


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    stdout: bytes
    err: str

    @property
    def out(self) -> str:
        return self.stdout.decode()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def start(*arguments: object, first: str = "", **options: Any) -> subprocess.Popen[bytes]:
    """Run the command line in a process of its own, after what it shall do first."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE}
    program = f"{first}\n{PROGRAM}"
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], **(pipes | options))


def finish(process: subprocess.Popen[bytes], stdin: bytes = b"") -> Done:
    out, err = process.communicate(stdin, timeout=120)
    err = err or b""  # not ours when it went elsewhere
    assert b"Traceback" not in err, err
    return Done(process.returncode, out, err.decode())


def native(frames: int = 1, **attributes: Any) -> bytes:
    """A native image of 4 x 4 pixels of 8 bits a frame."""
    return dicom([*image(frames=frames, **attributes), element("PixelData", pattern(16 * frames))]).content


def linked(folder: Path, count: int) -> bytes:
    """Many small files, as a list for stdin."""
    folder.mkdir()
    (folder / "first").write_bytes(native())
    paths = [folder / f"{number:05}.dcm" for number in range(count)]
    for path in paths:
        os.link(folder / "first", path)
    return b"".join(bytes(path) + b"\n" for path in paths)
