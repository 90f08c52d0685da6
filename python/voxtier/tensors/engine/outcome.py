"""`Outcome`: who made an item. It goes from a worker to the run, which imports neither torch nor MONAI."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an item was made."""

    engine: str
    """``fused`` for the core, ``stock`` for MONAI: whose tensor is the item's."""
    reason: str = ""
    """Why MONAI made it; empty where it was asked to."""
    is_checked: bool = False
    """Whether both made it, and their tensors were compared."""
    difference: str = ""
    """What differed, with numbers; the item is MONAI's then."""
    seconds: dict[str, float] = field(default_factory=dict)
    """CPU seconds of this thread, by engine."""
    rounding: tuple[str, ...] = ()
    """The forms of the convolutions along x, y, z and of the interpolation."""

    def label(self) -> str:
        """Return ``fused``, ``stock`` or ``stock(reason)``."""
        return f"{self.engine}({self.reason})" if self.reason else self.engine
