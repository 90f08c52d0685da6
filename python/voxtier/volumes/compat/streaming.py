"""The origin's writers: ours, which give its classes back."""

from __future__ import annotations

from voxtier.volumes.cohort import streaming
from voxtier.volumes.compat.radi_object import RadiObject
from voxtier.volumes.compat.volume_collection import VolumeCollection

__all__ = ["RadiObjectWriter", "StreamingWriter"]


class StreamingWriter(streaming.StreamingWriter):
    """Write a new collection volume by volume; memory holds one of them.

    Parameters
    ----------
    uri : path or URI
        Place of the new collection.
    shape : tuple of int, optional
        Refuse volumes of another shape.
    obs_schema : mapping, optional
        Accepted for the origin's sake; columns follow from the attributes.
    name : str, optional
        Name of the collection.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    """

    def close(self) -> VolumeCollection:
        """Return the finished collection."""
        return VolumeCollection(self._store.root, self._store.session)


class RadiObjectWriter(streaming.RadiObjectWriter):
    """Write a new store of several collections volume by volume; all become visible when the block ends.

    Parameters
    ----------
    uri : path or URI
        Place of the new store.
    obs_meta_schema : mapping, optional
        Accepted for the origin's sake; columns follow from `write_obs_meta`.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    """

    def finalize(self) -> RadiObject:
        """End the block, if it is open, and return the new store."""
        return RadiObject(super().finalize().uri or "", self._store.session)
