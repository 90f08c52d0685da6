"""An ingest that ends as by kill -9, in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxtier.volumes import RadiObject, ReadConfig, configure
from voxtier.volumes.store import ingest
from voxtier.volumes.store.jobs import Job


def kill_ingest(root: Path, images: Sequence[tuple[Path, str]], at: str) -> None:
    """Ingest T1w images one after the other; the process dies when the turn of a subject comes."""
    child = multiprocessing.get_context("forkserver").Process(target=_ingest_until, args=(root, images, at))
    child.start()
    child.join(200)
    assert child.exitcode == 9


def _ingest_until(root: Path, images: Sequence[tuple[Path, str]], at: str) -> None:
    original = ingest._write

    def write(uri: str, job: Job, *rest: Any) -> Any:
        if job.subject == at:
            os._exit(9)
        return original(uri, job, *rest)

    ingest._write = write
    configure(read=ReadConfig(max_workers=1))
    RadiObject.from_niftis(root, images={"T1w": images})
