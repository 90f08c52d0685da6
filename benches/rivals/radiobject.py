"""RadiObject 0.1.1 in an interpreter of its own, driven by lines of JSON; it takes its own times.

``make bench`` installs it; VOXTIER_RADIOBJECT_PYTHON names another Python that has ``radiobject==0.1.1``.
Without it, its ways are left out of the races.
"""

from __future__ import annotations

from typing import Any

from benches.rivals.elsewhere import Elsewhere, python_of

PYTHON = python_of("radiobject", "VOXTIER_RADIOBJECT_PYTHON")

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


class Rival(Elsewhere):
    """The process; ``lap`` asks for one piece of work."""

    def __init__(self, **environment: str) -> None:
        super().__init__(PYTHON, SERVER, **environment)

    def lap(self, what: str, uri: object, **options: Any) -> tuple[float, Any]:
        """Return its own seconds, and the answer."""
        seconds, answer = self.ask(what=what, uri=str(uri), **options)
        return seconds, answer
