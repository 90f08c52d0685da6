"""The cache of a MONAI ``PersistentDataset``: made, verified, kept and read.

>>> from voxtier import tensors
>>> tensors.item_key("train_1_a_1.nii.gz")
'a688fe64537c110e725a890a41ac3dde'

``identity/`` decides the names of folders and files, ``engine/`` computes tensors as MONAI does, ``making/``
makes the files, ``keeping/`` verifies, moves and removes them; ``dataset.py`` reads them in training. Names
are imported on first use, so that ``voxtier tensors verify`` starts at once and without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from voxtier.errors import MissingExtraError

if TYPE_CHECKING:
    from voxtier.tensors.dataset import HealingPersistentDataset
    from voxtier.tensors.identity.config import Config, load_config
    from voxtier.tensors.identity.keys import item_key, stable_hash, volume_hash
    from voxtier.tensors.identity.mapping import hash_to_volume, write_map
    from voxtier.tensors.identity.pipeline import build_transforms, cache_params_text, directory_hash
    from voxtier.tensors.keeping.quarantine import fix
    from voxtier.tensors.keeping.verify import FileState, list_cache, verify
    from voxtier.tensors.manifest import Manifest
    from voxtier.tensors.preprocessing import preprocess

__all__ = [
    "Config",
    "FileState",
    "HealingPersistentDataset",
    "Manifest",
    "build_transforms",
    "cache_params_text",
    "directory_hash",
    "fix",
    "hash_to_volume",
    "item_key",
    "list_cache",
    "load_config",
    "preprocess",
    "stable_hash",
    "verify",
    "volume_hash",
    "write_map",
]

_HOMES = {
    "dataset": ("HealingPersistentDataset",),
    "identity.config": ("Config", "load_config"),
    "identity.keys": ("item_key", "stable_hash", "volume_hash"),
    "identity.mapping": ("hash_to_volume", "write_map"),
    "identity.pipeline": ("build_transforms", "cache_params_text", "directory_hash"),
    "keeping.quarantine": ("fix",),
    "keeping.verify": ("FileState", "list_cache", "verify"),
    "manifest": ("Manifest",),
    "preprocessing": ("preprocess",),
}
_EXTRA = {"dotenv", "huggingface_hub", "monai", "nibabel", "torch", "yaml"}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        try:
            return getattr(importlib.import_module(f"voxtier.tensors.{_HOME_OF[name]}"), name)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in _EXTRA:
                raise MissingExtraError(package, "tensors") from error
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
