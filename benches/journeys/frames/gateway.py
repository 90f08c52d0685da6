"""Journey: frames over HTTP: CPU of the server for a request, beside nginx, starlette and Orthanc.

And headers of a series beside pydicom, latency with 256 clients, the time until the gateway listens, a hot
set of ten million frames. Programs that are not installed are left out by name.
"""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pydicom

from benches.inputs.entries import paths_of
from benches.inputs.files import functional_groups
from benches.measure import Goal, Limit, Result, Way, race, timed
from benches.rivals import dicomweb_servers as servers
from benches.rivals.dicomweb_servers import CT, GATEWAY, SERIES, SIZE, STARLETTE, STUDY, TILE, Served
from frames.gateway.serving import instance_path
from support.builders import jpeg, pattern
from voxtier._core import restore_hot_set, save_hot_set
from voxtier.frames import FrameCache, FrameStore, read_table, read_tables

JOURNEY = "gateway"


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Measure tiles of a slide and slices of a CT, each from every server in turns, then the rest."""
    if shutil.which("wrk") is None:
        print("gateway: wrk is not installed (apt-get install wrk): left out", file=sys.stderr)
        return
    rounds = min(rounds, 3) if quick else rounds
    tiles = 50_000
    files = servers.write_files(folder / "images", tiles)
    series = write_series(folder / "series", 2_000)
    slide = functional_groups(folder / "slide.dcm", tiles, undefined=False)
    seconds = 0.5 if quick else 3.0
    with ExitStack() as stack:
        dsn = stack.enter_context(servers.database(folder / "server"))
        with FrameStore(dsn) as store:
            store.upsert("bench", read_tables([*files, *series, str(slide)], verify="all"))
        gateway = stack.enter_context(servers.in_process(GATEWAY, dsn))
        yield frames(stack, folder, gateway, dsn, "tile", TILE, tiles, seconds, rounds)
        yield frames(stack, folder, gateway, dsn, "512 KiB frame", CT, 200, seconds, rounds)
        yield unmodified(gateway, tiles, seconds, rounds)
        if shutil.which("h2load"):
            yield protocols(gateway, tiles, seconds, rounds)
        if shutil.which("Orthanc") and servers.ORTHANC_PLUGIN.exists():
            yield beside_orthanc(stack, folder, gateway, files[:1], tiles, seconds, rounds)
        else:
            print("gateway: Orthanc is not installed (orthanc-dicomweb): left out", file=sys.stderr)
        yield headers(gateway, series, rounds)
        yield long_header(gateway, slide, tiles, rounds)
        yield latency(gateway, tiles, seconds, rounds)
        yield listening(dsn, rounds)
    yield restart(folder, rounds)


def frames(
    stack: ExitStack,
    folder: Path,
    gateway: Served,
    dsn: str,
    title: str,
    uid: str,
    count: int,
    seconds: float,
    rounds: int,
) -> Result:
    """Measure random frames of one file, from each server in turns."""
    result = Result(
        JOURNEY, f"CPU a request: {title}", "one worker, keep-alive, eight connections", "request", 1
    )
    second = jpeg(3100, seed=1) if uid == TILE else pattern(SIZE)
    running: dict[str, Served] = {"voxtier gateway": gateway}
    if shutil.which("nginx"):
        running["nginx, a file a frame"] = stack.enter_context(servers.nginx(folder, uid, count))
    else:
        result.facts.append("nginx is not installed: left out")
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        result.facts.append("starlette and uvicorn are not installed: left out")
    else:
        running["starlette over FrameReader"] = stack.enter_context(servers.in_process(STARLETTE, dsn))

    def lap(name: str) -> Callable[[], tuple[float, bool]]:
        served = running[name]
        limit = min(count, 2000) if name.startswith("nginx") else count

        def measured() -> tuple[float, bool]:
            spent, good = servers.load(served, uid, limit, seconds)
            return spent, good and servers.holds(served, uid, second)

        return measured

    roles = {"voxtier gateway": "voxtier", "nginx, a file a frame": "floor"}
    ways = [Way(name, lap(name), role=roles.get(name, "rival")) for name in running]
    goals = []
    if "nginx, a file a frame" in running:
        goals.append(Goal("voxtier gateway", "nginx, a file a frame", 1 / 1.3))
    if "starlette over FrameReader" in running and uid == TILE:
        goals.append(Goal("voxtier gateway", "starlette over FrameReader", 8))
    return race(result, ways, goals, rounds=rounds)


def unmodified(gateway: Served, count: int, seconds: float, rounds: int) -> Result:
    """Measure requests whose client has the tile already, beside those that get it."""
    result = Result(
        JOURNEY, "CPU a request: not modified", "If-None-Match: * beside a whole tile", "request", 1
    )

    def asked(more: str) -> Callable[[], tuple[float, bool]]:
        def measured() -> tuple[float, bool]:
            # With 8 connections the client cannot keep the worker busy: its naps would count.
            spent, _ = servers.load(gateway, TILE, count, seconds, more, connections=32)
            return spent, True

        return measured

    ways = [
        Way("304", asked(', ["If-None-Match"] = "*"'), role="voxtier"),
        Way("200", asked(""), role="rival"),
    ]
    return race(result, ways, [Goal("304", "200", 1 / 0.7)], rounds=rounds)


def protocols(gateway: Served, count: int, seconds: float, rounds: int) -> Result:
    """Measure tiles over HTTP/2 without TLS beside HTTP/1.1."""
    result = Result(JOURNEY, "CPU a request: h2c", "eight connections of some streams each", "request", 1)

    def asked(streams: int) -> Callable[[], tuple[float, bool]]:
        return lambda: servers.load_h2(gateway, TILE, count, seconds, streams)

    ways = [
        Way("h2c, 8 streams", asked(8), role="voxtier"),
        Way("h2c, 32 streams", asked(32), role="voxtier"),
        Way("h2c, 1 stream", asked(1), role="voxtier"),
        Way("HTTP/1.1", lambda: servers.load(gateway, TILE, count, seconds)),
    ]
    return race(result, ways, [Goal("h2c, 8 streams", "HTTP/1.1", 1.0)], rounds=rounds)


def beside_orthanc(
    stack: ExitStack, folder: Path, gateway: Served, files: list[str], count: int, seconds: float, rounds: int
) -> Result:
    """Measure a tile of the slide from Orthanc, which reads the file for each."""
    result = Result(JOURNEY, "CPU a request: tile, Orthanc", f"a slide of {count:,} tiles", "request", 1)
    other = stack.enter_context(servers.orthanc(folder, files))
    ways = [
        Way("voxtier gateway", lambda: servers.load(gateway, TILE, count, seconds), role="voxtier"),
        Way("Orthanc", lambda: servers.load_singly(other, TILE, count, 3), rounds=2),
    ]
    return race(result, ways, [Goal("voxtier gateway", "Orthanc", 1000)], rounds=rounds)


def write_series(folder: Path, count: int) -> list[str]:
    """Write a series of CT slices with the header of a real one."""
    from pydicom.data import get_testdata_file

    folder.mkdir()
    slice_ = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    slice_.StudyInstanceUID, slice_.SeriesInstanceUID = f"{STUDY}.9", f"{SERIES}.9"
    paths = []
    for number in range(count):
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = f"{SERIES}.9.{number + 1}"
        slice_.InstanceNumber = number + 1
        paths.append(str(folder / f"{number:05d}.dcm"))
        slice_.save_as(paths[-1])
    return paths


def headers(gateway: Served, series: list[str], rounds: int) -> Result:
    """Measure the headers of a series as DICOM JSON beside pydicom; the files are in the page cache."""
    result = Result(
        JOURNEY, f"headers of {len(series):,} slices", "DICOM JSON of a whole series", "series", 1
    )
    url = f"http://127.0.0.1:{gateway.port}/dicomweb/studies/{STUDY}.9/series/{SERIES}.9/metadata"
    request = urllib.request.Request(
        url, headers={"Accept": "application/dicom+json", "Accept-Encoding": "gzip"}
    )

    def ours() -> tuple[float, bool]:
        before, start = servers.cpu_seconds(gateway.pids()), time.perf_counter()
        with urllib.request.urlopen(request) as answer:
            good = answer.status == 200 and len(answer.read()) > 1000
        wall = time.perf_counter() - start
        return max(servers.cpu_seconds(gateway.pids()) - before, min(wall, 0.01)), good

    def theirs() -> tuple[float, bool]:
        part = series[:100]
        start = time.process_time()
        for path in part:
            pydicom.dcmread(path, stop_before_pixels=True).to_json_dict()
        return (time.process_time() - start) * len(series) / len(part), True

    ways = [
        Way("voxtier gateway", ours, role="voxtier", note="CPU, compressed"),
        Way("pydicom to_json_dict", theirs, note="CPU, from 100 slices", rounds=2),
    ]
    goals = [Goal("voxtier gateway", "pydicom to_json_dict", 30), Limit("voxtier gateway", 0.3)]
    return race(result, ways, goals, rounds=rounds)


def long_header(gateway: Served, slide: Path, count: int, rounds: int) -> Result:
    """Measure the header of a slide with an Item for each tile, and what memory it takes."""
    result = Result(
        JOURNEY, f"header of {count:,} per-frame Items", "DICOM JSON, not compressed", "header", 1
    )
    table = read_table(slide)
    path = instance_path(table.study_instance_uid, table.series_instance_uid, table.sop_instance_uid)
    url = f"http://127.0.0.1:{gateway.port}{path}/metadata"
    [pid] = gateway.pids()
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    memory, lengths = servers.highest_memory(pid), set()

    def ours() -> tuple[float, int]:
        before = servers.cpu_seconds([pid])
        with urllib.request.urlopen(url) as answer:
            text = answer.read()
        spent = servers.cpu_seconds([pid]) - before
        lengths.add(len(text))
        return spent, text.count(b'"00209111"')

    def theirs() -> tuple[float, int]:
        start = time.process_time()
        header = pydicom.dcmread(slide, stop_before_pixels=True).to_json_dict()
        return time.process_time() - start, len(header["52009230"]["Value"])

    ways = [
        Way("voxtier gateway", ours, role="voxtier", note="CPU"),
        Way("pydicom to_json_dict", theirs, note="CPU", rounds=1),
    ]
    race(result, ways, [Goal("voxtier gateway", "pydicom to_json_dict", 30)], rounds=rounds)
    grown, text = servers.highest_memory(pid) - memory, lengths.pop()
    result.demand(
        f"{text / 1e6:.0f} MB of text take <= 64 MiB of memory", f"{grown >> 20} MiB", met=grown <= 64 << 20
    )
    return result


def latency(gateway: Served, count: int, seconds: float, rounds: int) -> Result:
    """Measure the median and the 99th percentile of tiles for 256 clients at the same time."""
    result = Result(JOURNEY, "256 clients: latency of a tile", "keep-alive, one worker", "request", 1)
    found = [servers.latencies(gateway, TILE, count, seconds) for _ in range(rounds)]
    for name, column in (("median", 0), ("99th percentile", 1)):
        laps = [each[column] for each in found]
        best = {"best": min(laps), "median": sorted(laps)[len(laps) // 2], "laps": laps, "trouble": None}
        result.ways.append({"name": name, "role": "voxtier", "note": "", **best})
    ratio = min(worst / median for median, worst in found)
    result.demand("the 99th percentile is <= 3x of the median", f"{ratio:.2f}x", met=ratio <= 3)
    return result


def listening(dsn: str, rounds: int) -> Result:
    """Measure the start: from `Gateway(...)` to the first answer, without imports."""
    script = """
