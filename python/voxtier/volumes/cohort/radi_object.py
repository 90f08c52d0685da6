"""A cohort: subjects, their observation table, and one collection of volumes for each series."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from voxtier.errors import ConfigError, FormatError
from voxtier.volumes.cohort.cohort_view import CohortView
from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.cohort.observations import SubjectTable
from voxtier.volumes.cohort.queries.lazy import Query
from voxtier.volumes.cohort.queries.transforms import copy_jobs
from voxtier.volumes.formats.sources import Images
from voxtier.volumes.store.adoption import adopt_collections, hold_collections
from voxtier.volumes.store.append import add_cohort
from voxtier.volumes.store.commits import change_store, repair
from voxtier.volumes.store.ingest import IngestOptions
from voxtier.volumes.store.jobs import OnError, OnGap, cohort_jobs, dicom_jobs, refuse_misaligned
from voxtier.volumes.store.names import checked_name, refuse_duplicates
from voxtier.volumes.store.snapshots import Store
from voxtier.volumes.tiledb.session import Session, Uri, as_uri
from voxtier.volumes.tiledb.tables.columns import Table
from voxtier.volumes.tiledb.tables.names import given_table


class RadiObject(CohortView[VolumeCollection]):
    """Subjects and their volumes; a selection is a view, and a view's collections hold only its subjects.

    Parameters
    ----------
    uri : path or URI
        Store of this package or of RadiObject (read-only; volumes are found by the id inside each array).
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.

    Examples
    --------
    >>> radi = RadiObject("cohort")  # doctest: +SKIP
    >>> radi.filter("age > 40").T1w.iloc[0].axial(77).shape  # doctest: +SKIP
    (240, 240)
    """

    _collection_type = VolumeCollection

    @property
    def obs_meta(self) -> SubjectTable:
        """Table of the subjects of this view."""
        return SubjectTable(self)

    def lazy(self) -> Query[RadiObject]:
        """Return a query, whose transforms run volume by volume when results are asked for."""
        return Query(self)

    def materialize(self, uri: Uri, ctx: object = None) -> RadiObject:
        """Write the subjects and collections of this view, and only them, to a new store."""
        return self.lazy().materialize(uri, ctx=ctx)

    write = materialize

    def validate(self) -> None:
        """Check every volume (see `VolumeCollection.validate`) and that each belongs to a known subject.

        Raises
        ------
        FormatError
            Names what contradicts a row.
        """
        subjects = set(self._cohort.subjects)
        refuse_duplicates(self.all_obs_ids)
        for name in self.collection_names:
            collection = self.collection(name)
            strangers = sorted(set(collection.obs_subject_ids) - subjects)
            if strangers:
                raise FormatError(
                    "store_changed",
                    None,
                    f"collection {name!r} holds subjects without a row: {', '.join(strangers[:5])}",
                )
            collection.validate()

    def repair(self, *, dry_run: bool = False) -> list[str]:
        """Remove arrays and collections that no commit refers to (left by a killed ingest).

        Returns
        -------
        list of str
            Their addresses.

        Raises
        ------
        BackendError
            When somebody is writing.
        """
        self._refuse_view("repair")
        orphans = repair(self._cohort.store, dry_run=dry_run)
        self.refresh()
        return orphans

    def append(
        self,
        niftis: Images | None = None,
        dicom_dirs: Iterable[tuple[Any, str]] | None = None,
        obs_meta: object = None,
        reorient: bool | None = None,  # noqa: FBT001
        progress: bool = False,  # noqa: FBT001, FBT002
        *,
        images: Mapping[str, Images] | None = None,
        collection_name: str | None = None,
        format_hint: Mapping[str, str] | None = None,
        on_error: OnError = "raise",
        on_gap: OnGap = "error",
    ) -> None:
        """Add subjects and volumes, over any number of collections: all become visible together, or none.

        Parameters
        ----------
        niftis : pairs (path, subject), files, folders or globs, optional
            Files of one collection, or of one for each series that their names state.
        dicom_dirs : sequence of (folder, subject), optional
            DICOM series, collected by modality.
        obs_meta : DataFrame, mapping or pyarrow Table, optional
            Rows of the new subjects, with a column ``obs_subject_id``; those of others may stand beside them
            with the values that they have.
        reorient : bool, optional
            Flip and permute to the configured target; by default as configured.
        progress : bool
            Report on stderr.
        images : mapping, optional
            Collection name -> NIfTI files or DICOM series, see `from_images`. Give one of the three.
        collection_name : str, optional
            Name for the collection of ``niftis`` or ``dicom_dirs``.
        format_hint : mapping, optional
            See `from_images`.
        on_error : {"raise", "skip"}
            Whether one bad image refuses all.
        on_gap : {"error", "keep", "fill"}
            What becomes of missing slices of a DICOM series.
        """
        self._refuse_view("append to")
        jobs = cohort_jobs(
            niftis, dicom_dirs, images, collection_name, reorient, on_gap, on_error, format_hint or {}
        )
        subjects = _subjects(obs_meta)
        with change_store(self._cohort.store) as change:
            add_cohort(change, jobs, subjects, IngestOptions(on_error, progress))
        self.refresh()

    def add_collection(self, name: str, vc: VolumeCollection | Uri) -> None:
        """Add a collection (or a view of one) under a new name; its new subjects get rows without values.

        Its volumes are copied, but those of a collection that lies at ``<uri>/collections/<name>`` already
        are taken in as they lie.

        Parameters
        ----------
        name : str
            Name of the collection in this store.
        vc : VolumeCollection, path or URI
            The volumes.

        Raises
        ------
        ConfigError
            When there is a collection of that name, and for an observation that would exist twice.
        """
        self._refuse_view("add a collection to")
        self._take_in(self._cohort.store, {name: vc}, None)
        self.refresh()

    def rename_collection(self, old_name: str, new_name: str) -> None:
        """Give a collection another name (its folder and the ids of its volumes stay).

        Raises
        ------
        KeyError
            When there is no collection of the old name.
        ConfigError
            When there is one of the new name.
        """
        self._refuse_view("rename a collection of")
        checked_name("collection", new_name)
        with change_store(self._cohort.store, seen=self._cohort.snapshot) as change:
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
        niftis : pairs (path, subject), files, folders or globs, optional
            Files of one collection, or of one for each series that their names state.
        image_dir : path, optional
            Folder of NIfTI files (the same as ``niftis=folder``).
        collection_name : str, optional
            Name for the collection of ``niftis`` or ``image_dir``.
        images : mapping, optional
            Collection name -> pairs, files, folders or globs.
        validate_alignment : bool
            Refuse collections whose subjects differ.
        obs_meta : DataFrame, mapping or pyarrow Table, optional
            Table of the subjects, with a column ``obs_subject_id``.
        reorient : bool, optional
            Flip and permute to the configured target; by default as configured.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.
        progress : bool
            Report on stderr.
        overwrite : bool
            Replace a store that exists: whatever happens, readers find the old one or the whole new one.
        on_error : {"raise", "skip"}
            Whether one bad image refuses all.

        Returns
        -------
        RadiObject
            The new store.

        Raises
        ------
        ConfigError
            When not exactly one kind of source is given, when a name does not tell the subject or the series,
            and when something else lies at the address.
        IngestError
            Lists every image that was refused; nothing became visible.

        Notes
        -----
        Without pairs the path tells the subject, whichever way it was given. The BIDS name
        ``sub-01_ses-2_run-1_T1w.nii.gz`` is ``sub-01_ses-2_run-1_T1w`` of ``sub-01`` in the collection T1w,
        with the columns ``session`` and ``run``. Of another name the series and the entities are taken out:
        ``p7_t1ce.nii.gz`` is ``p7_T1gd`` of ``p7``. With pairs an observation is ``SUBJECT_COLLECTION``.
        """
        if sum(value is not None for value in (niftis, image_dir, images)) != 1:
            raise ConfigError("give exactly one of niftis, image_dir and images")
        niftis = niftis if image_dir is None else image_dir
        jobs = cohort_jobs(niftis, None, images, collection_name, reorient, on_error=on_error)
        if validate_alignment:
            refuse_misaligned(jobs)
        return cls._create(
            uri, jobs, _subjects(obs_meta), ctx, IngestOptions(on_error, progress), overwrite=overwrite
        )

    @classmethod
    def from_images(
        cls,
        uri: Uri,
        images: Mapping[str, Images],
        validate_alignment: bool = False,  # noqa: FBT001, FBT002
        obs_meta: object = None,
        reorient: bool | None = None,  # noqa: FBT001
        format_hint: Mapping[str, str] | None = None,
        progress: bool = False,  # noqa: FBT001, FBT002
        ctx: object = None,
        *,
        overwrite: bool = False,
        on_error: OnError = "raise",
        on_gap: OnGap = "error",
    ) -> RadiObject:
        """Create a store from NIfTI files, DICOM series or both: each collection is of one format.

        Parameters
        ----------
        uri : path or URI
            Place of the new store. After a cut-off ingest the same call takes over what is finished.
        images : mapping
            Collection name -> NIfTI files as `from_niftis` takes them, or DICOM series: (folder, subject)
            pairs, or a folder with one folder for each subject.
        validate_alignment : bool
            Refuse collections whose subjects differ.
        obs_meta : DataFrame, mapping or pyarrow Table, optional
            Table of the subjects, with a column ``obs_subject_id``.
        reorient : bool, optional
            Flip and permute to the configured target; by default as configured.
        format_hint : mapping, optional
            Collection name -> ``"nifti"`` or ``"dicom"``, where it shall not be told from the files.
        progress : bool
            Report on stderr.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.
        overwrite : bool
            Replace a store that exists: whatever happens, readers find the old one or the whole new one.
        on_error : {"raise", "skip"}
            Whether one bad image refuses all.
        on_gap : {"error", "keep", "fill"}
            What becomes of missing slices of a DICOM series.

        Returns
        -------
        RadiObject
            The new store.
        """
        jobs = cohort_jobs(None, None, images, None, reorient, on_gap, on_error, format_hint or {})
        if validate_alignment:
            refuse_misaligned(jobs)
        return cls._create(
            uri, jobs, _subjects(obs_meta), ctx, IngestOptions(on_error, progress), overwrite=overwrite
        )

    @classmethod
    def from_dicoms(
        cls,
        uri: Uri,
        dicom_dirs: Iterable[tuple[Any, str]],
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
        """Create a store from folders of DICOM series; warns of files that are no part of a scan.

        Parameters
        ----------
        uri : path or URI
            Place of the new store. After a cut-off ingest the same call takes over what is finished.
        dicom_dirs : sequence of (folder, subject)
            Folders, files, or lists of files. A series is one volume, or several where its slices do not lie
            on one grid: the one with the most slices has the plain name.
        obs_meta : DataFrame, mapping or pyarrow Table, optional
            Table of the subjects, with a column ``obs_subject_id``.
        reorient : bool, optional
            Flip and permute to the configured target; by default as configured.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.
        progress : bool
            Report on stderr.
        collection_name : str, optional
            Name of the one collection; by default volumes are collected by modality.
        overwrite : bool
            Replace a store that exists: whatever happens, readers find the old one or the whole new one.
        on_error : {"raise", "skip"}
            Whether one bad image refuses all.
        on_gap : {"error", "keep", "fill"}
            What becomes of missing slices.

        Returns
        -------
        RadiObject
            The new store.
        """
        jobs = dicom_jobs(dicom_dirs, collection_name, reorient=reorient, on_gap=on_gap, on_error=on_error)
        return cls._create(
            uri, jobs, _subjects(obs_meta), ctx, IngestOptions(on_error, progress), overwrite=overwrite
        )

    @classmethod
    def from_collections(
        cls,
        uri: Uri,
        collections: Mapping[str, VolumeCollection | Uri],
        obs_meta: object = None,
        ctx: object = None,
    ) -> RadiObject:
        """Create a store from collections (or views of them).

        Their volumes are copied, but those of a collection that lies at ``<uri>/collections/<name>`` already
        are taken in as they lie.

        Parameters
        ----------
        uri : path or URI
            Place of the new store.
        collections : mapping
            Collection name -> volumes, or the address of a collection.
        obs_meta : DataFrame, mapping or pyarrow Table, optional
            Table of the subjects, with a column ``obs_subject_id``.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.

        Returns
        -------
        RadiObject
            The new store.

        Raises
        ------
        ConfigError
            Without a collection, for an observation that would exist twice, and when something else lies
            there.
        """
        store = Store(as_uri(uri), Session.of(ctx), "radi_object")
        subjects = _subjects(obs_meta)
        if not collections:
            raise ConfigError("there is no collection")
        cls._take_in(store, collections, subjects, new=True)
        return cls(store.root, store.session)

    @classmethod
    def _take_in(
        cls,
        store: Store,
        collections: Mapping[str, VolumeCollection | Uri],
        subjects: Table | None,
        *,
        new: bool = False,
    ) -> None:
        """Copy collections into a store, or list those that lie there already, as one commit."""
        views: dict[str, VolumeCollection] = {}
        for name, given in collections.items():
            view = VolumeCollection(given, store.session) if isinstance(given, (str, os.PathLike)) else given
            views[checked_name("collection", name)] = view
        own = {
            name: view._rows.store
            for name, view in views.items()
            if view.stands_alone and view.uri == f"{store.root}/collections/{name}"
        }
        jobs = {name: copy_jobs(view, ()) for name, view in views.items() if name not in own}
        with hold_collections(own) as snapshots, change_store(store, new=new) as change:
            taken = [name for name in views if name in change.collections]
            if taken:
                raise ConfigError(f"there already is a collection {taken[0]!r}")
            ids = [job.obs_id for group in jobs.values() for job in group]
            refuse_duplicates(ids, change.visible_ids())  # here, as the advice for images does not help
            owners = adopt_collections(change, own, snapshots, ids)
            add_cohort(change, jobs, subjects, IngestOptions(), owners=owners)


def _subjects(obs_meta: object) -> Table | None:
    return None if obs_meta is None else given_table(obs_meta)
