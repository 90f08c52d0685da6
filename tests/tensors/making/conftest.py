from __future__ import annotations

from collections.abc import Iterator

import pytest

from tensors.making.hub_server import HubServer


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub
