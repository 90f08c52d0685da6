"""Journey: frames in a bucket: seaweedfs on this machine behind a proxy that adds latency and counts.

The proxy is a process of its own. Rivals that are not installed are left out by name.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benches.measure import Goal, Result, Way, race, timed

sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))
from frames.sources.images import ct, slide, tile
from support.object_proxy import ObjectProxy
from volumes.store.s3_server import KEY, SECRET, Server
from voxtier.frames import FrameReader, read_frame, read_many, read_table, read_tables
from voxtier.system.s3_config import S3Config, configure_s3

JOURNEY = "frames_cloud"
BUCKET = "bench"
THREADS = 64
PAGES, PAGE = 200, 100_000


class Proxy:
    """An `ObjectProxy` in a process of its own."""

    def __init__(self, target: int) -> None:
        self._pipe, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(target, other), daemon=True)
        self._process.start()
        self.port: int = self._pipe.recv()

    def ask(self, latency: float | None) -> tuple[int, int]:
        """Set the latency, unless None; return the requests and bytes since the last call."""
        self._pipe.send(latency)
        found: tuple[int, int] = self._pipe.recv()
        return found

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


def _serve(target: int, pipe: Connection) -> None:
    proxy = ObjectProxy(target)
    pipe.send(proxy.port)
    while True:
        latency = pipe.recv()
        found = len(proxy.requests), sum(each.sent for each in proxy.requests)
        if latency is not None:
            proxy.latency = latency
        proxy.requests.clear()
        pipe.send(found)


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Index slices, take frames of slides, read a series, at 0, 5 and 20 ms of added latency."""
    place = folder / "weed"
    place.mkdir()
    server = Server(place)
    os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    proxy = None
    try:
        server.wait_for_first_put(BUCKET)
        proxy = Proxy(server.port)
        count = 100 if quick else 1000
        put = client(server.port)
        slices = [f"ct/{number:04}.dcm" for number in range(count)]
        with ThreadPoolExecutor(8) as threads:
            list(
                threads.map(lambda pair: put.put(pair[1], ct(pair[0], f"2.25.{pair[0]}")), enumerate(slices))
            )
        frames = 5_000 if quick else 50_000
        for table in ("bot", "none"):
            put.put(f"slide-{table}.dcm", slide(frames, 2000, table))
        put.put("scroll.dcm", slide(PAGES, PAGE, "bot"))
        endpoint = f"http://127.0.0.1:{proxy.port}"
        configure_s3(S3Config(endpoint=endpoint, use_virtual_addressing=False))
        for milliseconds in (0, 5, 20):
            proxy.ask(milliseconds / 1000)
            yield from races(proxy, slices, frames, milliseconds, min(rounds, 2))
    finally:
        if proxy is not None:
            proxy.close()
        server.stop()


def client(port: int) -> Any:
    from obstore.store import S3Store

    return S3Store(
        BUCKET,
        endpoint=f"http://127.0.0.1:{port}",
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": timedelta(seconds=120)},
    )


