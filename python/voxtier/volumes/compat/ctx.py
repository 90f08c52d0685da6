"""The origin's options and contexts of TileDB: our frozen options, with the methods that it has more."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from voxtier.system.s3_config import S3Config
from voxtier.volumes import config
from voxtier.volumes.config import (
    Compressor,
    IOConfig,
    ReadConfig,
    SliceOrientation,
    TileConfig,
)
from voxtier.volumes.config import reset_config as reset_radiobject_config
from voxtier.volumes.tiledb.creation import compressor_filter
from voxtier.volumes.tiledb.session import Session

__all__ = [
    "CompressionConfig",
    "Compressor",
    "IOConfig",
    "OrientationConfig",
    "RadiObjectConfig",
    "ReadConfig",
    "S3Config",
    "SliceOrientation",
    "TileConfig",
    "WriteConfig",
    "configure",
    "ctx",
    "get_config",
    "get_radiobject_config",
    "get_tiledb_config",
    "get_tiledb_ctx",
    "reset_radiobject_config",
    "tdb_ctx",
]


@dataclass(frozen=True, slots=True)
class CompressionConfig(config.CompressionConfig):
    """Compressor and level of new volumes."""

    def as_filter(self) -> Any:
        """Return the compressor as a filter of TileDB, None for no compression."""
        return compressor_filter(self, Session.of().context())


@dataclass(frozen=True, slots=True)
class OrientationConfig(config.OrientationConfig):
    """What happens to the axes of an image when it is ingested; ``auto_detect`` is always on."""

    auto_detect: bool = True


@dataclass(frozen=True, slots=True)
class WriteConfig(config.WriteConfig):
    """What is fixed when an array is created."""

    compression: config.CompressionConfig = field(default_factory=CompressionConfig)
    orientation: config.OrientationConfig = field(default_factory=OrientationConfig)


@dataclass(frozen=True, slots=True)
class RadiObjectConfig(config.Config):
    """One frozen snapshot of all options."""

    write: config.WriteConfig = field(default_factory=WriteConfig)

    def to_tiledb_config(self, include_s3_credentials: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Return the keys of TileDB for these options, with those that sign requests where asked for."""
        return self.to_tiledb_ctx(include_s3_credentials).config()

    def to_tiledb_ctx(self, include_s3_credentials: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Return a context of TileDB for these options."""
        signs = include_s3_credentials or self.s3.include_credentials
        return Session(replace(self, s3=replace(self.s3, include_credentials=signs))).context()


def get_config() -> RadiObjectConfig:
    """Return the options in force."""
    now = config.get_config()
    tile, packed, axes = now.tile, now.compression, now.orientation
    write = WriteConfig(
        tile,
        CompressionConfig(packed.algorithm, packed.level),
        OrientationConfig(axes.canonical_target, axes.reorient_on_load, axes.store_original_affine),
    )
    return RadiObjectConfig(write, now.read, replace(now.s3, region=Session(now).region))


get_radiobject_config = get_config


def configure(
    *,
    write: config.WriteConfig | None = None,
    read: ReadConfig | None = None,
    s3: S3Config | None = None,
    tile: TileConfig | None = None,
    compression: config.CompressionConfig | None = None,
    io: ReadConfig | None = None,
    orientation: config.OrientationConfig | None = None,
) -> None:
    """Change some options for the whole process; what is None stays.

    Parameters
    ----------
    write, read, s3 : WriteConfig, ReadConfig, S3Config, optional
        Whole groups.
    tile, compression, io, orientation : optional
        Single parts, see `voxtier.volumes.config.configure`.
    """
    given = {
        "write": write,
        "read": read,
        "s3": s3,
        "tile": tile,
        "compression": compression,
        "io": io,
        "orientation": orientation,
    }
    config.configure(**{name: value for name, value in given.items() if value is not None})


def ctx() -> Any:
    """Return this process's context of TileDB for the options in force."""
    return Session.of().context()


tdb_ctx = get_tiledb_ctx = ctx


def get_tiledb_config() -> Any:
    """Return the keys of TileDB for the options in force."""
    return ctx().config()
