"""The options of this room: frozen values, one process-wide snapshot, overridable for one context.

Write options (tiles, compression, orientation) shape arrays that are created later; read and S3 options shape
every read. Nothing here touches TileDB: `tiledb.session` translates these values into its keys.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from voxtier.arguments import several, whole_number
from voxtier.errors import ConfigError
from voxtier.system.fork import after_fork_in_child
from voxtier.system.s3_config import S3Config, configure_s3, enter_context, get_s3_config, leave_context


class SliceOrientation(str, Enum):  # noqa: UP042 -- prints as the origin's does
    """Which reads the tiles of a new volume serve best."""

    AXIAL = "axial"
    SAGITTAL = "sagittal"
    CORONAL = "coronal"
    ISOTROPIC = "isotropic"


class Compressor(str, Enum):  # noqa: UP042
    """Compressor of the voxels of a new volume."""

    ZSTD = "zstd"
    LZ4 = "lz4"
    GZIP = "gzip"
    NONE = "none"


Choice = TypeVar("Choice", bound=Enum)

Tiling: TypeAlias = SliceOrientation | Literal["axial", "sagittal", "coronal", "isotropic"]
"""A tiling, or its text."""

_MAX_LEVEL = {Compressor.ZSTD: 22, Compressor.LZ4: 16, Compressor.GZIP: 9, Compressor.NONE: 0}


def as_enum(kind: type[Choice], name: str, value: object) -> Choice:
    """Return the member of an enumeration that a value names.

    Parameters
    ----------
    kind : type of Enum
        The enumeration.
    name : str
        What is chosen, for the message.
    value : object
        A member, or its text.

    Returns
    -------
    Enum
        The member.

    Raises
    ------
    ConfigError
        For anything else; lists the members.
    """
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(str(member.value) for member in kind)
        raise ConfigError(f"{name} must be one of {choices}, got {value!r}") from None


def as_dtype(name: str, value: object) -> np.dtype[Any]:
    """Return a type of numpy, or refuse by the argument's name what makes none."""
    try:
        return np.dtype(value)  # type: ignore[call-overload, no-any-return]
    except TypeError:
        raise ConfigError(f"{name} must be a type of numpy, such as float32, got {value!r}") from None


