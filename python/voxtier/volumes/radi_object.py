"""A cohort: subjects, their observation table, and one collection of volumes for each series."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from voxtier.errors import ConfigError, FormatError
from voxtier.volumes import engine
from voxtier.volumes.collection import Rows, VolumeCollection, add_volumes
from voxtier.volumes.engine import Session, Uri, as_uri, checked_name
from voxtier.volumes.ingest import Job, OnError, OnGap, dicom_jobs, jobs_of, nifti_content
from voxtier.volumes.locks import only_writer
from voxtier.volumes.selection import ILoc, Index, Loc
from voxtier.volumes.sources import Images, Source, grouped_sources, named_sources, refuse_duplicates
from voxtier.volumes.store import Change, Snapshot, Store
from voxtier.volumes.tables import Dataframe, Table, as_table, rows_table

if TYPE_CHECKING:
    from voxtier.volumes.query import Query
    from voxtier.volumes.volume import Volume


class RadiObject:
    """Subjects and their volumes; a selection is a view, and a view's collections hold only its subjects.

    Parameters
    ----------
    uri : path or URI
        Store of this package or of RadiObject (read-only; volumes are found by the id inside each array).
    ctx : optional
        See `Volume`.

    Examples
    --------
    >>> radi = RadiObject("cohort")  # doctest: +SKIP
    >>> radi.filter("age > 40").T1w.iloc[0].axial(77).shape  # doctest: +SKIP
    (240, 240)
    """

    def __init__(self, uri: Uri, ctx: object = None) -> None:
        store = Store(as_uri(uri), Session.of(ctx), "radi_object")
        self._setup(_Cohort(store, store.snapshot()), None, None)

    def _setup(
        self, cohort: _Cohort, subjects: tuple[str, ...] | None, names: tuple[str, ...] | None
    ) -> None:
        self._cohort, self._subjects, self._names = cohort, subjects, names
        self._index: Index | None = None

    @classmethod
    def _view(
        cls, cohort: _Cohort, subjects: Iterable[str] | None, names: Iterable[str] | None
    ) -> RadiObject:
        view = cls.__new__(cls)
        view._setup(
            cohort, None if subjects is None else tuple(subjects), None if names is None else tuple(names)
        )
        return view

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._cohort.store, self._cohort.snapshot, self._subjects, self._names)

    # -- what is in it ----------------------------------------------------------------------------

    @property
    def uri(self) -> str | None:
        """Address of the store; None for a view."""
        return None if self.is_view else self._cohort.store.root

    @property
    def is_view(self) -> bool:
        """Whether this is a selection."""
        return self._subjects is not None or self._names is not None

    @property
    def obs_subject_ids(self) -> list[str]:
        """Subjects, in the order of this view."""
        return list(self.index)

    @property
    def index(self) -> Index:
        """Subjects by place."""
        if self._index is None:
            self._index = Index(self._cohort.subjects if self._subjects is None else self._subjects)
        return self._index

    @property
    def collection_names(self) -> tuple[str, ...]:
        """Names of the collections of this view."""
        return tuple(self._cohort.snapshot.collections) if self._names is None else self._names

    @property
    def n_collections(self) -> int:
        """Number of collections."""
        return len(self.collection_names)

    @property
    def obs_meta(self) -> SubjectTable:
        """Table of the subjects of this view."""
        return SubjectTable(self)

    @property
    def all_obs_ids(self) -> list[str]:
        """Observation ids of every collection of this view."""
        return [obs_id for name in self.collection_names for obs_id in self.collection(name).obs_ids]

    def collection(self, name: str) -> VolumeCollection:
        """Return a collection, restricted to the subjects of this view."""
        if name not in self.collection_names:
            raise KeyError(f"no collection {name!r}; there are {', '.join(self.collection_names) or 'none'}")
        rows = self._cohort.rows(name)
        if self._subjects is None:
            return VolumeCollection._view(rows, None, name)
        places: dict[str, list[int]] = {}
        for place, subject in enumerate(rows.table["obs_subject_id"]):
            places.setdefault(str(subject), []).append(place)
        return VolumeCollection._view(rows, [p for s in self._subjects for p in places.get(s, ())], name)

    def __getattr__(self, name: str) -> VolumeCollection:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self.collection(name)
        except KeyError as error:
            raise AttributeError(str(error.args[0])) from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.collection_names]

    def get_volume(self, obs_id: str) -> Volume:
        """Return a volume of this view by its observation id."""
        for name in self.collection_names:
            collection = self.collection(name)
            if obs_id in collection:
                volume: Volume = collection.loc[obs_id]
                return volume
        raise KeyError(f"{obs_id!r} is not in this {'view' if self.is_view else 'store'}")

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def __contains__(self, subject: object) -> bool:
        return subject in self.index

    def __repr__(self) -> str:
        names = ", ".join(self.collection_names) or "none"
        text = f"RadiObject({len(self)} subjects, {self.n_collections} collections: [{names}])"
        return text + (" (view)" if self.is_view else "")

    def describe(self) -> str:
        """Return a summary for people: collections with shapes, values of columns with few of them."""
        lines = [f"{self!r}", f"store: {self._cohort.store.root}", ""]
        for name in self.collection_names:
            found = self.collection(name)
            shape = found.shape
            lines.append(
                f"  {name}: {len(found)} volumes, shape {'x'.join(map(str, shape)) if shape else 'mixed'}"
            )
        table = self.obs_meta.read()
        for column in [c for c in table.columns if c not in ("obs_subject_id", "obs_id")]:
            values, counts = np.unique(np.ma.compressed(table[column]).astype(str), return_counts=True)
            if len(values) <= 10:
                shares = ", ".join(f"{value}: {count}" for value, count in zip(values, counts, strict=True))
                lines.append(f"  column {column}: {shares}")
        return "\n".join(lines)

    # -- selections -------------------------------------------------------------------------------

    def _select(self, places: Sequence[int]) -> RadiObject:
        subjects = self.obs_subject_ids
        return self._view(self._cohort, [subjects[place] for place in places], self._names)

    @property
    def iloc(self) -> ILoc[RadiObject, RadiObject]:
        """Select subjects by position; always a view, order and duplicates kept."""
        return ILoc(len(self), lambda place: self._select([place]), self._select)

    @property
    def loc(self) -> Loc[RadiObject, RadiObject]:
        """Select subjects by id; one outside this view is a KeyError."""
        return Loc(self.index, lambda place: self._select([place]), self._select)

    def __getitem__(self, key: str | list[str]) -> RadiObject:
        found: RadiObject = self.loc[key]
        return found

    def sel(self, *, subject: str | Sequence[str]) -> RadiObject:
        """Return the view of one subject or of several."""
        found: RadiObject = self.loc[subject]
        return found

    def filter(self, expr: str) -> RadiObject:
        """Return the subjects whose row satisfies an expression (see `voxtier.volumes.filters`)."""
        return self._select([int(place) for place in np.flatnonzero(self.obs_meta.read().matching(expr))])

    def head(self, n: int = 5) -> RadiObject:
        """Return the first subjects."""
        return self._select(range(len(self))[: max(0, n)])

    def tail(self, n: int = 5) -> RadiObject:
        """Return the last subjects."""
        return self._select(range(len(self))[max(0, len(self) - n) :])

    def sample(self, n: int = 5, seed: int | None = None) -> RadiObject:
        """Return random subjects, each at most once."""
        picked = np.random.default_rng(seed).permutation(len(self))[: max(0, n)]
        return self._select([int(place) for place in picked])

    def select_collections(self, names: Sequence[str]) -> RadiObject:
        """Return a view with some of the collections."""
        missing = [name for name in names if name not in self.collection_names]
        if missing:
            raise KeyError(f"no collection {missing[0]!r}; there are {', '.join(self.collection_names)}")
        return self._view(self._cohort, self._subjects, names)

    select = select_collections

    def copy(self) -> RadiObject:
        """Return another object for the same selection."""
        return self._view(self._cohort, self._subjects, self._names)

    def refresh(self) -> None:
        """See what was committed since this object was opened; not for views."""
        self._only_root("refresh")
        store = self._cohort.store
        self._setup(_Cohort(store, store.snapshot()), None, None)

    def _only_root(self, verb: str) -> None:
        if self.is_view:
            raise TypeError(f"cannot {verb} a view: use the root, or materialize the view first")

    # -- work -------------------------------------------------------------------------------------

    def lazy(self) -> Query:
        """Return a query: transforms are noted now and run volume by volume when results are asked for."""
        from voxtier.volumes.query import Query

        return Query(self)

    def materialize(self, uri: Uri, ctx: object = None) -> RadiObject:
        """Write the subjects and collections of this view, and only them, to a new store."""
        return self.lazy().materialize(uri, ctx=ctx)

    write = materialize

    def validate(self) -> None:
        """Check every volume (see `VolumeCollection.validate`) and that each belongs to a known subject."""
        known = set(self._cohort.subjects)
        refuse_duplicates(self.all_obs_ids)
        for name in self.collection_names:
            collection = self.collection(name)
            strangers = sorted(set(collection.obs_subject_ids) - known)
            if strangers:
                raise FormatError(
                    "bad_table",
                    None,
                    f"collection {name!r} holds subjects without a row: {', '.join(strangers[:5])}",
                )
            collection.validate()

    def repair(self, *, dry_run: bool = False) -> list[str]:
        """Remove arrays and collections that no commit refers to (left by a killed ingest).

        Returns their addresses. A store that somebody is writing is refused.
        """
        self._only_root("repair")
        orphans = self._cohort.store.repair(dry_run=dry_run)
        self.refresh()
        return orphans

    # -- growth -----------------------------------------------------------------------------------

    def append(
        self,
        niftis: Images | None = None,
        dicom_dirs: Sequence[tuple[Any, str]] | None = None,
        obs_meta: object = None,
        reorient: bool | None = None,  # noqa: FBT001
        progress: bool = False,  # noqa: FBT001, FBT002
        *,
        images: Mapping[str, Images] | None = None,
        collection_name: str | None = None,
        on_error: OnError = "raise",
    ) -> None:
        """Add subjects and volumes, over any number of collections: all become visible together, or none."""
        self._only_root("append to")
        jobs = _jobs(niftis, dicom_dirs, images, collection_name, reorient)
        store = self._cohort.store
        with store.writing() as change:
            _grow(
                change,
                jobs,
                None if obs_meta is None else as_table(obs_meta),
                on_error=on_error,
                progress=progress,
            )
        self.refresh()

    def rename_collection(self, old_name: str, new_name: str) -> None:
        """Give a collection another name (its folder and the ids of its volumes stay)."""
        self._only_root("rename a collection of")
        checked_name("collection", new_name)
        store = self._cohort.store
        with store.writing() as change:
            if old_name not in change.collections:
                raise KeyError(f"no collection {old_name!r}; there are {', '.join(change.collections)}")
            if new_name in change.collections:
                raise ConfigError(f"there already is a collection {new_name!r}")
            change.collections = {new_name if n == old_name else n: f for n, f in change.collections.items()}
        self.refresh()

    @classmethod
    def from_niftis(
        cls,
        uri: Uri,
        niftis: Images | None = None,
        image_dir: Any = None,
        collection_name: str | None = None,
        images: Mapping[str, Images] | None = None,
        validate_alignment: bool = False,  # noqa: FBT001, FBT002
        obs_meta: object = None,
        reorient: bool | None = None,  # noqa: FBT001
        ctx: object = None,
        progress: bool = False,  # noqa: FBT001, FBT002
        *,
        overwrite: bool = False,
        on_error: OnError = "raise",
    ) -> RadiObject:
        """Create a store from NIfTI files.

        Parameters
        ----------
        uri : path or URI
            Place of the new store. After a cut-off ingest the same call takes over what is finished.
        niftis : pairs (path, subject), folder or glob, optional
            Files of one collection, or of one for each series that their names state.
        image_dir : path, optional
            Folder of NIfTI files (the same as ``niftis=folder``).
        collection_name : str, optional
            Name for the collection of ``niftis`` or ``image_dir``.
        images : mapping, optional
            Collection name -> pairs, folder or glob.
        validate_alignment : bool
            Refuse collections whose subjects differ.
        obs_meta : DataFrame or mapping, optional
            Table of the subjects, with a column ``obs_subject_id``.
        reorient : bool, optional
            Flip and permute to the configured target.
        ctx : optional
            See `Volume`.
        progress : bool
            Report on stderr.
        overwrite : bool
            Replace a store that exists, once the new one is complete.
        on_error : {"raise", "skip"}
            Whether one bad image refuses all.

        Raises
        ------
        IngestError
            Lists every image that was refused; nothing became visible.
        """
        given = [value for value in (niftis, image_dir, images) if value is not None]
        if len(given) != 1:
            raise ConfigError("give exactly one of niftis, image_dir and images")
        jobs = _jobs(niftis if image_dir is None else image_dir, None, images, collection_name, reorient)
        if validate_alignment:
            _refuse_misaligned(jobs)
        return cls._create(
            uri, jobs, obs_meta, ctx, overwrite=overwrite, on_error=on_error, progress=progress
        )

    from_images = from_niftis

    @classmethod
    def from_dicoms(
        cls,
        uri: Uri,
        dicom_dirs: Sequence[tuple[Any, str]],
        obs_meta: object = None,
        reorient: bool | None = None,  # noqa: FBT001
        ctx: object = None,
        progress: bool = False,  # noqa: FBT001, FBT002
        *,
        collection_name: str | None = None,
        overwrite: bool = False,
        on_error: OnError = "raise",
        on_gap: OnGap = "error",
    ) -> RadiObject:
        """Create a store from folders of DICOM series: each series a volume, collected by modality."""
        jobs = dicom_jobs(dicom_dirs, collection_name, reorient=reorient, on_gap=on_gap)
        return cls._create(
            uri, jobs, obs_meta, ctx, overwrite=overwrite, on_error=on_error, progress=progress
        )

    @classmethod
    def from_collections(
        cls,
        uri: Uri,
        collections: Mapping[str, VolumeCollection],
        obs_meta: object = None,
        ctx: object = None,
    ) -> RadiObject:
        """Create a store from collections (or views of them), copying their volumes."""
        from voxtier.volumes.query import copy_jobs

        jobs = {checked_name("collection", name): copy_jobs(found, ()) for name, found in collections.items()}
        return cls._create(uri, jobs, obs_meta, ctx, overwrite=False, on_error="raise", progress=False)

    @classmethod
    def _create(
        cls, uri: Uri, jobs: Mapping[str, Sequence[Job]], obs_meta: object, ctx: object,
        *, overwrite: bool, on_error: OnError, progress: bool,
    ) -> RadiObject:  # fmt: skip
        if not any(jobs.values()):
            raise ConfigError("there is no image to ingest")
        session, target = Session.of(ctx), as_uri(uri)
        store = Store(target, session, "radi_object")
        replaces = False
        if engine.object_kind(target, session) is not None and (overwrite or store.exists()):
            if not overwrite:
                raise ConfigError(f"{target} already exists: append() to it, or overwrite=True")
            fresh = (
                f"{target}.new-{hashlib.blake2b(target.encode(), digest_size=4).hexdigest()}-{os.getpid()}"
            )
            store, replaces = Store(fresh, session, "radi_object"), True
        subjects = None if obs_meta is None else as_table(obs_meta)
        try:
            with store.writing(new=True) as change:
                _grow(change, jobs, subjects, on_error=on_error, progress=progress)
            if replaces:
                with only_writer(target, session):  # nobody appends to what is being replaced
                    engine.replace_tree(store.root, target, session)
        finally:
            if replaces:
                engine.remove_tree(store.root, session)
        return cls(target, session)


class _Cohort:
    """What all views of one opened store share: subjects and rows as of one commit, each read once."""

    def __init__(self, store: Store, snapshot: Snapshot) -> None:
        self.store, self.snapshot = store, snapshot
        self._subjects: Table | None = None
        self._rows: dict[str, Rows] = {}

    @property
    def subject_table(self) -> Table:
        if self._subjects is None:
            self.store.refuse_replaced(self.snapshot)
            frame = Dataframe(
                f"{self.store.root}/obs_meta", self.store.session, timestamp=self.snapshot.commit
            )
            self._subjects = frame.read_all()
        return self._subjects

    @property
    def subjects(self) -> list[str]:
        return [str(subject) for subject in self.subject_table["obs_subject_id"]]

    def rows(self, name: str) -> Rows:
        if name not in self._rows:
            uri = self.store.collection_uri(self.snapshot.collections[name])
            self._rows.setdefault(name, Rows(uri, self.store, self.snapshot))
        return self._rows[name]


def _restore(
    store: Store, snapshot: Snapshot, subjects: tuple[str, ...] | None, names: tuple[str, ...] | None
) -> RadiObject:
    return RadiObject._view(_Cohort(store, snapshot), subjects, names)


class SubjectTable:
    """The table of the subjects of a view."""

    def __init__(self, radi: RadiObject) -> None:
        self._radi = radi

    @property
    def columns(self) -> list[str]:
        """Names of the columns beside the keys."""
        return [name for name in self.read().columns if name not in ("obs_subject_id", "obs_id")]

    def __len__(self) -> int:
        return len(self._radi)

    def __repr__(self) -> str:
        return f"SubjectTable({len(self)} rows: {', '.join(self.read().columns)})"

    def read(self, columns: Sequence[str] | None = None, value_filter: str | None = None) -> Table:
        """Return the rows in the order of the view."""
        table = self._radi._cohort.subject_table
        places = Index([str(subject) for subject in table["obs_subject_id"]])
        table = table.take([places.get_index(subject) for subject in self._radi.index])
        if value_filter is not None:
            table = table.take(np.flatnonzero(table.matching(value_filter)))
        return table if columns is None else table.select(["obs_subject_id", *columns])

    def update(self, df: object) -> None:
        """Change values of subjects (matched by ``obs_subject_id``), as one commit."""
        changes = as_table(df)
        if "obs_id" not in changes:
            changes = Table({**{n: changes[n] for n in changes.columns}, "obs_id": changes["obs_subject_id"]})
        self._write(lambda frame: frame.update(changes))

    def add_column(self, name: str, dtype: Any, values: object = None) -> None:
        """Add a column, as one commit; ``values`` are one per subject, in the order of the root."""
        self._write(lambda frame: frame.add_column(name, dtype, values))

    def _write(self, change_table: Callable[[Dataframe], None]) -> None:
        self._radi._only_root("change rows of")
        store = self._radi._cohort.store
        with store.writing() as change:
            change_table(Dataframe(f"{store.root}/obs_meta", store.session, timestamp=change.stamp))
        self._radi.refresh()


def _jobs(
    niftis: Images | None,
    dicom_dirs: Sequence[tuple[Any, str]] | None,
    images: Mapping[str, Images] | None,
    collection_name: str | None,
    reorient: bool | None,  # noqa: FBT001
) -> dict[str, list[Job]]:
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


def _refuse_misaligned(jobs: Mapping[str, Sequence[Job]]) -> None:
    everyone = {job.subject for found in jobs.values() for job in found}
    for name, found in jobs.items():
        missing = sorted(everyone - {job.subject for job in found})
        if missing:
            raise ConfigError(f"collection {name!r} lacks the subjects {', '.join(missing[:5])}")


def _grow(
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
        folder = change.collections.get(name, checked_name("collection", name))
        written = add_volumes(change, folder, name, found, on_error=on_error, progress=progress)
        owner = {job.obs_id: job.subject for job in found}
        visible |= {owner[obs_id] for obs_id in written}
        change.collections[name] = folder
    add_subjects(change, sorted(visible), subjects)


def add_subjects(change: Change, subjects: Sequence[str], table: Table | None) -> None:
    """Write the rows of subjects that are new, with the columns that ``table`` has for them."""
    store, session = change.store, change.store.session
    uri = f"{store.root}/obs_meta"
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
        engine.write_group(store.root, session, add=["obs_meta", "collections"])
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
