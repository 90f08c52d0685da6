"""A write that was interrupted or killed leaves nothing, or what the next takes over unless it changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from volumes.support.checks import check_identity, files_below
from volumes.support.images import code_of, pairs, series
from voxtier.errors import ConfigError
from voxtier.volumes import RadiObject, StreamingWriter, VolumeCollection
from voxtier.volumes.store import ingest
from voxtier.volumes.store.commits import Change
from voxtier.volumes.tiledb import session


def kill(monkeypatch: pytest.MonkeyPatch, write: Callable[[], Any]) -> None:
    """Leave what a write leaves that is killed before its commit."""
    with monkeypatch.context() as patch:
        patch.setattr(Change, "commit", lambda _: 1 / 0)
        patch.setattr(Change, "discard", lambda _: None)
        with pytest.raises(ZeroDivisionError):
            write()


COPIES: dict[str, Callable[[Path], Any]] = {
    "materialize": lambda folder: RadiObject(folder / "r").materialize(folder / "copy"),
    "collection": lambda folder: RadiObject(folder / "r").T1w.lazy().materialize(folder / "copy"),
    "from_collections": lambda folder: RadiObject.from_collections(
        folder / "copy", {"T1w": RadiObject(folder / "r").T1w}
    ),
    "add_collection": lambda folder: RadiObject(folder / "other").add_collection(
        "copy", RadiObject(folder / "r").T1w
    ),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_repeated_after_a_kill_holds_what_was_corrected_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["b", "a"])})
    RadiObject.from_niftis(tmp_path / "other", images={"T2w": pairs(tmp_path / "t2", ["b", "a"], "T2w")})
    kill(monkeypatch, lambda: COPIES[way](tmp_path))
    radi.T1w.loc["b_T1w"].update((0, 0, 0), np.full((5, 6, 7), 77, np.int16))
    written = []
    original = ingest._write
    monkeypatch.setattr(
        ingest, "_write", lambda uri, job, *rest: written.append(job.obs_id) or original(uri, job, *rest)
    )
    copy = COPIES[way](tmp_path)
    made = copy if way == "collection" else RadiObject(tmp_path / "other" if copy is None else copy.uri)
    view = made if way == "collection" else made.collection("copy" if copy is None else "T1w")
    assert {str(v.obs_id): np.unique(v[:]).tolist() for v in view} == {
        "b_T1w": [77],
        "a_T1w": [code_of("a", "T1w")],
    }
    assert written == ["b_T1w"]  # the other one is taken over as before


@pytest.mark.parametrize(("reader", "made"), [((), 0), (("0.0.9", 1), 2)])
def test_an_ingest_that_another_version_left_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: tuple[object, ...], made: int
) -> None:
    """It may have read the files otherwise: half of a collection would hold other numbers."""

    def write() -> RadiObject:
        return RadiObject.from_niftis(tmp_path / "r", images={"T1w": f"{tmp_path}/in/*.nii"})

    (tmp_path / "in").mkdir()
    for name in "ab":
        make_nifti(tmp_path / "in", f"{name}_T1w.nii", 3)
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "_READ_BY", reader or ingest._READ_BY)
        kill(monkeypatch, write)
    written = []
    write_one = ingest._write
    monkeypatch.setattr(ingest, "_write", lambda *job: written.append(job) or write_one(*job))
    assert write().T1w.obs_ids == ["a_T1w", "b_T1w"]
    assert len(written) == made


def make_nifti(folder: Path, name: str, number: int) -> Path:
    nib.save(nib.Nifti1Image(np.full((5, 6, 7), number, np.int16), np.eye(4)), folder / name)
    return folder / name


def make_pair(folder: Path, name: str, number: int) -> Path:
    nib.save(nib.Nifti1Pair(np.full((5, 6, 7), number, np.int16), np.eye(4)), folder / name)
    return folder / name.replace(".hdr", ".img")


def make_slice(folder: Path, number: int) -> Path:
    """Write a series of three slices, and another number into the pixels of the last."""
    if not folder.exists():
        series(folder, [(0, 0, z) for z in range(3)])
    path = sorted(folder.iterdir())[-1]
    dataset = pydicom.dcmread(path)
    dataset.PixelData = np.full((dataset.Rows, dataset.Columns), number, np.int16).tobytes()
    dataset.save_as(path)
    return path


SOURCES: dict[str, Callable[[Path, int], Path]] = {
    "file": lambda folder, number: make_nifti(folder, "a_T1w.nii", number),
    "gzip": lambda folder, number: make_nifti(folder, "a_T1w.nii.gz", number),
    "pair": lambda folder, number: make_pair(folder, "a_T1w.hdr", number),
    "pair-gzip": lambda folder, number: make_pair(folder, "a_T1w.hdr.gz", number),
    "series": lambda folder, number: make_slice(folder / "s", number),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_an_ingest_repeated_after_a_kill_holds_what_was_corrected_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of an image of several files any may be the one that was corrected; the others keep their times."""
    (tmp_path / "in").mkdir()

    def write() -> RadiObject:
        if kind == "series":
            return RadiObject.from_dicoms(tmp_path / "r", [(tmp_path / "in/s", "a")])
        return RadiObject.from_niftis(tmp_path / "r", images={"T1w": f"{tmp_path}/in/a_T1w.*"})

    SOURCES[kind](tmp_path / "in", 3)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "in").rglob("*") if path.is_file()}
    kill(monkeypatch, write)
    corrected = SOURCES[kind](tmp_path / "in", 77)
    for path in set(times) - {corrected}:
        os.utime(path, ns=(times[path], times[path]))
    os.utime(corrected, ns=(times[corrected] + 1, times[corrected] + 1))
    radi = write()
    view = radi.collection(radi.collection_names[0])
    assert view.iloc[0][-1, -1, -1] == 77


