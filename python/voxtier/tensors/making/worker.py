"""The program of a worker process: it turns one raw file after another into tensor files.

worker_pool.py starts the processes and talks to them. A worker returns a small report, never a tensor:
nothing large crosses a process boundary.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel  # noqa: F401 (imported once in the fork server, not in each worker)
import torch
from monai.data import set_track_meta
from monai.transforms import reset_ops_id
from monai.utils import convert_to_tensor

from voxtier.system.durable import write_text
from voxtier.tensors.identity.pipeline import build_transforms, cache_params_text
from voxtier.tensors.saving import make_plain, save_checked

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import ImageProcessing
    from voxtier.tensors.manifest import Entry


def make_tensor(transforms: Any, raw: Path, volume: str, final: Path) -> Entry:
    """Transform one volume and write its tensor file.

    Parameters
    ----------
    transforms : callable
        From `build_transforms`.
    raw : Path
        The NIfTI file.
    volume : str
        Its name in the lists.
    final : Path
        Where the tensor file appears.

    Returns
    -------
    dict
        For the manifest: the verifier's report on the file, and the ``seconds`` that it took.

    Raises
    ------
    OSError
        The file cannot be written.
    Exception
        Whatever the transforms raise.
    """
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        item = transforms({"image": raw, "volume_name": volume})
        reset_ops_id(item)
        converted = make_plain(convert_to_tensor(item, convert_numeric=False, track_meta=False))
    report = save_checked(converted, final)
    del item, converted
    gc.collect()
    return {
        "size": report.size,
        "mtime_ns": report.mtime_ns,
        "ctime_ns": final.stat().st_ctime_ns,
        "records": {name: crc for name, _, crc in report.records},
        "tensors": [[path, dtype, shape] for path, dtype, shape, _ in report.tensors if path == "image"],
        "seconds": round(time.monotonic() - started, 3),
        "state": report.state,
    }


def serve(connection: Connection, processing: ImageProcessing, folder: Path) -> None:
    """Answer requests ``(raw, volume, final)`` with ``("done", facts, None)`` or ``("failed", text, errno)``.

    Ends on None, or when the other side is gone: an orphaned worker finishes its file and ends.

    Parameters
    ----------
    connection : Connection
        The worker's end of its pipe.
    processing : ImageProcessing
        The settings of the transforms.
    folder : Path
        The cache folder; gets ``cache_params.json`` if it has none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; a running item is finished
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    set_track_meta(True)
    transforms = build_transforms(processing)
    params = folder / "cache_params.json"
    if not params.exists():
        with contextlib.suppress(OSError):  # a full disk is reported with the first tensor
            write_text(params, cache_params_text(transforms))
    connection.send(("ready", os.getpid(), None))
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        if request is None:
            return
        raw, volume, final = request
        try:
            answer: tuple[str, Any, Any] = ("done", make_tensor(transforms, raw, volume, final), None)
        except MemoryError:
            answer = ("failed", "out of memory", errno.ENOMEM)
        except Exception as error:
            answer = (
                "failed",
                f"{type(error).__name__}: {_first_line(error)}",
                getattr(error, "errno", None),
            )
        try:
            connection.send(answer)
        except OSError:
            return


def _first_line(error: BaseException) -> str:
    """Return the innermost cause in one line: MONAI wraps every error in 'applying transform ...'."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
