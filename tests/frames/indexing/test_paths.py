"""The walk over folders: which files it yields, in which order."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from voxtier.frames.indexing.paths import absolute, iter_files


def test_files_with_the_extension_are_found_in_order(tmp_path: Path) -> None:
    names = ["b/2.dcm", "b/10.DCM", "b/deep/er/x.dcm", "a/1.dcm", "a/readme.txt", "z.dcm", "no_extension"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()

    def found(extension: str | None = ".dcm") -> list[str]:
        root = str(tmp_path)
        return [path.removeprefix(root + "/") for path in iter_files([root], extension=extension)]

    assert found() == ["z.dcm", "a/1.dcm", "b/10.DCM", "b/2.dcm", "b/deep/er/x.dcm"]
    assert sorted(found(None)) == sorted(names)


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.dcm").touch()
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "link.dcm").symlink_to(tmp_path / "real")
    (tmp_path / "file.dcm").symlink_to(tmp_path / "real" / "x.dcm")
    (tmp_path / "loop.dcm").symlink_to(tmp_path / "loop.dcm")
    found = [Path(path).name for path in iter_files([str(tmp_path)], extension=None)]
    assert sorted(found) == ["file.dcm", "loop.dcm", "x.dcm"]
    assert list(iter_files([str(tmp_path / "link.dcm")])) == [str(tmp_path / "link.dcm" / "x.dcm")]


def test_a_named_file_needs_no_extension(tmp_path: Path) -> None:
    (tmp_path / "IM0001").touch()
    named = [str(tmp_path / "IM0001"), str(tmp_path / "missing")]
    assert list(iter_files(named)) == named


def test_a_folder_larger_than_a_part_is_found_completely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxtier.frames.indexing.paths._SORTED", 7)
    for number in range(50):
        (tmp_path / f"{number}.dcm").touch()
        (tmp_path / f"folder{number}").mkdir()
        (tmp_path / f"folder{number}" / "x.dcm").touch()
    found = list(iter_files([str(tmp_path)]))
    assert len(found) == len(set(found)) == 100


def test_a_folder_deleted_during_the_walk_is_yielded_as_a_path(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.dcm").touch()
    walk = iter_files([str(tmp_path)])
    assert next(walk) == str(tmp_path / "a" / "x.dcm")
    (tmp_path / "b" / "x.dcm").unlink()
    (tmp_path / "b").rmdir()
    assert list(walk) == [str(tmp_path / "b"), str(tmp_path / "c" / "x.dcm")]


@pytest.mark.parametrize(
    "spelling",
    ["/data//x.dcm", "//data/x.dcm", "///data/./x.dcm", "/data/a/../x.dcm", "dbfs:/data//x.dcm", "x.dcm"],
)
def test_a_local_file_has_one_path_however_it_is_named(
    spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POSIX alone would let //data be another root than /data."""
    monkeypatch.setattr("os.getcwd", lambda: "/data")
    assert absolute(spelling) == absolute(absolute(spelling)) == "/data/x.dcm"


@pytest.mark.parametrize("form", ["/a/x.dcm", "http://h/a/%7Ex%20y.dcm", "s3a://b/k"])
@pytest.mark.parametrize(
    "before", ["", "dbfs:", "file:", "file://", "dbfs:file://", "dbfs:dbfs://", "file:dbfs:"]
)
def test_the_form_of_a_path_has_itself_for_its_form(form: str, before: str) -> None:
    """Whoever asks again, as the Spark job does, means the same row."""
    path = absolute(f"{before}{form}" if form[0] == "/" else form)
    assert absolute(path) == path


def test_a_folder_that_cannot_be_read_is_told_however_old_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system refuses it to others than root: below it may be what was written since."""
    old, now = tmp_path / "old", datetime.now(UTC)
    (old / "closed").mkdir(parents=True)
    for path in (old / "closed" / "new.dcm", old / "new.dcm", old / "before.dcm"):
        path.touch()
    for path in (old, old / "closed", old / "before.dcm"):
        os.utime(path, (1.5e9, 1.5e9))
    (old / "broken.dcm").symlink_to(tmp_path / "nothing")
    scandir = os.scandir

    def refusing(folder: str | int) -> object:
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    found = [str(old / name) for name in ("broken.dcm", "new.dcm", "closed")]
    assert list(iter_files(str(old), since=now - timedelta(days=1))) == found
    assert list(iter_files(str(old / "closed"), since=now)) == [str(old / "closed")]
