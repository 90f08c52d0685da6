"""The door to TileDB: sessions, arrays, tables, and what this package assumes of the format."""

try:
    import tiledb as _tiledb  # noqa: F401 -- asked for here, so that the message names the extra
except ImportError as error:
    from voxtier.errors import MissingExtraError

    raise MissingExtraError("tiledb", "volumes") from error
