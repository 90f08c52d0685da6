"""A cohort: subjects, their observation table, and one collection of volumes for each series."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from voxtier.errors import ConfigError, FormatError
from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.cohort.observations import SubjectTable
from voxtier.volumes.cohort.selection import ILoc, Index, Loc, Sliceable
from voxtier.volumes.cohort.snapshot_rows import Cohort
from voxtier.volumes.formats.sources import Images, refuse_duplicates
from voxtier.volumes.store.append import cohort_jobs, create_cohort, grow, refuse_misaligned
from voxtier.volumes.store.commits import Snapshot, Store
from voxtier.volumes.store.ingest import Job, OnError, OnGap, dicom_jobs
from voxtier.volumes.tiledb.session import Session, Uri, as_uri, checked_name
from voxtier.volumes.tiledb.tables import as_table

if TYPE_CHECKING:
    from voxtier.volumes.cohort.query import Query
    from voxtier.volumes.volume import Volume


class RadiObject(Sliceable):
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
        self._setup(Cohort(store, store.snapshot()), None, None)

    def _setup(self, cohort: Cohort, subjects: tuple[str, ...] | None, names: tuple[str, ...] | None) -> None:
        self._cohort, self._subjects, self._names = cohort, subjects, names
        self._index: Index | None = None

    @classmethod
    def _view(cls, cohort: Cohort, subjects: Iterable[str] | None, names: Iterable[str] | None) -> RadiObject:
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
        """Return the subjects whose row satisfies an expression (see `voxtier.volumes.tiledb.filters`)."""
        return self._select([int(place) for place in np.flatnonzero(self.obs_meta.read().matching(expr))])

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
        self._setup(Cohort(store, store.snapshot()), None, None)

    def _only_root(self, verb: str) -> None:
        if self.is_view:
            raise TypeError(f"cannot {verb} a view: use the root, or materialize the view first")

    # -- work -------------------------------------------------------------------------------------

    def lazy(self) -> Query:
        """Return a query: transforms are noted now and run volume by volume when results are asked for."""
        from voxtier.volumes.cohort.query import Query

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
        jobs = cohort_jobs(niftis, dicom_dirs, images, collection_name, reorient)
        store = self._cohort.store
        with store.writing() as change:
            grow(
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
            Replace a store that exists: whatever happens, readers find the old one or the whole new one.
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
        jobs = cohort_jobs(
            niftis if image_dir is None else image_dir, None, images, collection_name, reorient
        )
        if validate_alignment:
            refuse_misaligned(jobs)
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
        from voxtier.volumes.cohort.query import copy_jobs

        jobs = {checked_name("collection", name): copy_jobs(found, ()) for name, found in collections.items()}
        return cls._create(uri, jobs, obs_meta, ctx, overwrite=False, on_error="raise", progress=False)

    @classmethod
    def _create(
        cls, uri: Uri, jobs: Mapping[str, Sequence[Job]], obs_meta: object, ctx: object,
        *, overwrite: bool, on_error: OnError, progress: bool,
    ) -> RadiObject:  # fmt: skip
        target, session = as_uri(uri), Session.of(ctx)
        subjects = None if obs_meta is None else as_table(obs_meta)
        create_cohort(
            target, session, jobs, subjects, overwrite=overwrite, on_error=on_error, progress=progress
        )
        return cls(target, session)


def _restore(
    store: Store, snapshot: Snapshot, subjects: tuple[str, ...] | None, names: tuple[str, ...] | None
) -> RadiObject:
    return RadiObject._view(Cohort(store, snapshot), subjects, names)
