"""kill -9 at random moments of `generate`: no bad final file, and a resumed run does only what is missing."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from pathlib import Path

import pytest

from tensors.cases import names_of, nifti_bytes, write_project
from tensors.making.hub_server import HubServer
from voxtier import _core
from voxtier.tensors import Manifest, item_key, load_config
from voxtier.tensors.identity.folders import item_folder, remember_folder
from voxtier.tensors.identity.keys import hub_path
from voxtier.tensors.keeping.disk_usage import find_garbage, remove
from voxtier.tensors.making.hub import Hub
from voxtier.tensors.making.run import Generator, Options
from voxtier.tensors.making.worker_pool import WorkerPool

# this process has threads (a server's, numpy's); its children run no code of theirs
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def run_once(config_path: Path, endpoint: str) -> int:
    """The real coordinator, with workers forked from this warm process instead of a cold server."""
    config = load_config(config_path, environment={})
    generator = Generator(config, Options(workers=2, min_free=0), hub=Hub("some/CT-RATE", endpoint=endpoint))
    result = generator.run(generator.plan())
    assert not result.failed, result.failed
    return result.made


def start(config_path: Path, endpoint: str) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            run_once(config_path, endpoint)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def hammer(base: Path, kills: int, seed: int = 11) -> None:
    draw = random.Random(seed)
    path = write_project(base, names_of(12))
    config = load_config(path, environment={})
    folder = item_folder(config)
    remember_folder(config, folder)
    killed = 0
    with HubServer() as server:
        for number, name in enumerate(names_of(12)):
            server.files[hub_path(name)] = nifti_bytes(number)
        while killed < kills:
            pid = start(path, server.endpoint)
            deadline = time.monotonic() + draw.uniform(0.02, 0.9)
            finished = 0
            while time.monotonic() < deadline and not finished:
                finished, status = os.waitpid(pid, os.WNOHANG)
                if finished:
                    assert os.waitstatus_to_exitcode(status) == 0
                for final in folder.glob("*.pt"):  # a reader at any moment sees whole files only
                    assert _core.verify_tensor_file(final, crc=False).state in ("ok", "io_error")
                time.sleep(0.01)
            if not finished:
                try:
                    os.killpg(pid, signal.SIGKILL)
                except ProcessLookupError:  # so early that it leads no group yet
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                killed += 1
            present = sorted(folder.glob("*.pt"))
            assert [p.name for p in present if _core.verify_tensor_file(p).state != "ok"] == []
            if len(present) == 12:
                for final in draw.sample(present, 10):
                    final.unlink()
        missing = 12 - len(list(folder.glob("*.pt")))
        assert (
            run_once(path, server.endpoint) <= missing
        )  # a killed one's last rename may come after the count
    assert {p.stem for p in folder.glob("*.pt")} == {item_key(name) for name in names_of(12)}
    assert [p for p in config.img_dir.rglob("*") if p.name.endswith(".nii.gz")] == []
    for garbage in list(find_garbage(folder)):
        assert remove(garbage) == "removed"
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    assert len(Manifest(folder).read()) == 12


@pytest.fixture(autouse=True)
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    import voxtier.tensors.making.worker  # noqa: F401

    monkeypatch.setattr(WorkerPool, "start_method", "fork")


def test_eight_kills_leave_no_partial_file(tmp_path: Path) -> None:
    hammer(tmp_path / "p", 8)


@pytest.mark.soak
def test_a_thousand_kills_leave_no_partial_file(tmp_path: Path) -> None:
    hammer(tmp_path / "p", 1000)
