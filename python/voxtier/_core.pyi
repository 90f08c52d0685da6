"""The Rust core. Written by hand, checked against the binary by `mypy.stubtest`."""

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, Final, Literal, Self, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import FormatError, SourceError
from voxtier.frames.table import Source

__version__: Final[str]
DEBUG_BUILD: Final[bool]
ERROR_KINDS: Final[list[str]]
ENVIRONMENT_KINDS: Final[list[str]]
"""Those of `ERROR_KINDS` that become a `SourceError`: not the content failed, but the surroundings."""
PARSER_VERSION: Final[int]
NOTES: Final[list[str]]
"""Oddities that are accepted and reported, in their order."""
METHODS: Final[list[str]]
"""What told which bytes make which frame."""

_Verify: TypeAlias = Literal["none", "ends", "all"]

# frames

def read_table(source: Source, *, verify: _Verify = "ends") -> FrameTable:
    """Read the frame table of one SOP Instance.

    Parameters
    ----------
    source : path, bytes-like, int or RangedSource
        A path, the file's content, an open file descriptor, or a ranged reader.
    verify : {"ends", "all", "none"}
        How far an offset table is held against the file. ``"all"`` walks every fragment; ``"ends"`` checks
        the first and the last entry, so that the ranges of a Basic Offset Table are spans which may hold
        item headers (`read_frame` strips them); ``"none"`` checks counts only, for measurements.

    Returns
    -------
    FrameTable
        A data set without pixels gives a table of status ``no_pixels``; that is no error.

    Raises
    ------
    FormatError
        The file is refused: `kind` and `offset` say why and where.
    SourceError
        It could not be read, or changed meanwhile.

    Notes
    -----
    Offsets follow PS3.5 A.4 and 8, PS3.3 C.7.6.3.1.8; the container PS3.10 7.
    """

def read_frame(source: Source, table: FrameTable, index: int) -> bytes:
    """Read the bytes of one frame: fragments joined, item headers stripped.

    Parameters
    ----------
    source : path, bytes-like, int or RangedSource
        The file that `table` describes.
    table : FrameTable
        Its table.
    index : int
        Frame, counted from 0; negative from the end.

    Raises
    ------
    SourceError
        ``changed_during_read``: the file is not the one that `table` describes.
    FormatError
        ``truncated_frame``: the frame reaches past the end of a cut file.
    IndexError
        No such frame.
    """

