"""New stores, volumes and subjects, written as arrays and rows into one change."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from voxtier.errors import ConfigError, FormatError
from voxtier.volumes.formats import nifti
from voxtier.volumes.formats.dicom import image as dicom
from voxtier.volumes.store.commits import Change, change_store
from voxtier.volumes.store.ingest import IngestOptions, write_volumes
from voxtier.volumes.store.jobs import Job
from voxtier.volumes.store.names import refuse_duplicates, refuse_unusable_ids
from voxtier.volumes.store.snapshots import Store
from voxtier.volumes.tiledb.format.groups import create_group
from voxtier.volumes.tiledb.session import read_kind
from voxtier.volumes.tiledb.tables.columns import Table, is_value, rows_table
from voxtier.volumes.tiledb.tables.dataframe import Dataframe, create_in_store
from voxtier.volumes.tiledb.tables.names import ARRAYS, INDEX_COLUMNS, SHAPES

# What images fill themselves as numbers: where no image has one, no value tells the type.
_DTYPES = {
    **dict.fromkeys((*dicom.ROW_FLOATS, *nifti.ROW_FLOATS), np.dtype(np.float64)),
    **dict.fromkeys(nifti.ROW_INTEGERS, np.dtype(np.int64)),
}


def create_cohort(
    store: Store,
    jobs: Mapping[str, Sequence[Job]],
    subjects: Table | None,
    options: IngestOptions,
    *,
    overwrite: bool = False,
) -> None:
    """Write a new store of subjects and collections.

    Parameters
    ----------
    store : Store
        Where it is made.
    jobs : mapping
        Collection name -> volumes.
    subjects : Table or None
        Rows of the subjects, with a column ``obs_subject_id``.
    options : IngestOptions
        What bad images do, and whether to report.
    overwrite : bool
        Replace a store that lies there, once the new one is complete.

    Raises
    ------
    ConfigError
        Without an image, where something else lies there, and for what `add_cohort` refuses.
    """
    if not any(jobs.values()):
        raise ConfigError("there is no image to ingest")
    with change_store(store, new=True, overwrite=overwrite) as change:
        add_cohort(change, jobs, subjects, options)


def create_collection(
    store: Store, name: str, jobs: Sequence[Job], options: IngestOptions, *, same_shape: bool = False
) -> None:
    """Write a new collection that stands alone.

    Parameters
    ----------
    store : Store
        Where it is made.
    name : str
        Of the collection; may be empty.
    jobs : sequence of Job
        The volumes.
    options : IngestOptions
        What bad images do, and whether to report.
    same_shape : bool
        Refuse volumes of different shapes.

    Raises
    ------
    ConfigError
        Where something else lies there, and for what `add_volumes` refuses.
    """
    with change_store(store, new=True) as change:
        add_volumes(change, "", name, jobs, options, same_shape=same_shape)


def add_cohort(
    change: Change,
    jobs: Mapping[str, Sequence[Job]],
    subjects: Table | None,
    options: IngestOptions,
    *,
    owners: Iterable[str] = (),
) -> None:
    """Write subjects and volumes of several collections into one change.

    Parameters
    ----------
    change : Change
        Where they are written.
    jobs : mapping
        Collection name -> volumes.
    subjects : Table or None
        Rows of the subjects, with a column ``obs_subject_id``.
    options : IngestOptions
        What bad images do, and whether to report.
    owners : iterable of str
        Subjects of volumes that the change has taken in already.

    Raises
    ------
    ConfigError
        When the rows lack a new subject, have one twice, are of none, have a column that the store lacks, or
        tell of a subject that it has another value than its row.
    """
    every = [job for group in jobs.values() for job in group]
    _check_ids(every, change.visible_ids())
    visible, stored = set(owners), read_subjects(change)
    told = None if subjects is None else _told_rows(subjects, stored)
    if told is not None and options.on_error == "raise":  # one that is left out needs no row
        _refuse_without_row(visible | {job.subject for job in every}, told, stored)
    for name, group in jobs.items():
        if not group:
            continue
        folder = change.folder_of(name)
        written = add_volumes(change, folder, name, group, options)
        owner = {job.obs_id: job.subject for job in group}
        visible |= {owner[obs_id] for obs_id in written}
        change.collections[name] = folder
    add_subjects(change, sorted(visible), stored, told)


def add_volumes(
    change: Change,
    folder: str,
    name: str,
    jobs: Sequence[Job],
    options: IngestOptions,
    *,
    same_shape: bool = False,
) -> list[str]:
    """Write volumes and their rows into a collection, which is created if it is new.

    Parameters
    ----------
    change : Change
        Where they are written.
    folder, name : str
        Of the collection.
    jobs : sequence of Job
        The volumes.
    options : IngestOptions
        What bad images do, and whether to report.
    same_shape : bool
        Refuse volumes of different shapes.

    Returns
    -------
    list of str
        Observation ids that the commit will make visible.

    Raises
    ------
    ConfigError
        For an observation that would exist twice, and for different shapes where they are refused.
    """
    store, session = change.store, change.store.session
    uri = store.collection_uri(folder)
    obs_uri, group = f"{uri}/obs", f"{uri}/volumes"
    is_new = read_kind(obs_uri, session) is None
    present = Table({}) if is_new else change.table(obs_uri).read_all()
    obs_ids = [] if is_new else [str(obs_id) for obs_id in present["obs_id"]]
    _check_ids(jobs, obs_ids)
    if is_new:
        begin_collection(change, folder, name)
    create_group(group, {}, session)
    outcomes = write_volumes(jobs, group, session, options)
    rows = [outcome.row for outcome in outcomes if outcome.row is not None]
    shapes = {row[SHAPES] for row in rows}
    if SHAPES in present:
        shapes |= {str(shape) for shape in present[SHAPES]}
    if same_shape and len(shapes) > 1:
        raise ConfigError(
            f"the volumes differ in shape: {', '.join(sorted(shapes)[:5])}; validate_dimensions=False"
            " allows it"
        )
    _add_rows(change, obs_uri, rows, present, is_new=is_new)
    meta: dict[str, Any] = {"n_volumes": len(obs_ids) + len(rows), "name": name}
    if len(shapes) == 1:
        meta |= dict(zip(("x_dim", "y_dim", "z_dim"), read_shape(next(iter(shapes)), uri), strict=False))
    change.members[group] = [row[ARRAYS] for row in rows]
    change.group_meta[uri] = meta
    change.members.setdefault(uri, []).extend(("volumes", "obs"))
    if store.kind == "radi_object":
        change.members.setdefault(f"{store.root}/collections", []).append(folder)
    return [row["obs_id"] for row in rows]


def read_shape(text: str, where: str) -> tuple[int, ...]:
    """Return the shape that a row states.

    Raises
    ------
    FormatError
        For what is no shape.
    """
    try:
        shape = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        shape = None
    if not isinstance(shape, (tuple, list)) or not all(isinstance(size, int) for size in shape):
        raise FormatError("store_damaged", None, f"{where}: {SHAPES} is {text[:80]!r}, which is no shape")
    return tuple(shape)


def begin_collection(change: Change, folder: str, name: str) -> None:
    """Make the group of a collection, whose name tells from then on that its folder is an ingest's.

    Parameters
    ----------
    change : Change
        What the collection is a part of.
    folder, name : str
        Of the collection.
    """
    store = change.store
    if store.kind == "radi_object":
        create_group(f"{store.root}/collections", {}, store.session)
    create_group(store.collection_uri(folder), {"name": name}, store.session)


def _check_ids(jobs: Sequence[Job], present: Iterable[str]) -> None:
    refuse_unusable_ids(name for job in jobs for name in (job.obs_id, job.subject))
    refuse_duplicates([job.obs_id for job in jobs], present, labels=[job.label for job in jobs])


def _add_rows(
    change: Change, obs_uri: str, rows: list[dict[str, Any]], present: Table, *, is_new: bool
) -> None:
    session = change.store.session
    if is_new:
        table = rows_table(rows, _DTYPES)
        create_in_store(obs_uri, _schema(table), session)
    else:
        stored = Dataframe(obs_uri, session, timestamp=change.timestamp)
        dtypes = stored.dtypes
        rows = [_as_stored(row, dtypes) for row in rows]
        table = rows_table(rows, _DTYPES)
        columns = {*dtypes, *INDEX_COLUMNS, ARRAYS}
        new = {name: dtype for name, dtype in _schema(table).items() if name not in columns}
        if new:
            # Rows that exist are written again, so that they hold a missing value there and not a zero.
            stored.add_attributes(new)
            table = rows_table([*present.rows(), *rows], _DTYPES)
    change.write_rows(obs_uri, table)


def _as_stored(row: dict[str, Any], dtypes: Mapping[str, np.dtype[Any]]) -> dict[str, Any]:
    """Return a row with an image's numbers as text where an older version made their column text."""
    texts = [name for name in _DTYPES if name in row and name in dtypes and dtypes[name].kind == "O"]
    return {**row, **{name: str(row[name]) for name in texts if is_value(row[name])}}


