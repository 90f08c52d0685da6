"""The same stores on a real S3 server: reads, requests, credentials, locks, a cut ingest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiledb

from volumes.store.s3_server import Server

pytest.importorskip("obstore")

from volumes.store.s3_server import KEY, NEXT_KEY, NEXT_SECRET, SECRET, start_server
from volumes.support.checks import check_identity
from volumes.support.images import pairs
from voxtier.errors import BackendError, NotFoundError, VoxtierError
from voxtier.volumes import (
    CompressionConfig,
    Dataframe,
    IngestError,
    RadiObject,
    S3Config,
    TileConfig,
    Volume,
    configure,
    get_config,
)
from voxtier.volumes.store.commits import Change, change_store
from voxtier.volumes.tiledb.locks import only_writer, s3_lock
from voxtier.volumes.tiledb.locks.s3_lock import RemoteLock
from voxtier.volumes.tiledb.session import Session


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_server(tmp_path_factory.mktemp("weed"), "vox")
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(autouse=True)
def reachable(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    configure(
        s3=S3Config(
            endpoint=f"http://127.0.0.1:{server.proxy.port}",
            use_virtual_addressing=False,
            multipart_part_size_mb=5,
        )
    )
    server.proxy.forget()
    yield
    server.proxy.fail(0)
    server.proxy.deny()


def get_requests(server: Server) -> list[bytes]:
    return [line for line in server.proxy.requests if line.startswith(b"GET")]


def test_a_warm_read_is_one_request(server: Server) -> None:
    data = np.random.default_rng(0).integers(0, 999, (60, 60, 40)).astype(np.int16)
    volume = Volume.from_numpy("s3://vox/one", data)
    assert not volume.array.is_direct
    assert np.array_equal(volume.axial(3), data[:, :, 3])
    for key in ((slice(None), slice(None), 35), (slice(None), slice(None), slice(None))):
        server.proxy.forget()
        assert np.array_equal(volume[key], data[key])
        assert len(server.proxy.requests) == len(get_requests(server)) <= 1  # 0: TileDB had read it ahead


def test_a_cohort_on_s3_is_invisible_until_complete_and_grows(server: Server, tmp_path: Path) -> None:
    images = {"T1w": pairs(tmp_path / "in", ["z", "m", "a"])}
    broken = pairs(tmp_path / "bad", ["q"])
    broken[0][0].write_bytes(b"x")
    with pytest.raises(IngestError):
        RadiObject.from_niftis("s3://vox/cohort", images={"T1w": [*images["T1w"], *broken]})
    with pytest.raises(NotFoundError):
        RadiObject("s3://vox/cohort")
    radi = RadiObject.from_niftis("s3://vox/cohort", images=images)
    check_identity(radi.T1w)
    radi.append(images={"T1w": pairs(tmp_path / "more", ["0"])})
    check_identity(RadiObject("s3://vox/cohort").T1w)
    assert len(RadiObject("s3://vox/cohort")) == 4


def test_an_overwrite_on_s3_shows_the_old_store_or_the_new_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, images = "s3://vox/overwritten", {"T1w": pairs(tmp_path / "in", ["b", "a"])}
    old = RadiObject.from_niftis(where, images=images)
    other = {"T1w": pairs(tmp_path / "two", ["q"])}
    with monkeypatch.context() as patch:
        patch.setattr(Change, "commit", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            RadiObject.from_niftis(where, images=other, overwrite=True)
    check_identity(RadiObject(where).T1w)
    assert list(RadiObject(where)) == list(old) == ["a", "b"]
    RadiObject.from_niftis(where, images=other, overwrite=True)
    new = RadiObject(where)
    assert list(new) == ["q"]
    check_identity(new.T1w)
    assert new.repair(dry_run=True) == []
    with pytest.raises(NotFoundError, match="was replaced"):
        len(old.T1w)


def test_a_table_on_s3_is_changed_by_one_writer_at_a_time(server: Server) -> None:
    rows = {"obs_subject_id": ["a", "b"], "obs_id": ["a", "b"], "x": [0, 0]}
    frame = Dataframe.from_pandas("s3://vox/table", rows)
    server.proxy.forget()
    frame.update({**rows, "x": [1, 2]})
    assert any(
        line.startswith(b"PUT") and s3_lock.LOCK_NAME.encode() in line for line in server.proxy.requests
    )
    assert frame.delete("x == 2") == 1
    assert list(Dataframe("s3://vox/table").read(["x"]).rows()) == [
        {"obs_subject_id": "a", "obs_id": "a", "x": 1}
    ]


def test_updates_and_consolidation_on_s3_keep_the_voxels(server: Server) -> None:
    data = np.zeros((20, 20, 20), np.int16)
    volume = Volume.from_numpy("s3://vox/update", data)
    for step in range(3):
        volume.update((step, 0, 0), np.full((1, 20, 20), step + 1, np.int16))
        data[step] = step + 1
    assert np.array_equal(volume.to_numpy(), data)
    volume.consolidate()
    assert np.array_equal(volume.to_numpy(), data)
    assert len([f for f in volume.fragments() if not f.to_vacuum]) == 1


def test_batches_from_s3_are_those_of_a_local_copy(server: Server, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from voxtier.volumes import Augmentation, DatasetConfig, VolumeCollectionDataset, batches

    images = {"T1w": pairs(tmp_path / "in", ["b", "a"])}
    config, found = DatasetConfig("patch", (4, 5, 3), 3, seed=1), []
    for place in (tmp_path / "local", "s3://vox/training"):
        data = VolumeCollectionDataset(RadiObject.from_niftis(place, images=images).T1w, config)
        for augment in (None, Augmentation(p_rotation=1, p_gamma=1)):
            loader = batches(data, 2, augment=augment)
            found.append([(batch["obs_id"], batch["image"].clone()) for batch in loader])
    assert loader.explain()["reasons"] == {"remote": 2}
    for local, remote in zip(found[:2], found[2:], strict=True):
        for (name, image), (other, same) in zip(local, remote, strict=True):
            assert name == other
            assert torch.equal(image.contiguous(), same.contiguous())


def test_a_wrong_secret_is_told_soon_and_not_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    Volume.from_numpy("s3://vox/secret", np.zeros((3, 3, 3), np.int16))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-1234")
    server.proxy.forget()
    with pytest.raises(VoxtierError) as caught:
        Volume("s3://vox/secret").to_numpy()
    assert 0 < len(server.proxy.requests) < 12  # asked a few times, not for a minute
    assert "wrong-secret-1234" not in str(caught.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert Volume("s3://vox/secret").to_numpy().shape == (3, 3, 3)


def test_a_second_writer_on_s3_is_refused_while_the_first_writes(server: Server) -> None:
    session = Session.of(None)
    with only_writer("s3://vox/locked", session):  # noqa: SIM117
        with (
            pytest.raises(BackendError, match="is being written by"),
            only_writer("s3://vox/locked", session, timeout=0.3),
        ):
            pass
    with only_writer("s3://vox/locked", session, timeout=0.3):
        pass


def test_eight_threads_read_the_right_planes_from_s3(server: Server) -> None:
    from concurrent.futures import ThreadPoolExecutor

    data = np.random.default_rng(0).integers(0, 999, (30, 30, 30)).astype(np.int16)
    volume = Volume.from_numpy("s3://vox/threads", data)
    with ThreadPoolExecutor(8) as pool:
        for z, plane in enumerate(pool.map(volume.axial, range(30))):
            assert np.array_equal(plane, data[:, :, z])


def test_the_notebook_runs_on_s3(server: Server, tmp_path: Path) -> None:
    names = ("T2w", "T1gd", "T1w", "FLAIR")
    images = {name: pairs(tmp_path / name, ["s3", "s1", "s2"], name, shape=(24, 24, 15)) for name in names}
    RadiObject.from_niftis("s3://vox/brats", images=images)
    radi = RadiObject("s3://vox/brats")
    assert str(radi) == "RadiObject(3 subjects, 4 collections: [T2w, T1gd, T1w, FLAIR])"
    assert radi.FLAIR.iloc[0].shape == (24, 24, 15)
    data = np.random.default_rng(0).normal(size=(48, 44, 31)).astype(np.float32)
    for orientation in ("axial", "sagittal", "isotropic"):
        configure(tile=TileConfig(orientation))
        volume = Volume.from_numpy(f"s3://vox/notebook/{orientation}", data)
        assert np.array_equal(volume.axial(9), data[:, :, 9])
        assert np.array_equal(volume.sagittal(9), data[9])


def test_replicas_on_s3_answer_planes_and_follow_updates(server: Server) -> None:
    configure(tile=TileConfig("axial", replicas=["sagittal"]))
    data = np.random.default_rng(0).integers(0, 999, (30, 20, 10)).astype(np.int16)
    volume = Volume.from_numpy("s3://vox/replicas", data)
    assert volume.replicas == ["sagittal"]
    assert np.array_equal(volume.sagittal(3), data[3])
    server.proxy.forget()
    assert np.array_equal(volume.sagittal(17), data[17])
    assert all(b"replica-sagittal" in line for line in get_requests(server))
    assert len(server.proxy.requests) <= 1
    volume.update((0, 0, 0), np.full((4, 4, 4), 7, np.int16))
    data[:4, :4, :4] = 7
    assert volume.replicas == ["sagittal"]
    assert np.array_equal(volume.sagittal(0), data[0])


def change_s3(**changes: Any) -> None:
    from dataclasses import replace

    configure(s3=replace(get_config().s3, **changes))


def test_anonymous_reads_of_a_public_bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server._make_bucket("public")
    data = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    Volume.from_numpy("s3://public/v", data)
    Volume.from_numpy("s3://vox/private", data)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    change_s3(anonymous=True)
    server.proxy.forget()
    assert np.array_equal(Volume("s3://public/v").to_numpy(), data)
    assert {line.rsplit(b" ", 1)[1] for line in server.proxy.requests} == {b"unsigned"}
    with pytest.raises(VoxtierError):
        Volume("s3://vox/private").to_numpy()
    with pytest.raises(VoxtierError):
        Volume.from_numpy("s3://public/written", data)


def test_part_size_and_region_are_those_of_the_options(server: Server) -> None:
    data = np.random.default_rng(0).integers(0, 2**15, (400, 400, 40)).astype(np.int16)  # 12.8 MB
    counts = {}
    for size in (5, 10):
        change_s3(multipart_part_size_mb=size, max_parallel_ops=2, region="eu-north-1")
        configure(compression=CompressionConfig("none"))
        server.proxy.forget()
        Volume.from_numpy(f"s3://vox/parts{size}", data)
        parts = [line for line in server.proxy.requests if b"a0.tdb?partNumber=" in line]
        assert all(line.endswith(b" eu-north-1") for line in parts)
        counts[size] = len(parts)
    assert counts == {5: -(-data.nbytes // (5 << 20)), 10: -(-data.nbytes // (10 << 20))}
    assert np.array_equal(Volume("s3://vox/parts5").axial(31), data[:, :, 31])


@pytest.mark.parametrize("status", [503, pytest.param(0, marks=pytest.mark.soak)], ids=["refused", "reset"])
def test_a_busy_server_is_asked_again_but_not_for_ever(server: Server, tmp_path: Path, status: int) -> None:
    data = np.random.default_rng(0).integers(0, 999, (20, 20, 10)).astype(np.int16)
    server.proxy.fail(3)
    volume = Volume.from_numpy(f"s3://vox/busy{status}", data)
    server.proxy.fail(3)
    assert np.array_equal(Volume(f"s3://vox/busy{status}").to_numpy(), data)
    radi = RadiObject.from_niftis(
        f"s3://vox/busy{status}-cohort", images={"T1w": pairs(tmp_path / "in", ["b", "a"])}
    )
    server.proxy.fail(3)
    radi.append(images={"T1w": pairs(tmp_path / "more", ["c"])})
    check_identity(RadiObject(f"s3://vox/busy{status}-cohort").T1w)
    change_s3(timeout=1.0)
    radi = RadiObject(f"s3://vox/busy{status}-cohort")
    # TileDB asks a hundred times where the code is SlowDown: minutes, but an end too.
    server.proxy.fail(10**6, status, "ServiceUnavailable")
    server.proxy.forget()
    with pytest.raises(BackendError):
        Volume(f"s3://vox/busy{status}").to_numpy()
    with pytest.raises(BackendError):
        radi.append(images={"T1w": pairs(tmp_path / "never", ["d"])})
    assert 0 < len(server.proxy.requests) < 80  # each of them has a second
    server.proxy.fail(0)
    assert np.array_equal(volume.to_numpy(), data)
    assert set(RadiObject(f"s3://vox/busy{status}-cohort")) == {"a", "b", "c"}


def test_credentials_that_expire_are_replaced_by_their_successors(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = np.random.default_rng(0).integers(0, 999, (60, 60, 40)).astype(np.int16)
    volume = Volume.from_numpy("s3://vox/expiring", data)
    radi = RadiObject.from_niftis(
        "s3://vox/expiring-cohort", images={"T1w": pairs(tmp_path / "in", ["b", "a"])}
    )
    assert np.array_equal(volume.axial(0), data[:, :, 0])
    server.proxy.deny(KEY)
    with pytest.raises(BackendError, match=r"refused or did not answer"):
        Volume("s3://vox/expiring-cohort/none").to_numpy()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", NEXT_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", NEXT_SECRET)
    assert np.array_equal(volume.to_numpy(), data)  # opened with the old key
    radi.append(images={"T1w": pairs(tmp_path / "more", ["c"])})
    check_identity(radi.T1w)


def test_credentials_from_a_profile_sign_the_requests(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = np.zeros((3, 3, 3), np.int16)
    Volume.from_numpy("s3://vox/profile", data)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    file.write_text(f"[scan]\naws_access_key_id={NEXT_KEY}\naws_secret_access_key={NEXT_SECRET}\n")
    change_s3(profile="scan")
    server.proxy.forget()
    assert np.array_equal(Volume("s3://vox/profile").to_numpy(), data)
    assert all(NEXT_KEY.encode() in line for line in server.proxy.requests)


def test_a_dead_writers_lock_is_taken_over_by_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight writers at an expired lock, and once more: never two inside."""
    from concurrent.futures import ThreadPoolExecutor

    session = Session.of(None)
    inside, most, done = [], [], []

    def write(number: int) -> None:
        with only_writer("s3://vox/contended", session, timeout=250) as confirm:
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.01)
            confirm()
            inside.remove(number)
            done.append(number)

    monkeypatch.setattr(s3_lock, "_PAUSE", 0.01)
    for _ in range(2):
        dead = RemoteLock("s3://vox/contended", session)
        dead.acquire(5)
        with dead._lock:
            dead._put({"e_tag": dead._etag}, lifetime=0.1)  # killed: nothing renews it
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        with pytest.raises(BackendError, match="took the lock over"):
            dead.confirm()
    assert max(most) == 1
    assert len(done) == 16


