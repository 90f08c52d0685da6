"""How a store grows: jobs from what the user named, volumes and rows into one change."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from voxtier.errors import ConfigError
from voxtier.volumes.formats.sources import Images, Source, grouped_sources, named_sources, refuse_duplicates
from voxtier.volumes.store.commits import Change, Store
from voxtier.volumes.store.ingest import (
    Job,
    OnError,
    OnGap,
    dicom_jobs,
    jobs_of,
    nifti_content,
    write_volumes,
)
from voxtier.volumes.tiledb import session as engine
from voxtier.volumes.tiledb.session import Session
from voxtier.volumes.tiledb.tables import Dataframe, Table, rows_table


def collection_jobs(
    name: str | None,
    niftis: Images | None,
    dicom_dirs: Sequence[tuple[Any, str]] | None,
    reorient: bool | None,  # noqa: FBT001
    on_gap: OnGap = "error",
) -> list[Job]:
    """Return the jobs of one collection."""
    if niftis is not None:
        sources: list[Source] = grouped_sources(niftis, name)
        return jobs_of(sources, lambda path: nifti_content(path, reorient=reorient), options=(reorient,))
    groups = dicom_jobs(dicom_dirs or (), name, reorient=reorient, on_gap=on_gap)
    return [job for jobs in groups.values() for job in jobs]


def cohort_jobs(
    niftis: Images | None,
    dicom_dirs: Sequence[tuple[Any, str]] | None,
    images: Mapping[str, Images] | None,
    collection_name: str | None,
    reorient: bool | None,  # noqa: FBT001
) -> dict[str, list[Job]]:
    """Return the jobs of a cohort: collection name -> one for each volume."""
    if sum(value is not None for value in (niftis, dicom_dirs, images)) != 1:
        raise ConfigError("give exactly one of niftis, dicom_dirs and images")
    if dicom_dirs is not None:
        return dicom_jobs(dicom_dirs, collection_name, reorient=reorient)
    sources: list[Source] = (
        named_sources(images) if images is not None else grouped_sources(niftis or (), collection_name)
    )
    groups: dict[str, list[Source]] = {}
    for source in sources:
        groups.setdefault(source.collection, []).append(source)
    return {
        name: jobs_of(found, lambda path: nifti_content(path, reorient=reorient), options=(reorient,))
        for name, found in groups.items()
    }


def refuse_misaligned(jobs: Mapping[str, Sequence[Job]]) -> None:
    """Refuse collections whose subjects differ."""
    everyone = {job.subject for found in jobs.values() for job in found}
    for name, found in jobs.items():
        missing = sorted(everyone - {job.subject for job in found})
        if missing:
            raise ConfigError(f"collection {name!r} lacks the subjects {', '.join(missing[:5])}")


def create_cohort(
    target: str, session: Session, jobs: Mapping[str, Sequence[Job]], subjects: Table | None,
    *, overwrite: bool, on_error: OnError, progress: bool,
) -> None:  # fmt: skip
    """Write a new store; one that is there is replaced on request, once the new one is complete."""
    if not any(jobs.values()):
        raise ConfigError("there is no image to ingest")
    with Store(target, session, "radi_object").writing(new=True, overwrite=overwrite) as change:
        grow(change, jobs, subjects, on_error=on_error, progress=progress)


def grow(
    change: Change,
    jobs: Mapping[str, Sequence[Job]],
    subjects: Table | None,
    *,
    on_error: OnError,
    progress: bool,
) -> None:
    """Write subjects and volumes of several collections into one change."""
    store = change.store
    present = [
        str(obs_id)
        for folder in change.collections.values()
        for obs_id in change.table(f"{store.collection_uri(folder)}/obs").read_all()["obs_id"]
    ]
    refuse_duplicates([job.obs_id for found in jobs.values() for job in found], present)
    visible: set[str] = set()
    for name, found in jobs.items():
        if not found:
            continue
        folder = change.folder(name)
        written = add_volumes(change, folder, name, found, on_error=on_error, progress=progress)
        owner = {job.obs_id: job.subject for job in found}
        visible |= {owner[obs_id] for obs_id in written}
        change.collections[name] = folder
    add_subjects(change, sorted(visible), subjects)


def add_volumes(
    change: Change,
    folder: str,
    name: str,
    jobs: Sequence[Job],
    *,
    on_error: OnError = "raise",
    progress: bool = False,
    same_shape: bool = False,
) -> list[str]:
    """Write volumes and their rows into a collection (made when it is new).

    Returns the ids that will be visible.
    """
    store, session = change.store, change.store.session
    uri = store.collection_uri(folder)
    obs_uri, group = f"{uri}/obs", f"{uri}/volumes"
    fresh = engine.object_kind(obs_uri, session) is None
    present = Table({}) if fresh else change.table(obs_uri).read_all()
    known = [] if fresh else [str(obs_id) for obs_id in present["obs_id"]]
    refuse_duplicates([job.obs_id for job in jobs], known)
    if store.kind == "radi_object":
        engine.create_group(f"{store.root}/collections", {}, session)
    if fresh:
        engine.create_group(uri, {"name": name}, session)
    engine.create_group(group, {}, session)
    outcomes = write_volumes(jobs, group, session, on_error=on_error, progress=progress)
    rows = [outcome.row for outcome in outcomes if outcome.status != "error"]
    shapes = {row["dimensions"] for row in rows} | (
        {str(d) for d in present["dimensions"]} if "dimensions" in present else set()
    )
    if same_shape and len(shapes) > 1:
        raise ConfigError(
            f"the volumes differ in shape: {', '.join(sorted(shapes)[:5])}; validate_dimensions=False"
            " allows it"
        )
    _add_rows(change, obs_uri, rows, present, fresh=fresh)
    meta: dict[str, Any] = {"n_volumes": len(known) + len(rows), "name": name}
    if len(shapes) == 1:
        meta |= dict(zip(("x_dim", "y_dim", "z_dim"), ast.literal_eval(next(iter(shapes))), strict=False))
    change.members[group] = [row["voxtier_array"] for row in rows]
    known_members = {} if fresh else engine.group_members(uri, session)
    engine.write_group(uri, session, meta=meta, add=[n for n in ("volumes", "obs") if n not in known_members])
    if store.kind == "radi_object":
        change.members.setdefault(f"{store.root}/collections", []).append(folder)
    return [row["obs_id"] for row in rows]


def _add_rows(
    change: Change, obs_uri: str, rows: list[dict[str, Any]], present: Table, *, fresh: bool
) -> None:
    table = rows_table(rows)
    session = change.store.session
    if fresh:
        Dataframe.create(
            obs_uri,
            {name: table[name].dtype for name in table.columns if name not in ("obs_subject_id", "obs_id")},
            session,
        )
    else:
        stored = Dataframe(obs_uri, session, timestamp=change.stamp)
        known = set(stored.dtypes) | {"obs_subject_id", "obs_id", "voxtier_array"}
        new = [name for name in table.columns if name not in known]
        if new:  # rows that exist are written again, so that they hold a missing value there and not a zero
            stored.add_attributes({name: table[name].dtype for name in new})
            table = rows_table([*present.rows(), *rows])
    change.rows(obs_uri, table)


def add_subjects(change: Change, subjects: Sequence[str], table: Table | None) -> None:
    """Write the rows of subjects that are new, with the columns that ``table`` has for them."""
    store, session = change.store, change.store.session
    uri = f"{store.root}/{change.subjects}"
    given = {} if table is None else {str(row["obs_subject_id"]): row for row in _subject_rows(table)}
    unknown = sorted(set(subjects) - set(given)) if table is not None else []
    fresh = engine.object_kind(uri, session) is None
    known = set() if fresh else {str(s) for s in change.table(uri).read_all()["obs_subject_id"]}
    if set(unknown) - known:
        raise ConfigError(f"obs_meta has no row for {', '.join(sorted(set(unknown) - known)[:5])}")
    wanted = list(dict.fromkeys([*subjects, *given]))
    rows = [{**given.get(s, {}), "obs_subject_id": s, "obs_id": s} for s in wanted if s not in known]
    if fresh:
        columns = rows_table(rows)
        schema = {
            name: columns[name].dtype for name in columns.columns if name not in ("obs_subject_id", "obs_id")
        }
        Dataframe.create(uri, schema, session)
        present = engine.group_members(store.root, session)
        wanted_members = [name for name in (change.subjects, "collections") if name not in present]
        engine.write_group(store.root, session, add=wanted_members)
    elif rows:
        extra = set(rows_table(rows).columns) - set(Dataframe(uri, session).all_columns)
        if extra:
            raise ConfigError(f"obs_meta has no column {sorted(extra)[0]!r}: obs_meta.add_column() first")
    if rows:
        change.rows(uri, rows_table(rows))
    change.meta["subject_count"] = len(known) + len(rows)


def _subject_rows(table: Table) -> Iterator[dict[str, Any]]:
    if "obs_subject_id" not in table:
        raise ConfigError("obs_meta needs a column 'obs_subject_id'")
    subjects = [str(subject) for subject in table["obs_subject_id"]]
    if len(set(subjects)) != len(subjects):
        raise ConfigError("obs_meta has two rows for one subject")
    return table.rows()
