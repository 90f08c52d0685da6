"""How far a test goes: a part in `make test`, all of it in `make soak`, which sets VOXTIER_THOROUGH."""

from __future__ import annotations

import os

THOROUGH = bool(os.environ.get("VOXTIER_THOROUGH"))


def depth(part: int, whole: int) -> int:
    """Return how many of a test's cases to run; the test is marked `deep`, so that the soak runs it too."""
    return whole if THOROUGH else part
