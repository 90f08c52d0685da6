"""A change that is refused leaves the folder as it was, byte by byte; a first ingest leaves none."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from support.small_disk import without_bytecode
from volumes.support.checks import check_identity, files_below
from volumes.support.images import pairs, series
from volumes.support.kills import kill_ingest
from voxtier.errors import BackendError, ConfigError, IngestError, NotFoundError, VoxtierError
from voxtier.volumes import RadiObject, StreamingWriter, Volume, VolumeCollection
from voxtier.volumes.store import commits
from voxtier.volumes.store.commits import Change, change_store
from voxtier.volumes.store.snapshots import Store
from voxtier.volumes.tiledb import locks
from voxtier.volumes.tiledb.session import Session


def with_bad(folder: Path, bad: int, subjects: str = "cba") -> list[tuple[Path, str]]:
    images = pairs(folder, list(subjects))
    images[bad][0].write_bytes(images[bad][0].read_bytes()[:-20])
    return images


def nothing(root: Path) -> None:
    """Leave the place free."""


def empty(root: Path) -> None:
    root.mkdir()


def hidden(root: Path) -> None:
    root.mkdir()
    (root / ".DS_Store").write_text("mine")


@pytest.mark.parametrize("before", [nothing, empty, hidden])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_bad_file_leaves_nothing(tmp_path: Path, before: Callable[[Path], None], bad: int) -> None:
    images = with_bad(tmp_path / "in", bad)
    root = tmp_path / "far" / "away"
    if before is not nothing:
        root.parent.mkdir()
    before(root)
    files = files_below(tmp_path)
    for refused in (
        lambda: RadiObject.from_niftis(root, images={"T1w": images}),
        lambda: RadiObject.from_niftis(root, images={"T1w": images}, overwrite=True),
        lambda: VolumeCollection.from_niftis(root, images),
    ):
        with pytest.raises(IngestError):
            refused()
        assert files_below(tmp_path) == files
        assert not (root / locks.LOCK_NAME).exists()
    good = [image for place, image in enumerate(images) if place != bad]
    check_identity(RadiObject.from_niftis(root, images={"T1w": good}).T1w)


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    """With the names that a store uses itself: what it takes for half made, it removes."""
    images = pairs(tmp_path / "in", ["b", "a"])
    root = tmp_path / "mine"
    (root / "obs").mkdir(parents=True)
    (root / "obs" / "observations.csv").write_text("years of work")
    (root / "volumes").mkdir()
    file = tmp_path / "file"
    file.write_text("mine")
    before = files_below(tmp_path)
    for place in (root, file):
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="voxtier did not write: choose another place"):
                RadiObject.from_niftis(place, images={"T1w": images}, overwrite=overwrite)
        with pytest.raises(ConfigError, match="voxtier did not write"):
            VolumeCollection.from_niftis(place, images)
        with pytest.raises(ConfigError, match="voxtier did not write"), StreamingWriter(place):
            pass
    assert files_below(tmp_path) == before


def test_what_is_refused_after_the_voxels_were_written_leaves_nothing(tmp_path: Path) -> None:
    images = pairs(tmp_path / "in", ["b", "a"])
    other = pairs(tmp_path / "other", ["c"], shape=(4, 4, 4))
    root = tmp_path / "r"
    with pytest.raises(ConfigError, match="differ in shape"):
        VolumeCollection.from_niftis(root, [*images, *other])
    assert not root.exists()
    with pytest.raises(ConfigError, match="no row for b"):
        RadiObject.from_niftis(root, images={"T1w": images}, obs_meta={"obs_subject_id": ["a"]})
    assert not root.exists()
    with pytest.raises(ZeroDivisionError), StreamingWriter(root) as writer:
        writer.write_volume(np.zeros((3, 4, 5), np.int16), "a_seg", "a")
        raise ZeroDivisionError
    assert not root.exists()
    made = VolumeCollection.from_niftis(tmp_path / "c", images, name="T1w")

    def fail(voxels: Any, row: Any) -> Any:
        if row["obs_id"] == "b_T1w":
            raise ValueError("on purpose")
        return voxels

    with pytest.raises((IngestError, ValueError)):
        made.map(fail).materialize(root)
    assert not root.exists()
    series(tmp_path / "dicom", [(0, 0, 0), (0, 0, 1), (0, 0, 7)])
    with pytest.raises(VoxtierError):
        RadiObject.from_dicoms(root, [(tmp_path / "dicom", "p")])
    assert not root.exists()


def test_a_refused_append_or_overwrite_leaves_the_store_byte_for_byte(tmp_path: Path) -> None:
    root = tmp_path / "r"
    images = pairs(tmp_path / "in", ["b", "a"])
    radi = RadiObject.from_niftis(root, images={"T1w": images}, obs_meta={"obs_subject_id": ["a", "b"]})
    files = files_below(root)
    broken = with_bad(tmp_path / "more", 1, "ed")
    more = {"T1w": pairs(tmp_path / "third", ["f"]), "T2w": broken}
    refused: list[Callable[[], object]] = [
        lambda: radi.append(images={"T1w": broken}),
        lambda: radi.append(images=more),
        lambda: radi.append(images={"T1w": more["T1w"]}, obs_meta={"obs_subject_id": ["x"]}),
        lambda: radi.append(images={"T1w": more["T1w"]}, obs_meta={"obs_subject_id": ["f"], "age": [3]}),
        lambda: radi.T1w.append(broken),
        lambda: RadiObject.from_niftis(root, images=more, overwrite=True),
    ]
    for call in refused:
        with pytest.raises(VoxtierError):
            call()
        assert files_below(root) == files
    check_identity(RadiObject(root).T1w)


def test_a_refused_ingest_over_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "r"
    images = with_bad(tmp_path / "in", 2)
    kill_ingest(root, images, at="b")
    assert any(root.rglob("a0.tdb"))
    with pytest.raises(IngestError):
        RadiObject.from_niftis(root, images={"T1w": images})
    assert not root.exists()


@pytest.mark.parametrize("limit", [2_000, 60_000, 300_000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """A limit on file sizes makes every larger write fail, as a full disk does."""
    images = []
    for number, edge in enumerate((8, 40, 90)):
        voxels = np.random.default_rng(0).integers(-30_000, 30_000, (edge, edge, edge)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / f"p{number}_T1w.nii")
        images.append(tmp_path / f"p{number}_T1w.nii")
    before = files_below(tmp_path)

    def restrict() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-m", "voxtier", "volumes", "ingest", str(tmp_path / "r"), *map(str, images)],
        preexec_fn=restrict,
        env=without_bytecode(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_first_ingest_leaves_nothing(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    pairs(tmp_path / "in", [f"s{n}" for n in range(200)], shape=(40, 40, 40))
    for path in (tmp_path / "in").iterdir():
        path.rename(path.with_name(f"p{path.name}"))
    root = tmp_path / "r"
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from voxtier.cli import main; main()",
            *("volume", "ingest", str(root), str(tmp_path / "in")),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    while child.poll() is None and not any(root.glob("collections/T1w/volumes/*/__fragments/*")):
        time.sleep(0.01)
    child.send_signal(number)
    _, errors = child.communicate(timeout=200)
    assert child.returncode == code, errors
    assert "Traceback" not in errors
    assert not root.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_an_ingest_that_is_interrupted_as_it_starts_a_thread_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool does not know that thread, which had written into the folder that was removed meanwhile."""
    images = pairs(tmp_path / "in", ["a", "b"], shape=(64, 64, 64))
    start, threads = threading.Thread.start, list[threading.Thread]()

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("voxtier-ingest"):
            threads.append(thread)
            while not (tmp_path / "r/collections/T1w/volumes").exists():
                time.sleep(0.001)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RadiObject.from_niftis(tmp_path / "r", images={"T1w": images})
    for thread in threads:
        thread.join(60)
    assert not (tmp_path / "r").exists()