def _schema(table: Table) -> dict[str, np.dtype[Any]]:
    dtypes = {name: table[name].dtype for name in table.columns if name not in INDEX_COLUMNS}
    # TileDB has no cells of 16-bit floats.
    return {name: np.dtype(np.float32) if d == np.float16 else d for name, d in dtypes.items()}


def read_subjects(change: Change) -> Table | None:
    """Return the rows of the subjects of a store; None where it has no table of them yet.

    Parameters
    ----------
    change : Change
        Of the store: what it writes itself is not among them.
    """
    uri = f"{change.store.root}/{change.subjects}"
    return None if read_kind(uri, change.store.session) is None else change.table(uri).read_all()


def add_subjects(
    change: Change,
    subjects: Sequence[str],
    stored: Table | None,
    told: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write the rows of subjects that are new.

    Parameters
    ----------
    change : Change
        Where they are written.
    subjects : sequence of str
        Subjects that have a volume.
    stored : Table or None
        What `read_subjects` returned.
    told : mapping, optional
        Subject -> row with further columns; its other subjects are added too.

    Raises
    ------
    ConfigError
        When rows are told, and none of a new subject.
    """
    store = change.store
    uri = f"{store.root}/{change.subjects}"
    if told is not None:
        _refuse_without_row(set(subjects), told, stored)
    extra_columns, present = told or {}, _names(stored)
    wanted = list(dict.fromkeys([*subjects, *extra_columns]))
    rows = [
        {**extra_columns.get(s, {}), "obs_subject_id": s, "obs_id": s} for s in wanted if s not in present
    ]
    if stored is None:
        create_in_store(uri, _schema(rows_table(rows)), store.session)
        change.members.setdefault(store.root, []).extend((change.subjects, "collections"))
    if rows:
        change.write_rows(uri, rows_table(rows))
    change.meta["subject_count"] = len(present) + len(rows)


def _names(stored: Table | None) -> set[str]:
    return set() if stored is None else {str(subject) for subject in stored["obs_subject_id"]}


def _told_rows(table: Table, stored: Table | None) -> dict[str, dict[str, Any]]:
    """Return the row of each subject of a table that agrees with the stored rows; refuse any other."""
    if stored is not None:
        unknown = [name for name in table.columns if name not in stored and name not in INDEX_COLUMNS]
        if unknown:
            raise ConfigError(f"obs_meta has no column {unknown[0]!r}: obs_meta.add_column() first")
    if "obs_subject_id" not in table:
        raise ConfigError("obs_meta needs a column 'obs_subject_id'")
    subjects = table.ids("obs_subject_id")
    if len(set(subjects)) != len(subjects):
        raise ConfigError("obs_meta has two rows for one subject")
    if stored is not None:
        _refuse_other_values(table, stored)
    return dict(zip(subjects, table.typed_rows(), strict=True))


def _refuse_other_values(table: Table, stored: Table) -> None:
    """Refuse values of stored subjects that are not those of their rows."""
    dtypes = {name: stored[name].dtype for name in stored.columns}
    held = {str(row["obs_subject_id"]): row for row in stored.rows()}
    for row in table.rows():
        subject = str(row["obs_subject_id"])
        for name, value in held.get(subject, {}).items():
            if name in INDEX_COLUMNS or not is_value(row.get(name)):
                continue
            if value is None or not _is_same(row[name], value, dtypes[name]):
                raise ConfigError(
                    f"obs_meta tells {name}={row[name]!r} of {subject!r}, whose row holds"
                    f" {'no value' if value is None else repr(value)}: obs_meta.update() changes it"
                )


def _is_same(told: Any, stored: Any, dtype: np.dtype[Any]) -> bool:
    """Return whether a value is a stored one, also as it comes back from a file of text."""
    if dtype.kind == "f" and isinstance(told, (int, float)):
        # pandas reads a number that it wrote with an error of one place.
        return bool(np.isclose(dtype.type(told), dtype.type(stored), rtol=4 * np.finfo(dtype).eps, atol=0))
    if dtype.kind == "M" and isinstance(told, str):
        with suppress(ValueError):
            return bool(np.datetime64(told) == stored)
    return bool(told == stored)


def _refuse_without_row(subjects: set[str], told: Iterable[str], stored: Table | None) -> None:
    missing = sorted(subjects.difference(told) - _names(stored))
    if missing:
        raise ConfigError(f"obs_meta has no row for {', '.join(missing[:5])}")
