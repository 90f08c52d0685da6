"""Saving and loading of one file with torch: crash-safe, checked, and without running what it holds."""

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

__all__ = ["load_safely", "plain", "save_checked"]


def plain(value: Any) -> Any:
    """Return a value whose pickle needs no class but torch's: enums become text, views become tensors."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, torch.Tensor):
        value = value.as_tensor() if hasattr(value, "as_tensor") else value
        value = value.detach().cpu().contiguous()
        # torch saves the whole storage of a view.
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value if whole else value.clone()
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value) if type(value) in (list, tuple) else value
    if isinstance(value, np.generic):
        return value.item()
    return value


def save_checked(value: Any, final: Path, *, replace: bool = False, **options: Any) -> None:
    """Save with torch; the file appears under ``final`` only after it was read back and found right.

    Raises
    ------
    OSError
        The disk is full, the folder is read-only, or the file is not intact. Nothing is left behind.
    """

    def write(stream: EagerFile) -> None:
        try:
            torch.save(value, stream, **options)
        except (OSError, RuntimeError) as error:  # torch hides the system's error behind its own
            refusal = stream.error or OSError(errno.EIO, f"torch could not write: {_first_line(error)}")
            raise OSError(refusal.errno, refusal.strerror, str(final)) from error

    def check(written: Path) -> None:
        report = _core.verify_tensor_file(written)
        if report.state not in ("ok", "ok_no_crc", "not_weights_only"):
            raise NotIntactError(errno.EIO, f"not intact after writing: {report.state}: {report.detail}")

    write_file(final, write, check=check, replace=replace)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_safely(path: Path, *, weights_only: bool = True, mmap: bool | None = None) -> Any:
    """Load what `torch.load` loads, and what a MONAI MetaTensor with its metadata needs beside it.

    Nothing but the harmless pieces is added to the list of allowed globals, and only for this call.

    Raises
    ------
    pickle.UnpicklingError
        The file names something that might run.
    """
    options: dict[str, Any] = {} if mmap is None else {"mmap": mmap}
    if not weights_only:
        return torch.load(path, weights_only=False, **options)
    try:
        return torch.load(path, weights_only=True, **options)
    except UnpicklingError:
        # torch removes on exit what it was given, also what was there before; threads share the list.
        with _one_at_a_time:
            known = torch.serialization.get_safe_globals()
            with torch.serialization.safe_globals([item for item in _inert_globals() if item not in known]):
                return torch.load(path, weights_only=True, **options)


_one_at_a_time = threading.Lock()


def _inert_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return what `TensorReport` calls ``not_weights_only``: arrays, their dtypes, trace keys."""
    from numpy._core import multiarray

    found: list[Any] = [np.ndarray, np.dtype, slice]
    for old in ("numpy._core.multiarray", "numpy.core.multiarray"):
        found += [(multiarray._reconstruct, f"{old}._reconstruct"), (multiarray.scalar, f"{old}.scalar")]
    found += [kind for name, kind in vars(np.dtypes).items() if name.endswith("DType")]
    with contextlib.suppress(ImportError):
        from monai.utils.enums import MetaKeys, SpaceKeys, TraceKeys

        found += [MetaKeys, SpaceKeys, TraceKeys]
    return found
