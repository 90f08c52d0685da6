"""The tensor of a single volume, for inference: as the cache of the same configuration holds it."""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from voxtier.tensors.engine.checked import CheckedEngine
from voxtier.tensors.engine.pipelines import configured_pipeline
from voxtier.tensors.identity.config import Config, ImageProcessing, load_config
from voxtier.tensors.identity.pipeline import build_transforms
from voxtier.tensors.saving import make_plain


def preprocess(path: str | os.PathLike[str], config: Config | str | os.PathLike[str]) -> torch.Tensor:
    """Return the tensor of a volume.

    The core makes it where it gives MONAI's bits, otherwise MONAI does; the first two volumes of a class on a
    machine are made by both and compared. ``engine: stock`` in the configuration leaves all to MONAI.

    Parameters
    ----------
    path : path-like
        A NIfTI file.
    config : Config or path-like
        The configuration, or its file.

    Returns
    -------
    torch.Tensor
        Shape ``(1, *target_shape_dhw)``, of the configuration's type.

    Raises
    ------
    ConfigError
        The configuration cannot be used.
    Exception
        What MONAI raises for a file that it cannot read.
    """
    settings = config if isinstance(config, Config) else load_config(config)
    item: dict[str, Any] = {"image": Path(path)}
    transforms, engine = _tools(settings.processing, is_stock=settings.engine == "stock")

    def transform() -> dict[str, Any]:
        return dict(transforms(item))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(monai|torch)\.")
        made = transform() if engine is None else engine.make(item, transform)[0]
    tensor: torch.Tensor = make_plain(made["image"])
    return tensor


@lru_cache(maxsize=8)
def _tools(processing: ImageProcessing, *, is_stock: bool) -> tuple[Any, CheckedEngine | None]:
    """Return the transforms of these settings, and the engine where it is used, once for each process."""
    transforms = build_transforms(processing)
    return transforms, None if is_stock else CheckedEngine(configured_pipeline(transforms, processing))
