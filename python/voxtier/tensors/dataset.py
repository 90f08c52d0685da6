"""A drop-in `PersistentDataset` that heals its cache and never destroys it."""

from __future__ import annotations

import inspect
import logging
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from monai.data import PersistentDataset
from monai.data.utils import SUPPORTED_PICKLE_MOD
from monai.transforms import RandomizableTrait, Transform
from monai.utils import convert_to_tensor, look_up_option

from voxtier import _core
from voxtier.errors import SourceError
from voxtier.tensors.claims import Claim
from voxtier.tensors.saving import load_safely, save_checked

__all__ = ["HealingPersistentDataset"]

log = logging.getLogger("voxtier.tensors.dataset")

_LOADABLE = frozenset(["ok", "ok_no_crc", "ok_trailing", "compressed_storage", "not_weights_only"])
_UNDECIDED = frozenset(["io_error", "unknown"])


class HealingPersistentDataset(PersistentDataset):  # type: ignore[misc]  # (MONAI is untyped)
    """`monai.data.PersistentDataset` with the same files under the same names, and these differences.

    - A file is checked (structure and every CRC) when this process first reads it, and again when it
      changed. MONAI and torch check neither, and return wrong numbers.
    - A damaged file is recomputed *first* and replaced then; if recomputing fails, it stays.
    - A file of an older MONAI version is loaded, not deleted: the harmless classes of a MetaTensor with
      metadata are allowed for the call. A file that names anything else is never loaded.
    - Files appear whole. Of several processes that miss the same item, one computes it, the others wait.
    - The first access returns what every later one returns.
    - `set_data` keeps all files.

    Parameters
    ----------
    data, transform, cache_dir, hash_func, ... :
        As for `PersistentDataset` of the installed version.
    check : {"full", "structure"}
        ``structure`` leaves the CRCs out: for a cache that `voxtier tensors verify` watches.

    Attributes
    ----------
    recomputed : collections.Counter
        How often this process had to replace a file, by file name; a second time is a warning.
    """

    def __init__(self, *args: Any, check: str = "full", **kwargs: Any) -> None:
        if check not in ("full", "structure"):
            raise ValueError(f"check must be 'full' or 'structure', found {check!r}")
        accepted = inspect.signature(PersistentDataset.__init__).parameters
        own = {
            name: kwargs.pop(name)
            for name in ("track_meta", "weights_only")
            if name not in accepted and name in kwargs
        }
        super().__init__(*args, **kwargs)
        self.track_meta: bool = own.get("track_meta", getattr(self, "track_meta", False))
        self.weights_only: bool = own.get("weights_only", getattr(self, "weights_only", True))
        first = next(iter(getattr(self.transform, "transforms", ())), None)
        if first is not None and not isinstance(first, Transform | RandomizableTrait):
            name = getattr(first, "__name__", first)
            warnings.warn(
                f"the first transform, {name!r}, is no monai Transform: MONAI caches the raw item and repeats"
                " every transform at each access; wrap it in monai.transforms.Lambda",
                stacklevel=2,
            )
        self.check = check
        self.recomputed: Counter[str] = Counter()
        self._checked: dict[str, tuple[int, int, int]] = {}

    def set_data(self, data: Sequence[Any]) -> None:
        """Use other items; cached files of the old ones stay (`voxtier tensors gc` finds orphans)."""
        self.data = data

    def _cachecheck(self, item_transformed: Any) -> Any:
        if self.cache_dir is None:
            return self._pre_transform(deepcopy(item_transformed))
        name = self.hash_func(item_transformed).decode("utf-8") + self.transform_hash
        path = Path(self.cache_dir) / f"{name}.pt"
        found, value = self._read(path)
        if found is None:
            return value
        while True:
            claim = self._claim(path)
            if claim is not None:
                with claim.held():
                    found, value = self._read(path)  # another process may have made it meanwhile
                    return value if found is None else self._make(path, item_transformed, found)
            time.sleep(0.05)
            found, value = self._read(path)
            if found is None:
                return value

    @staticmethod
    def _claim(path: Path) -> Claim | None:
        try:
            return Claim.take(path)
        except OSError:  # a read-only cache: compute, and let the write report it
            return _NoClaim(path)

    def _read(self, path: Path) -> tuple[str | None, Any]:
        """Return ``(None, value)``, or why there is none."""
        try:
            before = path.stat()
        except FileNotFoundError:
            return "absent", None
        print_ = (before.st_size, before.st_mtime_ns, before.st_ctime_ns)
        full = self.check == "full" and self._checked.get(path.name) != print_
        report = _core.verify_tensor_file(path, crc=full)
        if report.state in _UNDECIDED:
            raise SourceError("io_error", None, f"{path}: {report.detail}; the file is left as it is")
        if report.state not in _LOADABLE:
            return f"{report.state}: {report.detail}", None
        try:
            mmap = False if report.state == "compressed_storage" else None
            value = load_safely(path, weights_only=self.weights_only, mmap=mmap)
        except FileNotFoundError:
            return "absent", None
        except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            return (
                f"cannot be loaded: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
                None,
            )
        self._checked[path.name] = print_
        return None, value

    def _make(self, path: Path, item: Any, reason: str) -> Any:
        damaged = reason != "absent"
        if damaged:
            self._count(path, reason)
        try:
            computed = self._pre_transform(deepcopy(item))
        except Exception as error:
            if damaged:
                error.add_note(f"voxtier: {path} is {reason}; it could not be recomputed, and is kept")
            raise
        value = convert_to_tensor(computed, convert_numeric=False, track_meta=self.track_meta)
        options = {
            "pickle_module": look_up_option(self.pickle_module, SUPPORTED_PICKLE_MOD),
            "pickle_protocol": self.pickle_protocol,
        }
        try:
            save_checked(value, path, replace=damaged, **options)
        except OSError as error:
            warnings.warn(f"{path} could not be cached: {error}", stacklevel=2)
            return value
        again, loaded = self._read(path)
        if again is not None:
            warnings.warn(
                f"{path} cannot be read back ({again}): it will be recomputed each time", stacklevel=2
            )
            return value
        return loaded

    def _count(self, path: Path, reason: str) -> None:
        self.recomputed[path.name] += 1
        log.warning("%s: %s; recomputing", path, reason)
        if self.recomputed[path.name] == 2:
            warnings.warn(
                f"{path.name} had to be recomputed again ({reason}): either the disk damages files, or the"
                " settings save what they cannot load; `voxtier tensors verify` tells",
                stacklevel=2,
            )


class _NoClaim(Claim):
    """Stands in where claims cannot be written: everyone computes."""

    def release(self) -> None:
        """Do nothing."""

    def beat(self) -> None:
        """Do nothing."""