def test_a_take_over_that_comes_second_fails(server: Server) -> None:
    """Both saw the lock expired; the slower one must not remove the quicker one's."""
    session = Session.of(None)
    dead, quick, slow = (RemoteLock("s3://vox/second", session) for _ in range(3))
    dead.acquire(1)
    dead.release()
    seen = slow._read()
    quick.acquire(1)
    assert not slow._put({"e_tag": seen[1]})
    quick.confirm()
    with pytest.raises(BackendError, match="is being written by process"):
        slow.acquire(0.2)


def test_a_lock_is_renewed_while_a_writer_works(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_lock, "_RENEWAL", 0.05)
    session = Session.of(None)
    other = RemoteLock("s3://vox/renewed", session)
    with only_writer("s3://vox/renewed", session) as confirm:
        taken, etags = other._read(), set()
        while len(etags) < 4:
            held, etag = other._read()
            etags.add(etag)
            assert held["owner"] == taken[0]["owner"]
            time.sleep(0.01)
        assert held["until"] > taken[0]["until"]  # when the first of them expires, nobody may take it
        with pytest.raises(BackendError, match="is being written by"):
            other.acquire(0.1)
        confirm()


def test_a_change_whose_lock_was_lost_stays_invisible(server: Server, tmp_path: Path) -> None:
    radi = RadiObject.from_niftis("s3://vox/lost", images={"T1w": pairs(tmp_path / "in", ["a"])})
    session = Session.of(None)
    thief = RemoteLock("s3://vox/lost", session)
    store = radi._cohort.store
    with pytest.raises(BackendError, match="took the lock over"), change_store(store) as change:
        change.meta["subject_count"] = 99
        thief._put("overwrite")
    assert RadiObject("s3://vox/lost")._cohort.snapshot.commit == radi._cohort.snapshot.commit


