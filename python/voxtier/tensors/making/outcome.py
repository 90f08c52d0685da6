"""How a run of `generate` is asked for, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["DEFAULTS", "Options", "Outcome"]


@dataclass(frozen=True, slots=True)
class Options:
    """How to run."""

    workers: int = 8
    batch_size: int = 100
    clean_raw: bool = False
    """Also remove raw files that the user put there, once their tensors are verified."""
    num_shards: int = 1
    shard_id: int = 0
    min_free: int = 1 << 30
    """Bytes that stay free on the disk."""
    max_raw_bytes: int | None = None
    """Most bytes of downloaded raw files at once."""
    until_full: bool = False
    """Start although the disk cannot hold everything."""


DEFAULTS = Options()


@dataclass(slots=True)
class Outcome:
    """What a run did."""

    made: int = 0
    elsewhere: int = 0
    """Made by another process meanwhile."""
    failed: dict[str, str] = field(default_factory=dict)
    """Volume name to reason."""
    unavailable: int = 0
    raws_removed: int = 0
    workers: int = 0
    stopped: bool = False
    stop_reason: str = ""
    hub_down: bool = False

    def exit_code(self) -> int:
        """0 all there, 3 partial, 4 the hub is down."""
        if self.hub_down:
            return 4
        return 3 if self.failed or self.unavailable or self.stop_reason else 0