def races(proxy: Proxy, slices: list[str], frames: int, latency: int, rounds: int) -> Iterator[Result]:
    import obstore

    by_hand = client(proxy.port)
    opened = files(proxy.port)
    addresses = [f"s3://{BUCKET}/{key}" for key in slices]
    wanted = [frames // 7 * number + number for number in range(7)]
    facts: dict[str, str] = {}

    def counted(name: str, work: Callable[[], Any]) -> Callable[[], tuple[float, Any]]:
        def lap() -> tuple[float, Any]:
            proxy.ask(None)
            seconds, answer = timed(work)()
            requests, moved = proxy.ask(None)
            facts[name] = f"{name}: {requests:,} requests, {moved / 1e6:,.1f} MB"
            return seconds, answer

        return lap

    def pydicom_slices() -> int:
        import pydicom

        def header(key: str) -> str:
            with opened(key) as file:
                return str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID)

        with ThreadPoolExecutor(THREADS) as threads:
            return len(set(threads.map(header, slices)))

    def pydicom_frame(key: str, index: int) -> bytes:
        import pydicom
        from pydicom.encaps import get_frame

        # fsspec's file takes 10,034 requests for 5,000 frames: the whole object is the better rival.
        whole = io.BytesIO(bytes(obstore.get(by_hand, key).bytes()))
        found = pydicom.dcmread(whole)
        return bytes(get_frame(found.PixelData, index, number_of_frames=frames))

    def ours_slices() -> int:
        tables = read_tables(addresses, threads=THREADS)
        return len({result.table.sop_instance_uid for result in tables if result.table})

    def result(title: str, story: str, unit: str, amount: int) -> Result:
        return Result(JOURNEY, f"{title}, {latency} ms", story, unit, amount)

    def finished(found: Result) -> Result:
        found.facts += facts.values()
        facts.clear()
        return found

    yield finished(
        race(
            result("Index slices of a bucket", "tables of CT slices, 64 at a time", "object", len(slices)),
            [
                Way("voxtier", counted("voxtier", ours_slices), "voxtier"),
                Way("pydicom over fsspec", counted("pydicom over fsspec", pydicom_slices), rounds=1),
            ],
            [Goal("voxtier", "pydicom over fsspec", 5)],
            rounds=rounds,
        )
    )
    for kind in ("bot", "none"):
        key = f"slide-{kind}.dcm"
        address = f"s3://{BUCKET}/{key}"

        def ours_first(address: str = address) -> bytes:
            with FrameReader(publish=False) as reader:
                return reader.frame(address, wanted[3])

        name = "with a BOT" if kind == "bot" else "without a table"
        found = race(
            result(f"First frame of a slide {name}", f"{frames:,} frames, not indexed", "frame", 1),
            [
                Way("voxtier", counted("voxtier", ours_first), "voxtier"),
                Way(
                    "pydicom, whole object",
                    counted("pydicom, whole object", lambda key=key: pydicom_frame(key, wanted[3])),
                    rounds=1,
                ),
            ],
            [Goal("voxtier", "pydicom, whole object", 1)],
            rounds=rounds,
        )
        yield finished(found)
    address = f"s3://{BUCKET}/slide-bot.dcm"
    table = read_table(address, verify="all")
    ranges = {index: table.ranges(index)[0] for index in wanted}
    yield finished(
        race(
            result("Later frames of a slide", "one after another, its table at hand", "frame", len(wanted)),
            [
                Way(
                    "voxtier",
                    counted("voxtier", lambda: [read_frame(address, table, index) for index in wanted]),
                    "voxtier",
                ),
                Way(
                    "ranges by hand",
                    counted(
                        "ranges by hand",
                        lambda: [
                            bytes(obstore.get_range(by_hand, "slide-bot.dcm", start=start, end=end))
                            for start, end in ranges.values()
                        ],
                    ),
                    "rival",
                    "offsets in a dict, nothing checked",
                ),
            ],
            [Goal("voxtier", "ranges by hand", 0.8)],
            rounds=rounds,
        )
    )
    assert read_frame(address, table, wanted[1]) == tile(wanted[1], 2000)
    yield finished(scroll(result, counted, "s3://" + BUCKET + "/scroll.dcm"))
    series = addresses[: len(slices) // 2]
    tables = {result.path: result.table for result in read_tables(series, threads=THREADS)}

    def ours_series() -> int:
        with FrameReader(publish=False) as reader:
            for path, found in tables.items():
                reader.cache.put_table(str(path), found)
            return sum(len(frame) for _, frame in read_many(reader, ((path, 0) for path in series)))

    def by_hand_series() -> int:
        def one(path: str) -> int:
            start, end = tables[path].ranges(0)[0]
            key = path.removeprefix(f"s3://{BUCKET}/")
            return len(bytes(obstore.get_range(by_hand, key, start=start, end=end)))

        with ThreadPoolExecutor(32) as threads:
            return sum(threads.map(one, series))

    yield finished(
        race(
            result("A series", "one frame of each object, 32 at a time", "frame", len(series)),
            [
                Way("voxtier", counted("voxtier", ours_series), "voxtier"),
                Way("ranges by hand", counted("ranges by hand", by_hand_series)),
            ],
            [Goal("voxtier", "ranges by hand", 0.8)],
            rounds=rounds,
        )
    )


def scroll(result: Callable[..., Result], counted: Callable[..., Any], address: str) -> Result:
    """Race a viewer that turns the pages of a multi-frame image against the same one without read-ahead."""

    def lap(*, ahead: bool) -> int:
        with FrameReader(publish=False) as reader:
            reader.frame(address, 0)
            for index in range(1, PAGES):
                file = reader._files.take(address)
                file.source._ahead = ahead
                reader._files.give_back(file)
                assert reader.frame(address, index) == tile(index, PAGE)
        return PAGES

    return race(
        result("A scroll through a multi-frame image", "one frame after the other", "frame", PAGES - 1),
        [
            Way("voxtier", counted("voxtier", lambda: lap(ahead=True)), "voxtier"),
            Way("a request a frame", counted("a request a frame", lambda: lap(ahead=False)), "rival"),
        ],
        [Goal("voxtier", "a request a frame", 1)],
        rounds=2,
    )


def files(port: int) -> Callable[[str], Any]:
    """Return how the rival opens an object: fsspec over obstore, whose blocks of 5 MB are fsspec's own."""
    from obstore.fsspec import FsspecStore

    system = FsspecStore(
        "s3",
        endpoint=f"http://127.0.0.1:{port}",
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": timedelta(seconds=120)},
    )

    def opened(key: str) -> io.IOBase:
        return system.open(f"{BUCKET}/{key}", "rb")

    return opened
