"""Ingest and append: all or nothing, one writer, resumable, whatever kills them."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tiledb

from support.accounts import let_others_enter
from support.small_disk import without_bytecode
from volumes.support.checks import check_identity
from volumes.support.images import code_of, pairs
from volumes.support.in_workers import append_some
from volumes.support.kills import kill_ingest
from voxtier.errors import BackendError, ConfigError, LeftOutWarning, NotFoundError, SourceError
from voxtier.system import locks
from voxtier.volumes import (
    IngestError,
    RadiObject,
    StreamingWriter,
    Volume,
    VolumeCollection,
)
from voxtier.volumes.store import append, ingest
from voxtier.volumes.store.append import add_cohort
from voxtier.volumes.store.commits import change_store
from voxtier.volumes.store.ingest import IngestOptions, write_volumes
from voxtier.volumes.store.jobs import cohort_jobs, collection_jobs
from voxtier.volumes.store.leftovers import Leftovers
from voxtier.volumes.tiledb.locks import only_writer
from voxtier.volumes.tiledb.session import Session

# `pytest.warns` gives out again what else it saw, in its own name: the filter by module misses it then.
TILEDBS_OWN = pytest.mark.filterwarnings("ignore:Setting the (dtype|shape) on a NumPy array")


@pytest.mark.parametrize("bad", [0, 2, 4])
def test_a_bad_file_first_mid_or_last_refuses_all_and_a_retry_works(tmp_path: Path, bad: int) -> None:
    images = pairs(tmp_path / "in", ["e", "d", "c", "b", "a"])
    good = images[bad][0].read_bytes()
    images[bad][0].write_bytes(good[:-20])
    with pytest.raises(IngestError) as caught:
        RadiObject.from_niftis(tmp_path / "r", images={"T1w": images})
    assert [Path(name).name for name, _ in caught.value.failures] == [images[bad][0].name]
    assert not (tmp_path / "r").exists()
    with pytest.raises(NotFoundError):
        RadiObject(tmp_path / "r")
    images[bad][0].write_bytes(good)
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": images})
    check_identity(radi.T1w)
    assert len(radi) == 5
    with pytest.raises(ConfigError, match="overwrite=True"):
        RadiObject.from_niftis(tmp_path / "r", images={"T1w": images})


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("torn", [False, True])
def test_a_root_whose_maker_was_killed_at_once_is_taken_over(
    tmp_path: Path, torn: bool, overwrite: bool
) -> None:
    images = pairs(tmp_path / "in", ["b", "a"])
    tiledb.Group.create(str(tmp_path / "r"))
    if torn:
        (tmp_path / "r" / "__meta" / "__1_1_0123456789abcdef0123456789abcdef").touch()
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": images}, overwrite=overwrite)
    check_identity(radi.T1w)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_somebody_else_made_is_not_written_into(tmp_path: Path, overwrite: bool) -> None:
    images = pairs(tmp_path / "in", ["b", "a"])
    for name in ("named", "filled", "array"):
        root = str(tmp_path / name)
        if name == "array":
            tiledb.from_numpy(root, np.zeros(3)).close()
        else:
            tiledb.Group.create(root)
        if name == "filled":
            tiledb.Group.create(f"{root}/inner")
        if name == "named":
            with tiledb.Group(root, "w") as group:
                group.meta["owner"] = "somebody"
        before = sorted(tmp_path.joinpath(name).rglob("*"))
        with pytest.raises(ConfigError, match="voxtier did not write"):
            RadiObject.from_niftis(root, images={"T1w": images}, overwrite=overwrite)
        with pytest.raises(ConfigError, match="voxtier did not write"):
            VolumeCollection.from_niftis(root, images)
        assert sorted(tmp_path.joinpath(name).rglob("*")) == before


@TILEDBS_OWN
def test_bad_append_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["b", "a"])})
    images = pairs(tmp_path / "more", ["d", "c"])
    images[0][0].write_bytes(b"nothing")
    before = RadiObject(tmp_path / "r")
    with pytest.raises(IngestError):
        radi.append(images={"T1w": images, "T2w": pairs(tmp_path / "t2", ["a"], "T2w")})
    after = RadiObject(tmp_path / "r")
    assert after.all_obs_ids == before.all_obs_ids == radi.all_obs_ids
    assert after.collection_names == ("T1w",)
    assert radi.repair(dry_run=True) == []
    with pytest.warns(LeftOutWarning, match=f"left out: {images[0][0]}: truncated_header"):
        radi.append(images={"T1w": images}, on_error="skip")
    assert set(radi) == {"a", "b", "c"}
    check_identity(radi.T1w)
    check_identity(RadiObject(tmp_path / "r").T1w)


def test_overwrite_replaces_once_complete(tmp_path: Path) -> None:
    old = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["b", "a"])})
    broken = pairs(tmp_path / "broken", ["x"])
    broken[0][0].write_bytes(b"x")
    with pytest.raises(IngestError):
        RadiObject.from_niftis(tmp_path / "r", images={"T1w": broken}, overwrite=True)
    check_identity(RadiObject(tmp_path / "r").T1w)
    new = RadiObject.from_niftis(
        tmp_path / "r", images={"T1w": pairs(tmp_path / "two", ["q"])}, overwrite=True
    )
    assert list(new) == ["q"]
    with pytest.raises(NotFoundError, match="was replaced"):
        len(old.T1w)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("r")] == ["r"]


def test_arrays_that_a_killed_ingest_finished_are_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pairs(tmp_path / "in", ["c", "b", "a"])
    kill_ingest(tmp_path / "r", images, at="a")
    with pytest.raises(NotFoundError, match="cut off before its first commit"):
        RadiObject(tmp_path / "r")
    written = []
    original = ingest._write
    monkeypatch.setattr(
        ingest, "_write", lambda uri, job, *rest: written.append(job.subject) or original(uri, job, *rest)
    )
    check_identity(RadiObject.from_niftis(tmp_path / "r", images={"T1w": images}).T1w)
    assert written == ["a"]


def test_a_file_that_changed_after_the_kill_is_not_taken_over(tmp_path: Path) -> None:
    images = pairs(tmp_path / "in", ["b", "a"])
    kill_ingest(tmp_path / "r", images, at="a")
    nib.save(nib.Nifti1Image(np.full((5, 6, 7), 77, np.int16), np.eye(4)), images[0][0])
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": images})
    assert radi.get_volume("b_T1w")[0, 0, 0] == 77


INGEST = """
import sys
from voxtier.volumes import RadiObject
folder, mode = sys.argv[1:]
images = lambda part: [(f"{folder}/in/{n:03d}_T1w.nii", s) for n, s in part]
subjects = list(enumerate("hgfedcba"))
print("ready", flush=True)
sys.stdin.readline()
if mode == "create":
    RadiObject.from_niftis(f"{folder}/r", images={"T1w": images(subjects), "copy": images(subjects)})
