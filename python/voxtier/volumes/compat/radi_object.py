"""The origin's cohort: ours, with its tables in pandas; iterating gives the names of its collections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from voxtier.volumes.cohort import radi_object
from voxtier.volumes.compat.dataframe import SubjectFrame
from voxtier.volumes.compat.query import Query
from voxtier.volumes.compat.volume_collection import VolumeCollection
from voxtier.volumes.tiledb.session import Uri


class RadiObject(radi_object.RadiObject):
    """Subjects and their volumes; a selection is a view, and a view's collections hold only its subjects.

    Parameters
    ----------
    uri : path or URI
        Store of voxtier or of RadiObject.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    """

    _collection_type = VolumeCollection

    @property
    def obs_meta(self) -> Any:
        """Table of the subjects; for a view a pandas DataFrame of its subjects."""
        return self._table.to_pandas() if self.is_view else SubjectFrame(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self.collection_names)

    def lazy(self) -> Query:
        """Return a query, whose transforms run volume by volume when results are asked for."""
        return Query(self)

    def materialize(self, uri: Uri, streaming: bool = True, ctx: object = None) -> Any:  # type: ignore[override]  # noqa: FBT001, FBT002
        """Write the subjects and collections of this view, and only them, to a new store.

        Parameters
        ----------
        uri : path or URI
            Its place.
        streaming : bool
            Accepted for the origin's sake: memory always holds a few volumes only.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.

        Returns
        -------
        RadiObject
            The new store.
        """
        return self.lazy().materialize(uri, streaming, ctx)

    def write(self, uri: Uri, ctx: object = None) -> Any:
        """Write the subjects and collections of this view, and only them, to a new store."""
        return self.lazy().materialize(uri, ctx=ctx)
