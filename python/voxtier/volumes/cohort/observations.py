"""The tables that a collection and a cohort show: in the order of the view, changed only through the root."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from voxtier.arguments import several
from voxtier.errors import ConfigError, ViewError
from voxtier.volumes.cohort.cohort_view import CohortView
from voxtier.volumes.cohort.collection_view import CollectionView
from voxtier.volumes.store.commits import Change, change_store
from voxtier.volumes.store.jobs import Job
from voxtier.volumes.tiledb.tables.columns import Table, as_table
from voxtier.volumes.tiledb.tables.dataframe import Dataframe
from voxtier.volumes.tiledb.tables.names import INDEX_COLUMNS, SHAPES, given_table


class _ViewTable:
    _keys: tuple[str, ...] = INDEX_COLUMNS

    def _table(self) -> Table:
        raise NotImplementedError

    @property
    def columns(self) -> list[str]:
        """Names of the columns beside the keys."""
        return [name for name in self._table().columns if name not in INDEX_COLUMNS]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (keys not counted)."""
        return len(self), len(self.columns)

    def __len__(self) -> int:
        return len(self._table())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} rows: {', '.join(self._table().columns)})"

    def add_column(self, name: str, dtype: Any, values: object = None, *, fill: object = None) -> None:
        """Add a column, as one commit.

        Parameters
        ----------
        name : str
            Its name.
        dtype : numpy.dtype or what makes one
            Its type; any text type becomes UTF-8 of any length.
        values : sequence, optional
            One value per row, in the order of the root; by default all are missing.
        fill : number, text or bool, optional
            The one value of all rows, instead of ``values``.
        """
        self._write(lambda frame: frame.add_column(name, dtype, values, fill=fill))

    def drop_column(self, name: str) -> None:
        """Remove a column with its values, as one commit."""
        self._write(lambda frame: frame.drop_column(name))

    def _write(self, change_table: Callable[[Dataframe], None]) -> None:
        """Change the stored table, as one commit.

        Raises
        ------
        ViewError
            For the table of a view.
        """
        raise NotImplementedError

    def read(self, columns: str | Iterable[str] | None = None, value_filter: str | None = None) -> Table:
        """Return rows (those that satisfy ``value_filter``) with the keys and all or some columns."""
        table = self._table()
        if value_filter is not None:
            table = table.filter(value_filter)
        return table if columns is None else table.select([*self._keys, *several(columns)])


class ObservationTable(_ViewTable):
    """The rows of a collection (or of its view), in the order of the view.

    Parameters
    ----------
    collection : CollectionView
        Whose rows.
    """

    def __init__(self, collection: CollectionView) -> None:
        self._collection = collection

    def _table(self) -> Table:
        return self._collection.table

    def update(self, df: object) -> None:
        """Change values of rows by key, as one commit.

        Raises
        ------
        ConfigError
            For another shape of a volume than its row holds, and for what `Dataframe.update` refuses.
        """
        changes = as_table(df)
        if SHAPES in changes:  # a row that was read, edited and is given back
            held, told = _shapes_of(self._collection._rows.table), _shapes_of(changes)
            if any(shape != held.get(obs_id, shape) for obs_id, shape in told.items()):
                raise _needed_shapes()
            changes = changes.select([name for name in changes.columns if name != SHAPES])
        self._write(lambda frame: frame.update(changes))

    def drop_column(self, name: str) -> None:
        """Remove a column with its values, as one commit.

        Raises
        ------
        ConfigError
            For the column of shapes, which a collection needs, and for one that it lacks.
        """
        if name == SHAPES:
            raise _needed_shapes()
        super().drop_column(name)

    def _write(self, change_table: Callable[[Dataframe], None]) -> None:
        collection = self._collection
        if collection.is_view:
            raise ViewError("a view cannot change rows: use the root")
        store = collection._rows.store
        with change_store(store, seen=collection._rows.snapshot) as change:
            change.refuse_unlisted(collection.uri)
            change_table(Dataframe(f"{collection.uri}/obs", store.session, timestamp=change.timestamp))
        collection.refresh()


