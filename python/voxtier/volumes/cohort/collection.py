"""A collection: volumes of one series across subjects, selected, transformed, grown, created."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from voxtier.arguments import several
from voxtier.errors import ConfigError, FormatError, ViewError
from voxtier.volumes.cohort.collection_view import CollectionView
from voxtier.volumes.cohort.observations import ObservationTable, with_observations
from voxtier.volumes.cohort.queries.eager import EagerQuery
from voxtier.volumes.cohort.queries.lazy import CollectionQuery
from voxtier.volumes.cohort.queries.transforms import Transform
from voxtier.volumes.formats.sources import Images
from voxtier.volumes.store.append import add_subjects, add_volumes, read_subjects
from voxtier.volumes.store.commits import change_store, repair
from voxtier.volumes.store.ingest import IngestOptions
from voxtier.volumes.store.jobs import Job, OnError, OnGap, collection_jobs
from voxtier.volumes.store.names import refuse_duplicates
from voxtier.volumes.tiledb.session import Uri

if TYPE_CHECKING:
    from voxtier.volumes.training.datasets import VolumeCollectionDataset


class VolumeCollection(CollectionView):
    """Volumes of one series, found by ``obs_id``; a selection is a view that sees nothing else.

    Parameters
    ----------
    uri : path or URI
        A collection that stands alone, or one inside a `RadiObject`.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    """

    @property
    def obs(self) -> ObservationTable:
        """The observation table of this view."""
        return ObservationTable(self)

    def lazy(self) -> CollectionQuery[VolumeCollection]:
        """Return a query, whose transforms run volume by volume when results are asked for."""
        return CollectionQuery(self)

    def map(self, fn: Transform) -> CollectionQuery[VolumeCollection]:
        """Return a query that applies a transform to each volume (see `queries.transforms.Transform`)."""
        return self.lazy().map(fn)

    def map_batches(
        self, fn: Callable[[list[tuple[Any, Any]]], Sequence[Any]], batch_size: int = 8
    ) -> EagerQuery[VolumeCollection]:
        """Call a function with lists of (voxels, row) at once; its results are held in memory.

        Parameters
        ----------
        fn : callable
            Gives one result for each pair: a value, or a value and a dict of columns.
        batch_size : int
            Volumes at a time (>= 1).

        Returns
        -------
        EagerQuery
            The results, which `EagerQuery.write` stores when they are volumes.
        """
        return EagerQuery.of_batches(self, fn, batch_size)

    def materialize(self, uri: Uri, name: str | None = None, ctx: object = None) -> VolumeCollection:
        """Write the volumes of this view, and only them, to a new collection.

        Parameters
        ----------
        uri : path or URI
            Place of the new collection.
        name : str, optional
            Its name, by default that of this collection.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.

        Returns
        -------
        VolumeCollection
            The new collection.
        """
        return self.lazy().materialize(uri, name=name, ctx=ctx)

    write = materialize

    def to_dataset(
        self,
        patch_size: SupportsIndex | Iterable[SupportsIndex] | None = None,
        labels: object = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        **options: Any,
    ) -> VolumeCollectionDataset:
        """Return a map-style dataset for torch (see `voxtier.volumes.training.datasets`).

        Parameters
        ----------
        patch_size : int or sequence of int, optional
            (x, y, z) of random patches, or one number for cubes; by default items are whole volumes.
        labels : str, mapping, table or callable, optional
            See `VolumeCollectionDataset`.
        transform : callable, optional
            Applied to the item.
        **options : Any
            Further options of `DatasetConfig`.

        Returns
        -------
        VolumeCollectionDataset
            The dataset.
        """
        from voxtier.volumes.training.datasets import DatasetConfig, LoadingMode, VolumeCollectionDataset

        mode = LoadingMode.PATCH if patch_size is not None else LoadingMode.FULL_VOLUME
        config = DatasetConfig(loading_mode=mode, patch_size=patch_size, **options)
        return VolumeCollectionDataset(self, config, labels=labels, transform=transform)

    def validate(self) -> None:
        """Check every volume of this view: the array opens, holds the id of its row, and has its shape.

        Raises
        ------
        FormatError
            Names the first volume that does not.
        """
        refuse_duplicates(self._rows.table["obs_id"])
        for volume, shape in zip(self, list(self._shapes()), strict=True):
            if volume.shape != shape:
                raise FormatError(
                    "store_changed", None, f"{volume.uri}: shape {volume.shape}, its row says {shape}"
                )

    def repair(self, *, dry_run: bool = False) -> list[str]:
        """Remove arrays that no commit refers to (left by a killed ingest) from a collection of its own.

        Returns
        -------
        list of str
            Their addresses.

        Raises
        ------
        ViewError
            For a view, and for a collection inside a RadiObject.
        BackendError
            When somebody is writing.
        """
        if not self.stands_alone:
            raise ViewError("repair the store: a view, or a collection inside a RadiObject, is a part of it")
        orphans = repair(self._rows.store, dry_run=dry_run)
        self.refresh()
        return orphans

    def append(
        self,
        niftis: Images | None = None,
        dicom_dirs: Iterable[tuple[Any, str]] | None = None,
        reorient: bool | None = None,  # noqa: FBT001
        progress: bool = False,  # noqa: FBT001, FBT002
        *,
        validate_dimensions: bool = False,
        on_error: OnError = "raise",
        on_gap: OnGap = "error",
    ) -> None:
        """Add volumes: all of them become visible together, or none.

        Parameters
        ----------
        niftis : pairs (path, subject), files, folders or globs, optional
            NIfTI files; without pairs, names tell the subjects (see `RadiObject.from_niftis`).
        dicom_dirs : sequence of (folder, subject), optional
            DICOM series; give one of the two.
        reorient : bool, optional
            Flip and permute to the configured target; by default as configured.
        progress : bool
            Report on stderr.
        validate_dimensions : bool
            Refuse volumes of other shapes than the collection has.
        on_error : {"raise", "skip"}
            Whether one bad image refuses all.
        on_gap : {"error", "keep", "fill"}
            What becomes of missing slices of a DICOM series.

        Raises
        ------
        ViewError
            For a view.
        ConfigError
            When not exactly one kind of source is given, for an observation that would exist twice, and for
            shapes that are refused.
        NotFoundError
            When the store was replaced since this object was opened.
        IngestError
            Lists every image that was refused; nothing became visible.
        """
        if self.is_view:
            raise ViewError("a view cannot grow: append to the root, or materialize the view first")
        if (niftis is None) == (dicom_dirs is None):
            raise ConfigError("give either niftis or dicom_dirs")
        name = self.name or ""
        jobs = collection_jobs(name or None, niftis, dicom_dirs, reorient, on_gap, on_error)
        store = self._rows.store
        folder = self.uri.rsplit("/", 1)[-1]
        options = IngestOptions(on_error, progress)
        with change_store(store, seen=self._rows.snapshot) as change:
            change.refuse_unlisted(self.uri)
            written = set(add_volumes(change, folder, name, jobs, options, same_shape=validate_dimensions))
            if store.kind == "radi_object":
                subjects = sorted({job.subject for job in jobs if job.obs_id in written})
                add_subjects(change, subjects, read_subjects(change))
        self.refresh()

    @classmethod
    def from_niftis(
        cls,
        uri: Uri,
        niftis: Images,
        reorient: bool | None = None,  # noqa: FBT001
        validate_dimensions: bool = True,  # noqa: FBT001, FBT002
        valid_subject_ids: str | Iterable[str] | None = None,
        name: str | None = None,
        ctx: object = None,
        progress: bool = False,  # noqa: FBT001, FBT002
        *,
        obs: object = None,
        on_error: OnError = "raise",
    ) -> VolumeCollection:
        """Create a collection that stands alone from NIfTI files.

        Parameters
        ----------
        uri : path or URI
            Place of the new collection. After a cut-off ingest the same call takes over what is finished.
        niftis : pairs (path, subject), files, folders or globs
            The files; without pairs, names tell the subjects (see `RadiObject.from_niftis`).
        reorient : bool, optional
            Flip and permute to the configured target; by default as configured.
        validate_dimensions : bool
            Refuse volumes of different shapes.
        valid_subject_ids : iterable of str, optional
            Refuse other subjects.
        name : str, optional
            Name of the collection.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.
        progress : bool
            Report on stderr.
        obs : DataFrame, Table or mapping, optional
            A row for each file, in their order: ``obs_id``, ``obs_subject_id`` and further columns.
        on_error : {"raise", "skip"}
            Whether one bad image refuses all.

        Returns
        -------
        VolumeCollection
            The new collection.
        """
        # The rows of `obs` are in the order of all files: none may be left out.
        skips: OnError = on_error if obs is None else "raise"
        jobs = collection_jobs(name, niftis, None, reorient, on_error=skips)
        if obs is not None:
            jobs = with_observations(jobs, obs)
        _check(jobs, valid_subject_ids)
        options = IngestOptions(on_error, progress)
        return cls._create(uri, jobs, name, ctx, options, same_shape=validate_dimensions)

    @classmethod
    def from_dicoms(
        cls,
        uri: Uri,
        dicom_dirs: Iterable[tuple[Any, str]],
        reorient: bool | None = None,  # noqa: FBT001
        validate_dimensions: bool = True,  # noqa: FBT001, FBT002
        valid_subject_ids: str | Iterable[str] | None = None,
        name: str | None = None,
        ctx: object = None,
        progress: bool = False,  # noqa: FBT001, FBT002
        *,
        obs: object = None,
        on_error: OnError = "raise",
        on_gap: OnGap = "error",
    ) -> VolumeCollection:
        """Create a collection that stands alone from folders of DICOM series.

        Parameters
        ----------
        uri : path or URI
            Place of the new collection. After a cut-off ingest the same call takes over what is finished.
        dicom_dirs : sequence of (folder, subject)
            The folders.
        reorient : bool, optional
            Flip and permute to the configured target; by default as configured.
        validate_dimensions : bool
            Refuse volumes of different shapes.
        valid_subject_ids : iterable of str, optional
            Refuse other subjects.
        name : str, optional
            Name of the collection.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.
        progress : bool
            Report on stderr.
        obs : DataFrame, Table or mapping, optional
            A row for each volume, in the order of the folders: ``obs_id``, ``obs_subject_id`` and further
            columns.
        on_error : {"raise", "skip"}
            Whether one bad image refuses all.
        on_gap : {"error", "keep", "fill"}
            What becomes of missing slices.

        Returns
        -------
        VolumeCollection
            The new collection.
        """
        jobs = collection_jobs(name, None, dicom_dirs, reorient, on_gap, on_error)
        if obs is not None:
            jobs = with_observations(jobs, obs)
        _check(jobs, valid_subject_ids)
        options = IngestOptions(on_error, progress)
        return cls._create(uri, jobs, name, ctx, options, same_shape=validate_dimensions)


def _check(jobs: Sequence[Job], valid_subjects: str | Iterable[str] | None) -> None:
    if not jobs:
        raise ConfigError("there is no image to ingest")
    found = {job.subject for job in jobs}
    foreign = [] if valid_subjects is None else sorted(found.difference(several(valid_subjects)))
    if foreign:
        raise ConfigError(f"subjects that are not allowed here: {', '.join(foreign[:5])}")
