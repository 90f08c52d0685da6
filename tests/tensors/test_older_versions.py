"""Caches that every released version wrote, read by today's code and by stock MONAI."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.stored_tensors import NAMES, read_tensors, write_tensors
from fixtures.versions import VERSIONS, as_json, thaw
from voxtier.tensors import item_key
from voxtier.tensors.claims import Claim


@pytest.mark.parametrize("version", VERSIONS)
def test_a_cache_of_an_older_version_is_intact_and_gives_its_tensors(version: str, tmp_path: Path) -> None:
    folder, wanted = thaw(version, "tensors", tmp_path)
    assert as_json(read_tensors(folder)) == wanted
    assert len(wanted["stock"]) == len(NAMES)
    [items] = (folder / "cache").glob("[!.]*")
    assert Claim.take(items / f"{item_key('killed.nii.gz')}.pt") is not None


def test_todays_cache_holds_what_the_newest_fixture_holds(tmp_path: Path) -> None:
    """Else `fixtures/make.py` no longer writes what it is meant to."""
    new = tmp_path / "new"
    new.mkdir()
    write_tensors(new)
    today = as_json(read_tensors(new))
    for row in today["manifest"].values():
        assert row["parameters"].pop("engine")["name"] == "stock"  # of this machine, and newer than 0.1
    assert today == thaw(VERSIONS[-1], "tensors", tmp_path)[1]