@dataclass(frozen=True, slots=True)
class TileConfig:
    """Extents of the tiles of a new volume, in voxels; None takes what suits the orientation.

    Parameters
    ----------
    orientation : SliceOrientation
        Planes that become one tile each, or cubes of 64 for ``ISOTROPIC``.
    x, y, z : int or None
        Explicit extents (>= 1); ``TileConfig(x=32, y=32, z=32, orientation="isotropic")`` suits patches.
        Extents that are not given are halved in a new volume whose tiles had more than 64 MiB; tiles of more
        than 1 GiB are refused.
    t : int
        Extent along time of a 4-D volume (>= 1).
    replicas : sequence of SliceOrientation
        Further tilings that are stored beside it: each costs the volume's bytes again, and a read takes the
        tiling that decodes least.
    """

    orientation: SliceOrientation = SliceOrientation.AXIAL
    x: int | None = None
    y: int | None = None
    z: int | None = None
    t: int = 1
    replicas: tuple[SliceOrientation, ...] = ()

    if TYPE_CHECKING:  # texts are taken too; the fields are members always

        def __init__(
            self,
            orientation: Tiling = SliceOrientation.AXIAL,
            x: int | None = None,
            y: int | None = None,
            z: int | None = None,
            t: int = 1,
            replicas: Tiling | Iterable[Tiling] = (),
        ) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "orientation", as_enum(SliceOrientation, "orientation", self.orientation))
        for name in ("x", "y", "z", "t"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(f"tile extent {name}", value, 1))
        replicas = tuple(
            as_enum(SliceOrientation, "each of replicas", value) for value in several(self.replicas)
        )
        if len({self.orientation, *replicas}) <= len(replicas):
            raise ConfigError(f"replicas must differ from one another and from {self.orientation.value!r}")
        object.__setattr__(self, "replicas", replicas)

    def extents_for_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tile extents (x, y, z[, t]) for a volume of this shape.

        Examples
        --------
        >>> TileConfig(orientation=SliceOrientation.SAGITTAL).extents_for_shape((240, 240, 155))
        (1, 240, 155)
        """
        if len(shape) not in (3, 4):
            raise ConfigError(f"a volume has 3 or 4 dimensions, got the shape {tuple(shape)}")
        sx, sy, sz = (whole_number("each size of a shape", size) for size in shape[:3])
        automatic = {
            SliceOrientation.AXIAL: (sx, sy, 1),
            SliceOrientation.SAGITTAL: (1, sy, sz),
            SliceOrientation.CORONAL: (sx, 1, sz),
            SliceOrientation.ISOTROPIC: (64, 64, 64),
        }[self.orientation]
        chosen = tuple(given or auto for given, auto in zip((self.x, self.y, self.z), automatic, strict=True))
        return (*chosen, self.t) if len(shape) == 4 else chosen


@dataclass(frozen=True, slots=True)
class CompressionConfig:
    """Compressor and level; a level past the compressor's own range is clamped to its end (gzip 22 -> 9).

    TileDB's gzip cannot store every tile that does not shrink: a volume that has one is stored with zstd.
    """

    algorithm: Compressor = Compressor.ZSTD
    level: int = 3

    if TYPE_CHECKING:  # as above

        def __init__(
            self,
            algorithm: Compressor | Literal["zstd", "lz4", "gzip", "none"] = Compressor.ZSTD,
            level: int = 3,
        ) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "algorithm", as_enum(Compressor, "algorithm", self.algorithm))
        level = whole_number("compression level", self.level, -1, 22)
        object.__setattr__(self, "level", min(level, _MAX_LEVEL[self.algorithm]))


@dataclass(frozen=True, slots=True)
class OrientationConfig:
    """What happens to the axes of an image when it is ingested.

    Parameters
    ----------
    canonical_target : str
        Axis codes that ``reorient`` aims at: ``RAS``, ``LAS`` or ``LPS``.
    reorient_on_load : bool
        Flip and permute to the target when nothing else is asked for.
    store_original_affine : bool
        Keep the file's own affine in the metadata of a reoriented volume.
    """

    canonical_target: str = "RAS"
    reorient_on_load: bool = False
    store_original_affine: bool = True

    def __post_init__(self) -> None:
        if self.canonical_target not in ("RAS", "LAS", "LPS"):
            raise ConfigError(f"canonical_target must be RAS, LAS or LPS, got {self.canonical_target!r}")


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """Memory and threads.

    Parameters
    ----------
    memory_budget_mb : int
        Bytes that decoded blocks and reads in flight may hold in this process (>= 64).
    concurrency : int
        Threads that decode and that TileDB may use (1 to 64).
    max_workers : int
        Volumes that are ingested at the same time (1 to 32).
    tile_cache_size_mb : int
        Cap of the decoded blocks within the budget; 0 switches the cache off, else >= 10.
    share_cache : bool
        Whether trainings (`batches`, and workers of DataLoaders) hold decoded blocks once for all processes
        of the user on this machine. The first of them decides how many bytes: its ``tile_cache_size_mb``.
    """

    memory_budget_mb: int = 1024
    concurrency: int = 4
    max_workers: int = 4
    tile_cache_size_mb: int = 512
    share_cache: bool = True

    def __post_init__(self) -> None:
        least_cache = 0 if whole_number("tile_cache_size_mb", self.tile_cache_size_mb) == 0 else 10
        for name, least, most in (
            ("memory_budget_mb", 64, None),
            ("concurrency", 1, 64),
            ("max_workers", 1, 32),
            ("tile_cache_size_mb", least_cache, None),
        ):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least, most))


IOConfig = ReadConfig


@dataclass(frozen=True, slots=True)
class WriteConfig:
    """What is fixed when an array is created."""

    tile: TileConfig = field(default_factory=TileConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    orientation: OrientationConfig = field(default_factory=OrientationConfig)


@dataclass(frozen=True, slots=True)
class Config:
    """One frozen snapshot of all options."""

    write: WriteConfig = field(default_factory=WriteConfig)
    read: ReadConfig = field(default_factory=ReadConfig)
    s3: S3Config = field(default_factory=S3Config)

    @property
    def tile(self) -> TileConfig:
        """Tiles of new volumes (``write.tile``)."""
        return self.write.tile

    @property
    def compression(self) -> CompressionConfig:
        """Compression of new volumes (``write.compression``)."""
        return self.write.compression

    @property
    def orientation(self) -> OrientationConfig:
        """Axes of ingested images (``write.orientation``)."""
        return self.write.orientation

    @property
    def io(self) -> ReadConfig:
        """Memory and threads (``read``)."""
        return self.read


_DEFAULT = Config()
_process_config = _DEFAULT
_context_config: contextvars.ContextVar[Config | None] = contextvars.ContextVar(
    "voxtier_volumes", default=None
)
_lock = threading.Lock()


def _begin_child() -> None:
    global _lock
    _lock = threading.Lock()


after_fork_in_child(_begin_child)


def get_config() -> Config:
    """Return the snapshot in force: that of the enclosing `configured` block, else the process's."""
    config = _context_config.get() or _process_config
    s3 = get_s3_config()  # other rooms share and change it
    return config if config.s3 == s3 else replace(config, s3=s3)


