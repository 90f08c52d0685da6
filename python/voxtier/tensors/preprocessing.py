"""The tensor of a single volume, for inference: as the cache of the same configuration holds it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from voxtier.arguments import as_several
from voxtier.errors import ConfigError
from voxtier.tensors.engine.checked import CheckedEngine
from voxtier.tensors.engine.pipelines import configured_pipeline
from voxtier.tensors.engine.source import check_result, make_stock
from voxtier.tensors.identity.config import Config, ImageProcessing, load_config
from voxtier.tensors.identity.pipeline import build_transforms
from voxtier.tensors.saving import make_plain
from voxtier.tensors.states import FINDINGS

_REMEDY = "accept=({!r},) makes it"


def preprocess(
    path: str | os.PathLike[str],
    config: Config | str | os.PathLike[str],
    *,
    accept: str | Iterable[str] = (),
) -> torch.Tensor:
    """Return the tensor of a volume.

    The core makes it where it gives MONAI's bits, otherwise MONAI does; the first two volumes of a class on a
    machine are made by both and compared. ``engine: stock`` in the configuration leaves all to MONAI; with
    ``check`` both make every volume, and where they differ a warning says so and MONAI's tensor is returned.

    Parameters
    ----------
    path : path-like
        A NIfTI file.
    config : Config or path-like
        The configuration, or its file.
    accept : one or several of {"constant", "nan", "4d", "affine", "damaged"}
        What does not keep the tensor from being made, as ``--accept`` of ``voxtier tensors generate``.

    Returns
    -------
    torch.Tensor
        Shape ``(1, *target_shape_dhw)``, of the configuration's type.

    Raises
    ------
    ConfigError
        The configuration cannot be used, or `generate` would refuse the volume too.
    Exception
        What MONAI raises for a file that it cannot read.
    """
    accepted = frozenset(as_several(accept))
    if unknown := sorted(accepted - set(FINDINGS)):
        raise ConfigError(f"accept knows {', '.join(FINDINGS)}, found {', '.join(unknown)}")
    settings = config if isinstance(config, Config) else load_config(config)
    item: dict[str, Any] = {"image": Path(path)}
    transforms, engine = _tools(settings.processing, settings.engine)

    def transform() -> dict[str, Any]:
        return make_stock(transforms, item, accepted, remedy=_REMEDY)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(monai|torch)\.")
            made = transform() if engine is None else engine.make(item, transform)[0]
            check_result(made["image"], settings.processing.target_shape_dhw, accepted, remedy=_REMEDY)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    tensor: torch.Tensor = make_plain(made["image"])
    return tensor


@lru_cache(maxsize=8)
def _tools(processing: ImageProcessing, engine: str) -> tuple[Any, CheckedEngine | None]:
    """Return the transforms of these settings, and the engine where it is used, once for each process."""
    transforms = build_transforms(processing)
    if engine == "stock":
        return transforms, None
    pipeline = configured_pipeline(transforms, processing)
    return transforms, CheckedEngine(pipeline, is_always_checked=engine == "check")