@final
class FrameTable:
    """Everything that is needed to fetch any frame of one SOP Instance. Frozen; pickles; equal by value.

    Byte ranges are half-open ``[start, end)``, absolute in the file (in the inflated data set where
    `offsets_in` is ``inflated``). A frame is one or more fragments.
    """

    @property
    def status(self) -> Literal["ok", "truncated", "no_pixels"]: ...
    @property
    def kind(self) -> Literal["native", "encapsulated", "video", "none"]: ...
    @property
    def method(self) -> str:
        """What told which bytes make which frame: ``native``, ``bot``, ``eot``, ``start_markers``..."""
    @property
    def verified(self) -> Literal["none", "ends", "all"]: ...
    @property
    def offsets_in(self) -> Literal["file", "inflated"]: ...
    @property
    def transfer_syntax_uid(self) -> str: ...
    @property
    def number_of_frames(self) -> int:
        """As declared; a video keeps its number here while ``len(table)`` is 1."""
    @property
    def fragment_count(self) -> int: ...
    @property
    def truncated_from(self) -> int | None:
        """First frame that is not wholly in the file."""
    @property
    def notes(self) -> tuple[str, ...]:
        """Oddities that were accepted, by name."""
    @property
    def pixel_data_pos(self) -> int | None:
        """Offset of the pixel element's *tag*."""
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def samples_per_pixel(self) -> int: ...
    @property
    def bits_allocated(self) -> int: ...
    @property
    def photometric_interpretation(self) -> str: ...
    @property
    def sop_instance_uid(self) -> str: ...
    @property
    def series_instance_uid(self) -> str: ...
    @property
    def study_instance_uid(self) -> str: ...
    @property
    def size(self) -> int:
        """Bytes of the file that the table describes: with `mtime_ns` its fingerprint."""
    @property
    def mtime_ns(self) -> int | None: ...
    @property
    def holds_spans(self) -> bool:
        """Whether a range may hold item headers: a Basic Offset Table that was not held against a walk."""
    @property
    def offsets(self) -> NDArray[np.uint64]:
        """Offset of each fragment's payload, in frame order; a read-only view."""
    @property
    def lengths(self) -> NDArray[np.uint64]:
        """Length of each fragment's payload in bytes; a read-only view."""
    @property
    def frame_first(self) -> NDArray[np.uint32]:
        """First fragment of each frame, shape ``(frames + 1,)``; a read-only view."""
    @property
    def packed(self) -> bytes:
        """The layout in the compact encoding that memory and Postgres hold; empty without pixels."""
    def ranges(self, index: int) -> list[tuple[int, int]]:
        """Payload ranges of a frame, one for each fragment."""
    def bit_offset(self, index: int) -> int:
        """Bit of the first byte at which a native frame begins (Bits Allocated 1, PS3.5 8.2)."""
    def to_bytes(self) -> bytes:
        """Encode as one record with checksum and version; `from_bytes` is its inverse."""
    @staticmethod
    def from_bytes(record: bytes) -> FrameTable:
        """Decode a record; raises `FormatError` (``bad_table``) for any damage."""
    @staticmethod
    def from_parts(
        packed: bytes | None,
        *,
        status: str,
        kind: str,
        method: str,
        verified: str,
        offsets_in: str,
        truncated_from: int | None,
        notes: list[str] | None,
        transfer_syntax_uid: str | None,
        number_of_frames: int | None,
        rows: int | None,
        columns: int | None,
        samples_per_pixel: int | None,
        bits_allocated: int | None,
        photometric_interpretation: str | None,
        pixel_data_pos: int | None,
        sop_instance_uid: str | None,
        series_instance_uid: str | None,
        study_instance_uid: str | None,
        size: int,
        mtime_ns: int | None,
    ) -> FrameTable:
        """Rebuild a table from the columns of its row in the store; checks `packed`, see `from_bytes`."""
    def __len__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class TableReader:
    """Iterator behind `voxtier.frames.read_tables`."""

    def __new__(cls, paths: Iterable[str | PathLike[str]], *, threads: int, verify: _Verify) -> Self: ...
    def __iter__(self) -> Self: ...
    def __next__(
        self,
    ) -> tuple[str | PathLike[str], FrameTable | None, FormatError | SourceError | None]: ...

STAGING_COLUMNS: Final[list[str]]
"""Columns of the rows that `Indexer.read` writes, in their order."""

MAX_PATH_BYTES: Final[int]
"""Longest path that the index takes: entries of the B-tree of refused files end at 2704 bytes."""

def path_fault(path: str | bytes | PathLike[str]) -> str | None:
    """Say why a path cannot be a row of the index (not UTF-8, a NUL, too long), or None."""

def refused_status(kind: str) -> str:
    """Return the status, ``ambiguous`` or ``error``, of a file that was refused for a reason of this kind."""

def file_key(source: str, path: str | bytes | PathLike[str]) -> bytes:
    """Return the 16-byte key of a file: BLAKE2b-128 of the source's name, a NUL and the path."""

@final
class Indexer:
    """A pool of threads that reads frame tables and writes them as rows for ``COPY ... (FORMAT binary)``.

    Parameters
    ----------
    source : str
        Name of the source that the rows belong to; part of each key.
    threads : int
        Reads in flight.
    verify : {"all", "ends", "none"}
        See `read_table`.
    """

    def __new__(cls, source: str, *, threads: int, verify: _Verify) -> Self: ...
    def read(
        self, paths: list[str], known: list[tuple[int, int] | None]
    ) -> tuple[bytes, list[tuple[str, str, int, int | None, str | None, str | None]]]:
        """Read a batch of files, or as many of its first ones as make 16 MiB of rows or take a second.

        Parameters
        ----------
        paths : list of str
            The files; no path twice.
        known : list of (size, mtime_ns) or None
            Fingerprint of a row that needs no second look, for each path.

        Returns
        -------
        rows : bytes
            One row for each file that was read, without COPY's header and trailer.
        reports : list of tuple
            ``(path, status, frames, truncated_from, error_kind, error)`` for each of the first
            ``len(reports)`` paths, in order of completion. Beside the statuses of rows: ``unchanged``, and
            ``refused`` for a path that cannot be a row: not storable, or a folder.
        """

# frames: priority and memory

