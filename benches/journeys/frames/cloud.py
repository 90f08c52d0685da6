"""Journey: frames in a bucket: a store on this machine behind a proxy that adds latency and counts.

The proxy is a process of its own, and so are the rivals that are not ours to install. The store is nginx
over plain files, which is asked for objects and ranges as any store is, and takes next to nothing of the
processor; where that is not installed seaweedfs, which takes 1.2 ms a request, so that all ways are alike.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import obstore

from benches.measure import Goal, Lap, Result, Way, race, timed
from benches.rivals.dicomweb_servers import plain_files
from benches.rivals.object_readers import LARGE_BLOCK, PYTHON, SMALL_BLOCK, ObjectRivals

sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))
from frames.sources.images import ct, slide, tile
from support.object_proxy import ObjectProxy
from volumes.store.s3_server import KEY, SECRET, Server
from voxtier.frames import FrameReader, read_frame, read_many, read_table, read_tables
from voxtier.system.s3_config import S3Config, configure_s3

JOURNEY = "frames_cloud"
BUCKET = "bench"
OURS, THREADS = (
    128,
    64,
)  # requests at a time: as the command has it, and of rivals, which the processor limits
# Slices that rivals index, for all of them, with threads and in a loop; slices of a series.
SAMPLE, LOOPED, SERIES = 300, 60, 500
UNCHECKED = "offsets in a dict, nothing checked"
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
    os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    with contextlib.ExitStack() as stack:
        port, put = stack.enter_context(store(folder))
        proxy = Proxy(port)
        stack.callback(proxy.close)
        rivals = stack.enter_context(ObjectRivals(proxy.port, BUCKET)) if PYTHON else None
        slices = [f"ct/{number:05}.dcm" for number in range(100 if quick else 10_000)]
        with ThreadPoolExecutor(8) as threads:
            for _ in threads.map(
                lambda pair: put(pair[1], ct(pair[0], f"2.25.{pair[0]}")), enumerate(slices)
            ):
                pass
        frames = 5_000 if quick else 50_000
        for table in ("bot", "none"):
            put(f"slide-{table}.dcm", slide(frames, 2000, table))
        put("scroll.dcm", slide(PAGES, PAGE, "bot"))
        endpoint = f"http://127.0.0.1:{proxy.port}"
        configure_s3(S3Config(endpoint=endpoint, use_virtual_addressing=False))
        for milliseconds in (0, 5, 20):
            proxy.ask(milliseconds / 1000)
            yield from Races(proxy, rivals, milliseconds, min(rounds, 2)).all(slices, frames)


@contextlib.contextmanager
def store(folder: Path) -> Iterator[tuple[int, Callable[[str, bytes], Any]]]:
    """Run the store; its port, and how an object comes into the bucket."""
    root = folder / "store"
    root.mkdir()
    if shutil.which("nginx") is None:
        server = Server(root)
        try:
            server.wait_for_first_put(BUCKET)
            yield server.port, client(server.port).put
        finally:
            server.stop()
        return

    def put(key: str, content: bytes) -> None:
        path = root / BUCKET / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    with plain_files(root) as (port, _):
        yield port, put


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


def mark(found: bytes) -> list[int]:
    """Return what tells a frame from others, without reading all of it."""
    return [len(found), int.from_bytes(found[:8], "little"), found[-1]]


class Races:
    """The races at one latency."""

    def __init__(self, proxy: Proxy, rivals: ObjectRivals | None, latency: int, rounds: int) -> None:
        self._proxy, self._rivals, self._latency, self._rounds = proxy, rivals, latency, rounds
        self._by_hand = client(proxy.port)
        self._facts: dict[str, str] = {}

    def all(self, slices: list[str], frames: int) -> Iterator[Result]:
        yield self.index(slices)
        for kind in ("bot", "none"):
            yield self.first_frame(kind, frames)
        yield self.later_frames(frames)
        yield self.scroll()
        yield self.series(slices[:SERIES])

    def index(self, slices: list[str]) -> Result:
        addresses, sample = [f"s3://{BUCKET}/{key}" for key in slices], slices[:SAMPLE]

        def ours() -> list[str]:
            results = read_tables(addresses, threads=OURS)
            uids = {result.path: result.table.sop_instance_uid for result in results if result.table}
            assert len(set(uids.values())) == len(slices)
            return [uids[address] for address in addresses[:LOOPED]]

        def rival(name: str, way: str, threads: int) -> list[Way]:
            keys = sample if threads > 1 else sample[:LOOPED]
            options = {"way": way, "keys": keys, "block": SMALL_BLOCK, "threads": threads}
            note = f"{len(keys)} objects, times {len(slices) / len(keys):.3g}"
            name += ", in a loop" if threads == 1 else f", {threads} threads"
            return self.rival(name, "headers", note, len(slices) / len(keys), first=LOOPED, **options)

        readers = {"s3fs": "s3fs", "smart_open": "smart_open", "boto3's ranges": "boto3"}
        others = [
            way
            for threads in (1, THREADS)
            for reader, door in readers.items()
            for way in rival(f"pydicom over {reader}", door, threads)
        ]
        return self.race(
            "Index slices of a bucket",
            "tables of CT slices, 128 at a time; rivals with 64 threads, and in a loop",
            ("object", len(slices)),
            [self.ours(ours), *others],
            [Goal("voxtier", way.name, 20 if self._latency == 20 else 5) for way in others],
        )

    def first_frame(self, kind: str, frames: int) -> Result:
        key, index = f"slide-{kind}.dcm", frames // 7 * 3 + 3
        address = f"s3://{BUCKET}/{key}"

        def ours() -> list[int]:
            with FrameReader(publish=False) as reader:
                return mark(reader.frame(address, index))

        def whole_object() -> list[int]:
            import pydicom
            from pydicom.encaps import get_frame

            found = pydicom.dcmread(io.BytesIO(bytes(obstore.get(self._by_hand, key).bytes())))
            return mark(get_frame(found.PixelData, index, number_of_frames=frames))

        options = {"keys": [key], "block": LARGE_BLOCK, "index": index, "frames": frames}
        others = [
            Way(
                "pydicom, whole object", self.counted("pydicom, whole object", timed(whole_object)), rounds=1
            ),
            *self.rival("pydicom over s3fs", "frame", way="s3fs", **options),
            *self.rival("wsidicom over s3fs", "frame", way="wsidicom", **options),
        ]
        if kind == "bot":  # without a table it seeks, and so asks, once for each fragment
            others += self.rival("pydicom over smart_open", "frame", way="smart_open", **options)
        return self.race(
            f"First frame of a slide {'with a BOT' if kind == 'bot' else 'without a table'}",
            f"{frames:,} frames, not indexed",
            ("frame", 1),
            [self.ours(ours), *others],
            [Goal("voxtier", way.name, 1) for way in others],
        )

    def later_frames(self, frames: int) -> Result:
        address = f"s3://{BUCKET}/slide-bot.dcm"
        table = read_table(address, verify="all")
        wanted = range(0, frames, frames // 50)
        ranges = [table.ranges(index)[0] for index in wanted]
        assert read_frame(address, table, wanted[1]) == tile(wanted[1], 2000)
        others = [
            self.by_obstore("slide-bot.dcm", ranges),
            *self.by_boto3([("slide-bot.dcm", *each) for each in ranges], 1),
        ]
        return self.race(
            "Later frames of a slide",
            "one after another, its table at hand",
            ("frame", len(wanted)),
            [self.ours(lambda: [mark(read_frame(address, table, index)) for index in wanted]), *others],
            [Goal("voxtier", way.name, 0.8) for way in others],
        )

    def scroll(self) -> Result:
        """Race a viewer that turns the pages of an image against the same one without read-ahead."""
        address = f"s3://{BUCKET}/scroll.dcm"

        def lap(*, ahead: bool) -> int:
            with FrameReader(publish=False) as reader:
                reader.frame(address, 0)
                for index in range(1, PAGES):
                    file = reader._files.take(address)
                    file.source._ahead = ahead
                    reader._files.give_back(file)
                    assert reader.frame(address, index) == tile(index, PAGE)
            return PAGES

        alone = self.counted("a request a frame", timed(lambda: lap(ahead=False)))
        return self.race(
            "A scroll through a multi-frame image",
            "one frame after the other",
            ("frame", PAGES - 1),
            [self.ours(lambda: lap(ahead=True)), Way("a request a frame", alone)],
            [Goal("voxtier", "a request a frame", 1)],
        )

    def series(self, slices: list[str]) -> Result:
        addresses = [f"s3://{BUCKET}/{key}" for key in slices]
        tables = {result.path: result.table for result in read_tables(addresses, threads=THREADS)}
        ranges = [(key, *tables[path].ranges(0)[0]) for key, path in zip(slices, addresses, strict=True)]

        def ours() -> list[list[int]]:
            with FrameReader(publish=False) as reader:
                for path, found in tables.items():
                    reader.cache.put_table(str(path), found)
                return sorted(
                    mark(frame) for _, frame in read_many(reader, ((path, 0) for path in addresses))
                )

        def by_hand() -> list[list[int]]:
            def one(each: tuple[str, int, int]) -> list[int]:
                key, start, end = each
                return mark(bytes(obstore.get_range(self._by_hand, key, start=start, end=end)))

            with ThreadPoolExecutor(32) as threads:
                return sorted(threads.map(one, ranges))

        others = [
            Way(
                "obstore's ranges by hand",
                self.counted("obstore's ranges by hand", timed(by_hand)),
                note=UNCHECKED,
            ),
            *self.by_boto3(ranges, 32),
        ]
        return self.race(
            "A series",
            "one frame of each object, 32 at a time",
            ("frame", len(slices)),
            [self.ours(ours), *others],
            [Goal("voxtier", way.name, 0.8) for way in others],
        )

    def race(
        self, title: str, story: str, unit: tuple[str, int], ways: list[Way], goals: list[Goal]
    ) -> Result:
        self._facts.clear()
        result = Result(JOURNEY, f"{title}, {self._latency} ms", story, *unit)
        found = race(result, ways, goals, rounds=self._rounds, same=sorted_lists)
        found.facts += self._facts.values()
        return found

    def counted(self, name: str, lap: Callable[[], Lap]) -> Callable[[], Lap]:
        """Note requests and bytes of a lap, as the proxy counts them, and what the reader's process used."""

        def used() -> float:
            return time.process_time() + (self._rivals.cpu_seconds if self._rivals else 0)

        def noted() -> Lap:
            self._proxy.ask(None)
            before = used()
            found = lap()
            cpu = used() - before
            requests, moved = self._proxy.ask(None)
            self._facts[name] = f"{name}: {requests:,} requests, {moved / 1e6:,.1f} MB, {cpu:.2f} s of CPU"
            return found

        return noted

    def ours(self, work: Callable[[], Any]) -> Way:
        return Way("voxtier", self.counted("voxtier", timed(work)), "voxtier")

    def rival(
        self,
        name: str,
        what: str,
        note: str = "",
        times: float = 1,
        first: int | None = None,
        **options: Any,
    ) -> list[Way]:
        """Return the way of a rival in its own process; none without it.

        It may do a part of the work, `times` as much in all, of which the `first` answers are compared.
        """
        rivals = self._rivals
        if rivals is None:
            return []

        def lap() -> Lap:
            seconds, answer = rivals.lap(what, **options)
            return seconds * times, answer if first is None else answer[:first]

        return [Way(name, self.counted(name, lap), note=note)]

    def by_obstore(self, key: str, ranges: list[tuple[int, int]]) -> Way:
        def work() -> list[list[int]]:
            return [
                mark(bytes(obstore.get_range(self._by_hand, key, start=start, end=end)))
                for start, end in ranges
            ]

        name = "obstore's ranges by hand"
        return Way(name, self.counted(name, timed(work)), note=UNCHECKED)

    def by_boto3(self, ranges: list[tuple[str, int, int]], threads: int) -> list[Way]:
        return self.rival("boto3's ranges by hand", "ranges", UNCHECKED, ranges=ranges, threads=threads)


def sorted_lists(answer: Any) -> Any:
    """Return frames in an order of their own: some ways return them as they come."""
    return sorted(answer) if isinstance(answer, list) and isinstance(answer[0], list) else answer
