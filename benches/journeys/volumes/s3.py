"""Journey: requests that a real S3 server sees (seaweedfs on this machine, behind a proxy that counts)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benches.journeys.volumes.reads import digests, tile_of
from benches.measure import Goal, Lap, Result, Way, race
from benches.rivals.radiobject import PYTHON, Rival
from voxtier.volumes import RadiObject, S3Config, Volume, configure, configured

sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))
from volumes.store.s3_server import KEY, SECRET, Server


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Count requests; times are left out, as a server on the same machine has no latency."""
    place = folder / "weed"
    place.mkdir()
    server = Server(place)
    os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    try:
        server.wait_for_first_put("bench")
        endpoint = f"http://127.0.0.1:{server.proxy.port}"
        configure(s3=S3Config(endpoint=endpoint, use_virtual_addressing=False, multipart_part_size_mb=5))
        yield from races(folder, server, endpoint)
    finally:
        server.stop()


def races(folder: Path, server: Server, endpoint: str) -> list[Result]:
    """Count the requests of warm slices, the first slice, a volume written and a cohort ingested."""
    import nibabel as nib
    import tiledb

    data = np.random.default_rng(0).integers(0, 999, (96, 96, 60)).astype(np.int16)
    np.save(folder / "s3.npy", data)
    slices = list(range(0, 60, 6))
    pairs = []
    for number in range(10):
        path = folder / f"s{number}_CT.nii.gz"
        nib.save(nib.Nifti1Image(data + number, np.eye(4)), path)
        pairs.append((str(path), f"s{number}"))
    keys = {
        "vfs.s3.endpoint_override": endpoint.removeprefix("http://"),
        "vfs.s3.scheme": "http",
        "vfs.s3.use_virtual_addressing": "false",
        "vfs.s3.region": "us-east-1",
        "vfs.s3.aws_access_key_id": KEY,
        "vfs.s3.aws_secret_access_key": SECRET,
    }
    context = tiledb.Ctx(keys)

    def naive_write() -> None:
        dims = [
            tiledb.Dim(n, (0, s - 1), e, dtype=np.int32, ctx=context)
            for n, s, e in zip("xyz", data.shape, (96, 96, 1), strict=True)
        ]
        attr = tiledb.Attr("", data.dtype, filters=tiledb.FilterList([tiledb.ZstdFilter(3)]), ctx=context)
        schema = tiledb.ArraySchema(tiledb.Domain(*dims, ctx=context), [attr], ctx=context)
        tiledb.Array.create("s3://bench/naive", schema, ctx=context)
        with tiledb.open("s3://bench/naive", "w", ctx=context) as array:
            array[:] = data

    def naive_slice(z: int) -> np.ndarray:
        with tiledb.open("s3://bench/naive", ctx=context) as array:
            return array[:, :, z]

    def ours_write() -> None:
        with configured(tile=tile_of("axial")):
            Volume.from_numpy("s3://bench/ours", data)

    def ingest() -> None:
        RadiObject.from_niftis("s3://bench/cohort", images={"CT": pairs})

    def counted(work: Callable[[], Any]) -> Callable[[], Lap]:
        def lap() -> Lap:
            server.proxy.forget()
            answer = work()
            return float(len(server.proxy.requests)), answer

        return lap

    rival = Rival() if PYTHON is not None else None

    def radiobject(what: str, uri: str, **options: Any) -> list[Way]:
        if rival is None:
            return []
        return [
            Way("RadiObject 0.1.1", counted(lambda: rival.lap(what, uri, endpoint=endpoint, **options)[1]))
        ]

    def one(title: str, unit: str, amount: int, ways: list[Way], goals: list[Goal]) -> Result:
        result = Result("volume_s3", title, STORY, unit, amount, quantity="requests")
        return race(
            result, ways, goals, rounds=1, same=lambda answer: answer if isinstance(answer, list) else None
        )

    results = [
        one(
            "Write a volume to S3",
            "volume",
            1,
            [
                Way("voxtier", counted(ours_write), "voxtier"),
                Way("TileDB-Py, as in its tutorials", counted(naive_write)),
                *radiobject("store", "s3://bench/radi", source=str(folder / "s3.npy")),
            ],
            [],
        ),
    ]
    volume = Volume("s3://bench/ours")
    calls = [("axial", z) for z in slices]
    results.append(
        one(
            "Open a volume on S3 and read its first slice",
            "slice",
            1,
            [
                Way("voxtier", counted(lambda: digests([volume.axial(30)])), "voxtier"),
                Way("TileDB-Py, as in its tutorials", counted(lambda: digests([naive_slice(30)]))),
                *radiobject("read", "s3://bench/radi", keys=[("axial", 30)]),
            ],
            [],
        )
    )
    results.append(
        one(
            "Ten slices of an open volume",
            "slice",
            len(slices),
            [
                Way("voxtier", counted(lambda: digests([volume.axial(z) for z in slices])), "voxtier"),
                Way(
                    "TileDB-Py, as in its tutorials",
                    counted(lambda: digests([naive_slice(z) for z in slices])),
                ),
                *radiobject("read", "s3://bench/radi", keys=calls),
                Way("one GET a slice", lambda: (float(len(slices)), None), "floor"),
            ],
            [Goal("voxtier", "one GET a slice", 1.0)],
        )
    )
    results.append(
        one(
            "Ingest ten files into a cohort on S3",
            "file",
            10,
            [
                Way("voxtier", counted(ingest), "voxtier"),
                *radiobject("ingest", "s3://bench/radi-cohort", pairs=pairs),
            ],
            [],
        )
    )
    if rival is not None:
        rival.__exit__()
    return results


STORY = "Requests of any kind, counted between client and server; 96 x 96 x 60 int16, axial tiles."
