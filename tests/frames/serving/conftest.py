"""Readers of these tests wait for the index as long as it takes: a busy machine is no sick database."""

from __future__ import annotations

import pytest

from voxtier.frames import FrameReader


@pytest.fixture(autouse=True)
def _patient_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = FrameReader.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "index_seconds", 60.0)
