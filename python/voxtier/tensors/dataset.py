"""`HealingPersistentDataset`: MONAI's `PersistentDataset` that repairs its cache and never destroys it."""

from __future__ import annotations

import inspect
import logging
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from monai.data import PersistentDataset
from monai.data.utils import SUPPORTED_PICKLE_MOD
from monai.transforms import Compose, RandomizableTrait, Transform
from monai.utils import convert_to_tensor, look_up_option

from voxtier import _core
from voxtier.arguments import as_several
from voxtier.errors import ConfigError, NotLoadedError, SourceError
from voxtier.tensors.claims import Claim, wait_for
from voxtier.tensors.engine.checked import engine_of
from voxtier.tensors.engine.pipelines import describe_head, find_pipeline
from voxtier.tensors.engine.source import find_damage
from voxtier.tensors.identity.sharing import is_small, refuse_other, refuse_shared
from voxtier.tensors.saving import load_safely, reason_of, refusal, save_checked
from voxtier.tensors.states import DAMAGED, LOADABLE, UNREADABLE

if TYPE_CHECKING:
    from voxtier.tensors.engine.pipelines import Pipeline

log = logging.getLogger("voxtier.tensors.dataset")

ABSENT = "absent"
_LEFT = "the file is left as it is"
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class _Apart(Generic[_Value]):
    """What a dataset keeps out of reach of MONAI's `set_rnd`, which enters attributes, lists and tuples.

    It seeds the transforms of a dataset one after the other where it meets them first, and all alike where it
    meets them again in a list. What has no ``__dict__``, such as this, it does not enter.
    """

    value: _Value


