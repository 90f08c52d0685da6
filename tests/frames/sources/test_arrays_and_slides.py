"""Objects as a zarr array by reference, read by fsspec; a slide of objects."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import zarr
from obstore.fsspec import register

from frames.gateway.slides import write_slide
from frames.sources.conftest import Bucket
from support.builders import dicom, element, image, pattern
from volumes.store.s3_server import KEY, SECRET
from voxtier.frames import Slide, zarr_references


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


def test_a_slide_of_objects_gives_its_tiles(bucket: Bucket, tmp_path: Path) -> None:
    tiles = write_slide(tmp_path / "slide.dcm", ("1.2.77", "1.2.77.1", "1.2.77.1.1"), columns=3, rows=2)
    address = bucket.put("slide/level.dcm", (tmp_path / "slide.dcm").read_bytes())
    for given in (address, address.rpartition("/")[0]):
        slide = Slide(given)
        found = [slide.tile(0, number % 3, number // 3) for number in range(6)]
        assert found == [tile + bytes(len(tile) % 2) for tile in tiles]
