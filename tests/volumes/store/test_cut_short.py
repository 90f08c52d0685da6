"""A writer that dies between any two of its steps, or in mid file: what readers and the next writer find.

The store is copied after every step of a change, and each copy again with a file that was just made cut short
(TileDB writes a header and then the rest); every copy has to show the old state or the new one, and to take
the change when it is repeated.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.depth import depth
from volumes.support.checks import check_identity
from volumes.support.images import code_of, pairs, series
from volumes.support.kills import kill_ingest
from voxtier.errors import FormatError, NotFoundError
from voxtier.volumes import (
    IngestError,
    RadiObject,
    ReadConfig,
    StreamingWriter,
    Volume,
    VolumeCollection,
    clear_cache,
    configure,
)
from voxtier.volumes.store import commits, snapshots
from voxtier.volumes.tiledb import arrays, creation, session
from voxtier.volumes.tiledb.format import fragments, groups, recovery, schema_copies
from voxtier.volumes.tiledb.locks import only_writer
from voxtier.volumes.tiledb.session import Session
from voxtier.volumes.tiledb.tables import dataframe

HEADER = 52  # bytes that TileDB writes of such a file before it writes the rest
READING = ("open", "read", "look", "list", "measure")


class Steps:
    """Copies of a folder, taken after every step that writes to it."""

    def __init__(self, root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.folder, self.copies = root, folder, []
        folder.mkdir()
        self.copy()
        translate_errors, rmtree = session.translate_errors, shutil.rmtree

        @contextmanager
        def step(what: str) -> Iterator[None]:
            with translate_errors(what):
                yield
            if not what.startswith(READING):
                self.copy()

        def removal(path: Any, *arguments: Any, **options: Any) -> None:
            self.copy()
            for part in list(Path(path).rglob("__fragments")):
                rmtree(part, ignore_errors=True)
            self.copy()
            rmtree(path, *arguments, **options)
            self.copy()

        create_from_copy = schema_copies.create_from_copy

        def create(kind: Hashable, uri: str) -> bool:
            made = create_from_copy(kind, uri)
            self.copy()
            return made

        monkeypatch.setattr(schema_copies, "create_from_copy", create)
        for module in (session, groups, dataframe, arrays, creation, fragments):
            monkeypatch.setattr(module, "translate_errors", step)
        monkeypatch.setattr(session.shutil, "rmtree", removal)

    def copy(self) -> None:
        copy = self.folder / f"{len(self.copies):03d}"
        if self.root.exists():
            shutil.copytree(self.root, copy)
        self.copies.append(copy)

    def states(self) -> Iterator[Path]:
        """Yield every copy, and every copy with one new file cut short, each once and to be used up.

        Of these a third in `make test`: the first, the last, and others spread over the change.
        """
        every = depth(3, 1)
        for number, state in enumerate(self._all_states()):
            if number % every == 0 or state == self.copies[-1]:
                yield state

    def _all_states(self) -> Iterator[Path]:
        before, turn = None, 0
        for copy in self.copies:
            files = {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()}
            for file in sorted(files - (files if before is None else before)):
                if file.parent.name in ("__meta", "__group", "__schema"):
                    turn += 1
                    torn = copy.with_name(f"{copy.name}-torn")
                    shutil.copytree(copy, torn)
                    (torn / f"{file}.vac").unlink(missing_ok=True)  # written when the file is whole
                    with (torn / file).open("r+b") as stream:
                        stream.truncate(0 if turn % 2 else HEADER)
                    yield torn
                    shutil.rmtree(torn)
            if files != before:
                yield copy
            before = files


Visible = tuple[dict[str, list[Any]], list[dict[str, Any]]]


def read_store(root: Path) -> Visible | None:
    """What a reader finds: rows with a voxel of each, and the subjects; None where there is no store."""
    clear_cache()
    try:
        radi = RadiObject(root)
    except NotFoundError:
        return None
    found = {}
    for name in radi.collection_names:
        collection = radi.collection(name)
        rows = collection.obs.read().rows()
        found[name] = [
            (row, int(volume[0, 0, 0]), int(volume[-1, -1, -1]))
            for row, volume in zip(rows, collection, strict=True)
        ]
        assert VolumeCollection(collection.uri).name
    return found, list(radi.obs_meta.read().rows())


def cohort(root: Path, images: list[tuple[Path, str]], **options: Any) -> None:
    RadiObject.from_niftis(root, images={"T1w": images}, **options)


def create(root: Path, folder: Path) -> bool:
    cohort(root, pairs(folder / "in", ["a"]), obs_meta={"obs_subject_id": ["a"], "age": [1]})


def append(root: Path, folder: Path) -> None:
    """Add a subject, and with it all the columns that a DICOM series has and a NIfTI file has not."""
    RadiObject(root).append(dicom_dirs=[(folder / "dicom", "c")], collection_name="T1w")


def overwrite(root: Path, folder: Path) -> None:
    cohort(root, [(folder / "in" / "000_T1w.nii", "b")], overwrite=True)  # the same file, another subject


def add_column(root: Path, _: Path) -> None:
    RadiObject(root).obs_meta.add_column("score", np.float64, [0.5])


@pytest.mark.deep
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("change", [create, append, overwrite, add_column])
def test_a_change_that_is_cut_short_anywhere_shows_the_old_store_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, Path], None]
) -> None:
    configure(read=ReadConfig(max_workers=1))
    root = tmp_path / "r"
    series(tmp_path / "dicom", [(0, 0, z) for z in range(3)])
    if change is not create:
        create(root, tmp_path)
    old = read_store(root)
    with monkeypatch.context() as patch:
        steps = Steps(root, tmp_path / "steps", patch)
        change(root, tmp_path)
    new = read_store(root)
    assert new != old
    counts = {"old": 0, "new": 0}
    for state in steps.states():
        found = read_store(state)
        assert found in (old, new)
        counts["new" if found == new else "old"] += 1
        if found == old:
            change(state, tmp_path)
            assert read_store(state) == new
        RadiObject(state).repair()
        assert read_store(state) == new
        assert RadiObject(state).repair(dry_run=True) == []
        assert not list(state.rglob(".gone-*"))
    assert counts["old"] > depth(0, 3)
    assert counts["new"] > 0


@pytest.mark.deep
@pytest.mark.parametrize("change", ["update", "set_obs_id", "consolidate"])
def test_a_volume_whose_change_is_cut_short_anywhere_shows_old_or_new_voxels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(recovery, "_ABANDONED_SECONDS", 0.05)
    data = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
    volume = Volume.from_numpy(tmp_path / "v", data, obs_id="one")
    volume.replicate("sagittal")
    volume.update((0, 0, 0), data[:2, :2, :2])
    changed = data.copy()
    if change == "update":
        changed[:3, :3, :3] = 7

    def act(volume: Volume) -> None:
        if change == "update":
            volume.update((0, 0, 0), changed[:3, :3, :3])
        elif change == "set_obs_id":
            volume.set_obs_id("two")
        else:
            volume.consolidate()

    with monkeypatch.context() as patch:
        steps = Steps(tmp_path / "v", tmp_path / "steps", patch)
        act(volume)
    after = "two" if change == "set_obs_id" else "one"
    for state in steps.states():
        found = Volume(state)
        assert found.obs_id in ("one", after)
        for z in range(8):
            assert any(np.array_equal(found.axial(z), wanted[:, :, z]) for wanted in (data, changed))
        act(found)
        assert found.obs_id == after
        assert np.array_equal(found.to_numpy(), changed)
        assert all(np.array_equal(found.sagittal(x), changed[x]) for x in range(6))


@pytest.mark.deep
def test_a_streaming_writer_that_is_cut_short_anywhere_shows_nothing_or_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(root: Path) -> None:
        with StreamingWriter(root, name="seg") as writer:
            for subject in "ba":
                image = np.full((5, 6, 7), code_of(subject, "seg"), np.int16)
                writer.write_volume(image, f"{subject}_seg", subject, dice=0.5, site="x")

    with monkeypatch.context() as patch:
        steps = Steps(tmp_path / "c", tmp_path / "steps", patch)
        write(tmp_path / "c")
    for state in steps.states():
        try:
            found = VolumeCollection(state)
        except NotFoundError:
            write(state)
            found = VolumeCollection(state)
        check_identity(found, "seg")
        assert found.table["site"].tolist() == ["x", "x"]
        found.repair()
        check_identity(VolumeCollection(state), "seg")


def test_several_new_columns_are_all_kept(tmp_path: Path) -> None:
    """Two schemas of one time stamp: which of them counts is decided by a random number."""
    series(tmp_path / "dicom", [(0, 0, z) for z in range(3)])
    RadiObject.from_dicoms(tmp_path / "d", [(tmp_path / "dicom", "c")], collection_name="T1w")
    wanted = RadiObject(tmp_path / "d").T1w.obs
    (row,) = wanted.read().rows()
    create(tmp_path / "r", tmp_path)
    assert len(set(wanted.columns) - set(RadiObject(tmp_path / "r").T1w.obs.columns)) > 1
    append(tmp_path / "r", tmp_path)
    (found,) = RadiObject(tmp_path / "r").T1w.sel(subject="c").obs.read().rows()
    assert {name: found[name] for name in row} == row


def newest(folder: Path) -> Path:
    """The file that was written last."""
    return max(folder.glob("__*"), key=lambda path: int(path.name.split("_")[2]))


def test_a_reader_waits_for_a_writer_that_was_stopped_in_mid_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds the lock lives; its file is neither refused nor removed."""
    create(tmp_path / "r", tmp_path)
    wanted = read_store(tmp_path / "r")
    file = newest(tmp_path / "r" / "__meta")
    content = file.read_bytes()
    slept = []

    class Clock:
        monotonic = staticmethod(time.monotonic)

        def sleep(self, seconds: float) -> None:
            slept.append(seconds)
            if len(slept) % 7 == 0:
                file.write_bytes(content)

    monkeypatch.setattr(snapshots, "time", Clock())
    with only_writer(str(tmp_path / "r"), Session.of(None)):
        for length in (0, HEADER, len(content) - 1):
            file.write_bytes(content[:length])
            assert read_store(tmp_path / "r") == wanted
        assert len(slept) == 21
        file.write_bytes(content[:HEADER])
        monkeypatch.setattr(snapshots, "_PATIENCE_SECONDS", 0)
        with pytest.raises(FormatError):
            RadiObject(tmp_path / "r")
    assert file.exists()


