"""RadiObject 0.1.1 in an interpreter of its own, driven by lines of JSON; it takes its own times.

``make bench`` installs it; VOXTIER_RADIOBJECT_PYTHON names another Python that has ``radiobject==0.1.1``.
Without it, its ways are left out of the races.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any, Self

from benches.measure import ROOT

INSTALLED = ROOT / ".venv" / "radiobject" / "bin" / "python"
PYTHON = os.environ.get("VOXTIER_RADIOBJECT_PYTHON") or (str(INSTALLED) if INSTALLED.exists() else None)

SERVER = r"""
import json, os, sys, time, zlib
import numpy as np
from radiobject import configure, RadiObject
from radiobject.ctx import S3Config, SliceOrientation, TileConfig
from radiobject.volume import Volume

opened = {}
def key_of(parts):
    return tuple(slice(*p) if isinstance(p, list) else p for p in parts)
def answer(parts):
    return [zlib.crc32(np.ascontiguousarray(part).tobytes()) for part in parts]

def run(what, uri, orientation="axial", tile=(), source=None, keys=(), pairs=(), endpoint=None):
    configure(tile=TileConfig(orientation=SliceOrientation(orientation), **dict(zip("xyz", tile))))
    if endpoint:
        configure(s3=S3Config(endpoint=endpoint, use_virtual_addressing=False))
    if what == "store":
        data = np.load(source)
        start = time.perf_counter()
        opened[uri] = Volume.from_numpy(uri, data)
        return time.perf_counter() - start, list(data.shape)
    if what == "read":
        volume = opened.get(uri) or opened.setdefault(uri, Volume(uri))
        calls = []
        for kind, key in keys:
            if kind == "box":
                calls.append((volume.__getitem__, key_of(key)))
            elif kind == "full":
                calls.append((lambda _: volume.to_numpy(), None))
            else:
                calls.append((getattr(volume, kind), key))
        start = time.perf_counter()
        got = [call(argument) for call, argument in calls]
        seconds = time.perf_counter() - start
        return seconds, answer(got)
    if what == "ingest":
        start = time.perf_counter()
        RadiObject.from_niftis(uri, images={"CT": [tuple(pair) for pair in pairs]})
        return time.perf_counter() - start, len(pairs)
    if what == "iloc":
        radi = opened.get(uri) or opened.setdefault(uri, RadiObject(uri))
        start = time.perf_counter()
        volumes = [radi.CT.iloc[place] for place in keys]
        seconds = time.perf_counter() - start
        return seconds, answer([volume.to_numpy() for volume in volumes])

out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever it prints goes to the terminal
for line in sys.stdin:
    seconds, result = run(**json.loads(line))
    print(json.dumps([seconds, result]), file=out, flush=True)
"""


class Rival:
    """The process; ``lap`` asks for one piece of work."""

    def __init__(self, **environment: str) -> None:
        assert PYTHON is not None
        self._process = subprocess.Popen(
            [PYTHON, "-W", "ignore", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=ROOT, env={**os.environ, **environment},
        )  # fmt: skip

    def lap(self, what: str, uri: object, **options: Any) -> tuple[float, Any]:
        """Return its own seconds, and the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, "uri": str(uri), **options}, default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"RadiObject ended with {self._process.wait()}")
        seconds, answer = json.loads(line)
        return seconds, answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()
