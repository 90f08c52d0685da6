"""The router of examples/ in an application of Starlette, asked over HTTP without a socket."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import httpx
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from starlette.applications import Starlette
from starlette.routing import Mount

from voxtier.frames import FrameReader, FrameStore, read_tables

ROUTER = Path(__file__).parents[3] / "examples" / "router.py"


def test_frames_by_uid_over_http_and_what_is_not_there(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("router", ROUTER)
    assert spec is not None
    assert spec.loader is not None
    router = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(router)
    path = get_testdata_file("CT_small.dcm")
    dataset = dcmread(path)
    (tmp_path / "1").write_bytes(Path(path).read_bytes())
    monkeypatch.chdir(tmp_path)

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        uid = dataset.SOPInstanceUID
        names = [
            f"{uid}/1",
            f"{uid}/2",
            f"{uid}/0",
            "1.2.3/1",
            f"{tmp_path}/1/1",
            "..%2F1/1",
            "secret/1",
            f"{uid}/-1",
        ]
        return [await client.get(f"http://app/frames/{name}") for name in names]

    with FrameStore(dsn) as store:
        store.upsert("default", read_tables([path]))
        with FrameReader(store) as reader:
            app = Starlette(routes=[Mount("/frames", router.frame_router(reader))])

            async def main() -> list[httpx.Response]:
                async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as client:
                    return await ask(client)

            first, *others = asyncio.run(main())
    assert (first.status_code, first.content) == (200, dataset.PixelData)
    assert [answer.status_code for answer in others] == [404] * len(others)