else:
    RadiObject(f"{folder}/r").append(images={"T1w": images(subjects[4:]), "copy": images(subjects[4:])})
print("done", flush=True)
"""


@pytest.mark.parametrize("mode", ["create", "append"])
def test_sigkill_at_any_point_shows_nothing_or_everything(tmp_path: Path, mode: str) -> None:
    """Points spread over the whole run; more of them in the soak below."""
    kill_at_points(tmp_path, mode, 3)


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["create", "append"])
def test_sigkill_at_a_hundred_points(tmp_path: Path, mode: str) -> None:
    kill_at_points(tmp_path, mode, 100)


def kill_at_points(tmp_path: Path, mode: str, count: int) -> None:
    everyone = list("hgfedcba")
    pairs(tmp_path / "in", everyone)
    images = [(tmp_path / "in" / f"{n:03d}_T1w.nii", s) for n, s in enumerate(everyone)]
    chooser = random.Random(1)
    for number in range(count):
        root = tmp_path / f"run{number}"
        root.mkdir()
        (root / "in").symlink_to(tmp_path / "in")
        if mode == "append":
            RadiObject.from_niftis(root / "r", images={"T1w": images[:4], "copy": images[:4]})
        child = subprocess.Popen(
            [sys.executable, "-c", INGEST, str(root), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout.readline() == "ready\n"
        child.stdin.write("\n")
        child.stdin.flush()
        time.sleep(chooser.uniform(0, 0.35))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        try:
            radi = RadiObject(root / "r")
        except NotFoundError:
            assert mode == "create"
        else:
            whole = set(everyone)
            assert set(radi) in ([whole] if mode == "create" else [set(everyone[:4]), whole])
            for collection in (radi.T1w, radi.collection("copy")):
                assert set(collection.obs_subject_ids) == set(radi)
                for subject, volume in zip(collection.obs_subject_ids, collection, strict=True):
                    assert volume[0, 0, 0] == code_of(subject, "T1w")
        if mode == "create":
            radi = RadiObject.from_niftis(root / "r", images={"T1w": images, "copy": images}, overwrite=True)
        elif len(RadiObject(root / "r")) == 4:
            radi = RadiObject(root / "r")
            radi.append(images={"T1w": images[4:], "copy": images[4:]})
        check_identity(RadiObject(root / "r").T1w)
        assert len(RadiObject(root / "r").collection("copy")) == 8


def test_four_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    subjects = [f"s{n}" for n in range(13)]
    images = pairs(tmp_path / "in", subjects)
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": images[12:]})
    context = multiprocessing.get_context("forkserver")
    together = context.Barrier(4)
    writers = [
        context.Process(target=append_some, args=(tmp_path / "r", tmp_path / "in", 3 * n, together))
        for n in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(240)  # of four that take turns, on a machine that may be busy
        assert writer.exitcode == 0
    assert len(radi) == 1
    radi.refresh()
    assert sorted(radi) == sorted(subjects)
    check_identity(radi.T1w)


def test_a_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    session = Session.of(None)
    with (  # noqa: SIM117
        only_writer(str(tmp_path / "r"), session),
        pytest.raises(BackendError, match=f"process {os.getpid()}"),
    ):
        with only_writer(str(tmp_path / "r"), session, timeout=0.05):
            pass


def test_a_reader_keeps_its_snapshot_while_others_write(tmp_path: Path) -> None:
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["b", "a"])})
    reader = RadiObject(tmp_path / "r")
    radi.append(images={"T1w": pairs(tmp_path / "more", ["0"]), "T2w": pairs(tmp_path / "t2", ["a"], "T2w")})
    assert reader.collection_names == ("T1w",)
    assert list(reader) == ["a", "b"]
    assert reader.T1w.obs_subject_ids == ["a", "b"]
    check_identity(reader.T1w)
    reader.refresh()
    assert (list(reader), reader.collection_names) == (["0", "a", "b"], ("T1w", "T2w"))


def test_obs_meta_must_name_every_subject(tmp_path: Path) -> None:
    images = {"T1w": pairs(tmp_path / "in", ["b", "a"])}
    with pytest.raises(ConfigError, match="no row for b"):
        RadiObject.from_niftis(tmp_path / "r", images=images, obs_meta={"obs_subject_id": ["a"], "age": [3]})
    radi = RadiObject.from_niftis(
        tmp_path / "r", images=images, obs_meta={"obs_subject_id": ["a", "b"], "age": [3, None]}
    )
    assert list(radi.filter("age > 1")) == ["a"]
    radi.append(
        images={"T1w": pairs(tmp_path / "more", ["c"])}, obs_meta={"obs_subject_id": ["c"], "age": [9]}
    )
    assert list(radi.filter("age > 1")) == ["a", "c"]
    radi.obs_meta.update({"obs_subject_id": ["b"], "age": [50]})
    assert list(RadiObject(tmp_path / "r").filter("age >= 9")) == ["b", "c"]
    radi.obs_meta.add_column("site", object, ["x", "y", None])
    assert list(RadiObject(tmp_path / "r").filter("site == 'y'")) == ["b"]


def test_misaligned_collections_are_refused_on_request(tmp_path: Path) -> None:
    images = {"T1w": pairs(tmp_path / "a", ["a", "b"]), "T2w": pairs(tmp_path / "b", ["a"], "T2w")}
    with pytest.raises(ConfigError, match="'T2w' lacks the subjects b"):
        RadiObject.from_niftis(tmp_path / "r", images=images, validate_alignment=True)


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/proc/self/status").exists(), reason="needs a way to lose root"
)
def test_a_read_only_folder_is_a_source_error(tmp_path: Path) -> None:
    image = pairs(tmp_path / "in", ["a"])
    target = tmp_path / "locked"
    target.mkdir()
    target.chmod(stat.S_IRUSR | stat.S_IXUSR)
    code = (
        "import os, sys\nfrom voxtier.errors import VoxtierError\nfrom voxtier.volumes import RadiObject\n"
        "if os.geteuid() == 0:\n    os.chmod(sys.argv[3], 0o777)\n    os.setuid(65534)\n"
        "try:\n    RadiObject.from_niftis(sys.argv[1], niftis=[(sys.argv[2], 'a')])\n"
        "except (VoxtierError, PermissionError) as error:\n    print(type(error).__name__)\n"
    )
    let_others_enter(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code, str(target / "r"), str(image[0][0]), str(tmp_path / "in")],
        capture_output=True,
        text=True,
    )
    if "ImportError" in done.stderr or "ModuleNotFound" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip("another user cannot reach this installation")
    assert done.stdout.strip() in ("SourceError", "PermissionError")


def test_a_full_disk_in_mid_ingest_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    """A limit on file sizes makes every larger write fail, as a full disk does."""
    pairs(tmp_path / "in", ["a"])
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).integers(0, 9999, (90, 90, 60)).astype(np.int16), np.eye(4)),
        tmp_path / "big.nii",
    )
    RadiObject.from_niftis(tmp_path / "r", niftis=[(tmp_path / "in/000_T1w.nii", "a")], collection_name="T1w")
    code = (
        "import resource, signal, sys\nfrom voxtier.errors import VoxtierError\nfrom"
        " voxtier.volumes import RadiObject\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE,"
        " (300000, 300000))\n"
        "try:\n    RadiObject(sys.argv[1]).append(niftis=[(sys.argv[2], 'b')], collection_name='T1w')\n"
        "except VoxtierError as error:\n    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r"), str(tmp_path / "big.nii")],
        env=without_bytecode(),
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "refused", done.stderr
    check_identity(RadiObject(tmp_path / "r").T1w)
    assert list(RadiObject(tmp_path / "r")) == ["a"]


def test_a_streaming_writer_shows_its_volumes_when_it_closes(tmp_path: Path) -> None:
    with StreamingWriter(tmp_path / "c", shape=(3, 4, 5), name="masks") as writer:
        for subject in ("z", "a", "m"):
            writer.write_volume(
                np.full((3, 4, 5), code_of(subject, "seg"), np.int16), f"{subject}_seg", subject, dice=0.5
            )
        with pytest.raises(ConfigError, match="takes"):
            writer.write_volume(np.zeros((1, 1, 1)), "q_seg", "q")
        with pytest.raises(ConfigError, match="same observation|already"):  # noqa: RUF043
            writer.write_volume(np.zeros((3, 4, 5)), "a_seg", "a")
        with pytest.raises(NotFoundError):
            VolumeCollection(tmp_path / "c")
    found = VolumeCollection(tmp_path / "c")
    check_identity(found, "seg")
    assert found.table["dice"].tolist() == [0.5] * 3
    with pytest.raises(RuntimeError), StreamingWriter(tmp_path / "d") as writer:
        writer.write_volume(np.zeros((3, 4, 5)), "a", "a")
        raise RuntimeError
    with pytest.raises(NotFoundError):
        VolumeCollection(tmp_path / "d")


def test_materialize_with_a_transform_holds_a_volume_or_two(tmp_path: Path) -> None:
    import tracemalloc

    images = pairs(tmp_path / "in", [f"s{n}" for n in range(12)], shape=(40, 40, 40))
    found = VolumeCollection.from_niftis(tmp_path / "c", images, name="T1w")
    one = 40**3 * 2
    assert len(found.obs_ids) == 12
    tracemalloc.start()
    count = sum(1 for _, image in found.map(lambda x: x + 1).iter_arrays() if image.size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 12
    assert peak < 5 * one
    doubled = found.map(lambda voxels, row: voxels * 0 + len(row["obs_id"])).materialize(tmp_path / "d")
    assert [int(v[0, 0, 0]) for v in doubled] == [len(i) for i in doubled.obs_ids]
    assert np.allclose(doubled.iloc[0].affine, found.iloc[0].affine)
    stack = found.head(2).lazy().to_numpy_stack()
    assert stack.shape == (2, 40, 40, 40)
    assert [len(b.obs_ids) for b in found.lazy().iter_batches(5)] == [5, 5, 2]


def test_rows_are_json_and_errors_pickle(tmp_path: Path) -> None:
    import pickle

    error = pickle.loads(pickle.dumps(IngestError([("a", "b")])))
    assert error.failures == [("a", "b")]
    volume = Volume(
        VolumeCollection.from_niftis(tmp_path / "c", pairs(tmp_path / "in", ["a"]), name="T1w").iloc[0].uri
    )
    assert json.loads(volume.meta["voxtier_row"])["axcodes"] == "RAS"
    with pytest.raises(NotFoundError):
        Volume(tmp_path / "nowhere").shape  # noqa: B018
    with pytest.raises(NotFoundError):
        RadiObject(tmp_path / "nowhere")
    with pytest.raises((NotFoundError, IngestError, SourceError)):
        VolumeCollection.from_niftis(tmp_path / "e", [(tmp_path / "missing.nii", "a")])


def test_metadata_that_a_killed_writer_left_empty_is_removed_by_the_next(tmp_path: Path) -> None:
    """TileDB creates a metadata file and then fills it; found by the kill test above."""
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["b", "a"])})
    for place in ("__meta", "collections/__meta", "collections/T1w/__meta"):
        (tmp_path / "r" / place).mkdir(exist_ok=True)
        (tmp_path / "r" / place / "__9999999999999_9999999999999_63e4c84f32832d80fef8e1a5bd8b0d8b").touch()
    check_identity(RadiObject(tmp_path / "r").T1w)
    radi.append(images={"T1w": pairs(tmp_path / "more", ["c"])})
    check_identity(RadiObject(tmp_path / "r").T1w)
    assert len(radi) == 3


def test_repair_of_a_collection_that_stands_alone(tmp_path: Path) -> None:
    found = VolumeCollection.from_niftis(tmp_path / "c", pairs(tmp_path / "in", ["b", "a"]))
    broken = pairs(tmp_path / "more", ["d", "c"])
    broken[0][0].write_bytes(b"nothing")
    with pytest.raises(IngestError):
        found.append(niftis=broken)
    assert found.repair(dry_run=True) == []
    write_volumes(
        collection_jobs(None, broken[1:], None, None),
        f"{found.uri}/volumes",
        Session.of(None),
        IngestOptions(),
    )  # as a killed ingest leaves it
    assert [Path(uri).name[:2] for uri in found.repair(dry_run=True)] == ["c_"]
    with only_writer(found.uri, Session.of(None)), pytest.raises(BackendError, match="is being written by"):
        found.repair()
    assert len(found.repair()) == 1
    assert found.repair() == []
    check_identity(VolumeCollection(tmp_path / "c"))
    with pytest.raises(TypeError, match="repair the store"):
        found.head(1).repair()
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in2", ["a"])})
    with pytest.raises(TypeError, match="repair the store"):
        VolumeCollection(radi.T1w.uri).repair()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a writer has found the lock in another's hands."""
    found = threading.Event()

    class Clock:
        monotonic = staticmethod(time.monotonic)

        def sleep(self, seconds: float) -> None:
            found.set()
            time.sleep(seconds)

    monkeypatch.setattr(locks, "time", Clock())
    return found


