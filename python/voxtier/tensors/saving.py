"""Save and load one tensor file with torch: crash-safe, verified, and without running what the file names.

Called by the workers of `generate`, by `HealingPersistentDataset` and by ``migrate --make-safe``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import re
import threading
from collections.abc import Callable, Iterable
from enum import Enum
from functools import cache
from pathlib import Path
from pickle import PicklingError, UnpicklingError
from typing import Any

import numpy as np
import torch

from voxtier import _core
from voxtier.errors import NotIntactError, NotLoadedError
from voxtier.system.durable import EagerFile, write_file
from voxtier.system.fork import after_fork_in_child
from voxtier.system.text import first_line
from voxtier.tensors.states import DAMAGED, LOADABLE


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


def save_checked(
    value: Any,
    final: Path,
    *,
    replace: bool = False,
    weights_only: bool = True,
    read_back: Callable[[Path], object] = lambda _: None,
    **options: Any,
) -> _core.TensorReport:
    """Save with torch; the file appears under its final name only after it was read back and is intact.

    Parameters
    ----------
    value : object
        What `torch.save` takes.
    final : Path
        The file, in a folder that exists.
    replace : bool
        Whether an existing file is replaced; otherwise it stays.
    weights_only : bool
        How the file will be loaded: what `load_safely` refuses then is not written.
    read_back : callable
        Called with the path of the intact file before it appears; an `UnpicklingError` keeps it from that.
    **options : object
        For `torch.save`.

    Returns
    -------
    TensorReport
        The verifier's report on the file that now has the final name. Its ``ctime_ns`` is older than the
        file's where the file was written by this call: getting a name changes that time.

    Raises
    ------
    NotLoadedError
        torch cannot save the value, or the file could not be loaded again.
    NotIntactError
        What was written does not read back right: the disk or the memory is bad.
    OSError
        The disk is full, or the folder is read-only, for instance. Nothing is left behind.
    """
    reports: list[_core.TensorReport] = []

    def write(stream: EagerFile) -> None:
        try:
            torch.save(value, stream, **options)
        except (PicklingError, AttributeError, TypeError) as error:
            refused = f"{final.name}: the item cannot be saved: {first_line(error)}; {_PLAIN}"
            raise NotLoadedError(refused) from error
        except (OSError, RuntimeError) as error:  # torch hides the system's error behind its own
            if stream.error is None:
                raise
            raise OSError(stream.error.errno, stream.error.strerror, str(final)) from error

    def check(written: Path) -> None:
        report = _core.verify_tensor_file(written)
        if report.state in DAMAGED | {"io_error"}:
            found = f"not intact after writing: {report.state}: {report.detail}; check disk and memory"
            raise NotIntactError(errno.EIO, found, str(final))
        if reason := refusal(report, weights_only=weights_only):
            raise NotLoadedError(f"{final.name}: the item is not saved, because {reason}; {_PLAIN}")
        try:
            read_back(written)
        except UnpicklingError as error:
            reason = f"torch cannot load it again: {reason_of(error)}"
            raise NotLoadedError(
                f"{final.name}: the item is not saved, because {reason}; {_PLAIN}"
            ) from error
        reports.append(report)

    if write_file(final, write, check=check, replace=replace):
        return reports[0]
    return _core.verify_tensor_file(final)  # the file that existed


_PLAIN = "return tensors, arrays, numbers, text, dates and paths, in dicts, lists and tuples"


def reason_of(error: UnpicklingError) -> str:
    """Return the sentence of torch's page of text that says why a file is refused."""
    return first_line(UnpicklingError(str(error).rpartition("WeightsUnpickler error:")[2]))


def refusal(report: _core.TensorReport, *, weights_only: bool = True) -> str:
    """Return why `load_safely` must not or cannot load a file that is not damaged; empty if it can.

    Parameters
    ----------
    report : TensorReport
        Of the verifier.
    weights_only : bool
        As for `load_safely`.

    Returns
    -------
    str
        A clause of a sentence, with the remedy.
    """
    if report.state not in LOADABLE | {"unsafe_globals"}:
        return f"{report.detail or report.state}"
    allowed = _INERT | _allowed_by_user()
    names = [name for name in report.refused_globals if name not in allowed and not _DTYPE.fullmatch(name)]
    if names and (weights_only or report.state == "unsafe_globals"):
        remedy = f"torch.serialization.add_safe_globals([{', '.join(names[:3])}]) allows it"
        if report.state != "unsafe_globals":
            remedy += ", or weights_only=False"
        return f"it names {', '.join(names[:12])}, which may run code; if you trust it, {remedy}"
    if report.refused_opcodes and weights_only:
        return (
            "its pickle protocol is one that weights_only=True refuses: use protocol 2, or weights_only=False"
        )
    return ""


_INERT = frozenset(_core.INERT_GLOBALS)
_DTYPE = re.compile(r"numpy\.dtypes\.\w+DType")


def _allowed_by_user() -> set[str]:
    """Return the names that `torch.serialization.add_safe_globals` was given in this process."""
    names = set()
    for entry in torch.serialization.get_safe_globals():
        named = entry if isinstance(entry, tuple) else (entry, f"{entry.__module__}.{entry.__qualname__}")
        names.add(str(named[1]))
    return names


def load_safely(path: Path, *, weights_only: bool = True, mmap: bool | None = None) -> Any:
    """Load a file as `torch.load` does, also if it holds arrays, paths, dates or a MetaTensor's metadata.

    The classes of such values are harmless (`voxtier._core.INERT_GLOBALS`); they are allowed for this call.

    Parameters
    ----------
    path : Path
        The file.
    weights_only : bool
        Off, the file may run code: only for files whose `refusal` is empty.
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
            added: list[Any] = [each for each in _harmless_globals() if each not in allowed]
            with torch.serialization.safe_globals(added):
                return torch.load(path, weights_only=True, **options)


def load_plainly(path: Path) -> None:
    """Load a file as any program does that has not imported voxtier, to see whether torch refuses it."""
    torch.load(path, weights_only=True)


_safe_globals_lock = threading.Lock()  # the list belongs to the process


def _begin_child() -> None:
    global _safe_globals_lock
    _safe_globals_lock = threading.Lock()


after_fork_in_child(_begin_child)


@cache
def _harmless_globals() -> tuple[tuple[Callable[..., Any], str], ...]:
    """Return the classes and functions of the state ``not_weights_only`` that this installation has."""
    names = [
        *_core.INERT_GLOBALS,
        *(f"numpy.dtypes.{name}" for name in vars(np.dtypes) if name[:1].isupper()),
    ]
    return tuple(_import_globals(names))


def _import_globals(names: Iterable[str]) -> Iterable[tuple[Any, str]]:
    for name in names:
        module, _, attribute = name.rpartition(".")
        # Names of other versions of NumPy and Python stand for what this one has.
        module = {"numpy.core.multiarray": "numpy._core.multiarray", "pathlib._local": "pathlib"}.get(
            module, module
        )
        with contextlib.suppress(ImportError, AttributeError):
            yield getattr(importlib.import_module(module), attribute), name
