"""The origin's collection: ours, with rows in pandas and functions that run at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from voxtier.volumes.cohort import collection
from voxtier.volumes.compat._types import BatchTransformFn, TransformFn
from voxtier.volumes.compat.dataframe import ObservationFrame
from voxtier.volumes.compat.query import EagerQuery, LazyQuery
from voxtier.volumes.compat.volume import Volume
from voxtier.volumes.formats.sources import Images
from voxtier.volumes.tiledb.session import Uri
from voxtier.volumes.tiledb.tables.columns import import_pandas

if TYPE_CHECKING:
    from voxtier.volumes.compat.ml.datasets import VolumeCollectionDataset


def generate_obs_id(obs_subject_id: str, collection_name: str, acquisition_index: int | None = None) -> str:
    """Return the id of an observation: ``SUBJECT_COLLECTION``, and ``_acq-N`` for another of the same two.

    Parameters
    ----------
    obs_subject_id : str
        The subject.
    collection_name : str
        The collection.
    acquisition_index : int, optional
        Which of several.

    Returns
    -------
    str
        The id.
    """
    suffix = "" if acquisition_index is None else f"_acq-{acquisition_index}"
    return f"{obs_subject_id}_{collection_name}{suffix}"


class VolumeCollection(collection.VolumeCollection):
    """Volumes of one series, found by ``obs_id``; a selection is a view that sees nothing else.

    Parameters
    ----------
    uri : path or URI
        A collection that stands alone, or one inside a `RadiObject`.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    """

    _volume_type = Volume

    @property
    def obs(self) -> ObservationFrame:
        """The observation table of this view."""
        return ObservationFrame(self)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Voxels along x, y, z of every volume, whatever its time points; None when they differ."""
        shapes = {shape[:3] for shape in self._shapes()}
        return shapes.pop() if len(shapes) == 1 else None

    def volume_rows(self) -> Iterator[tuple[Any, Any]]:
        """Yield each volume with its row, a pandas Series."""
        series = import_pandas().Series
        return ((volume, series(row, dtype=object)) for volume, row in super().volume_rows())

    def sel(self, *, subject: str | Iterable[str]) -> Any:
        """Return the volume of one subject that has one, else the volumes of one subject or of several.

        Raises
        ------
        KeyError
            For a subject outside this view.
        """
        found = super().sel(subject=subject)
        return found.iloc[0] if isinstance(subject, str) and len(found) == 1 else found

    def append(
        self,
        niftis: Images | None = None,
        dicom_dirs: Iterable[tuple[Any, str]] | None = None,
        reorient: bool | None = None,  # noqa: FBT001
        progress: bool = False,  # noqa: FBT001, FBT002
        **options: Any,
    ) -> None:
        """Add volumes; a collection of one shape takes no other.

        Parameters
        ----------
        niftis : pairs (path, subject), files, folders or globs, optional
            NIfTI files.
        dicom_dirs : sequence of (folder, subject), optional
            DICOM series; give one of the two.
        reorient : bool, optional
            Flip and permute to the configured target; by default as configured.
        progress : bool
            Report on stderr.
        **options : Any
            Of `voxtier.volumes.VolumeCollection.append`.
        """
        options.setdefault("validate_dimensions", self.is_uniform)
        super().append(niftis, dicom_dirs, reorient, progress, **options)

    def lazy(self) -> LazyQuery:
        """Return a query, whose transforms run volume by volume when results are asked for."""
        return LazyQuery(self)

    def map(self, fn: TransformFn) -> EagerQuery:  # type: ignore[override]
        """Call ``fn(voxels)`` or ``fn(voxels, row)`` for each volume at once; memory holds all results."""
        return EagerQuery.of_volumes(self, fn)

    def map_batches(self, fn: BatchTransformFn, batch_size: int = 8) -> EagerQuery:
        """Call a function with lists of (voxels, row) at once; memory holds all results."""
        return EagerQuery.of_batches(self, fn, batch_size)

    def write(self, uri: Uri | None = None, name: str | None = None, ctx: object = None) -> Any:
        """Write the volumes of this view, and only them, to a new collection.

        Parameters
        ----------
        uri : path or URI, optional
            Its place, by default beside this one (see `LazyQuery.write`).
        name : str, optional
            Its name, by default that of the view's collection.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.

        Returns
        -------
        VolumeCollection
            The new collection.
        """
        return self.lazy().write(uri, name, ctx)

    materialize = write

    def to_dataset(  # type: ignore[override]
        self,
        patch_size: tuple[int, int, int] | None = None,
        labels: Any = None,
        transform: Callable[..., Any] | None = None,
    ) -> VolumeCollectionDataset:
        """Return a dataset of torch.

        Parameters
        ----------
        patch_size : tuple of int, optional
            (x, y, z) of random patches; by default items are whole volumes.
        labels : str, DataFrame, dict or callable, optional
            See `VolumeCollectionDataset`.
        transform : callable, optional
            Applied to the item.

        Returns
        -------
        VolumeCollectionDataset
            The dataset.
        """
        from voxtier.volumes.compat.ml.config import DatasetConfig, LoadingMode
        from voxtier.volumes.compat.ml.datasets import VolumeCollectionDataset

        mode = LoadingMode.PATCH if patch_size else LoadingMode.FULL_VOLUME
        config = DatasetConfig(loading_mode=mode, patch_size=patch_size)
        return VolumeCollectionDataset(self, config, labels, transform)
