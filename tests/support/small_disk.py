"""A limit on file sizes stands for a full disk."""

import os


def without_bytecode() -> dict[str, str]:
    """Return the environment of a process that writes no compiled files.

    Python takes no notice when one is cut off by the limit, and it would stay for later tests.
    """
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
