"""Others' ways to objects in an interpreter of their own, driven by lines of JSON; it takes its own times.

pydicom over s3fs and over smart_open, boto3's ranges by hand, wsidicom's parsers over s3fs. ``make bench``
installs them in a place of their own, as their pins differ from ours; VOXTIER_OBJECT_RIVALS_PYTHON names
another Python that has them. Without it, these ways are left out of the races.
"""

from __future__ import annotations

from typing import Any

from benches.rivals.elsewhere import Elsewhere, python_of

PYTHON = python_of("object-rivals", "VOXTIER_OBJECT_RIVALS_PYTHON")
# Blocks of s3fs: for headers of slices the smallest that hold one, as its own 50 MiB would take whole slices.
SMALL_BLOCK, LARGE_BLOCK = 64 << 10, 8 << 20

SERVER = r"""
import io, json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
import boto3, pydicom, s3fs, smart_open
from botocore.config import Config
from pydicom.encaps import get_frame

endpoint, bucket, threads = sys.argv[1], sys.argv[2], 64
client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1",
                      config=Config(max_pool_connections=threads, s3={"addressing_style": "path"}))
system = s3fs.S3FileSystem(endpoint_url=endpoint, key=os.environ["AWS_ACCESS_KEY_ID"],
                           secret=os.environ["AWS_SECRET_ACCESS_KEY"], use_listings_cache=False,
                           config_kwargs={"max_pool_connections": threads})

def ranged(key, start, end):
    answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")
    return answer["Body"].read()

def opened(way, key, block):
    if way == "s3fs":
        return system.open(f"{bucket}/{key}", "rb", block_size=block)
    if way == "smart_open":
        return smart_open.open(f"s3://{bucket}/{key}", "rb",
                               transport_params={"client": client, "defer_seek": True})
    return io.BytesIO(ranged(key, 0, block))

def header(way, key, block):
    with opened(way, key, block) as file:
        return str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID)

def by_pydicom(way, key, block, index, frames):
    with opened(way, key, block) as file:
        pydicom.dcmread(file, stop_before_pixels=True)
        file.seek(12, 1)  # tag, VR and length of the pixels
        return get_frame(file, index, number_of_frames=frames)

def by_wsidicom(key, block, index, frames):
    from upath import UPath
    from wsidicom.file.io import WsiDicomReadIO
    from wsidicom.file.io.frame_index.basic import (
        BasicOffsetTableFrameIndexParser, EmptyBasicTableOffsetException)
    from wsidicom.file.io.frame_index.pixel_data import PixelDataFrameIndexParser

    with opened("s3fs", key, block) as file:
        stream = WsiDicomReadIO(file, UPath(key))
        pydicom.dcmread(file, stop_before_pixels=True)
        start = file.tell()
        try:
            found = BasicOffsetTableFrameIndexParser(stream, start, frames).parse_frame_index()
        except EmptyBasicTableOffsetException:
            found = PixelDataFrameIndexParser(stream, start, frames).parse_frame_index()
        position, length = list(found)[index]
        file.seek(position)
        return file.read(length)

def mark(found):
    return [len(found), int.from_bytes(found[:8], "little"), found[-1]]

def run(what, way="", keys=(), block=0, index=0, frames=0, ranges=(), threads=threads):
    with ThreadPoolExecutor(threads) as pool:
        start, cpu = time.perf_counter(), time.process_time()
        if what == "headers":
            answer = list(pool.map(lambda key: header(way, key, block), keys))
        elif what == "ranges":
            answer = list(pool.map(lambda each: mark(ranged(*each)), ranges))
        elif way == "wsidicom":
            answer = mark(by_wsidicom(keys[0], block, index, frames))
        else:
            answer = mark(by_pydicom(way, keys[0], block, index, frames))
        return time.perf_counter() - start, answer, time.process_time() - cpu

out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever they print goes to the terminal
for line in sys.stdin:
    try:
        found = run(**json.loads(line))
    except Exception as error:
        found = None, f"{type(error).__name__}: {error}", 0
    print(json.dumps(found), file=out, flush=True)
"""


class ObjectRivals(Elsewhere):
    """The process; ``lap`` asks for one piece of work, ``cpu_seconds`` is what all of them have used."""

    def __init__(self, port: int, bucket: str) -> None:
        super().__init__(PYTHON, SERVER, f"http://127.0.0.1:{port}", bucket)
        self.cpu_seconds = 0.0

    def lap(self, what: str, **options: Any) -> tuple[float, Any]:
        """Return its own seconds, and the answer."""
        seconds, answer, cpu = self.ask(what=what, **options)
        self.cpu_seconds += cpu
        if seconds is None:
            raise RuntimeError(answer)
        return seconds, answer
