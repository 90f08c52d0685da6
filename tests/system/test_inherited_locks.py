"""A lock that a thread of the parent holds while it forks is free in the child."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    # Tests that ran before in this process may have used TileDB.
    pytest.mark.filterwarnings("ignore:TileDB is a multithreading library"),
]

PATIENCE = 60  # seconds until a child that hangs is ended


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """Let another thread hold the lock."""
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            is_held.set()
            may_end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    try:
        yield
    finally:
        may_end.set()
        thread.join()


def ended(work: Callable[[], object]) -> int:
    """Return 0 where a forked child does the work, 1 where it fails, minus the signal where it hangs."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("tensors.identity.pipeline", "_construction_lock"),
        ("tensors.saving", "_safe_globals_lock"),
        ("volumes.config", "_lock"),
        ("volumes.formats.dicom.attributes", "_lock"),
        ("volumes.tiledb.format.direct", "_lock"),
    ],
)
def test_the_locks_of_modules(module: str, name: str) -> None:
    pytest.importorskip("monai" if module.startswith("tensors") else "tiledb")
    loaded = importlib.import_module(f"voxtier.{module}")

    def take() -> None:
        if not getattr(loaded, name).acquire(blocking=False):
            os._exit(1)

    with held(getattr(loaded, name)):
        assert ended(take) == 0


def test_the_engine_of_a_dataset(tmp_path: Path) -> None:
    """As a worker of a DataLoader has it that starts while a thread of its parent makes items."""
    pytest.importorskip("monai")
    from voxtier.tensors.engine.checked import CheckedEngine
    from voxtier.tensors.engine.outcome import Outcome
    from voxtier.tensors.engine.pipelines import configured_pipeline
    from voxtier.tensors.identity.config import ImageProcessing
    from voxtier.tensors.identity.pipeline import build_transforms

    processing = ImageProcessing((1.5, 1.5, 3.0), (16, 20, 24), -1000, 1000, "LPS", -1.0, 1.0, "float32")
    engine = CheckedEngine(configured_pipeline(build_transforms(processing), processing))
    policy = engine._policy()
    for _ in range(policy.PROOFS):  # volumes of that class are under way: no other needs to be compared
        policy.begin("a class", "check")
    assert policy.expect("a class") == "fused"

    def make() -> None:
        made, _ = engine.make({"image": tmp_path / "absent.nii"}, lambda: {"image": 1})
        assert made == {"image": 1}
        assert engine._policy().expect("a class") == "check"  # what a parent proves, its child never hears of

    with held(engine._lock):
        assert ended(make) == 0
    policy.settle("a class", "check", Outcome("fused", is_checked=True))
    assert policy.expect("a class") == "fused"


def test_the_rows_of_a_collection() -> None:
    pytest.importorskip("tiledb")
    from voxtier.volumes.cohort.snapshot_rows import Rows

    rows = Rows("nowhere", None, None)  # type: ignore[arg-type]

    def take() -> None:
        if not rows._lock.acquire(blocking=False):
            os._exit(1)

    with held(rows._lock):
        assert ended(take) == 0
