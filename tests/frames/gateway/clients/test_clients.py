"""Programs of others against the gateway: dicomweb-client, wsidicom, HTTP/2."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.uid import UID
from wsidicom import WsiDicom, WsiDicomWebClient

from frames.gateway.conftest import Start
from frames.gateway.serving import STAR, index, instance_path
from frames.gateway.slides import TILE, write_slide
from frames.gateway.wado.test_frames import SERIES, STUDY, payload, write
from voxtier.frames.store.store import FrameStore

UIDS = ["1.7.1", "1.7.2", "1.7.3"]


@pytest.fixture
def client(tmp_path: Path, store: FrameStore, start: Start) -> DICOMwebClient:
    """A client of a gateway with one series of three instances."""
    index(store, [write(tmp_path, uid, uid) for uid in UIDS])
    return DICOMwebClient(url=f"{start().url}/dicomweb")


def test_dicomweb_client_searches_and_retrieves(client: DICOMwebClient) -> None:
    [study] = client.search_for_studies()
    assert study["0020000D"]["Value"] == [STUDY]
    [series] = client.search_for_series(STUDY)
    assert series["0020000E"]["Value"] == [SERIES]
    found = client.search_for_instances(STUDY, SERIES)
    assert [each["00080018"]["Value"][0] for each in found] == UIDS
    metadata = client.retrieve_series_metadata(STUDY, SERIES)
    assert [each["00080018"]["Value"][0] for each in metadata] == UIDS
    instance = client.retrieve_instance(STUDY, SERIES, UIDS[1])
    assert UID(UIDS[1]) == instance.SOPInstanceUID
    assert [each.SOPInstanceUID for each in client.retrieve_series(STUDY, SERIES)] == UIDS


def test_dicomweb_client_retrieves_frames_in_its_order(client: DICOMwebClient) -> None:
    media = [("image/jpeg", "1.2.840.10008.1.2.4.50")]
    frames = client.retrieve_instance_frames(STUDY, SERIES, UIDS[0], [3, 1], media_types=media)
    assert frames == [payload(3), payload(1)]
    octets = client.retrieve_instance_frames(
        STUDY, SERIES, UIDS[0], [2], media_types=[("application/octet-stream", "*")]
    )
    assert octets == [payload(2)]
    assert list(client.iter_instance_frames(STUDY, SERIES, UIDS[2], [1, 2, 3])) == [
        payload(1),
        payload(2),
        payload(3),
    ]


def test_http2_with_prior_knowledge_gives_the_same_answers(
    tmp_path: Path, store: FrameStore, start: Start
) -> None:
    index(store, [write(tmp_path, uid, uid) for uid in UIDS])
    gateway = start()
    with (
        httpx.Client(http1=False, http2=True, base_url=gateway.url, timeout=60) as second,
        httpx.Client(base_url=gateway.url, timeout=60) as first,
    ):
        for path in (
            f"{instance_path(STUDY, SERIES, UIDS[0])}/frames/3,1",
            instance_path(STUDY, SERIES, UIDS[1]),
            f"/dicomweb/studies/{STUDY}/series/{SERIES}/metadata",
            "/dicomweb/studies",
            "/dicomweb/nothing",
        ):
            accept = {"Accept": STAR if "frames" in path else "*/*"}
            answers = [each.get(path, headers=accept) for each in (first, second)]
            assert [each.http_version for each in answers] == ["HTTP/1.1", "HTTP/2"]
            assert answers[0].status_code == answers[1].status_code
            assert answers[0].content == answers[1].content
            assert answers[0].headers.get("etag") == answers[1].headers.get("etag")
        assert second.head(f"{instance_path(STUDY, SERIES, UIDS[0])}/frames/1").content == b""


@pytest.mark.filterwarnings("ignore:No bulk data URI handler")  # wsidicom asks for frames, not for bulk data
def test_wsidicom_opens_a_slide_and_reads_its_tiles(tmp_path: Path, store: FrameStore, start: Start) -> None:
    uids = ("1.2.77", "1.2.77.1", "1.2.77.1.1")
    tiles = write_slide(tmp_path / "slide.dcm", uids, columns=5, rows=4)
    index(store, [tmp_path / "slide.dcm"])
    client = WsiDicomWebClient(DICOMwebClient(url=f"{start().url}/dicomweb"))
    with WsiDicom.open_web(client, uids[0], uids[1]) as slide:
        assert (slide.size.width, slide.size.height) == (5 * TILE, 4 * TILE)
        for number, wanted in enumerate(tiles):
            padded = wanted + bytes(len(wanted) % 2)  # fragments have even lengths (PS3.5 A.4)
            assert slide.read_encoded_tile(0, (number % 5, number // 5)) == padded
        region = slide.read_region((TILE, TILE), 0, (TILE, TILE))
        assert abs(region.getpixel((10, 10))[0] - 70) < 6
