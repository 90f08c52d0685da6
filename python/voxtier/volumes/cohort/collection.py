"""Volumes of one series across subjects, found by id.

Views share the rows of their root and nothing leaks.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError, FormatError
from voxtier.volumes.cohort.observations import ObservationTable
from voxtier.volumes.cohort.selection import ILoc, Index, Loc, Sliceable
from voxtier.volumes.cohort.snapshot_rows import Rows
from voxtier.volumes.formats.sources import Images, refuse_duplicates
from voxtier.volumes.store.append import add_subjects, add_volumes, collection_jobs
from voxtier.volumes.store.commits import Store
from voxtier.volumes.store.ingest import Job, OnError, OnGap
from voxtier.volumes.tiledb.session import Session, Uri, as_uri
from voxtier.volumes.tiledb.tables import Table
from voxtier.volumes.volume import Volume

if TYPE_CHECKING:
    from voxtier.volumes.cohort.query import CollectionQuery
    from voxtier.volumes.training.datasets import VolumeCollectionDataset


class VolumeCollection(Sliceable):
    """Volumes of one series, found by ``obs_id``; a selection is a view that sees nothing else.

    Parameters
    ----------
    uri : path or URI
        A collection that stands alone, or one inside a `RadiObject`.
    ctx : optional
        See `Volume`.
    """

    def __init__(self, uri: Uri, ctx: object = None) -> None:
        address, session = as_uri(uri), Session.of(ctx)
        store = Store.of_collection(address, session)
        self._setup(Rows(address, store, store.snapshot()), None, None)

    def _setup(self, rows: Rows, chosen: tuple[int, ...] | None, name: str | None) -> None:
        self._rows, self._chosen, self._name = rows, chosen, name
        self._index: Index | None = None

    @classmethod
    def _view(cls, rows: Rows, chosen: Sequence[int] | None, name: str | None) -> VolumeCollection:
        view = cls.__new__(cls)
        view._setup(rows, None if chosen is None else tuple(chosen), name)
        return view

    def __reduce__(self) -> tuple[Any, ...]:
        ids = None if self._chosen is None else self.obs_ids
        return _restore, (self._rows, ids, self._name)

    # -- what is in it ----------------------------------------------------------------------------

    @property
    def uri(self) -> str:
        """Address of the stored collection (that of the root, for a view)."""
        return self._rows.uri

    @property
    def is_view(self) -> bool:
        """Whether this is a selection of a stored collection."""
        return self._chosen is not None

    @property
    def stands_alone(self) -> bool:
        """Whether this collection is a store of its own, not a part of a `RadiObject`."""
        return not self.is_view and self._rows.store.kind == "collection"

    @property
    def _positions(self) -> Sequence[int]:
        return range(len(self._rows.table)) if self._chosen is None else self._chosen

    @property
    def name(self) -> str | None:
        """Name of the collection."""
        if self._name is None:
            found = self._rows.store.meta_of(self.uri).get("name")
            self._name = None if found is None else str(found)
        return self._name

    @property
    def obs_ids(self) -> list[str]:
        """Observation ids, in the order of this view."""
        column = self._rows.table["obs_id"]
        return [str(column[row]) for row in self._positions]

    @property
    def obs_subject_ids(self) -> list[str]:
        """Subject of each volume, in the order of this view."""
        column = self._rows.table["obs_subject_id"]
        return [str(column[row]) for row in self._positions]

    @property
    def index(self) -> Index:
        """Observation ids by place."""
        if self._index is None:
            self._index = Index(self.obs_ids)
        return self._index

    @property
    def table(self) -> Table:
        """The rows of this view, in memory."""
        table = self._rows.table.take(list(self._positions))
        return table.select([name for name in table.columns if not name.startswith("voxtier_")])

    @property
    def obs(self) -> ObservationTable:
        """The observation table of this view."""
        return ObservationTable(self)

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Volume]:
        return (self._volume(place) for place in range(len(self)))

    def _volume(self, place: int) -> Volume:
        row = self._positions[place]
        session = self._rows.store.session
        return Volume(self._rows.address(row), session, expected_obs_id=str(self._rows.table["obs_id"][row]))

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of every volume; None when they differ."""
        shapes = set(self._shapes())
        return shapes.pop() if len(shapes) == 1 else None

    def _shapes(self) -> Iterator[tuple[int, ...]]:
        if "voxtier_array" in self._rows.table and "dimensions" in self._rows.table:
            column = self._rows.table["dimensions"]
            return (tuple(ast.literal_eval(str(column[row]))) for row in self._positions)
        return (volume.shape for volume in self)

    @property
    def is_uniform(self) -> bool:
        """Whether all volumes have one shape."""
        return self.shape is not None

    def __repr__(self) -> str:
        shape = self.shape
        parts = [repr(self.name)] if self.name else []
        parts += [f"{len(self)} volumes", f"shape={'x'.join(map(str, shape)) if shape else 'mixed'}"]
        return f"VolumeCollection({', '.join([*parts, *(['view'] if self.is_view else [])])})"

    # -- selections -------------------------------------------------------------------------------

    def _select(self, places: Sequence[int]) -> VolumeCollection:
        positions = self._positions
        return self._view(self._rows, [positions[place] for place in places], self._name)

    @property
    def iloc(self) -> ILoc[Volume, VolumeCollection]:
        """Select by position: an integer gives a `Volume`.

        A slice, list or mask a view, order and duplicates kept.
        """
        return ILoc(len(self), self._volume, self._select)

    @property
    def loc(self) -> Loc[Volume, VolumeCollection]:
        """Select by observation id; an id outside this view is a KeyError."""
        return Loc(self.index, self._volume, self._select)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str) or (isinstance(key, list) and key and isinstance(key[0], str)):
            return self.loc[key]
        return self.iloc[key]

    def __contains__(self, obs_id: object) -> bool:
        return obs_id in self.index

    def sel(self, *, subject: str | Sequence[str]) -> VolumeCollection:
        """Return the volumes of one subject or of several, in the order asked for."""
        wanted = [subject] if isinstance(subject, str) else list(subject)
        places: dict[str, list[int]] = {}
        for place, owner in enumerate(self.obs_subject_ids):
            places.setdefault(owner, []).append(place)
        missing = [name for name in wanted if name not in places]
        if missing:
            raise KeyError(f"subject {missing[0]!r} is not in this collection")
        return self._select([place for name in wanted for place in places[name]])

    def groupby_subject(self) -> Iterator[tuple[str, VolumeCollection]]:
        """Yield each subject with its volumes."""
        for subject in dict.fromkeys(self.obs_subject_ids):
            yield subject, self.sel(subject=subject)

    def filter(self, expr: str) -> VolumeCollection:
        """Return the volumes whose row satisfies an expression (see `voxtier.volumes.tiledb.filters`)."""
        return self._select([int(place) for place in np.flatnonzero(self.table.matching(expr))])

    def copy(self) -> VolumeCollection:
        """Return another object for the same selection."""
        return self._view(self._rows, self._chosen, self._name)

    # -- work -------------------------------------------------------------------------------------

    def lazy(self) -> CollectionQuery:
        """Return a query: transforms are noted now and run volume by volume when results are asked for."""
        from voxtier.volumes.cohort.query import CollectionQuery

        return CollectionQuery(self)

    def map(self, fn: Callable[..., NDArray[Any]]) -> CollectionQuery:
        """Return a query that applies ``fn(voxels)`` or ``fn(voxels, row)``."""
        return self.lazy().map(fn)

    def materialize(self, uri: Uri, name: str | None = None, ctx: object = None) -> VolumeCollection:
        """Write the volumes of this view, and only them, to a new collection."""
        return self.lazy().materialize(uri, name=name, ctx=ctx)

    write = materialize

    def to_dataset(
        self,
        patch_size: tuple[int, int, int] | None = None,
        labels: object = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        **options: Any,
    ) -> VolumeCollectionDataset:
        """Return a map-style dataset for torch (see `voxtier.volumes.training.datasets`)."""
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
                    "bad_table", None, f"{volume.uri}: shape {volume.shape}, its row says {shape}"
                )

    def repair(self, *, dry_run: bool = False) -> list[str]:
        """Remove arrays that no commit refers to (left by a killed ingest) from a collection of its own.

        Returns their addresses. A store that somebody is writing is refused.
        """
        store = self._rows.store
        if not self.stands_alone:
            raise TypeError("repair the store: a view, or a collection inside a RadiObject, is a part of it")
        orphans = store.repair(dry_run=dry_run)
        self.refresh()
        return orphans

    def refresh(self) -> None:
        """See what was committed since this object was opened; not for views."""
        if self.is_view:
            raise TypeError("a view keeps what it selected: refresh the root and select again")
        store = self._rows.store
        self._setup(Rows(self.uri, store, store.snapshot()), None, self._name)

    # -- growth -----------------------------------------------------------------------------------

    def append(
        self,
        niftis: Images | None = None,
        dicom_dirs: Sequence[tuple[Any, str]] | None = None,
        reorient: bool | None = None,  # noqa: FBT001
        progress: bool = False,  # noqa: FBT001, FBT002
        *,
        on_error: OnError = "raise",
    ) -> None:
        """Add volumes: all of them become visible together, or none.

        Parameters
        ----------
        niftis : pairs (path, subject), folder or glob
            NIfTI files.
        dicom_dirs : pairs (folder, subject)
            DICOM series; give one of the two.
        reorient : bool, optional
            Flip and permute to the configured target.
        progress : bool
            Report on stderr.
        on_error : {"raise", "skip"}
            Whether one bad image refuses all.
        """
        if self.is_view:
            raise TypeError("a view cannot grow: append to the root, or materialize the view first")
        if (niftis is None) == (dicom_dirs is None):
            raise ConfigError("give either niftis or dicom_dirs")
        name = self.name or "volumes"
        jobs = collection_jobs(name, niftis, dicom_dirs, reorient)
        store = self._rows.store
        folder = self.uri.rsplit("/", 1)[-1]
        with store.writing() as change:
            written = set(add_volumes(change, folder, name, jobs, on_error=on_error, progress=progress))
            if store.kind == "radi_object":
                subjects = sorted({job.subject for job in jobs if job.obs_id in written})
                add_subjects(change, subjects, None)
        self.refresh()

    @classmethod
    def from_niftis(
        cls,
        uri: Uri,
        niftis: Images,
        reorient: bool | None = None,  # noqa: FBT001
        validate_dimensions: bool = True,  # noqa: FBT001, FBT002
        valid_subject_ids: set[str] | None = None,
        name: str | None = None,
        ctx: object = None,
        progress: bool = False,  # noqa: FBT001, FBT002
        *,
        on_error: OnError = "raise",
    ) -> VolumeCollection:
        """Create a collection that stands alone from NIfTI files (see `append` for the forms)."""
        return cls._create(
            uri, collection_jobs(name, niftis, None, reorient), name, valid_subject_ids, ctx,
            same_shape=validate_dimensions, on_error=on_error, progress=progress,
        )  # fmt: skip

    @classmethod
    def from_dicoms(
        cls,
        uri: Uri,
        dicom_dirs: Sequence[tuple[Any, str]],
        reorient: bool | None = None,  # noqa: FBT001
        validate_dimensions: bool = True,  # noqa: FBT001, FBT002
        valid_subject_ids: set[str] | None = None,
        name: str | None = None,
        ctx: object = None,
        progress: bool = False,  # noqa: FBT001, FBT002
        *,
        on_error: OnError = "raise",
        on_gap: OnGap = "error",
    ) -> VolumeCollection:
        """Create a collection that stands alone from folders of DICOM series."""
        return cls._create(
            uri, collection_jobs(name, None, dicom_dirs, reorient, on_gap), name, valid_subject_ids, ctx,
            same_shape=validate_dimensions, on_error=on_error, progress=progress,
        )  # fmt: skip

    @classmethod
    def _create(
        cls, uri: Uri, jobs: list[Job], name: str | None, valid: set[str] | None, ctx: object,
        *, same_shape: bool, on_error: OnError, progress: bool,
    ) -> VolumeCollection:  # fmt: skip
        if not jobs:
            raise ConfigError("there is no image to ingest")
        foreign = sorted({job.subject for job in jobs} - valid) if valid is not None else []
        if foreign:
            raise ConfigError(f"subjects that are not allowed here: {', '.join(foreign[:5])}")
        store = Store(as_uri(uri), Session.of(ctx), "collection")
        with store.writing(new=True) as change:
            add_volumes(
                change, "", name or "", jobs, on_error=on_error, progress=progress, same_shape=same_shape
            )
        return cls(store.root, store.session)


def _restore(rows: Rows, ids: list[str] | None, name: str | None) -> VolumeCollection:
    chosen = None
    if ids is not None:
        index = Index([str(obs_id) for obs_id in rows.table["obs_id"]])
        chosen = [index.get_index(obs_id) for obs_id in ids]
    return VolumeCollection._view(rows, chosen, name)
