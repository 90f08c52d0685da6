"""What this package assumes of TileDB beyond its API: the folders, files and bytes of an array on disk.

TileDB publishes its format, but promises its users only the API. Four shortcuts go below it: `direct` decodes
tiles without TileDB, `schema_copies` creates arrays without it, `recovery` removes files that a killed writer
left incomplete, `freshness` notices writes by other processes. They rest on these assumptions, all of format
version `VERSION`:

1. The version stands at the end of a fragment's name, and in the first four bytes of a metadata file.
2. An array has the folders ``__schema``, ``__commits``, ``__fragments``, ``__meta`` and some that stay empty;
   names that begin with two underscores are TileDB's own, other folders inside an array are ignored.
3. A write adds one fragment and one commit file of the same name; a schema is one file, whose bytes depend on
   the schema alone.
4. The cells of an attribute are one file of tiles in row-major order, each tile a list of chunks that decode
   alone.
5. A file of metadata, members or a schema begins with a header that states how long it is.
6. A commit changes the modification time of ``__commits``, new metadata that of ``__meta``.

``docs/formats/tiledb.md`` is the full page; ``tests/volumes/tiledb/test_format_assumptions.py`` checks each
assumption against the TileDB that is installed. No other file of the package names these folders.
"""

from voxtier._core import TILEDB_FORMAT_VERSION

__all__ = ["CHUNK_BYTES", "VERSION"]

VERSION = TILEDB_FORMAT_VERSION
"""TileDB's format version that the shortcuts read; of any other they keep away, and TileDB does the work."""

CHUNK_BYTES = 64 << 10
"""Bytes of cells that TileDB filters together, whatever a filter list asks for; 0 asks for a whole tile."""