def cohort(root: Path, images: list[tuple[Path, str]], **options: Any) -> None:
    RadiObject.from_niftis(root, images={"T1w": images}, **options)


def overwrite(root: Path, images: list[tuple[Path, str]]) -> None:
    cohort(root, images, overwrite=True)


def append(root: Path, images: list[tuple[Path, str]]) -> None:
    RadiObject(root).append(images={"T2w": images})


def stream(root: Path, _: list[tuple[Path, str]]) -> None:
    with StreamingWriter(root, name="T1w") as writer:
        writer.write_volume(np.full((3, 4, 5), code_of("a", "T1w"), np.int16), "a_T1w", "a")


@contextmanager
def interrupted_at_the_commit(
    monkeypatch: pytest.MonkeyPatch, at_removal: Callable[[], None]
) -> Iterator[None]:
    """Raise what Ctrl-C raises when all is written, and do something at each folder that is removed then."""
    rmtree = session.shutil.rmtree

    def interrupt(_: Change) -> None:
        patch.setattr(session.shutil, "rmtree", remove)
        raise KeyboardInterrupt

    def remove(*arguments: Any, **options: Any) -> None:
        at_removal()
        rmtree(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Change, "commit", interrupt)
        yield


@pytest.mark.parametrize(
    ("change", "is_new"), [(cohort, True), (stream, True), (append, False), (overwrite, False)]
)
def test_a_second_interrupt_does_not_end_the_removal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupt_main: Callable[[], None],
    change: Callable[..., None],
    is_new: bool,
) -> None:
    root, images = tmp_path / "r", pairs(tmp_path / "in", ["b", "a"])
    if not is_new:
        cohort(root, images)
    before, sent = files_below(root), list[None]()
    with interrupted_at_the_commit(monkeypatch, lambda: sent.append(interrupt_main())):
        change(root, images)
    assert sent
    assert files_below(root) == before


@pytest.mark.parametrize("change", [cohort, overwrite, stream])
def test_an_ingest_that_is_killed_as_it_removes_what_it_wrote_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., None]
) -> None:
    """As by a service that sends SIGTERM and then SIGKILL: the folder has lost a part of its own."""
    root, images, states = tmp_path / "r", pairs(tmp_path / "in", ["b", "a"]), list[Path]()

    def copy() -> None:
        states.append(tmp_path / str(len(states)))
        shutil.copytree(root, states[-1])

    with interrupted_at_the_commit(monkeypatch, copy):
        change(root, images)
    assert len(states) > 2
    for state in states:
        change(state, images)
        check_identity(VolumeCollection(state) if change is stream else RadiObject(state).T1w)


def test_empty_folders_of_a_store_are_taken_and_a_file_in_them_is_not(tmp_path: Path) -> None:
    images = pairs(tmp_path / "in", ["b", "a"])
    for inside, make in (("collections/T1w/volumes", cohort), ("volumes/a_T1w/__schema", stream)):
        root = tmp_path / make.__name__
        (root / inside).mkdir(parents=True)
        (root / inside / "notes.txt").write_text("mine")
        with pytest.raises(ConfigError, match="voxtier did not write"):
            make(root, images)
        (root / inside / "notes.txt").unlink()
        make(root, images)
        check_identity(VolumeCollection(root) if make is stream else RadiObject(root).T1w)
    assert [path.name for path in (tmp_path / "cohort" / "collections").glob("[!_]*")] == ["T1w"]