def test_what_is_damaged_and_not_cut_short_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "r", tmp_path)
    file = newest(tmp_path / "r" / "__meta")
    file.write_bytes(file.read_bytes()[:-8] + b"\xff" * 8)
    monkeypatch.setattr(snapshots, "_PATIENCE_SECONDS", 1e9)
    with pytest.raises(FormatError):
        RadiObject(tmp_path / "r")
    assert file.exists()


@pytest.mark.parametrize("gone", ["__fragments", "__commits", "a0.tdb"])
def test_a_volume_whose_removal_was_cut_short_is_not_taken_over(tmp_path: Path, gone: str) -> None:
    """It still says whose it is, but its voxels would read as fill values."""
    images = pairs(tmp_path / "in", ["b", "a", "last"])
    kill_ingest(tmp_path / "r", images, at="last")
    (volume,) = (tmp_path / "r" / "collections" / "T1w" / "volumes").glob("a_T1w-*")
    for path in list(volume.rglob(gone)):
        for file in [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]:
            file.unlink()
    cohort(tmp_path / "r", images)
    check_identity(RadiObject(tmp_path / "r").T1w)


class Add:
    """A transform; what it adds is not in its name."""

    def __init__(self, amount: int | None) -> None:
        self.amount = amount

    def __call__(self, image: Any) -> Any:
        if self.amount is None:
            raise FormatError("bad_tile", None, "on purpose")
        return image + self.amount

    def __repr__(self) -> str:
        return "Add()"


