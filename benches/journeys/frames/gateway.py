"""Journey: frames over HTTP: CPU of the server for a request, beside nginx and starlette.

A load generator of another project (wrk) asks over keep-alive connections; what is compared is the time that
the server's processes spend on processors, so that other load on the machine weighs less. Programs that are
not installed are left out by name.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import benches.inputs.files  # noqa: F401 - puts the tests' folder on the path
from benches.measure import Goal, Result, Way, race
from support.builders import JPEG, Element, Fragments, dicom, element, image, jpeg, pattern
from voxtier.frames import FrameStore, read_tables
from voxtier.postgres.embedded import EmbeddedServer

JOURNEY = "gateway"
STUDY, SERIES = "1.2.3", "1.2.3.4"
TILE, CT = "1.2.3.4.1", "1.2.3.4.2"
SIZE = 512 * 512 * 2
STAR = 'multipart/related; type="application/octet-stream"; transfer-syntax="*"'
TICKS = os.sysconf("SC_CLK_TCK")

# Asks for one random frame of many, with keep-alive.
SCRIPT = """
local frames, path = {frames}, "{path}"
request = function()
  return wrk.format("GET", path:gsub("@", tostring(math.random(frames))), {{["Accept"] = '{accept}'{more}}})
end
"""

STARLETTE = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from voxtier.frames import FrameReader, FrameStore
reader = FrameReader(FrameStore(sys.argv[1]), "bench", publish=False)
async def frame(request):
    body = await reader.aframe(request.path_params["sop"], int(request.path_params["frame"]) - 1)
    head = b"--b\\r\\nContent-Type: application/octet-stream\\r\\n\\r\\n"
    return Response(head + body + b"\\r\\n--b--\\r\\n", media_type='multipart/related; boundary=b')
path = "/dicomweb/studies/{study}/series/{series}/instances/{sop}/frames/{frame}"
app = Starlette(routes=[Route(path, frame)])
uvicorn.run(app, port=int(sys.argv[2]), log_level="error", access_log=False)
"""


class Served(NamedTuple):
    """A server that answers: its address, its processes, the path of a frame (@ is its number)."""

    port: int
    pids: Callable[[], list[int]]
    path: str


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Measure tiles of a slide and slices of a CT, each from every server in turns."""
    if shutil.which("wrk") is None:
        print("gateway: wrk is not installed (apt-get install wrk): left out", file=sys.stderr)
        return
    tiles = 2_000 if quick else 50_000
    files = write_files(folder / "images", tiles)
    seconds = 0.5 if quick else 3.0
    with ExitStack() as stack:
        dsn = stack.enter_context(database(folder / "server"))
        with FrameStore(dsn) as store:
            store.upsert("bench", read_tables(files, verify="all"))
        gateway = stack.enter_context(in_process(GATEWAY, dsn))
        yield frames(stack, folder, gateway, dsn, "tile", TILE, tiles, seconds, rounds)
        yield frames(stack, folder, gateway, dsn, "512 KiB frame", CT, 200, seconds, rounds)
        yield unmodified(gateway, tiles, seconds, rounds)


def described(uid: str, **options: int) -> list[Element]:
    """Return the attributes of an image of this journey's series."""
    uids = {"SOPInstanceUID": uid, "StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}
    own = {each.tag: each for each in (element(name, value) for name, value in uids.items())}
    return [own.get(each.tag, each) for each in image(**options)]


def write_files(folder: Path, tiles: int) -> list[str]:
    """Write a slide of tiles of 3 kB, with an offset table, and a CT of 200 frames."""
    folder.mkdir()
    payloads = [jpeg(3100, seed=number % 251) for number in range(tiles)]
    slide = Fragments(payloads, table=Fragments(payloads).offsets())
    pixels = {TILE: slide, CT: pattern(SIZE) * 200}
    shapes = {
        TILE: (JPEG, {"frames": tiles}),
        CT: (None, {"rows": 512, "columns": 512, "bits": 16, "frames": 200}),
    }
    paths = []
    for uid, (syntax, shape) in shapes.items():
        path = folder / f"{uid}.dcm"
        elements = [*described(uid, **shape), element("PixelData", pixels[uid])]
        path.write_bytes((dicom(elements) if syntax is None else dicom(elements, syntax)).content)
        paths.append(str(path))
    return paths


GATEWAY = """
import sys, time
from voxtier.frames import FrameStore, Gateway
gateway = Gateway(FrameStore(sys.argv[1]), "bench", port=int(sys.argv[2]), workers=1, index_seconds=60)
gateway.start()
time.sleep(1e6)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def database(folder: Path) -> Iterator[str]:
    """Run a PostgreSQL server for this journey."""
    server = EmbeddedServer(folder)
    server.attach()
    try:
        yield server.conninfo()
    finally:
        server.detach()


@contextmanager
def in_process(script: str, dsn: str) -> Iterator[Served]:
    """Run a server in a Python process of its own."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", script, dsn, str(port)])
    try:
        path = f"/dicomweb/studies/{STUDY}/series/{SERIES}/instances/{{}}/frames/@"
        wait_for(port, process)
        yield Served(port, lambda: [process.pid], path)
    finally:
        process.kill()
        process.wait()