def score_many(
    last_used: NDArray[np.int64],
    inserted: NDArray[np.int64],
    count: NDArray[np.int64],
    *,
    now: int,
    weights: tuple[float, float, float],
    half_lives: tuple[float, float],
    out: NDArray[np.float64],
) -> tuple[int, int]:
    """Scores into `out`; times in µs, half-lives in s. Returns (times after `now`, worst of them in µs)."""

def top_n(
    last_used: NDArray[np.int64],
    inserted: NDArray[np.int64],
    count: NDArray[np.int64],
    *,
    n: int,
    now: int,
    weights: tuple[float, float, float],
    half_lives: tuple[float, float],
    ids: NDArray[np.int64] | None = None,
    names: Sequence[str] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Row numbers and scores of the `n` best, best first; ties by `ids` or `names`, then by row."""

PRELOAD_COLUMNS: Final[list[str]]
"""Columns of the rows that `FrameCache.preload_copy` takes, in their order."""

class FrameCache:
    """The bookkeeping of `voxtier.frames.FrameCache`: see there. Keys are 1 to 8191 bytes of UTF-8."""

    def __new__(
        cls,
        budget_bytes: int,
        *,
        policy: str = "lru",
        max_entry_fraction: float = 0.25,
        debounce_seconds: float = 600.0,
    ) -> Self: ...
    def touch(self, key: str, *, scan: bool = False) -> bool:
        """Look up a key and nothing else: an access."""
    def locate(self, key: str, frame: int, *, scan: bool = False) -> tuple[int, int] | None:
        """Offset and length of a frame; None when the key is absent.

        Raises
        ------
        IndexError
            No such frame.
        FormatError
            ``fragmented_frame``: it lies in several fragments, see `ranges`.
        """
    def locate_many(
        self, key: str, frames: NDArray[np.int64], *, scan: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Offsets and lengths of many frames of one key, by one look-up."""
    def ranges(self, key: str, frame: int, *, scan: bool = False) -> list[tuple[int, int]] | None:
        """Payload ranges ``[start, end)`` of a frame, one for each fragment."""
    def table(self, key: str) -> FrameTable | None:
        """Return the whole table, without a trace; UIDs and notes are not kept in memory."""
    def etag(self, key: str) -> str | None: ...
    def read(
        self, key: str, source: Source, frames: Sequence[int], *, scan: bool = False
    ) -> list[bytes] | None:
        """Read frames from `source` by the table of `key`; None when the key is absent.

        Raises
        ------
        SourceError
            ``changed_during_read``: the source is not the one that the table describes.
        FormatError
            ``truncated_frame``; ``bad_table``: the file's own offset table is wrong, the file wants a walk.
        IndexError
            No such frame.
        """
    def put(
        self,
        key: str,
        offsets: NDArray[np.uint64],
        lengths: NDArray[np.uint64],
        *,
        ts_uid: str = "",
        pixel_data_pos: int | None = None,
        etag: str | None = None,
        klass: Literal["normal", "scan", "pinned"] = "normal",
    ) -> bool:
        """Store one range a frame; False when the entry is refused (too large, no room for its class)."""
    def put_table(
        self,
        key: str,
        table: FrameTable,
        *,
        etag: str | None = None,
        klass: Literal["normal", "scan", "pinned"] = "normal",
        last_used_us: int = 0,
    ) -> bool:
        """Store a table; False when it is refused.

        Parameters
        ----------
        klass : {"normal", "scan", "pinned"}
            ``scan`` enters free space only and leaves first; ``pinned`` never leaves, up to half the budget.
        last_used_us : int
            Last access that the database knows of, µs since 1970: it takes part in the debouncing.
        """
    def preload_table(
        self, key: str, table: FrameTable, *, limit: int, etag: str | None = None, last_used_us: int = 0
    ) -> Literal["stored", "oversize", "no_room", "exists"]:
        """Store as the oldest entry, evicting nothing, up to `limit` used bytes; live entries win."""
    def preload_copy(self, rows: bytes, limit: int) -> tuple[int, int, int]:
        """Store rows of binary COPY, best first; returns (stored, skipped, damaged)."""
    def put_packed_many(
        self,
        keys: Sequence[str],
        tables: Sequence[bytes],
        *,
        klass: Literal["normal", "scan", "pinned"] = "normal",
    ) -> tuple[int, int, int]:
        """Store tables that `FrameTable.to_bytes` wrote, each checked; returns (stored, refused, damaged).

        A damaged table, or a key that cannot be one, is counted, and the others are stored.
        """
    def packed_bytes(self, key: str) -> int | None:
        """Return the bytes of a key's packed table, without its key, its slot and what the heap rounds up."""
    def key_id(self, key: str) -> int | None:
        """Return a number for `touch_many`: valid until the entry leaves, never that of another key."""
    def touch_many(self, ids: NDArray[np.uint64], *, scan: bool = False) -> int:
        """Look up many ids; returns the hits."""
    def invalidate(self, key: str) -> bool: ...
    def resize(self, budget_bytes: int) -> None:
        """Change the budget; what no longer fits has left on return."""
    def drain_access(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        """Take all accesses: keys, how many more count, the last of each in µs."""
    def restore_access(self, keys: Sequence[str], counts: Sequence[int], times: Sequence[int]) -> None:
        """Give back accesses that could not be written."""
    def drain_evicted(
        self,
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint8], NDArray[np.uint8], int]:
        """Take the log of evictions: ids, weights, causes, classes, and how many lines were lost.

        Causes: 0 capacity, 1 replaced, 2 invalidated, 3 resize. Classes: 0 normal, 1 scan, 2 pinned.
        """
    def counters(self) -> dict[str, Any]: ...
    def validate(self) -> None:
        """Raise if an invariant does not hold; linear in the number of entries."""
    def keys(self) -> list[str]:
        """All keys, most recently used first, class by class."""
    def __contains__(self, key: str, /) -> bool: ...
    def __len__(self) -> int: ...
    def _before_fork(self) -> None: ...
    def _after_fork_in_parent(self) -> None: ...
    def _after_fork_in_child(self) -> None: ...

def simulate(
    keys: NDArray[np.uint32],
    weights: NDArray[np.uint32],
    scans: NDArray[np.bool_],
    policy: str,
    budgets: list[int],
) -> list[tuple[int, int]]:
    """Replay a trace; returns hits (of all, of those that are no scan) for each budget.

    Keys are numbered densely from 0; policies are ``lru``, ``scan_aware``, ``fifo``, ``belady``.
    """

# volumes

TILEDB_FORMAT_VERSION: Final[int]
"""The version of TileDB's on-disk format that is read and written without TileDB: fragments end in it."""

@final
class TileFile:
    """The tiles of one fragment of one dense TileDB array (format 22), decoded without TileDB.

    Parameters
    ----------
    path : str or path-like
        The fragment's ``a0.tdb``.
    shape, extents : sequence of int
        Of the array and of its tiles, in stored order; 1 to 4 dimensions.
    cell : int
        Bytes of a cell: 1, 2, 4 or 8.
    filters : sequence of str
        Optional ``"byteshuffle"``, then optional ``"zstd"``, ``"lz4"`` or ``"gzip"``.

    Raises
    ------
    FormatError
        ``bad_tile`` with the byte offset, when the file does not consist of exactly these tiles.
    SourceError
        When the file cannot be read.
    """

    def __new__(
        cls,
        path: str | PathLike[str],
        shape: Sequence[int],
        extents: Sequence[int],
        cell: int,
        filters: Sequence[str],
    ) -> TileFile: ...
    @property
    def chunks(self) -> int:
        """Number of chunks, the units of decoding."""

    def read(
        self,
        ranges: Sequence[tuple[int, int, int]],
        out: NDArray[np.uint8],
        *,
        threads: int = 1,
        keep: bool = True,
    ) -> None:
        """Read a selection, row-major.

        Parameters
        ----------
        ranges : sequence of (int, int, int)
            First index, number of indices and step (> 0) for each dimension, in stored order.
        out : ndarray of uint8
            The bytes of the selection, exactly as many as it has.
        threads : int
            Threads that decode, the caller's among them.
        keep : bool
            Whether decoded chunks are kept for later reads.

        Raises
        ------
        FormatError
            ``invalid_argument`` for a selection outside the array or an ``out`` of another length;
            ``bad_tile`` with the byte offset for a damaged chunk.
        SourceError
            The file cannot be read.
        """

    def read_patches(
        self,
        starts: NDArray[np.int64],
        size: Sequence[int],
        out: NDArray[np.uint8],
        *,
        threads: int = 1,
        keep: bool = True,
    ) -> None:
        """Read boxes of one size, each row-major.

        Parameters
        ----------
        starts : ndarray of int64
            First index of each box, box by box, in stored order; boxes may reach outside the array.
        size : sequence of int
            Length of the boxes for each dimension.
        out : ndarray of uint8
            The bytes of all boxes; those of cells outside the array are not changed.
        threads, keep
            As for `read`.

        Raises
        ------
        FormatError, SourceError
            As for `read`.
        """

def set_tile_budget(budget: int) -> None:
    """Set the bytes that decoded chunks may take in this process; 0 switches the cache off."""

def clear_tile_cache() -> None:
    """Remove all decoded chunks of this process and reset the counters."""

def tile_stats() -> dict[str, int]:
    """Return the counters of this process's cache of decoded chunks.

    ``hits``, ``misses``, ``bytes_read``, ``bytes_decoded``, ``evictions``, ``bytes_held``, ``budget`` and
    ``entries``.
    """

def gunzip_range(path: str | PathLike[str], offset: int, count: int) -> NDArray[np.uint8]:
    """Inflate a part of a gzip file.

    Parameters
    ----------
    path : str or path-like
        The file.
    offset, count : int
        First byte and number of bytes, counted in the inflated stream.

    Returns
    -------
    ndarray of uint8
        ``count`` bytes, fewer when the stream ends before; aligned for any type of voxels.

    Raises
    ------
    FormatError
        ``bad_deflate`` for a damaged stream, ``limit_exceeded`` where memory is short.
    SourceError
        The file cannot be read.
    """

# tensors

TENSOR_STATES: Final[list[str]]
"""The states of a torch file, from best to worst."""
ALLOWED_GLOBALS: Final[list[str]]
"""The globals that ``torch.load(weights_only=True)`` accepts, with those that MONAI registers."""

@final
class TensorReport:
    """The result of a check of one torch file, made without torch and without unpickling."""

    @property
    def state(self) -> str:
        """One of ``TENSOR_STATES``."""

    @property
    def record(self) -> str | None:
        """Record that the finding concerns, or ``header``, ``directory``, ``end``."""

    @property
    def offset(self) -> int | None:
        """Absolute byte offset of the evidence."""

    @property
    def detail(self) -> str:
        """What was found and what would be right; empty for the state ``ok``."""

    @property
    def size(self) -> int:
        """Size in bytes; 0 where the file could not be opened."""

    @property
    def mtime_ns(self) -> int:
        """Modification time in nanoseconds since 1970; 0 where the file could not be opened."""

    @property
    def ctime_ns(self) -> int:
        """Time of the inode's last change, likewise; no program can set it back."""

    @property
    def records(self) -> list[tuple[str, int, int]]:
        """Name, bytes and recorded CRC-32 of every record."""

    @property
    def refused_globals(self) -> list[str]:
        """Globals of the pickle that ``torch.load(weights_only=True)`` refuses."""

    @property
    def tensors(self) -> list[tuple[str, str, list[int], str]]:
        """Key path, dtype, shape and record of every tensor below the root."""

    @property
    def digest(self) -> str | None:
        """Digest of the contents in 32 hexadecimal digits; independent of key order and archive layout."""

def verify_tensor_file(
    path: str | PathLike[str], *, crc: bool = True, content: bool = False, digest: bool = False
) -> TensorReport:
    """Check structure, pickle opcodes and tensor bounds of one file, and what else is requested.

    Parameters
    ----------
    path : path-like
        A file that ``torch.save`` wrote.
    crc : bool
        Compare the CRC-32 of every record; that of ``data.pkl`` is compared in any case.
    content : bool
        Report floating-point tensors that are constant, NaN or infinite.
    digest : bool
        Compute `TensorReport.digest`.

    Returns
    -------
    TensorReport
        A file that cannot be read is a state (``io_error``, ``unknown``), never an exception.
    """

@final
class ParallelVerifier:
    """Check many files with several threads; iterate over ``(index, report)`` as files finish.

    Parameters
    ----------
    paths : sequence of path-like
        The files.
    crc, content, digest : bool
        As for `verify_tensor_file`.
    threads : int
        Files read at once, 1 to 64; at least 4 keep a cold disk busy.
    """

    def __new__(
        cls,
        paths: Sequence[str | PathLike[str]],
        *,
        crc: bool = True,
        content: bool = False,
        digest: bool = False,
        threads: int = 4,
    ) -> ParallelVerifier: ...
    def __iter__(self) -> ParallelVerifier: ...
    def __next__(self) -> tuple[int, TensorReport]: ...
    def stop(self) -> None:
        """Stop after the files that are being read."""
