"""Servers of frames for the gateway's journey, and the load that they get.

Load generators of other projects (wrk, h2load) ask over keep-alive connections; what is compared is the time
that the server's processes spend on processors, so that other load on the machine weighs less.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import benches.inputs.files  # noqa: F401 - puts the tests' folder on the path
from support.builders import JPEG, Element, Fragments, dicom, element, image, jpeg, pattern
from voxtier.postgres.embedded import EmbeddedServer

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


GATEWAY = """
import sys, time
from voxtier.frames import FrameStore, Gateway
gateway = Gateway(FrameStore(sys.argv[1]), "bench", port=int(sys.argv[2]), workers=1, index_seconds=60)
gateway.start()
time.sleep(1e6)
"""


class Served(NamedTuple):
    """A server that answers: its address, its processes, the path of a frame (@ is its number)."""

    port: int
    pids: Callable[[], list[int]]
    path: str


def described(uid: str, **options: int) -> list[Element]:
    """Return the attributes of an image of this journey's series."""
    uids = {"SOPInstanceUID": uid, "StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}
    own = {each.tag: each for each in (element(name, value) for name, value in uids.items())}
    return [own.get(each.tag, each) for each in image(**options)]


def write_files(folder: Path, tiles: int) -> list[str]:
    """Write a slide of tiles of 3 kB, with an offset table, and a CT of 200 frames."""
    folder.mkdir()
    kinds = [jpeg(3100, seed=number) for number in range(251)]
    payloads = [kinds[number % 251] for number in range(tiles)]
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
    place = Path(tempfile.mkdtemp(dir=folder))
    (place / "frames").mkdir()
    for number in range(1, min(count, 2000) + 1):
        body = jpeg(3100, seed=(number - 1) % 251) if uid == TILE else pattern(SIZE)
        (place / "frames" / str(number)).write_bytes(body)
    with plain_files(place) as (port, process):
        yield Served(port, lambda: [process.pid, *children(process.pid)], "/frames/@")


@contextmanager
def plain_files(root: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Nginx over the files of a folder: its port, and its process."""
    port, place = free_port(), Path(tempfile.mkdtemp(dir=root))
    (place / "nginx.conf").write_text(
        f"worker_processes 1; pid {place}/pid; error_log {place}/log; user root;\n"
        f"events {{ worker_connections 512; }}\nhttp {{ access_log off; sendfile on; tcp_nopush on; "
        f"keepalive_requests 1000000; open_file_cache max=5000; client_body_temp_path {place}; "
        f"proxy_temp_path {place}; fastcgi_temp_path {place}; uwsgi_temp_path {place}; "
        f"scgi_temp_path {place};\n"
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    )
    os.chmod(root, 0o755)
    process = subprocess.Popen(["nginx", "-c", str(place / "nginx.conf"), "-g", "daemon off;"])
    try:
        wait_for(port, process)
        yield port, process
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


def highest_memory(pid: int) -> int:
    """Return the most memory that a process had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def load(
    served: Served, uid: str, count: int, seconds: float, more: str = "", connections: int = 8
) -> tuple[float, bool]:
    """Ask for random frames; return CPU seconds a request, and whether every answer had a good status."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        path = served.path.format(uid)
        script.write(SCRIPT.format(frames=count, path=path, accept=STAR, more=more))
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", script.name]
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


def load_h2(served: Served, uid: str, count: int, seconds: float, streams: int) -> tuple[float, bool]:
    """Ask as `load` does, over HTTP/2 without TLS: eight connections of some streams each, by h2load."""
    path = served.path.format(uid)
    uris = [
        f"http://127.0.0.1:{served.port}{path.replace('@', str(number % count + 1))}"
        for number in range(1, 2000, 7)
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listing:
        listing.write("\n".join(uris))
        listing.flush()
        command = [
            "h2load",
            "-t1",
            "-c8",
            f"-m{streams}",
            f"-D{max(1, round(seconds))}",
            "-H",
            f"accept: {STAR}",
        ]
        before = cpu_seconds(served.pids())
        done = subprocess.run([*command, "-i", listing.name], capture_output=True, text=True, check=True)
        spent = cpu_seconds(served.pids()) - before
    found = re.search(r"requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored", done.stdout)
    good, failed, errored = (int(number) for number in found.groups())
    return spent / max(1, good), failed == errored == 0


def latencies(served: Served, uid: str, count: int, seconds: float) -> tuple[float, float]:
    """Ask by 256 connections; return the median and the 99th percentile in seconds."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        path = served.path.format(uid)
        script.write(SCRIPT.format(frames=count, path=path, accept=STAR, more=""))
        script.flush()
        command = ["wrk", "-t1", "-c256", "--latency", f"-d{max(2, round(seconds))}s", "-s", script.name]
        url = f"http://127.0.0.1:{served.port}/"
        done = subprocess.run([*command, url], capture_output=True, text=True, check=True)
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
    found = dict(re.findall(r"(50|99)%\s+([0-9.]+(?:us|ms|s))", done.stdout))
    median, worst = (
        float(re.sub("[a-z]", "", found[each])) * units[re.sub("[0-9.]", "", found[each])]
        for each in ("50", "99")
    )
    return median, worst


def load_singly(served: Served, uid: str, count: int, requests: int) -> tuple[float, bool]:
    """Ask for frames one after another, where a request takes seconds."""
    good = True
    before = cpu_seconds(served.pids())
    for number in range(requests):
        path = served.path.format(uid).replace("@", str(count // 2 + number))
        asked = urllib.request.Request(f"http://127.0.0.1:{served.port}{path}", headers={"Accept": STAR})
        with urllib.request.urlopen(asked, timeout=120) as answer:
            good &= answer.status == 200 and len(answer.read()) > 3000
    return (cpu_seconds(served.pids()) - before) / requests, good


ORTHANC_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@contextmanager
def orthanc(folder: Path, files: list[str]) -> Iterator[Served]:
    """Orthanc of Debian with its DICOMweb plug-in, which has taken the files in."""
    port, place = free_port(), Path(tempfile.mkdtemp(dir=folder))
    settings = {
        "StorageDirectory": str(place / "storage"),
        "IndexDirectory": str(place / "storage"),
        "HttpPort": port,
        "DicomPort": free_port(),
        "AuthenticationEnabled": False,
        "Plugins": [str(ORTHANC_PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicomweb/"},
    }
    (place / "orthanc.json").write_text(json.dumps(settings))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(["Orthanc", str(place / "orthanc.json")], **quiet)
    try:
        wait_for(port, process)
        for file in files:
            url = f"http://127.0.0.1:{port}/instances"
            urllib.request.urlopen(urllib.request.Request(url, Path(file).read_bytes(), method="POST")).read()
        path = f"/dicomweb/studies/{STUDY}/series/{SERIES}/instances/{{}}/frames/@"
        yield Served(port, lambda: [process.pid], path)
    finally:
        process.terminate()
        process.wait()
