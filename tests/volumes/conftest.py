"""Every test starts from the default configuration and an empty decoded cache."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("tiledb")

from voxtier.volumes import clear_cache, reset_config


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    reset_config()
    clear_cache()
    yield
    reset_config()
    clear_cache()
