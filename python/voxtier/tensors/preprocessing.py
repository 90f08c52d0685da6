"""The tensor of a single volume, for inference: as the cache of the same configuration holds it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from voxtier.tensors.engine.checked import engine_of
from voxtier.tensors.engine.pipelines import configured_pipeline
from voxtier.tensors.identity.config import Config, load_config
from voxtier.tensors.identity.pipeline import build_transforms
from voxtier.tensors.saving import make_plain


def preprocess(path: str | os.PathLike[str], config: Config | str | os.PathLike[str]) -> torch.Tensor:
    """Return the tensor of a volume.

    The core makes it where it gives MONAI's bits, otherwise MONAI does; the first two volumes of a process
    are made by both and compared. ``engine: stock`` in the configuration leaves all to MONAI.

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

    transforms = build_transforms(settings.processing)

    def transform() -> dict[str, Any]:
        return dict(transforms(item))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(monai|torch)\.")
        if settings.engine == "stock":
            made = transform()
        else:
            made, _ = engine_of(configured_pipeline(transforms, settings.processing)).make(item, transform)
    tensor: torch.Tensor = make_plain(made["image"])
    return tensor
