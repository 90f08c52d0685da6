"""Which arrays the core may decode by itself, and the calls into it.

Only a local array with exactly one committed fragment that covers the whole domain, of the format version and
filters that the core knows, is read directly; everything else goes through TileDB. ``VOXTIER_DIRECT=0`` sends
everything through TileDB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxtier.volumes.voxels import Layout


def open_tiles(uri: str, layout: Layout, domain: Any) -> Any:
    """Return a reader of the array's tiles, or None where TileDB has to read."""
    return None