def test_a_writer_that_waited_for_a_replacement_writes_into_the_new_store(
    tmp_path: Path, waits: threading.Event
) -> None:
    """The lock file that it waited for went away with the old store."""
    RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["a"])})
    RadiObject.from_niftis(tmp_path / "new", images={"T1w": pairs(tmp_path / "in2", ["b"])})
    old, more = RadiObject(tmp_path / "r"), pairs(tmp_path / "in3", ["c"])
    writer = threading.Thread(target=lambda: old.append(images={"T1w": more}))
    with only_writer(str(tmp_path / "r"), Session.of(None)):
        writer.start()
        assert waits.wait(200)
        (tmp_path / "r").rename(tmp_path / "old")
        (tmp_path / "new").rename(tmp_path / "r")
    writer.join(200)
    assert set(RadiObject(tmp_path / "r")) == {"b", "c"}
    check_identity(RadiObject(tmp_path / "r").T1w)


def test_a_writer_that_waited_for_an_overwrite_adds_to_the_new_store(
    tmp_path: Path, waits: threading.Event
) -> None:
    old = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["a"])})
    new, more = pairs(tmp_path / "in2", ["b"]), pairs(tmp_path / "in3", ["c"])
    writer = threading.Thread(target=lambda: old.append(images={"T1w": more}))
    store, jobs = old._cohort.store, cohort_jobs(None, None, {"T1w": new}, None, None)
    with change_store(store, overwrite=True) as change:
        writer.start()
        assert waits.wait(200)
        add_cohort(change, jobs, None, IngestOptions())
    writer.join(200)
    assert set(RadiObject(tmp_path / "r")) == {"b", "c"}
    check_identity(RadiObject(tmp_path / "r").T1w)