import sys, time, urllib.request
from voxtier.frames import FrameStore, Gateway
with FrameStore(sys.argv[1]) as store:
    store.sources()
    begun = time.perf_counter()
    with Gateway(store, "bench", port=0) as gateway:
        urllib.request.urlopen(f"{gateway.url}/health").read()
        print(time.perf_counter() - begun, "true", flush=True)
"""

    def lap() -> tuple[float, bool]:
        command = [sys.executable, "-c", script, dsn]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[0]), True

    result = Result(JOURNEY, "start of the gateway", "until the first answer, preload behind it", "start", 1)
    return race(result, [Way("listening", lap, role="voxtier")], [Limit("listening", 0.3)], rounds=rounds)


def restart(folder: Path, rounds: int) -> Result:
    """Measure reading the hot set of ten million frames, which stands before the first request."""
    tables, frames_of_each = 200, 50_000
    rng = np.random.default_rng(1)
    cache = FrameCache(1 << 30)
    for path in paths_of(tables):
        lengths = rng.integers(2_000, 4_000, frames_of_each).astype(np.uint64)
        offsets = np.concatenate([[0], np.cumsum(lengths[:-1] + 8)]).astype(np.uint64) + np.uint64(1352)
        cache.put(path, offsets, lengths, ts_uid="1.2.840.10008.1.2.4.50", pixel_data_pos=1330)
    saved = folder / "hot"
    result = Result(
        JOURNEY, "hot set of 10 M frames", f"{tables} slides of {frames_of_each:,} tiles", "start", 1
    )
    ways = [
        Way("saved", timed(lambda: save_hot_set(cache, saved) == tables), role="voxtier"),
        Way(
            "read",
            timed(lambda: restore_hot_set(FrameCache(1 << 30), saved) == tables, gc.collect),
            role="voxtier",
        ),
    ]
    result.facts.append(f"{cache.counters()['used'] / 1e6:.0f} MB in memory")
    return race(result, ways, [Limit("read", 1.0), Limit("saved", 1.0)], rounds=rounds)
