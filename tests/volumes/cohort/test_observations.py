"""The tables of a store: columns and rows change as one commit, and what volumes need stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from volumes.support.images import pairs
from voxtier.errors import ConfigError, ViewError
from voxtier.volumes import RadiObject


@pytest.fixture
def radi(tmp_path: Path) -> RadiObject:
    subjects = {"obs_subject_id": ["b", "a", "idle"], "age": [20, 10, 30]}
    return RadiObject.from_niftis(tmp_path / "r", pairs(tmp_path / "i", ["b", "a"]), obs_meta=subjects)


def test_columns_come_and_go_in_both_tables(radi: RadiObject) -> None:
    earlier = RadiObject(radi.uri)
    assert [row["age"] for row in earlier.obs_meta.read().rows()] == [10, 20, 30]
    for table, rows in ((radi.obs_meta, 3), (radi.T1w.obs, 2)):
        table.add_column("reviewed", np.bool_, fill=False)
        assert [row["reviewed"] for row in table.read().rows()] == [False] * rows
    radi = RadiObject(radi.uri)
    radi.obs_meta.drop_column("age")
    radi.T1w.obs.drop_column("reviewed")
    for found in (radi, RadiObject(radi.uri)):
        assert found.obs_meta.columns == ["reviewed"]
        assert "reviewed" not in found.T1w.obs.columns
        found.validate()
    assert [row["age"] for row in earlier.obs_meta.read().rows()] == [10, 20, 30]  # as of its commit


def test_rows_of_subjects_go_only_without_volumes(radi: RadiObject) -> None:
    with pytest.raises(ConfigError, match="volumes keep"):
        radi.obs_meta.delete("age >= 20")
    assert len(radi.obs_meta) == 3
    assert radi.obs_meta.delete("age > 20") == 1
    assert radi.obs_subject_ids == RadiObject(radi.uri).obs_subject_ids == ["a", "b"]
    assert radi.obs_meta.delete("age > 20") == 0
    radi.validate()


def test_what_a_collection_needs_and_what_views_show_stays(radi: RadiObject) -> None:
    for wrong in ("dimensions", "voxtier_array", "obs_id", "absent"):
        with pytest.raises(ConfigError):
            radi.T1w.obs.drop_column(wrong)
    for view in (radi.head(1).obs_meta, radi.head(1).T1w.obs):
        with pytest.raises(ViewError):
            view.drop_column("age")
        with pytest.raises(ViewError):
            view.add_column("n", int, fill=1)
    with pytest.raises(ViewError):
        radi.head(1).obs_meta.delete("age > 0")
    assert radi.T1w.shape == (5, 6, 7)
