"""Pruning the rows of deleted files, and of no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from frames.store.rows.index_rows import NOW, ct, result
from voxtier import _core
from voxtier.errors import ConfigError
from voxtier.frames import read_tables
from voxtier.frames.store.store import FrameStore


@pytest.fixture
def files(store: FrameStore, tmp_path: Path) -> list[str]:
    paths = [tmp_path / folder / f"{n}.dcm" for folder in ("a", "ab", "b") for n in range(3)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(ct())
    names = list(map(str, paths))
    store.upsert("s", read_tables(names))
    return names


def test_rows_of_deleted_files_are_dropped(store: FrameStore, files: list[str]) -> None:
    store.touch([_core.file_key("s", files[0])], [1], [NOW])
    for path in files[:2]:
        os.unlink(path)
    assert sorted(store.missing_files("s")) == files[:2]
    assert store.prune("s") == 2
    assert store.get("s", files[0]) is None
    assert store.get("s", files[2]) is not None
    assert store.prune("s") == 0


def test_only_files_below_the_folder_are_dropped(store: FrameStore, files: list[str], tmp_path: Path) -> None:
    for path in files[0:1] + files[3:4]:
        os.unlink(path)
    assert store.prune("s", under=[f"{tmp_path}/a/"]) == 1  # not ab
    assert store.get("s", files[3]) is not None
    assert store.prune("s", under=[str(tmp_path / "ab"), "/elsewhere"]) == 1


def test_all_files_missing_needs_force(store: FrameStore, files: list[str]) -> None:
    for path in files:
        os.unlink(path)
    with pytest.raises(ConfigError, match="mounted"):
        store.prune("s")
    assert store.get("s", files[0]) is not None
    assert store.prune("s", force=True) == len(files)


def test_a_path_that_lstat_refuses_is_kept(store: FrameStore, tmp_path: Path) -> None:
    store.upsert("s", [result(f"{tmp_path}/{'x' * 300}/a"), result(f"{tmp_path}/gone")])
    assert list(store.missing_files("s")) == [f"{tmp_path}/gone"]  # ENAMETOOLONG says nothing


def test_paths_of_an_object_store_are_dropped_by_the_callers_test(store: FrameStore) -> None:
    store.upsert("s", [result("s3://b/1"), result("s3://b/2")])
    assert store.prune("s", is_gone=lambda path: path.endswith("1")) == 1
    assert store.get("s", "s3://b/2") is not None


def test_rows_of_another_source_are_kept(store: FrameStore, files: list[str]) -> None:
    store.upsert("other", [result("/gone"), result("/gone2")])
    os.unlink(files[0])
    assert store.prune("s") == 1
    assert store.get("other", "/gone") is not None
