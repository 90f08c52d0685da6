"""Save and load one tensor file with torch: crash-safe, verified, and without running what the file names.

Called by the workers of `generate`, by `HealingPersistentDataset` and by ``migrate --make-safe``.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from voxtier import _core
from voxtier.errors import NotIntactError
from voxtier.system.durable import EagerFile, write_file


def make_plain(value: Any) -> Any:
    """Return a value whose pickle names torch's classes only: enums become text, views become tensors."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, torch.Tensor):
        value = value.as_tensor() if hasattr(value, "as_tensor") else value
        value = value.detach().cpu().contiguous()
        # torch would save the storage of a view, not the view.
        is_view = value.untyped_storage().nbytes() != value.numel() * value.element_size()
        return value.clone() if is_view else value
    if isinstance(value, dict):
        return {make_plain(key): make_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(make_plain(item) for item in value) if type(value) in (list, tuple) else value
    if isinstance(value, np.generic):
        return value.item()
    return value


def save_checked(value: Any, final: Path, *, replace: bool = False, **options: Any) -> _core.TensorReport:
    """Save with torch; the file appears under its final name only after it was read back and is intact.

    Parameters
    ----------
    value : object
        What `torch.save` takes.
    final : Path
        The file, in a folder that exists.
    replace : bool
        Whether an existing file is replaced; otherwise it stays.
    **options : object
        For `torch.save`.

    Returns
    -------
    TensorReport
        The verifier's report on the file that now has the final name. Its ``ctime_ns`` is older than the
        file's where the file was written by this call: getting a name changes that time.

    Raises
    ------
    NotIntactError
        What was written does not read back right: the disk or the memory is bad.
    OSError
        The disk is full, or the folder is read-only, for instance. Nothing is left behind.
    """
    reports: list[_core.TensorReport] = []

    def write(stream: EagerFile) -> None:
        try:
            torch.save(value, stream, **options)
        except (OSError, RuntimeError) as error:  # torch hides the system's error behind its own
            refusal = stream.error or OSError(errno.EIO, f"torch could not write: {_first_line(error)}")
            raise OSError(refusal.errno, refusal.strerror, str(final)) from error

    def check(written: Path) -> None:
        report = _core.verify_tensor_file(written)
        if report.state not in ("ok", "ok_no_crc", "not_weights_only"):
            found = f"not intact after writing: {report.state}: {report.detail}; check disk and memory"
            raise NotIntactError(errno.EIO, found, str(final))
        reports.append(report)

    if write_file(final, write, check=check, replace=replace):
        return reports[0]
    return _core.verify_tensor_file(final)  # the file that existed


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_safely(path: Path, *, weights_only: bool = True, mmap: bool | None = None) -> Any:
    """Load a file as `torch.load` does, also if it holds a MONAI MetaTensor with its metadata.

    The classes of such metadata are harmless; they are allowed for this call only.

    Parameters
    ----------
    path : Path
        The file.
    weights_only : bool
        Off, the file may run code: only for files that were verified.
    mmap : bool, optional
        By default torch's own setting.

    Returns
    -------
    object
        What was saved.

    Raises
    ------
    pickle.UnpicklingError
        The file names a class or function that might run code.
    """
    options: dict[str, Any] = {} if mmap is None else {"mmap": mmap}
    if not weights_only:
        return torch.load(path, weights_only=False, **options)
    try:
        return torch.load(path, weights_only=True, **options)
    except UnpicklingError:
        # On exit torch removes every class that it was given, also those that were allowed before.
        with _safe_globals_lock:
            allowed = torch.serialization.get_safe_globals()
            added = [each for each in _harmless_globals() if each not in allowed]
            with torch.serialization.safe_globals(added):
                return torch.load(path, weights_only=True, **options)


_safe_globals_lock = threading.Lock()  # the list belongs to the process


def _harmless_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return the classes that the state ``not_weights_only`` stands for: arrays, dtypes, trace keys."""
    from numpy._core import multiarray

    found: list[Any] = [np.ndarray, np.dtype, slice]
    for old in ("numpy._core.multiarray", "numpy.core.multiarray"):
        found += [(multiarray._reconstruct, f"{old}._reconstruct"), (multiarray.scalar, f"{old}.scalar")]
    found += [kind for name, kind in vars(np.dtypes).items() if name.endswith("DType")]
    with contextlib.suppress(ImportError):
        from monai.utils.enums import MetaKeys, SpaceKeys, TraceKeys

        found += [MetaKeys, SpaceKeys, TraceKeys]
    return found
