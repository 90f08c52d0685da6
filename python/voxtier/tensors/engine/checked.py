"""`CheckedEngine`: an engine for one process that proves itself, for datasets and single volumes.

A run of `generate` has workers and a policy of its own; here the process that asks also compares.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from voxtier.tensors.engine.engine import Engine
from voxtier.tensors.engine.outcome import Outcome
from voxtier.tensors.engine.self_test import find_fault
from voxtier.tensors.identity.pipeline import build_transforms

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import ImageProcessing

PROOFS = 2
"""Volumes that both the core and MONAI make, before the core makes any alone."""
CHECK_EVERY = 500
"""Of so many volumes one is made by both."""


class CheckedEngine:
    """The engine of a configuration, compared with MONAI at the start and now and then.

    Parameters
    ----------
    processing : ImageProcessing
        The settings of the pipeline.
    """

    def __init__(self, processing: ImageProcessing) -> None:
        self._engine = Engine(build_transforms(processing), processing)
        self._lock = threading.Lock()
        self._count = 0
        self.fault = find_fault(processing)
        """Why MONAI makes every volume; empty while the core is used."""
        if self.fault:
            self._warn()

    def make(
        self, item: dict[str, Any], stock: Callable[[], dict[str, Any]]
    ) -> tuple[dict[str, Any], Outcome]:
        """Make an item.

        Parameters
        ----------
        item : dict
            With the path as ``image``.
        stock : callable
            Makes it by the stock pipeline.

        Returns
        -------
        item : dict
            As the stock pipeline gives it.
        outcome : Outcome
            Who made it.

        Raises
        ------
        Exception
            What the stock pipeline raises.
        """
        if self.fault:
            return stock(), Outcome("stock", "differs")
        with self._lock:
            self._count += 1
            is_checked = self._count <= PROOFS or self._count % CHECK_EVERY == 0
        made, outcome = self._engine.make(item, stock, is_checked=is_checked)
        if outcome.difference:
            self.fault = f"{item['image']}: {outcome.difference}"
            self._warn()
        return made, outcome

    def _warn(self) -> None:
        warnings.warn(
            f"core and MONAI differ, so MONAI makes the tensors of this process: {self.fault}", stacklevel=3
        )


@lru_cache(maxsize=8)
def engine_of(processing: ImageProcessing) -> CheckedEngine:
    """Return the engine of these settings, one for each process."""
    return CheckedEngine(processing)
