"""Exit codes of every command, and how a command ends when the reader of its output has left."""

from __future__ import annotations

import errno
import os

EXIT_OK = 0
EXIT_FINDINGS = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3
EXIT_BACKEND = 4


def discard_stdout() -> None:
    """Send what is still buffered for stdout to nowhere: the reader of the pipe has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def is_absent(error: BaseException) -> bool:
    """Return whether an error says that a path is not there, which ends every command with `EXIT_USAGE`."""
    return getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR)