@pytest.mark.parametrize(
    ("endpoint", "scheme"), [("store.test:9000", "https"), ("http://store.test:9000", "http")]
)
def test_the_lock_is_asked_for_where_tiledb_reads_and_writes(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, scheme: str
) -> None:
    """The environment, which obstore reads and TileDB partly, changes neither."""
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    configure(s3=S3Config(endpoint=endpoint, use_virtual_addressing=False))
    session = Session.of(None)
    tiledb, lock = session.context().config(), s3_lock._bucket("s3://vox/a/b", session)
    assert (lock.config["endpoint"], lock.prefix) == (f"{scheme}://store.test:9000", "a/b")
    assert (tiledb["vfs.s3.scheme"], tiledb["vfs.s3.endpoint_override"]) == (scheme, "store.test:9000")
    assert lock.client_options["allow_http"] == str(scheme == "http").lower()
    assert lock.config["region"] == tiledb["vfs.s3.region"] == "us-east-1"
    assert lock.config["virtual_hosted_style_request"] == "false"
    signing = lock.credential_provider()
    for name, key in (("access_key_id", KEY), ("secret_access_key", SECRET), ("session_token", "token")):
        assert signing[name.removeprefix("session_")] == tiledb[f"vfs.s3.aws_{name}"] == key


def test_what_ctx_says_of_a_server_holds_for_the_lock_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As users of TileDB give it: nothing configured, the name of another in the environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "another")
    configure(s3=S3Config())
    keys = {
        "vfs.s3.endpoint_override": f"127.0.0.1:{server.proxy.port}",
        "vfs.s3.scheme": "http",
        "vfs.s3.use_virtual_addressing": "false",
        "vfs.s3.aws_access_key_id": KEY,
        "vfs.s3.aws_secret_access_key": SECRET,
    }
    images = {"T1w": pairs(tmp_path / "in", ["z", "m"])}
    for number, ctx in enumerate((keys, tiledb.Config(keys), tiledb.Ctx(keys))):
        uri = f"s3://vox/by-ctx-{number}"
        with pytest.raises(NotFoundError):
            RadiObject(uri, ctx=ctx)
        radi = RadiObject.from_niftis(uri, images=images, ctx=ctx)
        radi.append(images={"T1w": pairs(tmp_path / f"more{number}", ["0"])})
        check_identity(RadiObject(uri, ctx=ctx).T1w)
