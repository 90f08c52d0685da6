"""Records and index databases that every released version wrote, read by today's code."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.stored_frames import read_index, read_records, restore_index, write_index, write_records
from fixtures.versions import VERSIONS, as_json, thaw


@pytest.mark.parametrize("version", VERSIONS)
def test_records_of_an_older_version_give_its_tables(version: str, tmp_path: Path) -> None:
    folder, wanted = thaw(version, "records", tmp_path)
    assert len(wanted) > 30
    assert as_json(read_records(folder)) == wanted


@pytest.mark.parametrize("version", VERSIONS)
def test_an_index_of_an_older_version_is_migrated_and_gives_its_rows(
    version: str, tmp_path: Path, dsn: str
) -> None:
    folder, wanted = thaw(version, "index", tmp_path)
    restore_index(folder, dsn)
    assert as_json(read_index(dsn)) == wanted


def test_todays_records_and_index_hold_what_the_newest_fixtures_hold(tmp_path: Path, dsn: str) -> None:
    """Else `fixtures/make.py` no longer writes what it is meant to."""
    new = tmp_path / "new"
    new.mkdir()
    write_records(new)
    assert as_json(read_records(new)) == thaw(VERSIONS[-1], "records", tmp_path)[1]
    write_index(new, dsn)
    assert as_json(read_index(dsn)) == thaw(VERSIONS[-1], "index", tmp_path)[1]
