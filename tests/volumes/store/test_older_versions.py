"""Stores that every released version wrote, read by today's code."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.stored_volumes import read_volumes, write_volumes
from fixtures.versions import VERSIONS, as_json, thaw


@pytest.mark.parametrize("direct", ["0", "1"], ids=["tiledb", "direct"])
@pytest.mark.parametrize("version", VERSIONS)
def test_stores_of_an_older_version_give_their_voxels_and_tables(
    version: str, direct: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOXTIER_DIRECT", direct)
    folder, wanted = thaw(version, "volumes", tmp_path)
    assert as_json(read_volumes(folder)) == wanted


def test_todays_stores_hold_what_the_newest_fixtures_hold(tmp_path: Path) -> None:
    """Else `fixtures/make.py` no longer writes what it is meant to."""
    new = tmp_path / "new"
    new.mkdir()
    write_volumes(new)
    assert as_json(read_volumes(new)) == thaw(VERSIONS[-1], "volumes", tmp_path)[1]
