"""The standard streams of a command: a reader that leaves, or was never there, stops no work.

`main` calls `outlive_readers` first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import IO, Any


def outlive_readers(goes_on: Callable[[], bool]) -> None:
    """Let stdout and stderr of this process swallow what nobody can read.

    A closed descriptor becomes the null device: no file that is opened later is taken for the stream. A
    broken pipe behind stdout is forgotten where `goes_on` says so. A stderr that fails in any way is
    forgotten: the exit code tells what its messages would have told. Another failure of stdout, such as a
    full disk, is an error, because results are lost.

    Parameters
    ----------
    goes_on : callable
        Whether the running command does its work to the end when nobody reads its output.
    """
    _open_closed()

    def is_left(error: OSError) -> bool:
        return isinstance(error, BrokenPipeError) and goes_on()

    sys.stdout = _replace(sys.stdout, is_left)
    sys.stderr = _replace(sys.stderr, lambda _: True)


def _open_closed() -> None:
    """Put the null device in the place of what the parent has closed; a closed stdin is an error to name."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


class _Output(FileIO):
    def __init__(self, number: int, is_forgotten: Callable[[OSError], bool]) -> None:
        super().__init__(number, "w", closefd=False)
        self._is_forgotten = is_forgotten

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if not self._is_forgotten(error):
                raise
            return memoryview(content).nbytes


def _replace(stream: IO[str], is_forgotten: Callable[[OSError], bool]) -> IO[str]:
    """Return a stream that writes to the same descriptor; one that is no file's is returned as it is."""
    if not isinstance(stream, TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")  # a path need not be text, nor a terminal show all of it
    buffer = stream.buffer
    if type(getattr(buffer, "raw", buffer)) is not FileIO:
        return stream
    output = _Output(stream.fileno(), is_forgotten)
    return TextIOWrapper(
        output if isinstance(buffer, FileIO) else BufferedWriter(output),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