def configure(**options: Any) -> None:
    """Change some options for the whole process (or the enclosing `configured` block); the rest stays.

    Parameters
    ----------
    write, read, s3 : WriteConfig, ReadConfig, S3Config
        Whole groups.
    tile, compression, orientation, io : TileConfig, CompressionConfig, OrientationConfig, ReadConfig
        Single parts: ``write.tile``, ``write.compression``, ``write.orientation`` and ``read``.

    Raises
    ------
    TypeError
        For a keyword that does not exist, or a value of the wrong class.
    """
    global _process_config
    with _lock:
        changed = _merge(get_config(), options)
        configure_s3(changed.s3)
        if _context_config.get() is None:
            _process_config = changed
        else:
            _context_config.set(changed)


@contextmanager
def configured(**options: Any) -> Iterator[Config]:
    """Like `configure`, for the body of a ``with`` statement in this thread or task only."""
    merged = _merge(get_config(), options)
    token, s3_token = _context_config.set(merged), enter_context(merged.s3)
    try:
        yield get_config()
    finally:
        leave_context(s3_token)
        _context_config.reset(token)


def reset_config() -> None:
    """Return to the defaults."""
    global _process_config
    with _lock:
        configure_s3(_DEFAULT.s3)
        _process_config = _DEFAULT
        if _context_config.get() is not None:
            _context_config.set(_DEFAULT)


_PARTS: dict[str, type[Any]] = {
    "write": WriteConfig,
    "read": ReadConfig,
    "s3": S3Config,
    "tile": TileConfig,
    "compression": CompressionConfig,
    "orientation": OrientationConfig,
    "io": ReadConfig,
}


def _merge(base: Config, options: dict[str, Any]) -> Config:
    for name, value in options.items():
        if name not in _PARTS:
            raise TypeError(f"configure() has no option {name!r}; it knows {', '.join(_PARTS)}")
        if not isinstance(value, _PARTS[name]):
            raise TypeError(f"{name}= takes a {_PARTS[name].__name__}, got {type(value).__name__}")
    if "io" in options and "read" in options:
        raise TypeError("io= and read= are the same option: give one")
    write_parts = {item.name for item in fields(WriteConfig)}
    write = replace(
        options.get("write", base.write), **{k: v for k, v in options.items() if k in write_parts}
    )
    return Config(
        write=write, read=options.get("read", options.get("io", base.read)), s3=options.get("s3", base.s3)
    )