@contextmanager
def nginx(folder: Path, uid: str, count: int) -> Iterator[Served]:
    """Nginx over one file a frame: the floor that no server of frames goes below."""
    port, place = free_port(), Path(tempfile.mkdtemp(dir=folder))
    (place / "frames").mkdir()
    for number in range(1, min(count, 2000) + 1):
        body = jpeg(3100, seed=(number - 1) % 251) if uid == TILE else pattern(SIZE)
        (place / "frames" / str(number)).write_bytes(body)
    (place / "nginx.conf").write_text(
        f"worker_processes 1; pid {place}/pid; error_log {place}/log; user root;\n"
        f"events {{ worker_connections 512; }}\nhttp {{ access_log off; sendfile on; tcp_nopush on; "
        f"keepalive_requests 1000000; open_file_cache max=5000; client_body_temp_path {place}; "
        f"proxy_temp_path {place}; fastcgi_temp_path {place}; uwsgi_temp_path {place}; "
        f"scgi_temp_path {place};\n"
        f"server {{ listen 127.0.0.1:{port}; root {place}; }} }}\n"
    )
    os.chmod(place, 0o755)
    process = subprocess.Popen(["nginx", "-c", str(place / "nginx.conf"), "-g", "daemon off;"])
    try:
        wait_for(port, process)
        yield Served(port, lambda: [process.pid, *children(process.pid)], "/frames/@")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def children(pid: int) -> list[int]:
    """Return the children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a port answers."""
    for _ in range(1200):
        if process.poll() is not None:
            raise RuntimeError(f"a server ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"port {port} does not answer")


def cpu_seconds(pids: list[int]) -> float:
    """Return what processes have spent on processors: user and system time."""
    spent = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        spent += int(fields[11]) + int(fields[12])
    return spent / TICKS


def load(served: Served, uid: str, count: int, seconds: float, more: str = "") -> tuple[float, bool]:
    """Ask for random frames; return CPU seconds a request, and whether every answer had a good status."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        path = served.path.format(uid)
        script.write(SCRIPT.format(frames=count, path=path, accept=STAR, more=more))
        script.flush()
        command = ["wrk", "-t1", "-c8", f"-d{max(1, round(seconds))}s", "-s", script.name]
        before = cpu_seconds(served.pids())
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{served.port}/"], capture_output=True, text=True, check=True
        )
        spent = cpu_seconds(served.pids()) - before
    requests = int(re.search(r"(\d+) requests in", done.stdout)[1])
    return spent / requests, "Non-2xx" not in done.stdout and "Socket errors" not in done.stdout


def holds(served: Served, uid: str, frame: bytes) -> bool:
    """Return whether the server's second frame is right."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{served.port}{served.path.format(uid).replace('@', '2')}", headers={"Accept": STAR}
    )
    with urllib.request.urlopen(request) as answer:
        return frame in answer.read()


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
    servers: dict[str, Served] = {"voxtier gateway": gateway}
    if shutil.which("nginx"):
        servers["nginx, a file a frame"] = stack.enter_context(nginx(folder, uid, count))
    else:
        result.facts.append("nginx is not installed: left out")
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        result.facts.append("starlette and uvicorn are not installed: left out")
    else:
        servers["starlette over FrameReader"] = stack.enter_context(in_process(STARLETTE, dsn))

    def lap(name: str) -> Callable[[], tuple[float, bool]]:
        served = servers[name]
        limit = min(count, 2000) if name.startswith("nginx") else count

        def measured() -> tuple[float, bool]:
            spent, good = load(served, uid, limit, seconds)
            return spent, good and holds(served, uid, second)

        return measured

    roles = {"voxtier gateway": "voxtier", "nginx, a file a frame": "floor"}
    ways = [Way(name, lap(name), role=roles.get(name, "rival")) for name in servers]
    goals = []
    if "nginx, a file a frame" in servers:
        goals.append(Goal("voxtier gateway", "nginx, a file a frame", 1 / 1.3))
    if "starlette over FrameReader" in servers and uid == TILE:
        goals.append(Goal("voxtier gateway", "starlette over FrameReader", 8))
    return race(result, ways, goals, rounds=rounds)


def unmodified(gateway: Served, count: int, seconds: float, rounds: int) -> Result:
    """Measure requests whose client has the tile already, beside those that get it."""
    result = Result(
        JOURNEY, "CPU a request: not modified", "If-None-Match: * beside a whole tile", "request", 1
    )

    def asked(more: str) -> Callable[[], tuple[float, bool]]:
        def measured() -> tuple[float, bool]:
            spent, _ = load(gateway, TILE, count, seconds, more)
            return spent, True

        return measured

    ways = [
        Way("304", asked(', ["If-None-Match"] = "*"'), role="voxtier"),
        Way("200", asked(""), role="rival"),
    ]
    return race(result, ways, [Goal("304", "200", 1 / 0.7)], rounds=rounds)
