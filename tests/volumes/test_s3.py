"""The same stores on a real S3 server: reads, requests, credentials, locks, a cut ingest."""

import time

import numpy as np
import pytest

pytest.importorskip("obstore")

from voxtier.errors import BackendError, NotFoundError, VoxtierError
from voxtier.volumes import IngestError, RadiObject, S3Config, Volume, configure
from voxtier.volumes.engine import Session
from voxtier.volumes.locks import only_writer

from .images import pairs
from .s3_server import KEY, SECRET, Server
from .test_identity import check


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("weed"))
    try:
        running.wait_for_first_put("vox")
        yield running
    finally:
        running.stop()


@pytest.fixture(autouse=True)
def reachable(server, monkeypatch):
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


def gets(server):
    return [line for line in server.proxy.requests if line.startswith(b"GET")]


def test_one_request_a_warm_read(server):
    data = np.random.default_rng(0).integers(0, 999, (60, 60, 40)).astype(np.int16)
    volume = Volume.from_numpy("s3://vox/one", data)
    assert not volume._array.is_direct
    assert np.array_equal(volume.axial(3), data[:, :, 3])
    for key in ((slice(None), slice(None), 35), (slice(None), slice(None), slice(None))):
        server.proxy.forget()
        assert np.array_equal(volume[key], data[key])
        assert len(server.proxy.requests) == len(gets(server)) <= 1  # 0: TileDB had read it ahead


def test_a_cohort_on_s3(server, tmp_path):
    images = {"T1w": pairs(tmp_path / "in", ["z", "m", "a"])}
    broken = pairs(tmp_path / "bad", ["q"])
    broken[0][0].write_bytes(b"x")
    with pytest.raises(IngestError):
        RadiObject.from_niftis("s3://vox/cohort", images={"T1w": [*images["T1w"], *broken]})
    with pytest.raises(NotFoundError):
        RadiObject("s3://vox/cohort")
    radi = RadiObject.from_niftis("s3://vox/cohort", images=images)
    check(radi.T1w)
    radi.append(images={"T1w": pairs(tmp_path / "more", ["0"])})
    check(RadiObject("s3://vox/cohort").T1w)
    assert len(RadiObject("s3://vox/cohort")) == 4


def test_updates_and_consolidation(server):
    data = np.zeros((20, 20, 20), np.int16)
    volume = Volume.from_numpy("s3://vox/update", data)
    for step in range(3):
        volume.update((step, 0, 0), np.full((1, 20, 20), step + 1, np.int16))
        data[step] = step + 1
    assert np.array_equal(volume.to_numpy(), data)
    volume.consolidate()
    assert np.array_equal(volume.to_numpy(), data)
    assert len([f for f in volume.fragments() if not f.to_vacuum]) == 1


def test_a_wrong_secret_is_told_soon_and_not_shown(server, monkeypatch):
    Volume.from_numpy("s3://vox/secret", np.zeros((3, 3, 3), np.int16))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-1234")
    started = time.monotonic()
    with pytest.raises(VoxtierError) as caught:
        Volume("s3://vox/secret").to_numpy()
    assert time.monotonic() - started < 5
    assert "wrong-secret-1234" not in str(caught.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert Volume("s3://vox/secret").to_numpy().shape == (3, 3, 3)


def test_one_writer_at_a_time(server):
    session = Session.of(None)
    with only_writer("s3://vox/locked", session):  # noqa: SIM117
        with (
            pytest.raises(BackendError, match="is being written by"),
            only_writer("s3://vox/locked", session, timeout=0.3),
        ):
            pass
    with only_writer("s3://vox/locked", session, timeout=0.3):
        pass


def test_eight_threads(server):
    from concurrent.futures import ThreadPoolExecutor

    data = np.random.default_rng(0).integers(0, 999, (30, 30, 30)).astype(np.int16)
    volume = Volume.from_numpy("s3://vox/threads", data)
    with ThreadPoolExecutor(8) as pool:
        for z, plane in enumerate(pool.map(volume.axial, range(30))):
            assert np.array_equal(plane, data[:, :, z])
