"""Objects as a zarr array by reference, read by fsspec; a slide of objects, and its second look."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr
from jpeg_ls import encode_buffer
from obstore.fsspec import register

from frames.gateway.slides import frames_of, sparse, write_changed, write_slide
from frames.sources.conftest import Bucket
from support.builders import PIXEL_DATA, Element, Fragments, Syntax, dicom, element, image, pattern
from volumes.store.s3_server import KEY, SECRET
from voxtier.errors import FormatError
from voxtier.frames import FrameReader, FrameStore, Slide, read_tables, zarr_references

JPEG_LS = Syntax("1.2.840.10008.1.2.4.80")


def test_objects_become_an_array_that_zarr_reads_from_the_store(bucket: Bucket) -> None:
    addresses = []
    for number in range(3):
        pixels = element("PixelData", pattern(16, number))
        addresses.append(bucket.put(f"array/{number} %41.dcm", dicom([*image(), pixels]).content))
    references = zarr_references(addresses)
    assert [references["refs"][f"frames/{n}.0.0"][0] for n in range(3)] == addresses
    register("s3", asynchronous=True)
    options = {
        "asynchronous": True,
        "config": {
            "endpoint": f"http://127.0.0.1:{bucket.proxy.port}",
            "access_key_id": KEY,
            "secret_access_key": SECRET,
            "region": "us-east-1",
            "virtual_hosted_style_request": False,
        },
        "client_options": {"allow_http": True},
    }
    files = fsspec.filesystem(
        "reference", fo=references, remote_protocol="s3", remote_options=options, asynchronous=True
    )
    store = zarr.storage.FsspecStore(files, read_only=True)
    array = zarr.open_group(store, mode="r", zarr_format=2)["frames"]
    expected = [np.frombuffer(pattern(16, number), np.uint8).reshape(4, 4) for number in range(3)]
    assert np.array_equal(array[:], np.stack(expected))


def test_headers_of_compressed_objects_are_checked(bucket: Bucket) -> None:
    stream = bytes(encode_buffer(np.arange(64, dtype="u2").tobytes(), 8, 8, 1, 12)) + bytes(5000)
    for is_signed in (0, 1):
        form = [*image(rows=8, columns=8, bits=16), element("PixelRepresentation", is_signed)]
        form = sorted({each.tag: each for each in form}.values(), key=lambda each: each.tag)
        pixels = Element(PIXEL_DATA, "OB", Fragments([stream]))
        address = bucket.put(f"stream/{is_signed}.dcm", dicom([*form, pixels], JPEG_LS).content)
        if is_signed:
            with pytest.raises(FormatError, match="is unsigned, other than Pixel Representation"):
                zarr_references([address])
        else:
            assert len(zarr_references([address])["refs"]) == 4


def test_a_slide_of_objects_gives_its_tiles(bucket: Bucket, tmp_path: Path) -> None:
    tiles = write_slide(tmp_path / "slide.dcm", ("1.2.77", "1.2.77.1", "1.2.77.1.1"), columns=3, rows=2)
    address = bucket.put("slide/level.dcm", (tmp_path / "slide.dcm").read_bytes())
    for given in (address, address.rpartition("/")[0]):
        slide = Slide(given)
        found = [slide.tile(0, number % 3, number // 3) for number in range(6)]
        assert found == [tile + bytes(len(tile) % 2) for tile in tiles]


def test_a_second_look_at_objects_reads_none_of_them(
    bucket: Bucket, store: FrameStore, tmp_path: Path
) -> None:
    """Of a prefix the listing tells the states; an object that is named is asked for its state alone."""
    places = [(2, 1), (0, 0), (1, 1), (3, 2)]
    small = write_slide(tmp_path / "small.dcm", ("1.2.77", "1.2.77.1", "1.2.77.1.1"), columns=3, rows=2)
    path = write_changed(tmp_path, "sparse", 4, 1, sparse(places, (4, 3)))
    addresses = [
        bucket.put(f"second/{file.name}", file.read_bytes()) for file in (path, tmp_path / "small.dcm")
    ]
    store.upsert("s", read_tables(addresses))
    prefix = addresses[0].rpartition("/")[0]
    with FrameReader(store, "s", publish=False, index_seconds=60) as reader:
        Slide(prefix, reader=reader)
        assert reader.stats()["slides"]["file"] == 2

    def read_of_objects() -> list[tuple[str, int]]:
        found = bucket.proxy.requests
        return [(each.method, each.sent) for each in found if each.path.partition("?")[0].endswith(".dcm")]

    for given, expected in ((prefix, []), (addresses, [("HEAD", 0), ("HEAD", 0)])):
        with FrameReader(store, "s", publish=False, index_seconds=60) as reader:
            bucket.proxy.forget()
            slide = Slide(given, reader=reader)
            assert read_of_objects() == expected
            assert reader.stats()["slides"] == {"memory": 0, "index": 2, "file": 0}
            assert [slide.tile(0, *place) for place in places] == frames_of(path)
            found = [slide.tile(1, number % 3, number // 3) for number in range(6)]
            assert found == [tile + bytes(len(tile) % 2) for tile in small]


def test_a_replaced_object_is_read_anew(bucket: Bucket, store: FrameStore, tmp_path: Path) -> None:
    places = [(0, 0), (1, 0), (2, 0)]
    path = write_changed(tmp_path, "slide", 3, 1, sparse(places, (3, 1)))
    other = write_changed(tmp_path, "ldise", 3, 1, sparse(places[::-1], (3, 1)))
    frames = frames_of(path)
    address = bucket.put("replaced/slide.dcm", path.read_bytes())
    store.upsert("s", read_tables([address]))
    with FrameReader(store, "s", publish=False, index_seconds=60) as reader:
        old = Slide(address, reader=reader)
        assert [old.tile(0, *place) for place in places] == frames
        bucket.put("replaced/slide.dcm", other.read_bytes())
        for given in (address, address.rpartition("/")[0]):
            slide = Slide(given, reader=reader)
            assert [slide.tile(0, *place) for place in places] == frames[::-1]
        assert reader.stats()["slides"] == {"memory": 1, "index": 0, "file": 2}
        assert [old.tile(0, *place) for place in places] == frames[::-1]
    bucket.put("replaced/slide.dcm", path.read_bytes())
    for given in (address, address.rpartition("/")[0]):
        with FrameReader(store, "s", publish=False, index_seconds=60) as reader:
            slide = Slide(given, reader=reader)
            assert [slide.tile(0, *place) for place in places] == frames