def test_volumes_of_another_transform_are_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort(tmp_path / "r", pairs(tmp_path / "in", ["b", "a"]))
    found = RadiObject(tmp_path / "r").T1w
    adds = {"a": Add(1), "b": Add(None)}

    class Some(Add):
        def __call__(self, image: Any, row: dict[str, Any]) -> Any:
            return adds[row["obs_subject_id"]](image)

    with monkeypatch.context() as patch, pytest.raises(IngestError):
        patch.setattr(commits.Change, "discard", lambda _: None)  # as if it were killed
        found.map(Some(0)).materialize(tmp_path / "m")
    assert any((tmp_path / "m").rglob("a0.tdb"))
    adds = {"a": Add(2), "b": Add(2)}
    made = found.map(Some(0)).materialize(tmp_path / "m")
    assert [int(volume[0, 0, 0]) for volume in made] == [code_of(s, "T1w") + 2 for s in "ab"]


@pytest.mark.parametrize("ahead", [True, False])
def test_a_commit_counts_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """A clock that was set back, or another machine's: a later commit must not come before an earlier one."""
    create(tmp_path / "r", tmp_path)

    class Clock:
        monotonic = staticmethod(time.monotonic)
        sleep = staticmethod(time.sleep)

        def time_ns(self) -> int:
            return time.time_ns() + (3600 if ahead else -3600) * 10**9

    with monkeypatch.context() as patch:
        patch.setattr(commits, "time", Clock())
        RadiObject(tmp_path / "r").append(images={"T1w": pairs(tmp_path / "c", ["c"])})
    # TileDB itself would have taken that clock's time
    commit, file = RadiObject(tmp_path / "r")._cohort.snapshot.commit, newest(tmp_path / "r" / "__meta")
    file.rename(file.with_name(f"__{commit}_{commit}_{file.name.rsplit('_', 1)[1]}"))
    assert list(RadiObject(tmp_path / "r")) == ["a", "c"]
    RadiObject(tmp_path / "r").append(images={"T1w": pairs(tmp_path / "d", ["d"])})
    found = RadiObject(tmp_path / "r")
    assert list(found) == ["a", "c", "d"]
    check_identity(found.T1w)
    assert found.repair() == []
