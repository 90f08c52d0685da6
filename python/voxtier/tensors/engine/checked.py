"""`CheckedEngine`: an engine for one process that proves itself, for datasets and single volumes.

A run of `generate` has workers and a policy of its own; here the process that asks also compares.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtier.system.fork import after_fork_in_child
from voxtier.tensors.engine.engine import Engine
from voxtier.tensors.engine.headers import read_header
from voxtier.tensors.engine.outcome import Outcome
from voxtier.tensors.engine.proofs import FULL_PRECISION, EnginePolicy, Proofs
from voxtier.tensors.engine.rounding import TorchState, torch_state
from voxtier.tensors.engine.self_test import find_fault

if TYPE_CHECKING:
    from voxtier.tensors.engine.pipelines import Pipeline


class CheckedEngine:
    """The engine of a pipeline, compared with MONAI at first and now and then, as `EnginePolicy` says.

    Parameters
    ----------
    pipeline : Pipeline
        What the core and MONAI do.
    is_always_checked : bool
        Whether both make every volume, also after a difference.
    """

    def __init__(self, pipeline: Pipeline, *, is_always_checked: bool = False) -> None:
        self._engine = Engine(pipeline)
        self._is_always_checked = is_always_checked
        self._pipeline = pipeline
        self._lock = threading.Lock()
        self._policies: dict[TorchState, EnginePolicy] = {}
        self.fault = ""
        """What differed in a volume, since when MONAI makes every one; empty while the core is used."""
        after_fork_in_child(self._begin_child)
        self._policy()

    def _begin_child(self) -> None:
        """Forget the parent's threads, which may hold the lock and be in the middle of volumes."""
        self._lock = threading.Lock()
        for policy in self._policies.values():
            policy.forget_under_way()

    def _policy(self) -> EnginePolicy:
        """Return the policy of the process as it is now, after a self-test where nothing is proved yet."""
        state = torch_state()
        if state not in self._policies:
            proofs = self._read_proofs(state)
            policy = EnginePolicy("check" if self._is_always_checked else "fused", proofs=proofs)
            if not policy.is_proved and not self.fault:
                fault = find_fault(self._pipeline.processing)
                if fault:  # in other states of torch the core may be right
                    policy = EnginePolicy("stock")
                    _warn(fault, state)
            self._policies[state] = policy  # last: a child that is forked meanwhile tests for itself
        return self._policies[state]

    def _read_proofs(self, state: TorchState) -> Proofs | None:
        try:
            return Proofs(self._pipeline.processing, pipeline=self._pipeline.text, **state._asdict())
        except Exception:  # no folder of the user's, for instance: every process proves itself
            return None

    def make(
        self, item: dict[str, Any], stock: Callable[[], dict[str, Any]]
    ) -> tuple[dict[str, Any], Outcome]:
        """Make an item.

        Parameters
        ----------
        item : dict
            With paths as ``image`` and, of a pipeline that has one, as ``label``.
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
        header = read_header(Path(item["image"]))
        volume_class = "" if header is None else header.volume_class
        with self._lock:
            policy = self._policy()
            mode = "stock" if self.fault else policy.expect(volume_class)
            policy.begin(volume_class, mode)
        if mode == "stock":
            return stock(), Outcome("stock", "differs")
        outcome = None
        try:
            made, outcome = self._engine.make(item, stock, is_checked=mode == "check")
        finally:
            with self._lock:
                policy.settle(volume_class, mode, outcome)
        if outcome.difference:
            fault = f"core and MONAI differ in {item['image']}: {outcome.difference}"
            if self._is_always_checked:
                warnings.warn(f"{fault}; MONAI's tensor is kept", stacklevel=3)
            else:
                self.fault = fault
                _warn(fault)
        return made, outcome


def _warn(fault: str, state: TorchState | None = None) -> None:
    place = "" if state is None or state.precision == FULL_PRECISION else f" under {state.precision}"
    warnings.warn(f"MONAI makes the tensors of this process{place}, because {fault}", stacklevel=4)


@lru_cache(maxsize=8)
def engine_of(pipeline: Pipeline) -> CheckedEngine:
    """Return the engine of a pipeline, one for each process."""
    return CheckedEngine(pipeline)
