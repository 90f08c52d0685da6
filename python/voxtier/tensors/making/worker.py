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

import torch
from monai.data import set_track_meta
from monai.transforms import reset_ops_id
from monai.utils import convert_to_tensor

from voxtier import _core
from voxtier.errors import ConfigError, EngineLimitError
from voxtier.system.durable import write_text
from voxtier.tensors.engine.engine import Engine
from voxtier.tensors.engine.outcome import Outcome
from voxtier.tensors.engine.pipelines import configured_pipeline
from voxtier.tensors.engine.self_test import describe_cause, find_fault
from voxtier.tensors.engine.source import check_result, make_stock
from voxtier.tensors.identity.pipeline import build_transforms, cache_params_text
from voxtier.tensors.making.download import RawState
from voxtier.tensors.saving import make_plain, save_checked

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import ImageProcessing
    from voxtier.tensors.manifest import Entry


def make_tensor(
    transforms: Any,
    raw: Path,
    volume: str,
    final: Path,
    *,
    shape: tuple[int, ...],
    accepted: frozenset[str] = frozenset(),
    engine: Engine | None = None,
    is_checked: bool = False,
) -> Entry:
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
    shape : tuple of int
        Voxels that the tensor must have.
    accepted : frozenset of str
        Findings that do not keep the tensor from being made.
    engine : Engine, optional
        Makes the item where it can; by default the transforms do.
    is_checked : bool
        Whether both make it, and their tensors are compared.

    Returns
    -------
    dict
        For the ledger: the verifier's report on the file, the ``seconds`` that it took, how it was made, and
        ``raw``, the state of the raw file before it was read.

    Raises
    ------
    ConfigError
        One of the `FINDINGS` of a run that is not accepted, or another shape.
    FileNotFoundError
        There is no raw file.
    OSError
        The file cannot be written.
    Exception
        Whatever the transforms raise.
    """
    started = time.monotonic()
    # Before it is read: the user may lay another one there meanwhile, and no tensor is made of that one.
    found = RawState.of(raw)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "no file, or none that can be seen", str(raw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = {"image": raw, "volume_name": volume}

        def transform() -> dict[str, Any]:
            return make_stock(transforms, first, accepted)

        if engine is None:
            item, outcome = transform(), Outcome("stock")
        else:
            item, outcome = engine.make(first, transform, is_checked=is_checked)
        check_result(item["image"], shape, accepted)
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
        "engine": outcome.label(),
        "outcome": outcome,
        "made_by": describe_engine(outcome),
        "raw": found,
    }


def serve(
    connection: Connection,
    processing: ImageProcessing,
    folder: Path,
    accepted: frozenset[str],
    *,
    is_proved: bool,
) -> None:
    """Answer ``(raw, volume, final, mode)`` with ``("done", facts, None)`` or ``("failed", text, errno)``.

    A failure is ``("changed", text, errno)`` where the raw file was removed or replaced meanwhile.

    Ends on None, or when the other side is gone: an orphaned worker finishes its file and ends.

    Parameters
    ----------
    connection : Connection
        The worker's end of its pipe.
    processing : ImageProcessing
        The settings of the transforms.
    folder : Path
        The cache folder; gets ``cache_params.json`` if it has none.
    accepted : frozenset of str
        As for `make_tensor`.
    is_proved : bool
        As for `WorkerPool`.
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
    # What torch and MONAI have made stays and is not looked through, not even once: that took a fifth of a
    # volume's time, and a quarter of a second and a copy of all pages that the fork server shares.
    gc.freeze()
    connection.send(("ready", os.getpid(), None))
    engine: Engine | None = None
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        if request is None:
            return
        raw, volume, final, mode = request
        before = RawState.of(raw)
        try:
            if mode != "stock" and engine is None:
                fault = "" if is_proved else find_fault(processing)
                engine = _NoEngine(fault) if fault else Engine(configured_pipeline(transforms, processing))
            facts = make_tensor(
                transforms,
                raw,
                volume,
                final,
                shape=processing.target_shape_dhw,
                accepted=accepted,
                engine=None if mode == "stock" else engine,
                is_checked=mode == "check",
            )
            answer: tuple[str, Any, Any] = ("done", facts, None)
        except MemoryError:
            answer = ("failed", "out of memory", errno.ENOMEM)
        except ConfigError as error:
            answer = ("failed", str(error), None)
        except Exception as error:
            answer = ("failed", describe_cause(error), getattr(error, "errno", None))
        if answer[0] == "failed" and (before is None or RawState.of(raw) != before):
            answer = ("changed", *answer[1:])
        try:
            connection.send(answer)
        except OSError:
            return


def describe_engine(outcome: Outcome) -> Entry:
    """Return, for the fingerprint, who made a tensor, and what of this process decides its last bits."""
    return {
        "name": outcome.engine,
        "version": _core.__version__,
        "rounding": list(outcome.rounding),
        "torch": torch.__version__,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


class _NoEngine(Engine):
    """Stands for an engine that has failed its self-test: every volume goes through the stock pipeline."""

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def fuse(self, item: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Refuse."""
        raise EngineLimitError(self._fault)
