"""A reader over a bucket: one request a frame, in the state that the index knows, or rebuilt once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from io import BytesIO

import pytest
from pydicom import dcmread

from frames.gateway.serving import Client, instance_path
from frames.sources.conftest import Bucket
from frames.sources.images import ct, slide, tile
from support.object_proxy import Fault
from voxtier.errors import FormatError, NotFoundError, SourceError
from voxtier.frames import FileIndexer, FrameReader, Gateway, index_files, read_many
from voxtier.frames.gateway.search.query import parse
from voxtier.frames.gateway.search.search import Search
from voxtier.frames.indexing.paths import iter_files
from voxtier.frames.indexing.search import fill_search_index
from voxtier.frames.sources.objects import RemoteObject
from voxtier.frames.store.search_index import SearchIndex
from voxtier.frames.store.store import FrameStore

UID = "2.25.77"


@pytest.fixture
def address(bucket: Bucket, store: FrameStore, request: pytest.FixtureRequest) -> str:
    address = bucket.put(f"reader/{request.node.name}/a.dcm", slide(40, 9000, "bot", UID))
    for _ in index_files(FileIndexer(store), iter_files([address])):
        pass
    bucket.proxy.forget()
    return address


@pytest.fixture
def reader(store: FrameStore) -> Iterator[FrameReader]:
    with FrameReader(store, publish=False, index_seconds=60) as reader:
        yield reader


def test_a_frame_of_an_indexed_object_is_one_request(
    bucket: Bucket, address: str, reader: FrameReader
) -> None:
    for count, (name, index) in enumerate([(address, 7), (UID, 8), (address, 39), (UID, 0)], 1):
        assert reader.frame(name, index) == tile(index, 9000)
        assert len(bucket.proxy.requests) == count
    assert reader.frames(UID, [3, 4, 5]) == [tile(index, 9000) for index in (3, 4, 5)]
    assert len(bucket.proxy.requests) == 5
    assert asyncio.run(reader.aframe(UID, 2)) == tile(2, 9000)
    assert reader.stats()["tier3"] == 0


def test_an_object_that_nobody_indexed(bucket: Bucket) -> None:
    address = bucket.put("reader/unknown.dcm", slide(40, 9000, "eot"))
    with FrameReader(publish=False) as reader:
        assert reader.frame(address, 7) == tile(7, 9000)
        assert len(bucket.proxy.requests) <= 3
        bucket.proxy.forget()
        assert reader.frame(address, 8) == tile(8, 9000)
        assert len(bucket.proxy.requests) == 1
        with pytest.raises(SourceError, match="no such object"):
            reader.frame("s3://frames/reader/none.dcm", 0)


@pytest.mark.parametrize("name", ["path", "uid"])
def test_a_replaced_object_is_rebuilt_once(
    bucket: Bucket, address: str, reader: FrameReader, store: FrameStore, name: str
) -> None:
    asked = address if name == "path" else UID
    assert reader.frame(asked, 7) == tile(7, 9000)
    bucket.put(address.removeprefix("s3://frames/"), slide(40, 8000, "eot", UID))
    bucket.proxy.forget()
    assert reader.frame(asked, 7) == tile(7, 8000)
    assert len(bucket.proxy.requests) <= 4  # refused, header, end, frame
    bucket.proxy.forget()
    assert reader.frame(asked, 9) == tile(9, 8000)
    assert len(bucket.proxy.requests) == 1
    reader.flush()
    found = store.get("default", address)
    assert found is not None
    assert found.size == reader.table(address).size


@pytest.mark.parametrize("name", ["path", "uid"])
def test_an_object_that_has_an_entity_tag_now_is_rebuilt(
    bucket: Bucket, store: FrameStore, reader: FrameReader, name: str
) -> None:
    """Its row has a time alone, and tells nothing of bytes with a tag."""
    place = bucket.public.put("reader/told.dcm", slide(40, 9000, "bot", UID)).removeprefix("s3://")
    address = f"http://127.0.0.1:{bucket.proxy.port}/{place}"
    bucket.proxy.fault = lambda _: Fault(headers={"etag": None})
    assert [each.status for each in FileIndexer(store, threads=1).index_batch([address])] == ["ok"]
    old, new = tile(7, 9000), tile(7, 9000).replace(b"\7\7", b"\t\t")
    bucket.public.put("reader/told.dcm", slide(40, 9000, "bot", UID).replace(old, new))
    bucket.proxy.fault = None
    assert reader.frame(address if name == "path" else UID, 7) == new
    assert reader.table(address).etag
    reader.flush()
    row = store.get("default", address)
    assert row is not None
    assert row.etag


def test_an_object_of_another_instance_is_not_served_under_the_old_uid(
    bucket: Bucket, address: str, reader: FrameReader
) -> None:
    assert reader.frame(UID, 7) == tile(7, 9000)
    bucket.put(address.removeprefix("s3://frames/"), slide(40, 9000, "bot", "2.25.78"))
    with pytest.raises(NotFoundError):
        reader.frame(UID, 7)
    bucket.client.delete(address.removeprefix("s3://frames/"))
    with pytest.raises(NotFoundError):
        reader.frame(UID, 7)


def test_a_gateway_serves_the_objects_of_its_prefixes(
    bucket: Bucket, address: str, store: FrameStore
) -> None:
    path = instance_path("2.25.2", "2.25.3", UID)
    folder = address.rpartition("/")[0]
    with Gateway(store, port=0, roots=[folder], index_seconds=60) as gateway:
        client = Client(gateway)
        answer = client.frames(path, "8,1")
        assert answer.status == 200, answer.body
        assert [payload for _, payload in answer.parts()] == [tile(7, 9000), tile(0, 9000)]
        assert len(bucket.proxy.requests) == 3  # the object is opened; two frames that lie apart
        assert client.frames(path, "3").parts()[0][1] == tile(2, 9000)
        assert len(bucket.proxy.requests) == 4
        whole = client.get(path, {"Accept": 'multipart/related; type="application/dicom"'})
        assert slide(40, 9000, "bot", UID) in whole.body
        metadata = client.get(f"{path}/metadata", {"Accept": "application/dicom+json"})
        assert metadata.status == 200
        assert UID.encode() in metadata.body
        bucket.put(address.removeprefix("s3://frames/"), slide(40, 8000, "eot", UID))
        assert client.frames(path, "5").parts()[0][1] == tile(4, 8000)
        bucket.proxy.fault = lambda request: Fault(403, "AccessDenied")
        assert client.frames(path, "6").status in (404, 503)
        bucket.proxy.fault = None
        assert client.frames(path, "6").parts()[0][1] == tile(5, 8000)
        client.connection.close()
    for root in (address, f"{folder}/", folder.rpartition("/")[0]):
        with Gateway(store, port=0, roots=[root], index_seconds=60) as gateway:
            client = Client(gateway)
            assert client.frames(path, "1").status == 200, root
            client.connection.close()
    with Gateway(store, port=0, roots=[f"{folder}x", address[:-1], "/tmp"], index_seconds=60) as gateway:
        bucket.proxy.forget()
        client = Client(gateway)
        assert client.frames(path, "1").status == 404
        assert bucket.proxy.requests == []
        client.connection.close()


def test_searches_read_headers_of_objects(bucket: Bucket, store: FrameStore, address: str) -> None:
    header = dcmread(BytesIO(slide(40, 9000, "bot", UID)), stop_before_pixels=True)
    query = parse("instances", f"Rows={header.Rows}&SOPClassUID={header.SOPClassUID}")
    search = Search()
    bucket.proxy.fault = lambda request: Fault(403, "AccessDenied")
    assert search.answer(store, "default", query, "") == ([], False)
    bucket.proxy.fault = None
    [found], _ = search.answer(store, "default", query, "")
    assert found["00280011"]["Value"] == [header.Columns]
    made = SearchIndex(store)
    made.switch_on("default")
    list(fill_search_index(made, "default"))
    assert search.answer(store, "default", query, "") == ([found], False)
    assert search.counts() == {"index": 1, "headers": 2}


def test_an_object_that_cannot_be_read_hides_no_copy(
    bucket: Bucket, store: FrameStore, reader: FrameReader
) -> None:
    for folder in "ab":
        bucket.put(f"reader/copies/{folder}.dcm", slide(4, 9000, "bot", UID))
    for _ in index_files(FileIndexer(store), iter_files(["s3://frames/reader/copies/"])):
        pass
    bucket.put("reader/copies/a.dcm", b"damaged")
    assert reader.frame(UID, 2) == tile(2, 9000)
    assert reader.table(UID).describes(RemoteObject("s3://frames/reader/copies/b.dcm"))
    for denied, error in (("/a.dcm", None), ("/b.dcm", FormatError), (".dcm", SourceError)):
        bucket.proxy.fault = lambda request, denied=denied: (
            Fault(403, "AccessDenied") if request.path.endswith(denied) else None
        )
        with FrameReader(store, publish=False, index_seconds=60) as other:
            if error is None:
                assert other.frame(UID, 2) == tile(2, 9000)
                continue
            with pytest.raises(error):
                other.frame(UID, 2)


def named(uid: str, name: str) -> bytes:
    """Return an image of an instance, in a series of its own, with the name of a patient."""
    dataset = dcmread(BytesIO(ct(0, uid, f"{uid}.1")))
    dataset.PatientName = name
    dataset.save_as(written := BytesIO())
    return written.getvalue()


def test_a_search_says_of_a_replaced_object_what_is_in_it_now(bucket: Bucket, store: FrameStore) -> None:
    search = Search()

    def names() -> list[list[object]]:
        results, _ = search.answer(store, "default", parse("series", "includefield=PatientName"), "")
        return [[*each["0020000E"]["Value"], each["00100010"]["Value"][0]["Alphabetic"]] for each in results]

    def run() -> list[str]:
        reports = index_files(FileIndexer(store), iter_files(["s3://frames/reader/replaced/"]))
        return [each.status for part in reports for each in part]

    bucket.put("reader/replaced/a.dcm", named("2.25.81", "Alice^A"))
    assert run() == ["ok"]
    assert names() == [["2.25.81.1", "Alice^A"]]
    bucket.put("reader/replaced/a.dcm", named("2.25.82", "Carol^C"))
    assert run() == ["ok"]
    assert names() == [["2.25.82.1", "Carol^C"]]
    bucket.put("reader/replaced/a.dcm", named("2.25.82", "Wrong^C"))
    assert run() == ["ok"]
    bucket.put("reader/replaced/a.dcm", named("2.25.82", "Carol^C"))
    assert Search().answer(store, "default", parse("studies", "PatientName=Carol*"), "")[0]
    assert names() == [["2.25.82.1", "Carol^C"]]
    bucket.put("reader/replaced/a.dcm", named("2.25.82", "Wrong^C"))
    assert run() == ["unchanged"]  # what was here between has left no trace in the index
    assert names() == [["2.25.82.1", "Wrong^C"]]


def test_a_series_of_objects_is_read_with_many_requests_in_flight(
    bucket: Bucket, store: FrameStore, reader: FrameReader
) -> None:
    addresses = [
        bucket.put(f"reader/series/{number:02}.dcm", ct(number, f"2.25.9{number}", "2.25.900"))
        for number in range(16)
    ]
    for _ in index_files(FileIndexer(store), iter_files(["s3://frames/reader/series/"])):
        pass
    bucket.proxy.forget()
    bucket.proxy.latency = 0.1
    found = dict(read_many(reader, ((address, 0) for address in addresses)))
    assert [found[address, 0][:4] for address in addresses] == [ct(n)[-524288:][:4] for n in range(16)]
    assert len([each for each in bucket.proxy.requests if "/reader/series/" in each.path]) == 16
    assert 4 < bucket.proxy.most_in_flight <= 64
