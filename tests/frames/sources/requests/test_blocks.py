"""Two stores, one address: a block of ``configured(s3=...)`` reads from its own store, on whatever thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest

from frames.gateway.serving import Client, instance_path
from frames.gateway.slides import frames_of, write_slide
from frames.sources.images import slide, tile
from frames.sources.others.test_http import Web
from voxtier.frames import (
    FileIndexer,
    FrameDataset,
    FrameReader,
    Gateway,
    Slide,
    index_files,
    read_many,
    read_table,
)
from voxtier.frames.indexing.search import fill_search_index
from voxtier.frames.sources import stores
from voxtier.frames.store.search_index import SearchIndex
from voxtier.frames.store.store import FrameStore
from voxtier.system.s3_config import S3Config, configure_s3, enter_context, get_s3_config, leave_context

pytest.importorskip("obstore")

ADDRESS = "s3://bucket/multi.dcm"
UID = "2.25.77"
LENGTH = 900


def other_tile(index: int) -> bytes:
    return tile(index + 100, LENGTH)


@contextmanager
def block(config: S3Config) -> Iterator[None]:
    """As ``configured(s3=config)``, which needs TileDB."""
    token = enter_context(config)
    try:
        yield
    finally:
        leave_context(token)


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Config]:
    """The settings of the other store; the process is configured for one whose frames have other bytes."""
    monkeypatch.setattr(stores, "_stores", {})
    content = slide(20, LENGTH, "bot", UID)
    others = content
    for number in range(20):
        assert others.count(tile(number, LENGTH)) == 1
        others = others.replace(tile(number, LENGTH), other_tile(number))
    webs, configs = (Web(), Web()), []
    for web, held in zip(webs, (content, others), strict=True):
        web.files["/bucket/multi.dcm"] = held
        configs.append(S3Config(endpoint=web.url, use_virtual_addressing=False, anonymous=True, timeout=20.0))
    before = get_s3_config()
    configure_s3(configs[0])
    yield configs[1]
    configure_s3(before)
    for web in webs:
        web.shutdown()
        web.server_close()


def with_threads(work: Callable[[], bytes]) -> bytes:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(work).result()


READS: dict[str, Callable[[FrameReader], bytes]] = {
    "frame": lambda reader: reader.frame(ADDRESS, 3),
    "aframe": lambda reader: asyncio.run(reader.aframe(ADDRESS, 3)),
    "read_many": lambda reader: next(read_many(reader, [(ADDRESS, 3)]))[1],
}


@pytest.mark.parametrize("way", READS)
def test_a_reader_reads_from_the_store_of_the_block(other: S3Config, way: str) -> None:
    with block(other), FrameReader(publish=False) as reader:
        assert READS[way](reader) == other_tile(3)
        assert with_threads(lambda: READS[way](reader)) == other_tile(3)  # of a user, without context
    assert READS[way](reader) == other_tile(3)


@pytest.mark.parametrize("way", READS)
def test_a_reader_of_before_follows_the_block_and_comes_back(other: S3Config, way: str) -> None:
    with FrameReader(publish=False) as reader:
        for _ in range(2):
            assert READS[way](reader) == tile(3, LENGTH)
            with block(other):
                assert READS[way](reader) == other_tile(3)
                assert reader.table(ADDRESS).etag == read_table(ADDRESS).etag


def test_a_reader_follows_the_process_that_is_configured_later(other: S3Config) -> None:
    with FrameReader(publish=False) as reader:
        assert reader.frame(ADDRESS, 3) == tile(3, LENGTH)
        configure_s3(other)
        assert reader.frame(ADDRESS, 3) == other_tile(3)
        assert asyncio.run(reader.aframe(ADDRESS, 4)) == other_tile(4)


@pytest.mark.parametrize("place", ["made in it", "started in it", "both"])
def test_a_gateway_reads_from_the_store_of_its_block(other: S3Config, store: FrameStore, place: str) -> None:
    with block(other):
        assert [len(batch) for batch in index_files(FileIndexer(store), ADDRESS)] == [1]
        gateway = Gateway(store, port=0, index_seconds=60)
    if place == "started in it":
        gateway = Gateway(store, port=0, index_seconds=60)
    if place == "made in it":
        gateway.start(preload=False)
    else:
        with block(other):
            gateway.start(preload=False)
    try:
        client = Client(gateway)
        with closing(client.connection):
            answer = client.frames(instance_path("2.25.2", "2.25.3", UID), "4")
        assert (answer.status, answer.parts()[0][1]) == (200, other_tile(3))
    finally:
        gateway.stop(drain_seconds=0)


def test_the_search_index_is_filled_from_the_store_of_the_block(other: S3Config, store: FrameStore) -> None:
    with block(other):
        assert [len(batch) for batch in index_files(FileIndexer(store), ADDRESS)] == [1]
    configure_s3(S3Config(endpoint="http://127.0.0.1:9", use_virtual_addressing=False, anonymous=True))
    index = SearchIndex(store)
    index.switch_on("default")
    with block(other):
        assert list(fill_search_index(index, "default")) == [1]
    assert index.unread("default", 5) == []


def test_a_slide_stays_with_the_store_that_it_was_opened_in(
    other: S3Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server lists nothing.
    monkeypatch.setattr("voxtier.frames.slides.iter_files", lambda paths, **_: paths)
    write_slide(tmp_path / "a.dcm", ("2.25.2", "2.25.3", UID), 3, 2)
    tiles = frames_of(tmp_path / "a.dcm")
    web = Web()
    web.files["/bucket/slide.dcm"] = (tmp_path / "a.dcm").read_bytes()
    try:
        here = S3Config(endpoint=web.url, use_virtual_addressing=False, anonymous=True, timeout=20.0)
        with block(here):
            found = Slide("s3://bucket/slide.dcm")
        assert found.tile(0, 2, 1) == tiles[5]
        assert with_threads(lambda: found.tile(0, 1, 1) or b"") == tiles[4]
    finally:
        web.shutdown()
        web.server_close()


@pytest.mark.parametrize("way", ["spawn", "forkserver"])
def test_a_dataset_reads_from_its_store_in_another_process(other: S3Config, way: str) -> None:
    with block(other):
        frames = FrameDataset(ADDRESS, decode=False)
        assert frames[3] == other_tile(3)
    assert frames[3] == other_tile(3)
    assert with_threads(lambda: frames[4]) == other_tile(4)
    with ProcessPoolExecutor(1, mp_context=get_context(way)) as processes:
        assert processes.submit(frames.__getitem__, 5).result(timeout=120) == other_tile(5)
