from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import util

import pytest

from tensors.making.hub_server import HubServer
from tensors.making.project import start_warm


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="session", autouse=True)
def _warm_fork_server() -> Iterator[None]:
    """For runs in this process; one that a test starts by `Project.cli` has a cold one, as a user's has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(util, "spawnv_passfds", start_warm)
        yield
