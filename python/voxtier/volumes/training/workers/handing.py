"""How batches are handed out: as tensors, MetaTensors or Subjects, in memory or on a device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError, MissingExtraError
from voxtier.system.text import first_line
from voxtier.volumes.training.loaders import as_torchio_subject, import_torch


class Device:
    """Where tensors go.

    Parameters
    ----------
    device : torch.device or str, optional
        None leaves batches in memory, page-locked where there is CUDA.

    Raises
    ------
    ConfigError
        For a device that this machine does not have.
    """

    def __init__(self, device: Any = None) -> None:
        torch = import_torch()
        self._torch = torch
        self.is_pinned = bool(torch.cuda.is_available())
        self._target: Any = None
        self._in_flight: deque[tuple[Any, Any]] = deque()
        if device is None:
            return
        try:
            self._target = torch.device(device)
            torch.empty(1, device=self._target)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = f"device={device!r} cannot be used on this machine: {first_line(error)}"
            raise ConfigError(reason) from error

    def allocate(self, size: int) -> NDArray[np.uint8]:
        """Return page-locked memory."""
        memory: NDArray[np.uint8] = self._torch.empty(size, dtype=self._torch.uint8, pin_memory=True).numpy()
        return memory

    def move(self, batch: Any) -> Any:
        """Copy the tensors of a batch to the device; its memory is kept until the copy is done."""
        if self._target is None or self._target.type == "cpu":
            return batch
        moved = _map(batch, lambda tensor: tensor.to(self._target, non_blocking=True), self._torch.Tensor)
        if self._target.type == "cuda":
            event = self._torch.cuda.Event()
            event.record()
            self._in_flight.append((event, batch))
            while self._in_flight[0][0].query():
                self._in_flight.popleft()
                if not self._in_flight:
                    break
        return moved

    def wrap(self, batch: dict[str, Any], kind: str) -> Any:
        """Return a batch of arrays and lists in the form that was asked for."""
        torch = self._torch
        if kind == "torchio":
            return [as_torchio_subject(item) for item in split(batch)]
        label = batch.pop("label", None)
        tensors = _map(batch, torch.from_numpy, np.ndarray)
        if label is not None:
            tensors["label"] = torch.utils.data.default_collate(label)
        return _with_meta(tensors) if kind == "metatensor" else tensors


def collate(samples: Sequence[Any]) -> Any:
    """Return a batch as torch's DataLoader does; MetaTensors keep their metadata."""
    torch = import_torch()
    first = samples[0]
    is_meta = isinstance(first, dict) and any(hasattr(value, "meta") for value in first.values())
    if is_meta:
        from monai.data.utils import list_data_collate

        return list_data_collate(samples)
    return torch.utils.data.default_collate(list(samples))


def split(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the items of a batch of arrays and lists, as the dataset gives them."""
    items = []
    for row in range(len(batch["idx"])):
        item = {key: values[row] for key, values in batch.items()}
        item["idx"] = int(item["idx"])
        items.append(item)
    return items


def _map(batch: dict[str, Any], change: Any, kind: type) -> dict[str, Any]:
    return {key: change(value) if isinstance(value, kind) else value for key, value in batch.items()}


def _with_meta(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch whose image and mask are what MONAI collates of MetaTensors."""
    try:
        from monai.data.meta_tensor import MetaTensor
    except ImportError:
        raise MissingExtraError("monai", "tensors") from None
    for key in ("image", "mask"):
        if key in batch:
            tensor = MetaTensor(batch[key])
            rows = len(batch["idx"])
            affine = batch.get("affine")
            if affine is None:
                affine = import_torch().eye(4, dtype=import_torch().float64).repeat(rows, 1, 1)
            tensor.meta["affine"] = affine.clone()
            tensor.applied_operations = [[] for _ in range(rows)]
            tensor.is_batch = True
            batch[key] = tensor
    return batch