@pytest.mark.parametrize("where", ["before the commit", "after it"])
def test_an_overwrite_that_dies_leaves_the_old_store_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Whatever it left behind hides nothing, shows nothing, and goes with the next overwrite."""
    root, images = tmp_path / "r", {"T1w": pairs(tmp_path / "in", ["b", "a"])}
    RadiObject.from_niftis(root, images=images, obs_meta={"obs_subject_id": ["a", "b"], "age": [1, 2]})
    other = {"T1w": pairs(tmp_path / "two", ["q"]), "T2w": pairs(tmp_path / "two", ["q"], "T2w")}
    original = append.add_subjects

    def die(*arguments: Any) -> None:
        if where == "before the commit":
            original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            *((append, "add_subjects") if where == "before the commit" else (Leftovers, "remove")), die
        )
        with pytest.raises(KeyboardInterrupt):
            RadiObject.from_niftis(root, images=other, overwrite=True)
    radi = RadiObject(root)
    if where == "before the commit":
        assert (radi.collection_names, list(radi), radi.obs_meta.columns) == (("T1w",), ["a", "b"], ["age"])
        radi.append(images={"T2w": pairs(tmp_path / "in", ["a"], "T2w")})  # the name of what was left behind
        assert radi.T2w.obs_subject_ids == ["a"]
    else:
        assert (radi.collection_names, list(radi), radi.obs_meta.columns) == (("T1w", "T2w"), ["q"], [])
        radi.rename_collection("T1w", "x")
        radi.rename_collection("T2w", "y")
        radi.append(images={"T1w": pairs(tmp_path / "in3", ["c"])})  # the name of what was replaced
        assert radi.T1w.obs_subject_ids == ["c"]
        radi.rename_collection("y", "T2w")
    check_identity(radi.T1w)
    RadiObject.from_niftis(root, images=images, overwrite=True)
    found = RadiObject(root)
    assert (found.collection_names, list(found)) == (("T1w",), ["a", "b"])
    check_identity(found.T1w)
    assert found.repair(dry_run=True) == []
    visible = [path.name for path in (root / "collections").iterdir() if not path.name.startswith("__")]
    assert (len(visible), len(list(root.glob("obs_meta*")))) == (1, 1)


def test_overwrite_of_what_voxtier_did_not_write_is_refused(tmp_path: Path) -> None:
    images = {"T1w": pairs(tmp_path / "in", ["a"])}
    Volume.from_numpy(tmp_path / "v", np.zeros((3, 3, 3), np.int16))
    VolumeCollection.from_niftis(tmp_path / "c", images["T1w"])
    with pytest.raises(ConfigError, match="did not write"):
        RadiObject.from_niftis(tmp_path / "v", images=images, overwrite=True)
    with pytest.raises(ConfigError, match="holds a collection"):
        RadiObject.from_niftis(tmp_path / "c", images=images, overwrite=True)
    with pytest.raises(ConfigError, match="holds a collection"):
        RadiObject(tmp_path / "c")
    assert Volume(tmp_path / "v").shape == (3, 3, 3)
    assert VolumeCollection(tmp_path / "c").obs_subject_ids == ["a"]


def test_a_new_collection_takes_no_folder_of_a_renamed_one(tmp_path: Path) -> None:
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["a"])})
    radi.rename_collection("T1w", "before")
    radi.append(images={"T1w": pairs(tmp_path / "two", ["b"])})
    assert (radi.before.obs_subject_ids, radi.T1w.obs_subject_ids) == (["a"], ["b"])
    check_identity(radi.T1w)
    assert radi.repair(dry_run=True) == []


@TILEDBS_OWN
def test_a_subject_whose_only_image_was_refused_is_not_added(tmp_path: Path) -> None:
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["a"])})
    more = pairs(tmp_path / "more", ["c", "b"])
    more[0][0].write_bytes(b"nothing")
    with pytest.warns(LeftOutWarning, match="truncated_header"):
        VolumeCollection(radi.T1w.uri).append(more, on_error="skip")
    radi.refresh()
    assert list(radi) == radi.T1w.obs_subject_ids == ["a", "b"]
