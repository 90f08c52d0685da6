"""Results of functions over volumes that were computed at once and are held in memory."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Self, TypeVar

from voxtier.arguments import whole_number
from voxtier.errors import ConfigError
from voxtier.volumes.cohort.collection_view import CollectionView
from voxtier.volumes.cohort.queries.transforms import (
    apply_transforms,
    job_of,
    split_result,
    transformed_content,
)
from voxtier.volumes.store.ingest import IngestOptions
from voxtier.volumes.tiledb.session import Uri
from voxtier.volumes.tiledb.tables.columns import rows_table

Collection = TypeVar("Collection", bound=CollectionView)


class EagerQuery(Generic[Collection]):
    """One result for each volume of a view, with the row of the volume.

    Parameters
    ----------
    collection : CollectionView
        The view.
    results : sequence
        What was computed of each volume, in the order of the view.
    rows : sequence of mapping
        Row of each volume.
    updates : sequence of dict
        Columns that the function set for each volume.
    """

    def __init__(
        self,
        collection: Collection,
        results: Sequence[Any],
        rows: Sequence[Any],
        updates: Sequence[dict[str, Any]],
    ) -> None:
        self._collection = collection
        self._results, self._updates = list(results), list(updates)
        self._rows = [_updated(row, changes) for row, changes in zip(rows, updates, strict=True)]

    @classmethod
    def of_batches(
        cls, collection: Collection, fn: Callable[[list[tuple[Any, Any]]], Sequence[Any]], batch_size: int
    ) -> Self:
        """Call a function with lists of (voxels, row); memory holds one batch beside the results.

        Parameters
        ----------
        collection : CollectionView
            The view.
        fn : callable
            Gives one result for each pair.
        batch_size : int
            Volumes at a time (>= 1).

        Returns
        -------
        EagerQuery
            The results.

        Raises
        ------
        ConfigError
            For a batch size below 1, and when the function gives another number of results.
        """
        batch_size = whole_number("batch_size", batch_size, 1)
        pairs = list(collection.volume_rows())
        results: list[Any] = []
        for start in range(0, len(pairs), batch_size):
            batch = [(volume.read(), row) for volume, row in pairs[start : start + batch_size]]
            found = list(fn(batch))
            if len(found) != len(batch):
                raise ConfigError(f"the function gave {len(found)} results for {len(batch)} volumes")
            results += [split_result(result) for result in found]
        values, updates = [value for value, _ in results], [changes for _, changes in results]
        return cls(collection, values, [row for _, row in pairs], updates)

    @classmethod
    def of_volumes(cls, collection: Collection, fn: Callable[..., Any]) -> Self:
        """Call ``fn(voxels)`` or ``fn(voxels, row)`` for each volume, one at a time."""
        return cls.of_batches(collection, lambda batch: [apply_transforms((fn,), *batch[0])], 1)

    def map(self, fn: Callable[..., Any]) -> Self:
        """Return the results of a function over these results and their rows."""
        found = [apply_transforms((fn,), value, row) for value, row in self]
        updates = [before | changes for before, (_, changes) in zip(self._updates, found, strict=True)]
        return type(self)(self._collection, [value for value, _ in found], self._rows, updates)

    def to_list(self) -> list[tuple[Any, Any]]:
        """Return (result, row) for each volume."""
        return list(zip(self._results, self._rows, strict=True))

    def to_dataframe(self, columns: str | Iterable[str] | None = None) -> Any:
        """Return the rows, with what the function set in them, as a pandas DataFrame.

        A result that is a dict adds its entries as columns, any other that is no array a column ``result``.

        Raises
        ------
        KeyError
            For a column that does not exist.
        """
        table = rows_table([{**row, **_as_columns(value)} for value, row in self.to_list()])
        return (table if columns is None else table.select(columns)).to_pandas()

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return iter(self.to_list())

    def __len__(self) -> int:
        return len(self._results)

    def __getitem__(self, idx: int) -> tuple[Any, Any]:
        return self._results[idx], self._rows[idx]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} results of {self._collection!r})"

    def write(self, uri: Uri, name: str | None = None, ctx: object = None) -> Collection:
        """Write the results, which have to be volumes, to a new collection.

        Parameters
        ----------
        uri : path or URI
            Place of the new collection.
        name : str, optional
            Its name, by default that of the view's collection.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.

        Returns
        -------
        VolumeCollection
            The new collection.

        Raises
        ------
        ConfigError
            When there is no result, and for one that is no volume; nothing is written then.
        """
        if not len(self):
            raise ConfigError("there is no volume to write")
        run = uuid.uuid4().hex
        jobs, table = [], self._collection.table
        for volume, row, value, changes in zip(
            self._collection, self._rows, self._results, self._updates, strict=True
        ):
            content = transformed_content(volume, row, value, changes)
            jobs.append(job_of(volume, row, table, (run,), lambda content=content: content))  # type: ignore[misc]
        collection = self._collection
        return collection._create(uri, jobs, name or collection.name, ctx, IngestOptions())


def _updated(row: Any, changes: dict[str, Any]) -> Any:
    if not changes:
        return row
    row = row.copy()
    for name, change in changes.items():
        row[name] = change
    return row


def _as_columns(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {str(name): entry for name, entry in value.items()}
    return {} if getattr(value, "ndim", 0) else {"result": value}