class HealingPersistentDataset(PersistentDataset):  # type: ignore[misc]  # (MONAI is untyped)
    """`monai.data.PersistentDataset` with the same files under the same names, and these differences.

    - A file is verified (structure and every CRC-32) when this process first reads it, and again when it has
      changed. MONAI and torch verify neither, and return wrong numbers.
    - A file that this check calls damaged is replaced after its item was recomputed; if that fails, the file
      stays. Any other failure is raised and never touches the file: memory, a missing device or permission, a
      class that must not be loaded, a file of another program.
    - A file of an older MONAI or torch version is loaded, not deleted: arrays, paths, dates and the classes
      of a MetaTensor with metadata are allowed for the call. Own classes load if
      `torch.serialization.add_safe_globals` allows them, or with ``weights_only=False``; what runs commands
      (``os``, ``builtins.eval``) needs the former. An item that could not be loaded again is refused before
      anything is written.
    - A file appears complete. Of several processes that miss an item, one computes it and the others wait.
      Transforms that ask another dataset for the very file that they make are refused, not waited for.
    - The first access returns what every later one returns.
    - `set_data` keeps all files.
    - Different items that one cache file would stand for are refused, before they are used: of a list or
      tuple all are hashed, of another sequence, or of what is assigned to ``data``, those that are asked for.
      Items that hold more than text, paths, numbers and small arrays are not compared.
    - A ``hash_transform`` that cannot hash the transforms, as ``json_hashing`` never can, is a warning: MONAI
      then hashes the names of their classes, and pipelines that differ in parameters alone share files.
    - Where the deterministic transforms begin as those of a configuration (`build_transforms`), also with a
      label beside the image, the core computes these, to the same bits (`find_pipeline` says which). They
      stand in a `Compose` of MONAI: a subclass, such as `SomeOf`, may do anything with them. Without a
      ``cache_dir`` MONAI computes all, since items then keep the history that `Invertd` needs.
    - An image whose gzip stream the core finds damaged, and MONAI does not, is made by MONAI, with a warning.

    Parameters
    ----------
    data : sequence
        The items; one path alone counts as one.
    *args : object
        As for `PersistentDataset` of the installed version: transform, cache_dir, hash_func and so on.
    check : {"full", "structure"}
        ``structure`` leaves the CRCs out: for a cache that ``voxtier tensors verify`` watches.
    engine : {"fused", "stock"}
        ``stock`` leaves every item to the transforms.
    **kwargs : object
        As for `PersistentDataset`; ``track_meta`` and ``weights_only`` also where that version lacks them.

    Attributes
    ----------
    recomputed : collections.Counter
        How often this process had to replace a file, by file name; the second time is a warning.

    Raises
    ------
    ConfigError
        ``check`` or ``engine`` is neither of the two, or ``hash_func`` gives different items one file. As the
        cause of MONAI's error at an access: the transforms ask for the file that they make.
    NotLoadedError
        At an access: the file or the item holds what must not be loaded, or the file is another program's.
    SourceError
        At an access: the file cannot be read.
    """

    def __init__(
        self, data: Any, *args: Any, check: str = "full", engine: str = "fused", **kwargs: Any
    ) -> None:
        if check not in ("full", "structure"):
            raise ConfigError(f"check must be 'full' or 'structure', found {check!r}")
        if engine not in ("fused", "stock"):
            raise ConfigError(f"engine must be 'fused' or 'stock', found {engine!r}")
        accepted = inspect.signature(PersistentDataset.__init__).parameters
        own = {
            name: kwargs.pop(name)
            for name in ("track_meta", "weights_only")
            if name not in accepted and name in kwargs
        }
        super().__init__(as_several(data), *args, **kwargs)
        folder = self.cache_dir  # the working folder may be another when an item is asked for
        self.cache_dir: Path | None = None if folder is None else Path(folder).absolute()
        self.track_meta: bool = own.get("track_meta", getattr(self, "track_meta", False))
        self.weights_only: bool = own.get("weights_only", getattr(self, "weights_only", True))
        first = next(iter(getattr(self.transform, "transforms", ())), None)
        if first is not None and not isinstance(first, Transform | RandomizableTrait):
            name = getattr(first, "__name__", first)
            warnings.warn(
                f"the first transform, {name!r}, is not a monai Transform: MONAI caches the raw item and"
                " repeats every transform at each access; wrap it in monai.transforms.Lambda",
                stacklevel=2,
            )
        self.check = check
        self._engine = engine
        self._found = self._find_pipeline()
        self.recomputed: Counter[str] = Counter()
        self._verified: dict[str, tuple[int, int, int]] = {}
        """By file name, the size and times of the file when its CRCs were found right."""
        self._distinct: _Apart[Sequence[Any] | None] = _Apart(None)
        """The data of which no two items share a file."""
        self._known: dict[str, Any] = {}
        """The items of other data that were asked for, by file name."""
        self._refuse_shared(self.data)

    @property
    def _pipeline(self) -> Pipeline | None:
        """The deterministic transforms, if the core can do the first of them."""
        transform, steps, pipeline, head = self._found.value
        now = self._steps()
        is_same = self.transform is transform and len(now) == len(steps)
        if is_same and all(map(operator.is_, now, steps)):
            if pipeline is None:  # MONAI makes all, with whatever parameters
                return None
            if self._is_plain() and self._describe(steps, pipeline) == head:
                return pipeline
        self._found = self._find_pipeline()  # others were assigned since, or these were changed
        return self._found.value[2]

    def _is_plain(self) -> bool:
        # Lazy: one resampling in the place of two gives other numbers.
        is_plain = type(self.transform) is Compose and not self.transform.lazy
        return is_plain and self._engine == "fused" and not self.track_meta

    @staticmethod
    def _describe(steps: tuple[Any, ...], pipeline: Pipeline) -> str:
        try:
            return describe_head(steps, pipeline)
        except Exception:  # a parameter was given another type since: `find_pipeline` judges it
            return ""

    def _steps(self) -> tuple[Any, ...]:
        return tuple(getattr(self.transform, "transforms", ()))

    def _find_pipeline(self) -> _Apart[tuple[Any, tuple[Any, ...], Pipeline | None, str]]:
        """Return the transform and its steps, the pipeline in these, and the parameters of its head."""
        steps, pipeline, head = self._steps(), None, ""
        if self._is_plain():
            first_random = self.transform.get_index_of_first(
                lambda each: isinstance(each, RandomizableTrait) or not isinstance(each, Transform)
            )
            pipeline = find_pipeline(steps[:first_random])
        if pipeline is not None:
            head = self._describe(steps, pipeline)
        return _Apart((self.transform, steps, pipeline, head))

    def _pre_transform(self, item_transformed: Any) -> Any:
        # Without a cache folder the item keeps its history, which `Invertd` needs, and the core writes none.
        pipeline = None if self.cache_dir is None else self._pipeline
        if pipeline is None or not isinstance(item_transformed, dict):
            return super()._pre_transform(item_transformed)
        if not isinstance(item_transformed.get("image"), str | Path):
            return super()._pre_transform(item_transformed)
        made, outcome = engine_of(pipeline).make(
            item_transformed, lambda: super(HealingPersistentDataset, self)._pre_transform(item_transformed)
        )
        if outcome.reason == "bad_deflate":
            for key in pipeline.load.keys:
                if damage := find_damage(Path(item_transformed[key])):
                    warnings.warn(
                        f"{item_transformed[key]}: {damage}; MONAI looks at no checksum, and made the item of"
                        " what can be inflated",
                        stacklevel=2,
                    )
        return made

    def set_transform_hash(self, hash_xform_func: Callable[..., bytes]) -> None:
        """Take a hash of the deterministic transforms into the names of files, and warn if it is weak."""
        has_names_alone = False

        def hash_parts(parts: Any) -> bytes:
            nonlocal has_names_alone
            has_names_alone = isinstance(parts, str)  # MONAI's second try: the names of all classes
            return hash_xform_func(parts)

        super().set_transform_hash(hash_parts)
        if has_names_alone:
            name = getattr(hash_xform_func, "__name__", "hash_transform")
            warnings.warn(
                f"{name} cannot hash these transforms: MONAI hashes the names of their classes alone, and "
                "pipelines that differ in parameters share files: each gets what the other made. Use "
                "hash_transform=pickle_hashing (monai.data.utils), or another cache_dir for each pipeline",
                stacklevel=4,  # where the dataset is made
            )

    def set_data(self, data: Sequence[Any]) -> None:
        """Use other items; files of the old items stay (``voxtier tensors gc`` finds orphans)."""
        items = as_several(data)
        self._refuse_shared(items)
        self.data = items

    def _refuse_shared(self, data: Any) -> None:
        self._known = {}
        if self.cache_dir is not None and isinstance(data, list | tuple):  # others may load what they give
            refuse_shared(data, self.hash_func)
            self._distinct = _Apart(data)

    def _cachecheck(self, item_transformed: Any) -> Any:
        if self.cache_dir is None:
            return self._pre_transform(deepcopy(item_transformed))
        name = self.hash_func(item_transformed).decode("utf-8") + self.transform_hash
        if self.data is not self._distinct.value and is_small(item_transformed):
            refuse_other(name, self._known.setdefault(name, item_transformed), item_transformed)
        path = Path(self.cache_dir) / f"{name}.pt"
        reason, value = self._read(path)
        while reason is not None:
            claim = self._claim(path)
            if claim is not None:
                with claim.hold():
                    reason, value = self._read(path)  # another process may have made it before the claim
                    return value if reason is None else self._make(path, item_transformed, reason)
            wait_for(path, 0.05)
            reason, value = self._read(path)
        return value

    @staticmethod
    def _claim(path: Path) -> Claim | None:
        try:
            return Claim.take(path)
        except OSError:  # a read-only cache: compute, and let the write report it
            return _NoClaim(path)

    def _read(self, path: Path) -> tuple[str | None, Any]:
        """Return ``(None, value)``, or why there is no right file and None; anything else is raised."""
        try:
            identity = _identity(path)
        except FileNotFoundError:
            if path.is_symlink():
                raise SourceError("io_error", None, f"{path}: its target is gone; {_LEFT}") from None
            return ABSENT, None
        full = self.check == "full" and self._verified.get(path.name) != identity
        report = _core.verify_tensor_file(path, crc=full)
        if report.state in DAMAGED:
            return f"{report.state}: {report.detail}", None
        if report.state in UNREADABLE:
            if not path.exists():  # removed since
                return ABSENT, None
            if report.state == "io_error" or not path.is_file() or _identity(path) != identity:
                raise SourceError("io_error", None, f"{path}: {report.detail}; {_LEFT}")
        if reason := refusal(report, weights_only=self.weights_only):
            raise NotLoadedError(f"{path} is not loaded, because {reason}; {_LEFT}")
        try:
            # torch maps neither compressed records nor the format before 1.6.
            mmap = False if report.state in ("compressed_storage", "legacy_format") else None
            value = load_safely(path, weights_only=self.weights_only, mmap=mmap)
        except FileNotFoundError:
            return ABSENT, None
        except UnpicklingError as error:
            reason = f"torch refuses it: {reason_of(error)}"
            raise NotLoadedError(f"{path} is not loaded, because {reason}; {_LEFT}") from error
        except Exception as error:
            again = report if full else _core.verify_tensor_file(path)
            if again.state in DAMAGED:
                return f"{again.state}: {again.detail}", None
            error.add_note(f"voxtier: {path} is not damaged ({again.state}), and is left as it is")
            raise
        self._verified[path.name] = identity
        return None, value

    def _make(self, path: Path, item: Any, reason: str) -> Any:
        is_damaged = reason != ABSENT
        if is_damaged:
            self._count(path, reason)
        try:
            computed = self._pre_transform(deepcopy(item))
        except Exception as error:
            if is_damaged:
                error.add_note(f"voxtier: {path} is {reason}; it could not be recomputed, and is kept")
            raise
        if is_damaged:
            reason_now, found = self._read(path)
            if reason_now is None:  # a process without claims, such as stock MONAI's, has finished it
                return found
        value = convert_to_tensor(computed, convert_numeric=False, track_meta=self.track_meta)
        options = {
            "pickle_module": look_up_option(self.pickle_module, SUPPORTED_PICKLE_MOD),
            "pickle_protocol": self.pickle_protocol,
        }
        loaded: list[Any] = []

        def read_back(written: Path) -> None:
            loaded.append(load_safely(written, weights_only=self.weights_only))

        try:
            report = save_checked(
                value,
                path,
                replace=is_damaged,
                weights_only=self.weights_only,
                read_back=read_back,
                **options,
            )
            size, modified, changed = _identity(path)
        except OSError as error:
            warnings.warn(f"{path} could not be cached: {error}", stacklevel=2)
            return value
        if report.state in LOADABLE and (size, modified) == (report.size, report.mtime_ns):
            self._verified[path.name] = size, modified, changed
        return loaded[0]

    def _count(self, path: Path, reason: str) -> None:
        self.recomputed[path.name] += 1
        log.warning("%s: %s; recomputing", path, reason)
        if self.recomputed[path.name] == 2:
            warnings.warn(
                f"{path.name} had to be recomputed again ({reason}): the disk or another program damages"
                " files; `voxtier tensors verify` shows which",
                stacklevel=2,
            )


def _identity(path: Path) -> tuple[int, int, int]:
    """Return size, modification time and time of the inode's last change, which together name a content."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _NoClaim(Claim):
    """Used where no claim can be written: every process computes."""

    def release(self) -> None:
        """Do nothing."""

    def beat(self) -> None:
        """Do nothing."""