def test_a_commit_that_was_made_is_not_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt may come between the write that commits and the return from it."""
    original = Change.commit

    def interrupted(self: Change) -> None:
        original(self)
        raise KeyboardInterrupt

    images = pairs(tmp_path / "in", ["b", "a"])
    with monkeypatch.context() as patch:
        patch.setattr(commits.Change, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            RadiObject.from_niftis(tmp_path / "r", images={"T1w": images})
        check_identity(RadiObject(tmp_path / "r").T1w)
        with pytest.raises(KeyboardInterrupt):
            RadiObject(tmp_path / "r").append(images={"T1w": pairs(tmp_path / "more", ["c"])})
    radi = RadiObject(tmp_path / "r")
    check_identity(radi.T1w)
    assert len(radi) == 3


def test_a_writer_whose_lock_was_taken_over_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> None:
        raise BackendError("another writer took the lock over")

    monkeypatch.setattr(locks, "_confirm_local", lost)
    with pytest.raises(IngestError):
        RadiObject.from_niftis(tmp_path / "r", images={"T1w": with_bad(tmp_path / "in", 0)})
    assert any((tmp_path / "r").rglob("a0.tdb"))


def test_a_writer_that_waits_in_a_folder_that_is_removed_writes_its_own(tmp_path: Path) -> None:
    images = with_bad(tmp_path / "in", 2)
    root = tmp_path / "r"
    good = images[:2]
    waiter: subprocess.Popen[str] | None = None
    code = (
        "import sys\nfrom voxtier.volumes import RadiObject\nprint('ready', flush=True)\n"
        "RadiObject.from_niftis(sys.argv[1], images={'T1w': [(sys.argv[2], 'c'), (sys.argv[3], 'b')]})\n"
    )
    with (
        pytest.raises(ZeroDivisionError),
        change_store(Store(str(root), Session.of(None), "radi_object"), new=True),
    ):
        waiter = subprocess.Popen(
            [sys.executable, "-c", code, str(root), *(str(path) for path, _ in good)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "ready\n"
        time.sleep(0.3)  # it may wait by now; whether it does changes the way, not the result
        raise ZeroDivisionError
    assert waiter is not None
    waiter.communicate(timeout=200)
    assert waiter.returncode == 0
    check_identity(RadiObject(root).T1w)


def test_a_volume_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    (path, _), *_ = with_bad(tmp_path / "in", 0)
    with pytest.raises(VoxtierError):
        Volume.from_nifti(tmp_path / "v", path)
    with pytest.raises(VoxtierError):
        Volume.from_numpy(tmp_path / "v", np.zeros((3, 3), np.int16))
    assert not (tmp_path / "v").exists()


def test_a_refused_store_around_a_collection_keeps_the_collection(tmp_path: Path) -> None:
    """Collections may be written where the RadiObject will have them, before it is made around them."""
    root = tmp_path / "r"
    own = VolumeCollection.from_niftis(
        root / "collections" / "T1w", pairs(tmp_path / "in", ["b", "a"]), name="T1w"
    )
    before = files_below(root)
    with pytest.raises(IngestError):
        RadiObject.from_niftis(root, images={"T2w": with_bad(tmp_path / "bad", 1)})
    assert files_below(root) == before
    check_identity(VolumeCollection(own.uri))
    (root / "collections" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="voxtier did not write"):
        RadiObject.from_niftis(root, images={"T2w": pairs(tmp_path / "good", ["a"], "T2w")})
    (root / "collections" / "notes.txt").unlink()
    RadiObject.from_niftis(root, images={"T2w": pairs(tmp_path / "good", ["a"], "T2w")})
    check_identity(VolumeCollection(own.uri))


def test_a_handle_of_a_store_that_was_replaced_changes_nothing(tmp_path: Path) -> None:
    """Its collections lie in folders that no commit lists any more: a volume there would be lost."""
    root, images = tmp_path / "r", pairs(tmp_path / "in", ["b", "a"])
    more = {"T1w": pairs(tmp_path / "more", ["c"]), "T2w": pairs(tmp_path / "t2", ["c"], "T2w")}
    RadiObject.from_niftis(root, images={"T1w": images}).obs_meta.add_column("age", "i4", [1, 2])
    old = RadiObject(root)
    collection, unread = old.T1w, RadiObject(root)
    alone = VolumeCollection(VolumeCollection.from_niftis(tmp_path / "alone", images).uri)
    shutil.rmtree(alone.uri)
    VolumeCollection.from_niftis(alone.uri, images)
    RadiObject.from_niftis(root, images={"T1w": images}, overwrite=True)
    RadiObject(root).obs_meta.add_column("age", "i4", [10, 20])
    before = files_below(tmp_path)
    refused: list[Callable[[], object]] = [
        lambda: collection.append(more["T1w"]),
        lambda: collection.obs.add_column("grade", "i4", fill=3),
        lambda: collection.obs.update({"obs_subject_id": ["a"], "obs_id": ["a_T1w"], "axcodes": ["LPS"]}),
        lambda: unread.rename_collection("T1w", "T1"),
        lambda: unread.obs_meta.update({"obs_subject_id": ["a"], "age": [99]}),
        lambda: old.obs_meta.drop_column("age"),
        lambda: old.obs_meta.delete("age > 0"),
        lambda: alone.append(more["T1w"]),
    ]
    for call in refused:
        with pytest.raises(NotFoundError, match="replaced since it was opened: open it again"):
            call()
        assert files_below(tmp_path) == before
    unread.append(images=more)  # needs nothing of what it saw: whatever store is there grows
    check_identity(RadiObject(root).T1w)
    assert set(RadiObject(root)) == {"a", "b", "c"}


def test_a_collection_that_the_store_lists_no_more_takes_no_change(tmp_path: Path) -> None:
    root, images = tmp_path / "r", pairs(tmp_path / "in", ["b", "a"])
    collection = RadiObject.from_niftis(root, images={"T1w": images}).T1w
    RadiObject.from_niftis(root, images={"T1w": images}, overwrite=True)
    shutil.copytree(RadiObject(root).T1w.uri, collection.uri, dirs_exist_ok=True)
    by_hand = VolumeCollection(collection.uri)
    with pytest.raises(NotFoundError, match="is no collection of"):
        by_hand.append(pairs(tmp_path / "more", ["c"]))
    with pytest.raises(NotFoundError, match="is no collection of"):
        by_hand.obs.add_column("grade", "i4", fill=3)
    assert len(RadiObject(root).T1w) == 2
