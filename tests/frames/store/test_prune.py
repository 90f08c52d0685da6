"""Pruning the rows of deleted files, and of no others."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
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


@pytest.mark.parametrize("as_given", [str, Path])
def test_one_folder_counts_as_one(
    store: FrameStore, files: list[str], tmp_path: Path, as_given: type
) -> None:
    """Not as its letters, of which ``/`` holds the rows of all folders."""
    for path in (files[0], files[6]):
        os.unlink(path)
    assert list(store.missing_files("s", under=as_given(tmp_path / "a"))) == files[:1]
    assert store.prune("s", under=as_given(tmp_path / "a")) == 1
    assert store.get("s", files[6]) is not None


def test_one_path_counts_as_one_and_an_iterator_as_its_paths(store: FrameStore, files: list[str]) -> None:
    first, second = files[:2]
    assert store.get_many("s", first) == [store.get("s", first)] != [None]
    assert store.get_many("s", iter([first, second])) == store.get_many("s", [first, second])
    assert store.file_states("s", first) == store.file_states("s", [first]) != [None]
    assert store.file_states("s", iter([first])) == store.file_states("s", [first])
    assert store.delete("s", first) == 1
    assert store.delete("s", iter([first, second])) == 1


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


@pytest.mark.parametrize("force", [False, True])
def test_a_row_that_another_run_writes_meanwhile_is_kept(
    store: FrameStore, files: list[str], *, force: bool
) -> None:
    """The file is back after it was found gone: in another state, or, for an index run with force, in any."""

    def is_gone(path: str) -> bool:
        if path == files[1]:
            if not force:
                Path(path).write_bytes(ct() + bytes(8))
            store.upsert("s", read_tables([path]), force=force)
        return path in files[:3]

    assert store.prune("s", is_gone=is_gone) == 2
    assert [path for path in files if store.get("s", path) is None] == [files[0], files[2]]
    assert store.delete("s", files[1:3]) == 1  # what is named is deleted, whoever wrote it


def test_a_row_that_another_run_is_writing_is_kept(store: FrameStore, files: list[str], dsn: str) -> None:
    """The deletion waits for the other transaction, and looks at what it wrote."""
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with psycopg.connect(dsn) as other, ThreadPoolExecutor(1) as pool:

        def is_gone(path: str) -> bool:
            if path == files[1]:
                other.execute("UPDATE voxtier.file SET size = size + 1 WHERE path = %s", (path,))
            return path in files[:2]

        pruned = pool.submit(lambda: store.prune("s", is_gone=is_gone))
        while store.query(waits, ()) == [(0,)]:
            assert not pruned.done()
        other.commit()
        assert pruned.result() == 1
    assert store.get("s", files[0]) is None
    assert store.get("s", files[1]) is not None
