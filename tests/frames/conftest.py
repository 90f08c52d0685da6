"""A store on an empty database, for every room of the frames."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from voxtier.frames.store.store import FrameStore


@pytest.fixture
def store(dsn: str) -> Iterator[FrameStore]:
    with FrameStore(dsn) as store:
        yield store
