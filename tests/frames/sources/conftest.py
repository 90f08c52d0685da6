"""A real S3 server behind a proxy that counts, delays and fails requests."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

pytest.importorskip("obstore")

from support.object_proxy import ObjectProxy
from volumes.store.s3_server import KEY, SECRET, start_server
from voxtier.system.s3_config import S3Config, configure_s3, get_s3_config


class Bucket:
    """A bucket: what is put goes to the server itself, what is read passes the proxy."""

    #: One that everybody may read.
    public: Bucket

    def __init__(self, name: str, port: int, proxy: ObjectProxy) -> None:
        from obstore.store import S3Store

        self.name, self.proxy = name, proxy
        self.client: Any = S3Store(
            name,
            endpoint=f"http://127.0.0.1:{port}",
            access_key_id=KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True, "timeout": timedelta(seconds=60)},
        )

    def put(self, key: str, content: bytes, **options: Any) -> str:
        """Put an object; return its address."""
        self.client.put(key, content, **options)
        return f"s3://{self.name}/{key}"


# Not of the session: an idle server takes 4 % of a core until its end.
@pytest.fixture(scope="package")
def _bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    server = start_server(tmp_path_factory.mktemp("weed"), "frames")
    proxy = ObjectProxy(server.port)
    server._make_bucket("public")
    bucket = Bucket("frames", server.port, proxy)
    bucket.public = Bucket("public", server.port, proxy)
    try:
        yield bucket
    finally:
        proxy.close()
        server.stop()


@pytest.fixture
def bucket(_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    # A client that another test has renewed is signed with keys that are none of this one.
    monkeypatch.setattr("voxtier.frames.sources.stores._stores", {})
    before = get_s3_config()
    endpoint = f"http://127.0.0.1:{_bucket.proxy.port}"
    configure_s3(S3Config(endpoint=endpoint, use_virtual_addressing=False, timeout=20.0))
    _bucket.proxy.forget()
    yield _bucket
    configure_s3(before)
    _bucket.proxy.forget()