def _shapes_of(rows: Table) -> dict[str, str]:
    if SHAPES not in rows or "obs_id" not in rows:
        return {}
    return dict(zip(rows.ids("obs_id"), map(str, rows[SHAPES]), strict=True))


def _needed_shapes() -> ConfigError:
    return ConfigError(f"column {SHAPES!r} holds the shapes of the volumes: a collection needs it as it is")


class SubjectTable(_ViewTable):
    """The rows of the subjects of a view, in the order of the view.

    Parameters
    ----------
    radi : CohortView
        Whose subjects.
    """

    _keys = ("obs_subject_id",)

    def __init__(self, radi: CohortView[Any]) -> None:
        self._radi = radi

    def _table(self) -> Table:
        return self._radi._table

    def update(self, df: object) -> None:
        """Change values of subjects (matched by ``obs_subject_id``), as one commit."""
        changes = as_table(df)
        if "obs_id" not in changes:
            changes = Table({**{n: changes[n] for n in changes.columns}, "obs_id": changes["obs_subject_id"]})
        self._write(lambda frame: frame.update(changes))

    def delete(self, expr: str) -> int:
        """Remove the rows of subjects that have no volume, as one commit; return how many.

        Raises
        ------
        ConfigError
            When a subject that satisfies the expression has a volume, which would lose its subject.
        """
        deleted = 0

        def remove(frame: Dataframe, change: Change) -> None:
            nonlocal deleted
            store = change.store
            owners = {
                str(subject)
                for folder in change.collections.values()
                for subject in change.table(f"{store.collection_uri(folder)}/obs").read_all()[
                    "obs_subject_id"
                ]
            }
            chosen = frame.read_all().filter(expr)["obs_subject_id"]
            kept = [str(subject) for subject in chosen if str(subject) in owners]
            if kept:
                raise ConfigError(
                    f"subjects with volumes keep their rows ({', '.join(kept[:5])}): select the others and"
                    " materialize them"
                )
            deleted = frame.delete(expr)
            change.meta["subject_count"] = len(frame)

        self._change(remove)
        return deleted

    def _write(self, change_table: Callable[[Dataframe], None]) -> None:
        self._change(lambda frame, _: change_table(frame))

    def _change(self, change_table: Callable[[Dataframe, Change], None]) -> None:
        self._radi._refuse_view("change rows of")
        store = self._radi._cohort.store
        with change_store(store, seen=self._radi._cohort.snapshot) as change:
            uri = f"{store.root}/{change.subjects}"
            change_table(Dataframe(uri, store.session, timestamp=change.timestamp), change)
        self._radi.refresh()


def with_observations(jobs: Sequence[Job], obs: object) -> list[Job]:
    """Return the jobs with the ids and the columns of a table that has a row for each, in their order.

    Parameters
    ----------
    jobs : sequence of Job
        The volumes.
    obs : DataFrame, Table or mapping
        Columns ``obs_id`` and ``obs_subject_id``, and any others.

    Returns
    -------
    list of Job
        One for each volume.

    Raises
    ------
    ConfigError
        When a key column or an id in it is missing, for a table of another length or for other subjects, and
        for a column that is named as voxtier's own.
    """
    table = given_table(obs)
    missing = [name for name in INDEX_COLUMNS if name not in table]
    if missing:
        raise ConfigError(f"obs needs a column {missing[0]!r}")
    if len(table) != len(jobs):
        raise ConfigError(f"obs has {len(table)} rows for {len(jobs)} volumes: one for each, in their order")
    subjects, obs_ids = table.ids("obs_subject_id"), table.ids("obs_id")
    changed = []
    for place, (job, row) in enumerate(zip(jobs, table.typed_rows(), strict=True)):
        if subjects[place] != job.subject:
            raise ConfigError(
                f"row {place} of obs is of subject {subjects[place]!r}, {job.label} of {job.subject!r}"
            )
        columns = {name: value for name, value in row.items() if name not in INDEX_COLUMNS}
        both = sorted(columns.keys() & job.extra.keys())
        if both:
            raise ConfigError(f"obs has a column {both[0]!r}, which the images fill themselves: rename it")
        changed.append(
            replace(job, obs_id=obs_ids[place], extra={**job.extra, **columns}, given=frozenset(columns))
        )
    return changed
