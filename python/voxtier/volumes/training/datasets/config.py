"""How volumes become items."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import NoneType
from typing import TYPE_CHECKING, Literal

from voxtier.arguments import check_kind, whole_number
from voxtier.errors import ConfigError
from voxtier.volumes.config import as_dtype, as_enum
from voxtier.volumes.tiledb.scaling import Normalize
from voxtier.volumes.training.sampling import RandomSampler, Sampler, Size, as_size


class LoadingMode(str, Enum):  # noqa: UP042 -- prints as the origin's does
    """What one item holds."""

    FULL_VOLUME = "full_volume"
    PATCH = "patch"
    SLICE_2D = "slice_2d"


@dataclass(frozen=True, slots=True)
class DatasetConfig:
    """How volumes become items.

    Parameters
    ----------
    loading_mode : LoadingMode
        Whole volumes, patches or axial slices.
    patch_size : int or sequence of int, optional
        (x, y, z), or one number for a cube; needed for patches.
    patches_per_volume : int
        Items per volume and epoch (>= 1).
    sampler : Sampler
        Where patches begin.
    seed : int
        Of the random numbers: places of patches, and MONAI's transforms in a DataLoader.
    fill : float
        Stored number outside a volume that is smaller than the patch.
    dtype : str or None
        Type of ``image``; None keeps the volume's. Numbers that it cannot hold are refused: out of its range,
        or fractions where it is an integer.
    mask_fill : float, optional
        Stored number outside a mask, by default ``fill``.
    normalize : Normalize, optional
        Clips, shifts and divides the image's physical numbers, which become ``float32``.
    """

    loading_mode: LoadingMode = LoadingMode.FULL_VOLUME
    patch_size: Size | None = None
    patches_per_volume: int = 1
    sampler: Sampler = RandomSampler()  # noqa: RUF009
    seed: int = 0
    fill: float = 0.0
    dtype: str | None = "float32"
    mask_fill: float | None = None
    normalize: Normalize | None = None

    if TYPE_CHECKING:  # a mode may be given by its text; the field is a member always

        def __init__(
            self,
            loading_mode: LoadingMode | Literal["full_volume", "patch", "slice_2d"] = LoadingMode.FULL_VOLUME,
            patch_size: Size | None = None,
            patches_per_volume: int = 1,
            sampler: Sampler = RandomSampler(),  # noqa: B008
            seed: int = 0,
            fill: float = 0.0,
            dtype: str | None = "float32",
            mask_fill: float | None = None,
            normalize: Normalize | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "loading_mode", as_enum(LoadingMode, "loading_mode", self.loading_mode))
        check_kind("sampler", self.sampler, Sampler, "a sampler, such as ForegroundSampler()")
        check_kind("normalize", self.normalize, (Normalize, NoneType), "a Normalize")
        if self.dtype is not None:
            as_dtype("dtype", self.dtype)
        if self.normalize is not None and self.dtype != "float32":
            raise ConfigError(f"normalised images are float32, got dtype={self.dtype!r}")
        if self.patch_size is not None:
            object.__setattr__(self, "patch_size", as_size(self.patch_size))
        elif self.loading_mode is LoadingMode.PATCH:
            raise ConfigError("patches need patch_size=(x, y, z), or one number for a cube")
        for name, least in (("patches_per_volume", 1), ("seed", None)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))

    @property
    def outside_mask(self) -> float:
        """Stored number outside a mask."""
        return self.fill if self.mask_fill is None else self.mask_fill

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels of a patch along x, y, z.

        Raises
        ------
        ConfigError
            Without a ``patch_size``.
        """
        if self.patch_size is None:
            raise ConfigError("these items are no patches: patch_size is not set")
        return as_size(self.patch_size)
