"""Makes the clients of stores: how each is reached, by the environment and `S3Config`."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from voxtier.system.s3_config import S3Config

_TIMEOUT = 30.0


def make_client(root: str, config: S3Config, region: str = "") -> Any:
    """Return obstore's client of a store.

    Parameters
    ----------
    root : str
        See `stores.Store`; ``https://host/path`` too, of which the client asks for the path as it is written.
    config : S3Config
        How ``s3://`` is reached.
    region : str
        Where the bucket lies, if that was found out.

    Returns
    -------
    object
        It tries nothing again by itself.
    """
    from obstore.store import HTTPStore, S3Store, from_url

    timeout = _TIMEOUT if config.timeout is None else config.timeout
    client: Any = {
        "timeout": timedelta(seconds=timeout),
        "connect_timeout": timedelta(seconds=min(timeout, 5.0)),
    }
    common: Any = {"retry_config": {"max_retries": 0}}
    if root.startswith("http"):
        client["allow_http"] = root.startswith("http:")
        return HTTPStore.from_url(root, client_options=client, **common)
    if not root.startswith("s3:"):
        cloud = "GOOGLE" if root.startswith("gs:") else "AZURE"
        if os.environ.get(f"{cloud}_ALLOW_HTTP", "").lower() in ("true", "1"):
            client["allow_http"] = True
        return from_url(root, client_options=client, **common)
    options = config.store_options() | ({"region": region} if region else {})
    endpoint = options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL", "")
    if endpoint.startswith("http:"):
        client["allow_http"] = True
    return S3Store(root.removeprefix("s3://"), client_options=client, **options, **common)
