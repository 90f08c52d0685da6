"""The Rust core. Written by hand, checked against the binary by `mypy.stubtest`."""

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, Final, Literal, Protocol, Self, TypeAlias, final

import numpy as np
from _typeshed import ReadableBuffer as Buffer
from numpy.typing import NDArray

from voxtier.errors import FormatError, SourceError

__version__: Final[str]
DEBUG_BUILD: Final[bool]
ERROR_KINDS: Final[list[str]]
ENVIRONMENT_KINDS: Final[list[str]]
"""Those of `ERROR_KINDS` that become a `SourceError`: not the content failed, but the surroundings."""
PARSER_VERSION: Final[int]
NOTES: Final[list[str]]
"""Names of the oddities that are accepted and reported, in their order."""
METHODS: Final[list[str]]
"""Names of the ways in which frames are told apart."""

_Verify: TypeAlias = Literal["none", "ends", "all"]
_Class: TypeAlias = Literal["normal", "scan", "pinned"]

class _RangedSource(Protocol):
    @property
    def read(self) -> Callable[[int, int], bytes]: ...
    @property
    def size(self) -> int: ...

class _Object(Protocol):
    def open_ranges(self) -> tuple[_Fingerprint, int, Buffer]:
        """Return state, bytes that arrive in the time that a request takes to begin, the first bytes."""
    def fetch(self, ranges: list[tuple[int, int]], /) -> Sequence[Buffer]:
        """Return the bytes of ranges ``[start, end)``, asked for at the same time."""

# Size, mtime_ns, ctime_ns, inode, etag; None for what a file or an object does not have.
_Fingerprint: TypeAlias = tuple[int, int | None, int | None, int | None, str | None]
_Source: TypeAlias = str | PathLike[str] | bytes | bytearray | memoryview | int | _RangedSource | _Object

# frames

def read_table(source: _Source, *, verify: _Verify = "ends") -> FrameTable:
    """Read the frame table of one SOP Instance.

    Parameters
    ----------
    source : path, bytes-like, int or RangedSource
        A path, the file's content, an open file descriptor, or a ranged reader.
    verify : {"ends", "all", "none"}
        How far an offset table is checked against the file. ``"all"`` walks every fragment; ``"ends"`` checks
        the first and the last entry, so that the ranges of a Basic Offset Table are spans which may hold
        item headers (`read_frame` strips them); ``"none"`` checks counts only, for measurements.

    Returns
    -------
    FrameTable
        A data set without pixels gives a table of status ``no_pixels``, not an error.

    Raises
    ------
    FormatError
        The file is refused: `kind` and `offset` say why and where.
    SourceError
        The file could not be read, or changed while it was read.

    Notes
    -----
    Offsets follow PS3.5 A.4 and 8, PS3.3 C.7.6.3.1.8; the container PS3.10 7.
    """

def read_frame(source: _Source, table: FrameTable, index: int, *, align: bool = False) -> bytes:
    """Read the bytes of one frame: fragments joined, item headers stripped.

    Parameters
    ----------
    source : path, bytes-like, int or RangedSource
        The file that `table` describes.
    table : FrameTable
        Its table.
    index : int
        Frame, counted from 0; negative from the end.
    align : bool
        Move a native frame of pixels that are no whole bytes (Bits Allocated 1) to the first bit: without it
        the first and the last byte may hold bits of the frames beside (PS3.5 8.1.1).

    Returns
    -------
    bytes
        The frame as it is encoded in the file; aligned, its ``ceil(frame_bits / 8)`` bytes, the bits behind
        it 0.

    Raises
    ------
    SourceError
        ``changed_during_read``: the file is not the one that `table` describes.
    FormatError
        ``truncated_frame``: the frame reaches past the end of a cut file.
    IndexError
        The table has no such frame.
    """

def read_instance_uid(source: _Source) -> str:
    """Return the SOP Instance UID of a file, without a look at its pixels: of an object by one request."""

def read_frames(
    source: _Source, table: FrameTable, indices: Sequence[int], *, align: bool = False
) -> list[bytes]:
    """Read several frames: see `read_frame`. Those of an object are asked for together.

    Parameters
    ----------
    source : path, bytes-like, int or RangedSource
        The file that `table` describes.
    table : FrameTable
        Its table.
    indices : sequence of int
        Frames, counted from 0, in any order; negative from the end.
    align : bool
        See `read_frame`.

    Returns
    -------
    list of bytes
        One item per index, in the order of `indices`.

    Raises
    ------
    IndexError, FormatError, SourceError
        See `read_frame`.
    """

def read_metadata_json(
    source: _Source,
    *,
    bulk_data_uri: str | None = None,
    inline_limit: int = 1024,
    with_transfer_syntax: bool = False,
    last_tag: int | None = None,
) -> bytes:
    """Read the attributes of one SOP Instance as the text of a DICOM JSON object, in UTF-8.

    Parameters
    ----------
    source : path, bytes-like, int or RangedSource
        A path, the file's content, an open file descriptor, or a ranged reader.
    bulk_data_uri : str, optional
        Beginning of the URIs that stand for pixels and for values longer than `inline_limit`:
        ``/00420011`` is added, or ``/00880200/1/00282000`` for an element of the first Item of a sequence.
        Without it every value is inline and pixels are left out.
    inline_limit : int
        Most bytes of a value that stays inline, of those VRs that may have a URI.
    with_transfer_syntax : bool
        Whether (0008,3002) Available Transfer Syntax UID names the transfer syntax of the file.
    last_tag : int or None
        Last attribute of the data set that is read, such as 0x0040FFFF: a slide has megabytes behind it.

    Returns
    -------
    bytes
        One JSON object. Numbers of DS and IS have the digits of the file; what is no number, and an integer
        that a JSON reader would round, is a string.

    Raises
    ------
    FormatError
        The file is refused: `kind` and `offset` say why and where.
    SourceError
        The file could not be read, or changed while it was read.

    Notes
    -----
    The DICOM JSON Model is PS3.18 F; character sets are PS3.3 C.12.1.1.2. Specific Character Set (0008,0005)
    keeps the value of the file (PS3.18 F.2.2 note 3), while the text is UTF-8.
    """

@final
class FrameTable:
    """Where every frame of one SOP Instance lies in its file. Frozen; pickles; equal by value.

    Byte ranges are half-open ``[start, end)``, absolute in the file (in the inflated data set where
    `offsets_in` is ``inflated``). A frame is one or more fragments.
    """

    @property
    def status(self) -> Literal["ok", "truncated", "no_pixels"]: ...
    @property
    def kind(self) -> Literal["native", "encapsulated", "video", "none"]: ...
    @property
    def method(self) -> str:
        """How the frames were told apart: one of `METHODS`, such as ``native``, ``bot`` or ``eot``."""
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
        """First frame that is not completely in the file."""
    @property
    def notes(self) -> tuple[str, ...]:
        """Names of oddities that were accepted: see `NOTES`."""
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
        """Size in bytes of the file that the table describes: with the next three its fingerprint."""
    @property
    def mtime_ns(self) -> int | None:
        """Modification time, ns since 1970; None for bytes and objects."""
    @property
    def ctime_ns(self) -> int | None:
        """Time of the last change of content, name, links or rights, ns since 1970; None as above."""
    @property
    def inode(self) -> int | None:
        """Number of the file, where its file system gives one for life (FUSE, SMB and FAT do not)."""
    @property
    def etag(self) -> str | None:
        """Entity tag of the object, without quotes."""
    @property
    def holds_spans(self) -> bool:
        """Whether a range may hold item headers: a Basic Offset Table that was not checked against a walk."""
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
        """The layout in the compact encoding of the index; empty without pixels."""
    def ranges(self, index: int) -> list[tuple[int, int]]:
        """Payload ranges of a frame, one for each fragment."""
    def describes(self, source: _Source) -> bool:
        """Whether the file has the state that the table describes, compared by what both have of it."""
    def bit_offset(self, index: int) -> int:
        """Bit of the first byte at which a native frame begins, from the least significant (PS3.5 8.1.1)."""
    @property
    def frame_bits(self) -> int | None:
        """Bits of a native frame, not always whole bytes (Bits Allocated 1); None for other frames."""
    def to_bytes(self) -> bytes:
        """Encode as one record with checksum and version: see `from_bytes`."""
    @staticmethod
    def from_bytes(record: bytes) -> FrameTable:
        """Decode a record of `to_bytes`.

        Raises
        ------
        FormatError
            ``bad_table``: the record is damaged, or of another parser version.
        """
    def _repr_html_(self) -> str: ...
    def __len__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class SlideHeader:
    """What the header of one instance of a slide says of tiles (PS3.3 C.8.12)."""

    @staticmethod
    def read(source: Any) -> SlideHeader: ...
    @staticmethod
    def from_bytes(stored: bytes) -> SlideHeader:
        """Return the header that bytes of `to_bytes` hold.

        Raises
        ------
        FormatError
            They are damaged, of another version, or of another form (``bad_table``).
        """
    def to_bytes(self) -> bytes | None:
        """Return the header as it is kept, with the state of its file; None where it is too large."""
    @property
    def state(self) -> tuple[int, int | None, int | None, int | None, str | None]:
        """State of the file that was read: size, mtime_ns, ctime_ns, inode, etag."""
    def describes(self, source: Any) -> bool:
        """Return whether a source may be in that state; nothing of it is read."""
    @property
    def sop_class_uid(self) -> str: ...
    @property
    def sop_instance_uid(self) -> str: ...
    @property
    def study_instance_uid(self) -> str:
        """Empty where the header has none, as the next three."""
    @property
    def series_instance_uid(self) -> str: ...
    @property
    def frame_of_reference_uid(self) -> str: ...
    @property
    def pyramid_uid(self) -> str: ...
    @property
    def image_type(self) -> list[str]: ...
    @property
    def organization(self) -> str:
        """``TILED_FULL``, ``TILED_SPARSE`` or empty."""
    @property
    def total(self) -> tuple[int, int]:
        """Columns and rows of the total pixel matrix; 0 where there is none."""
    @property
    def tile(self) -> tuple[int, int]:
        """Columns and rows of a frame."""
    @property
    def frames(self) -> int: ...
    @property
    def spacing(self) -> tuple[float, float] | None:
        """Row and column spacing in millimetres."""
    @property
    def concatenation_uid(self) -> str: ...

@final
class TileMap:
    """Which frame is a tile, over the instances of one level."""

    def __new__(cls, parts: Sequence[SlideHeader]) -> Self: ...
    @property
    def grid(self) -> tuple[int, int]:
        """Columns and rows of tiles."""
    @property
    def paths(self) -> list[str]:
        """Optical Path Identifiers."""
    @property
    def planes(self) -> list[float]:
        """Focal planes: offsets in micrometres, or numbers where the header has none."""
    def agrees_with(
        self, instance: int, state: tuple[int, int | None, int | None, int | None, str | None]
    ) -> bool:
        """Return whether an instance may be in a state, by what both tell."""
    def find(self, column: int, row: int, plane: int = 0, path: int = 0) -> tuple[int, int] | None:
        """Return which frame is a tile.

        Parameters
        ----------
        column, row : int
            Place in the grid.
        plane, path : int
            Focal plane and optical path.

        Returns
        -------
        tuple of int and int, or None
            Instance and frame, both from 0; None where the slide has no such tile.

        Raises
        ------
        IndexError
            The level has no such column, row, focal plane or optical path.
        """

@final
class TableReader:
    """Iterator behind `voxtier.frames.read_tables`."""

    def __new__(
        cls,
        paths: Iterable[str | PathLike[str]],
        *,
        threads: int,
        verify: _Verify,
        opener: Callable[[Any], Any] | None = None,
    ) -> Self: ...
    def __iter__(self) -> Self: ...
    def __next__(
        self,
    ) -> tuple[
        str | PathLike[str], FrameTable | None, FormatError | SourceError | None, _Fingerprint | None
    ]: ...

# frames: rows of the index

ROW_COLUMNS: Final[list[tuple[str, str, bool]]]
"""Columns of a row in their order: name, type in PostgreSQL, whether memory keeps the value."""

MAX_PATH_BYTES: Final[int]
"""Longest path that the index takes: entries of the B-tree of refused files end at 2704 bytes."""

def local_path(path: str) -> str:
    """Return the path that a URI of a local file names: ``dbfs:/a``, ``file:/a``, ``file:///a%20b``.

    With an authority, be it empty, the path is percent-encoded (RFC 8089), else it is taken as it stands, as
    Spark and Hadoop write it. Any other text is returned as it is.
    """

def path_fault(path: str | bytes | PathLike[str]) -> str | None:
    """Say why a path cannot be a row of the index (not UTF-8, a NUL, too long), or None."""

def refused_status(kind: str) -> str:
    """Return the status, ``ambiguous`` or ``error``, of a file that was refused for a reason of this kind."""

def file_key(source: str, path: str | bytes | PathLike[str]) -> bytes:
    """Return the 16-byte key of a file: BLAKE2b-128 of the source's name, a NUL and the path."""

def file_keys(source: str, paths: list[str]) -> list[bytes]:
    """Return the `file_key` of each path."""

class _Outcome(Protocol):
    @property
    def path(self) -> str | PathLike[str]: ...
    @property
    def table(self) -> FrameTable | None: ...
    @property
    def error(self) -> FormatError | SourceError | None: ...
    @property
    def fingerprint(self) -> _Fingerprint | None: ...

@final
class Refusal:
    """A file that was refused when it was indexed, and the state of the file for which this holds."""

    @property
    def error(self) -> FormatError | SourceError:
        """Why it was refused."""
    @property
    def size(self) -> int | None:
        """Size in bytes; None where the file could not be opened, or its state is not known."""
    @property
    def mtime_ns(self) -> int | None: ...
    @property
    def ctime_ns(self) -> int | None: ...
    @property
    def inode(self) -> int | None: ...
    @property
    def etag(self) -> str | None: ...
    def describes(self, source: _Source) -> bool:
        """Whether the file has the state for which it was refused: see `FrameTable.describes`."""

def encode_rows(
    source: str, outcomes: Iterable[_Outcome]
) -> tuple[bytes, list[tuple[str | PathLike[str], str]]]:
    """Encode what came of reading files as rows of the index.

    Parameters
    ----------
    source : str
        Name of the source that the files belong to; part of each key.
    outcomes : iterable of TableResult
        Each with exactly one of `table` and `error`; `fingerprint` is the state of a refused file.

    Returns
    -------
    rows : bytes
        One row for each file whose path can be stored, without COPY's header and trailer.
    refused : list of (path, str)
        The other paths, each with its fault: see `path_fault`.
    """

def decode_states(
    states: bytes, paths: list[str]
) -> list[
    tuple[int | None, int | None, int | None, int | None, str | None, int, str | None, int, int | None] | None
]:
    """Decode what rows say of files without their tables.

    Parameters
    ----------
    states : bytes
        Records, one after another: path, size, mtime_ns, ctime_ns, inode, etag, parser_version,
        error_kind, frame_count, truncated_from.
    paths : list of str
        The files that are asked about.

    Returns
    -------
    list of tuple or None
        For each path what follows it in its record; None where no record is of that path.
    """

def decode_rows(rows: bytes, *, most: int | None = None) -> list[tuple[str, FrameTable | Refusal, int]]:
    """Decode rows of the index; NULL means what the attribute is where the data set lacks it.

    Parameters
    ----------
    rows : bytes
        Tuples of binary COPY without its header, or values of type ``record``, one after another. The last
        access may follow the columns.
    most : int or None
        Rows to decode at most.

    Returns
    -------
    list of (str, FrameTable or Refusal, int)
        Path, what the row says of the file, and its last access in µs since 1970 (0 for none). Rows of
        another parser version and rows that do not decode are left out.

    Raises
    ------
    FormatError
        ``bad_table``: the bytes are not rows.
    """

# frames: the index run

_Report: TypeAlias = tuple[str, str, int, int | None, str | None, str | None, int | None, str | None]

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
    opener : callable or None
        Makes a source of an address such as ``s3://bucket/key``; None: it is read as a path. It is given the
        state of the row too where no listing tells that of the object, and returns None where they are one.
    verify_objects : {"all", "ends", "none"}
        As `verify`, for what `opener` opens.
    """

    def __new__(
        cls,
        source: str,
        *,
        threads: int,
        verify: _Verify,
        opener: Callable[[Any], Any] | None = None,
        verify_objects: _Verify = "ends",
    ) -> Self: ...
    def read(
        self,
        paths: list[str],
        states: bytes | None = None,
    ) -> tuple[bytes, list[_Report]]:
        """Read a batch of files, or as many of its first ones as make 16 MiB of rows or take a second.

        Parameters
        ----------
        paths : list of str
            The files; no path twice.
        states : bytes or None
            What the index says of files that it knows: see `decode_states`. A file need not be read again
            that is in the state of its row, where that is complete and of this parser version.

        Returns
        -------
        rows : bytes
            One row for each file that was read, as `encode_rows` writes them.
        reports : list of tuple
            ``(path, status, frames, truncated_from, error_kind, error, error_offset, error_detail)`` for each
            of the first ``len(reports)`` paths, in order of completion. Status is that of the row,
            ``unchanged``, or ``refused`` for a path that cannot be a row: not storable, or a folder.
        """

def take_unchanged(
    paths: list[str], states: bytes, listed: Sequence[_Fingerprint | None]
) -> tuple[list[_Report], list[str], bytes]:
    """Take out the objects whose listing gave the state of their row: an unchanged one takes no request.

    Parameters
    ----------
    paths : list of str
        Files and objects; no path twice.
    states : bytes
        What the index says of them: see `decode_states`.
    listed : sequence of (size, mtime_ns, ctime_ns, inode, etag) or None
        For each path the state that the listing of a store gave.

    Returns
    -------
    unchanged : list of tuple
        Reports: see `Indexer.read`.
    left : list of str
        The other paths.
    states : bytes
        Those of the paths left that no listing gave.
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
    """Score files: behind `voxtier.frames.score_many`.

    Parameters
    ----------
    last_used, inserted : ndarray of int64, shape (N,)
        µs since 1970; the smallest int64 is NULL.
    count : ndarray of int64, shape (N,)
        Accesses.
    now : int
        Moment of the scores, µs since 1970.
    weights : tuple of float
        Of last use, insertion and accesses.
    half_lives : tuple of float
        Of last use and insertion, in seconds.
    out : ndarray of float64, shape (N,)
        Written.

    Returns
    -------
    tuple of (int, int)
        Number of times later than `now`, and by how many µs the latest is.
    """

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
    """Find the best files: behind `voxtier.frames.top_n`.

    Parameters
    ----------
    last_used, inserted, count : ndarray of int64, shape (N,)
        See `score_many`.
    n : int
        Files at most.
    now : int
        See `score_many`.
    weights, half_lives : tuple of float
        See `score_many`.
    ids : ndarray of int64, shape (N,), or None
        Decide among equal scores, ascending.
    names : sequence of str, length N, or None
        Decide among equal scores instead, by code points; without either, the row number decides.

    Returns
    -------
    tuple of (ndarray of int64, ndarray of float64)
        Row numbers and scores, best first.
    """

class FrameCache:
    """The entries of `voxtier.frames.FrameCache`: see there. Keys are 1 to 8191 bytes of UTF-8."""

    def __new__(
        cls,
        budget_bytes: int,
        *,
        policy: str = "lru",
        max_entry_fraction: float = 0.25,
        debounce_seconds: float = 600.0,
    ) -> Self: ...
    def touch(self, key: str, *, scan: bool = False) -> bool:
        """Look up a key; return whether it is there. An access, unless a bulk reader asks (`scan`)."""
    def locate(self, key: str, frame: int, *, scan: bool = False) -> tuple[int, int] | None:
        """Return where a frame lies.

        Parameters
        ----------
        key : str
            The file.
        frame : int
            Frame, counted from 0.
        scan : bool
            See `touch`.

        Returns
        -------
        tuple of (int, int) or None
            Offset and length in bytes; None when the key is absent.

        Raises
        ------
        IndexError
            The table has no such frame.
        FormatError
            ``fragmented_frame``: the frame lies in several fragments, see `ranges`.
        """
    def locate_many(
        self, key: str, frames: NDArray[np.int64], *, scan: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Return where many frames lie, by one look-up.

        Parameters
        ----------
        key : str
            The file.
        frames : ndarray of int64, shape (N,)
            Frames, counted from 0.
        scan : bool
            See `touch`.

        Returns
        -------
        tuple of ndarray of int64, shape (N,), or None
            Offsets and lengths in bytes; None when the key is absent.
        """
    def ranges(self, key: str, frame: int, *, scan: bool = False) -> list[tuple[int, int]] | None:
        """Return the payload ranges of a frame.

        Parameters
        ----------
        key : str
            The file.
        frame : int
            Frame, counted from 0.
        scan : bool
            See `touch`.

        Returns
        -------
        list of (int, int) or None
            Half-open ``[start, end)`` in bytes, one for each fragment; None when the key is absent.
        """
    def table(self, key: str) -> FrameTable | None:
        """Return the table of a key without its UIDs and notes; does not count as an access."""
    def state(self, key: str) -> _Fingerprint | None:
        """Return the state of the file that the table of a key describes; changes nothing."""
    def etag(self, key: str) -> str | None:
        """Return what `put_table` was given; does not count as an access."""
    def read(
        self,
        key: str,
        source: _Source,
        frames: Sequence[int],
        *,
        scan: bool = False,
        align: bool = False,
    ) -> list[bytes] | None:
        """Read frames by the table of a key, neighbours with one read.

        Parameters
        ----------
        key : str
            The file.
        source : path, bytes-like, int or RangedSource
            The same file, open: see `read_table`.
        frames : sequence of int
            Frames, counted from 0, in any order.
        scan : bool
            See `touch`.
        align : bool
            See `read_frame`.

        Returns
        -------
        list of bytes or None
            One item per frame; None when the key is absent.

        Raises
        ------
        SourceError
            ``changed_during_read``: the source is not the one that the table describes.
        FormatError
            ``truncated_frame``; ``bad_table``: the file's own offset table is wrong, the file must be walked.
        IndexError
            The table has no such frame.
        """
    def read_resident(
        self, key: str, fd: int, frames: Sequence[int], *, scan: bool = False, align: bool = False
    ) -> list[bytes] | None:
        """Read frames as `read` does, but never wait: for a thread that serves others, such as an event loop.

        Parameters
        ----------
        key : str
            The file.
        fd : int
            The same file, open.
        frames : sequence of int
            Frames, counted from 0, in any order.
        scan : bool
            See `touch`.
        align : bool
            See `read_frame`.

        Returns
        -------
        list of bytes or None
            None where `read` must be called: the key is absent, there is no such frame, the bytes are more
            than a MiB, or not all of them lie in the page cache, or their file system cannot tell. Then this
            call is no look-up.

        Raises
        ------
        SourceError, FormatError
            See `read`.
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
        klass: _Class = "normal",
    ) -> bool:
        """Store a table with one range per frame.

        Parameters
        ----------
        key : str
            The file.
        offsets, lengths : ndarray of uint64, shape (N,)
            Range of each frame in bytes.
        ts_uid : str
            Transfer Syntax UID.
        pixel_data_pos : int or None
            Offset of the pixel element's tag.
        etag : str or None
            Kept beside the table: see `etag`.
        klass : {"normal", "scan", "pinned"}
            See `put_table`.

        Returns
        -------
        bool
            False when the entry is refused: too large, or no room for its class.
        """
    def put_table(
        self,
        key: str,
        table: FrameTable,
        *,
        etag: str | None = None,
        klass: _Class = "normal",
        last_used_us: int = 0,
    ) -> bool:
        """Store a table.

        Parameters
        ----------
        key : str
            The file.
        table : FrameTable
            Its table.
        etag : str or None
            Kept beside the table: see `etag`.
        klass : {"normal", "scan", "pinned"}
            ``scan`` enters free space only and leaves first; ``pinned`` never leaves, up to half the budget.
        last_used_us : int
            Last access that the database knows of, µs since 1970: it takes part in the debouncing.

        Returns
        -------
        bool
            False when the entry is refused: too large, or no room for its class.
        """
    def put_rows(self, rows: bytes, *, klass: _Class = "normal") -> tuple[list[str], int]:
        """Store what the index returned for one file: its row first, then those of other files of its series.

        The others are stored where they are absent, until they have filled half the budget.

        Parameters
        ----------
        rows : bytes
            See `decode_rows`; rows without a table are skipped.
        klass : {"normal", "scan", "pinned"}
            See `put_table`.

        Returns
        -------
        tuple of (list of str, int)
            Paths of the rows, and how many of those behind the first were stored.
        """
    def preload_rows(self, rows: bytes, limit: int) -> tuple[int, int, int]:
        """Store rows of the index as the oldest entries, best first.

        Never evicts, does not replace an entry of the same key, does not count as an access.

        Parameters
        ----------
        rows : bytes
            See `decode_rows`.
        limit : int
            Used bytes of the cache beyond which nothing is stored.

        Returns
        -------
        tuple of (int, int, int)
            Rows that were stored, skipped (no room, or the entry exists), and damaged or without a table.
        """
    def put_packed_many(
        self,
        keys: Sequence[str],
        tables: Sequence[bytes],
        *,
        klass: _Class = "normal",
    ) -> tuple[int, int, int]:
        """Store tables in the form of `FrameTable.to_bytes`, each checked.

        Parameters
        ----------
        keys : sequence of str
            The files.
        tables : sequence of bytes
            A table for each.
        klass : {"normal", "scan", "pinned"}
            See `put_table`.

        Returns
        -------
        tuple of (int, int, int)
            Tables that were stored, refused, and damaged (or their key cannot be one).
        """
    def packed_bytes(self, key: str) -> int | None:
        """Return the size in bytes of a key's packed table, without key, slot and the heap's rounding."""
    def key_id(self, key: str) -> int | None:
        """Return a number for `touch_many`; once the entry has left, it is never that of another entry."""
    def touch_many(self, ids: NDArray[np.uint64], *, scan: bool = False) -> int:
        """Look up many entries by the numbers of `key_id`; return how many are there."""
    def invalidate(self, key: str) -> bool:
        """Remove an entry; return whether it was there."""
    def resize(self, budget_bytes: int) -> None:
        """Change the budget; entries that no longer fit have left on return."""
    def drain_access(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        """Take all accesses: keys, how many accesses to add, the last of each in µs since 1970."""
    def restore_access(self, keys: Sequence[str], counts: Sequence[int], times: Sequence[int]) -> None:
        """Give back accesses that could not be written.

        Parameters
        ----------
        keys : sequence of str
            The files.
        counts : sequence of int
            Accesses of each.
        times : sequence of int
            Last access of each, µs since 1970.
        """
    def drain_evicted(
        self,
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint8], NDArray[np.uint8], int]:
        """Take the log of evictions: ids, weights in bytes, causes, classes, and how many lines were lost.

        Causes: 0 capacity, 1 replaced, 2 invalidated, 3 resize. Classes: 0 normal, 1 scan, 2 pinned.
        """
    def counters(self) -> dict[str, Any]:
        """Return the counters since the start, and the bytes used."""
    def validate(self) -> None:
        """Raise if an invariant does not hold; linear in the number of entries."""
    def keys(self) -> list[str]:
        """Return all keys, most recently used first, class by class."""
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
    """Replay a trace of accesses against caches of several budgets.

    Parameters
    ----------
    keys : ndarray of uint32, shape (N,)
        Key of each access, numbered densely from 0.
    weights : ndarray of uint32, shape (N,)
        Bytes of its entry.
    scans : ndarray of bool, shape (N,)
        Whether a bulk reader asks.
    policy : {"lru", "scan_aware", "fifo", "belady"}
        Which entry leaves first.
    budgets : list of int
        Bytes.

    Returns
    -------
    list of (int, int)
        For each budget the hits of all accesses, and of those that are not scans.
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
        threads : int
            See `read`.
        keep : bool
            See `read`.

        Raises
        ------
        FormatError, SourceError
            As for `read`.
        """

    def read_boxes(
        self,
        starts: NDArray[np.int64],
        size: Sequence[int],
        out: NDArray[np.uint8],
        recipe: Recipe,
        *,
        steps: Sequence[int],
        fill: bytes,
        threads: int = 1,
        keep: bool = True,
    ) -> None:
        """Read boxes of one size, converted, to any places of an output.

        Parameters
        ----------
        starts : numpy.ndarray of int64
            First index of each box, dimension by dimension, flat; may be negative.
        size : sequence of int
            Cells of a box along each dimension.
        out : numpy.ndarray of uint8
            The bytes of all boxes' numbers.
        recipe : Recipe
            From the stored cells to the numbers of ``out``.
        steps : sequence of int
            Numbers of the output from cell to cell along each dimension, without gaps.
        fill : bytes
            The stored number outside the array.
        threads : int
            Threads that decode, the caller's among them.
        keep : bool
            Whether decoded chunks are kept for later reads.

        Raises
        ------
        FormatError
            ``bad_tile``, or ``invalid_argument`` when the parts do not fit together.
        SourceError
            When the file cannot be read.
        """

@final
class Recipe:
    """The steps from stored numbers to those of an output.

    Parameters
    ----------
    stored, out : str
        Names of numpy's types.
    slope, inter : float
        Stored number -> physical number.
    bits : int
        Of the floats in which that is calculated: 32 or 64.
    normalize : tuple of float, optional
        Low and high end of a window, mean, standard deviation.

    Raises
    ------
    FormatError
        ``invalid_argument`` where numbers would be lost: the output is the stored type, a wider integer
        without further steps, or ``float32``.
    """

    def __new__(
        cls,
        stored: str,
        out: str,
        *,
        slope: float = 1.0,
        inter: float = 0.0,
        bits: int = 32,
        normalize: tuple[float, float, float, float] | None = None,
    ) -> Recipe: ...

@final
class PatchSubject:
    """The volumes of one item: the channels of its image, then its mask.

    Parameters
    ----------
    parts : sequence of tuple
        Tiles, recipe, stored number outside the volume, and the axis (x, y, z) of each stored dimension.
    foreground : tuple, optional
        Voxels of the foreground in all blocks up to and with each one, blocks along x, y, z, voxels of a
        block along each axis, and the class (None: all but 0).
    """

    def __new__(
        cls,
        parts: Sequence[tuple[TileFile, Recipe, bytes, tuple[int, int, int]]],
        foreground: tuple[NDArray[np.uint64], tuple[int, int, int], int, float | None] | None = None,
    ) -> PatchSubject: ...

@final
class BatchEngine:
    """Threads that fill batches; batches of lower numbers are filled first.

    Parameters
    ----------
    threads : int
        Number of threads.
    keep : bool
        Whether decoded chunks are kept for later patches.
    shared : bool
        Whether they are kept in memory that other processes use too, where this one has taken one up.
    """

    def __new__(cls, threads: int, keep: bool, *, shared: bool = False) -> BatchEngine: ...
    def submit(
        self,
        number: int,
        memory: NDArray[np.uint8],
        orders: Sequence[tuple[PatchSubject, int, tuple[int, ...] | None, Any]],
        *,
        size: tuple[int, int, int],
        steps: tuple[int, int, int],
        channels: int,
        image: int,
        mask: int,
        key: tuple[int, int],
        foreground: float | None = None,
    ) -> None:
        """Put a batch into the queue.

        Parameters
        ----------
        number : int
            Of the batch.
        memory : numpy.ndarray of uint8
            Where the patches go; not to be touched until the batch has been waited for.
        orders : sequence of tuple
            Subject, item, the first voxel of the patch (None draws it), and how it is changed: None or
            matrix, mirrored axes, whether the heaviest class is taken, changes of intensities.
        size : tuple of int
            Voxels of a patch along x, y, z.
        steps : tuple of int
            Numbers from voxel to voxel along x, y, z.
        channels : int
            Of an image.
        image, mask : int
            Offsets in bytes.
        key : tuple of int
            Seed and epoch.
        foreground : float, optional
            Probability that a patch lies around a voxel of the foreground.

        Raises
        ------
        RuntimeError
            In a process that was forked from the one of the engine.
        """

    def wait(
        self, number: int, milliseconds: int
    ) -> list[tuple[tuple[int, ...], BaseException | None]] | None:
        """Return the first voxel of each patch and why it could not be read; None when time is over."""

    def stop(self) -> None:
        """End the threads and drop what was not waited for."""

@final
class PatchChange:
    """A patch that another reader reads and the core changes, as `BatchEngine` does.

    Parameters
    ----------
    view : tuple
        See the orders of `BatchEngine.submit`.
    start, size : tuple of int
        First voxel of the patch before it is turned, and its voxels.
    steps : tuple of int
        Numbers from voxel to voxel along x, y, z in a patch: the order of memory, of the box too.
    channels : int
        Of the image.
    key : tuple of int
        Seed and epoch.
    item : int
        Of the dataset.
    """

    def __new__(
        cls,
        view: Any,
        start: tuple[int, ...],
        size: tuple[int, ...],
        steps: tuple[int, int, int],
        channels: int,
        key: tuple[int, int],
        item: int,
    ) -> PatchChange: ...
    @property
    def touched(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """First voxel and voxels (x, y, z) of the box that a turned patch touches, if it is turned."""

    def finish(
        self, part: int, number: str, touched: NDArray[np.uint8] | None, out: NDArray[np.uint8]
    ) -> None:
        """Sample a part of the patch from the box that it touches, and change it in place.

        Parameters
        ----------
        part : int
            Channel of the image; their number is the mask.
        number : str
            Type of the numbers: ``float32`` for images.
        touched : numpy.ndarray of uint8 or None
            Bytes of the box; None for a patch that is not turned.
        out : numpy.ndarray of uint8
            Bytes of the patch, read already where it is not turned.

        Raises
        ------
        FormatError
            For lengths that do not fit, and images of other than ``float32``.
        """

def find_components(
    labels: NDArray[np.uint8], shape: tuple[int, int, int], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint32]] | None:
    """Find connected components of labels: voxels of one class that touch, be it by a corner.

    Parameters
    ----------
    labels : numpy.ndarray of uint8
        Classes (0: none), z fastest.
    shape : tuple of int
        Voxels along x, y, z.
    side : int
        Voxels of a block along each axis.

    Returns
    -------
    tuple or None
        Class of each component; rows of component, block, number of the part among those that the block alone
        falls into, and its voxels. None for a mask of millions of pieces.
    """

def component_voxel(
    labels: NDArray[np.uint8], shape: tuple[int, int, int], part: int, number: int
) -> tuple[int, int, int] | None:
    """Find a voxel of a part of one block (see `find_components`).

    Parameters
    ----------
    labels : numpy.ndarray of uint8
        Of the block.
    shape : tuple of int
        Of the block.
    part : int
        Number of the part.
    number : int
        Of the voxel in it.

    Returns
    -------
    tuple of int or None
        Within the block; None where there is no such voxel.
    """

def set_tile_budget(budget: int) -> None:
    """Set the bytes that decoded chunks may take in this process; 0 switches the cache off."""

def clear_tile_cache() -> None:
    """Remove all decoded chunks of this process and reset the counters."""

def tile_stats() -> dict[str, int]:
    """Return the counters of this process's cache of decoded chunks.

    ``hits``, ``misses``, ``bytes_read``, ``bytes_decoded``, ``evictions``, ``bytes_held``, ``budget`` and
    ``entries``; of the memory that was joined ``shared_bytes``, ``shared_budget``, ``shared_evictions``.
    """

def make_tile_cache(budget: int, *, every_read: bool) -> int:
    """Take up new memory for decoded chunks that other processes of the user can join; return its descriptor.

    Batch engines use it, with ``every_read`` all other reads of this process too.
    """

def join_tile_cache(path: str, *, every_read: bool) -> int:
    """Take up the memory behind ``/proc/PID/fd/N``; return this process's descriptor of it."""

@final
class ResamplePlan:
    """The tables of one resampling of a volume, in the bits of MONAI (``rust/src/resample/``)."""

    def __new__(
        cls,
        spacing: Sequence[tuple[int, NDArray[np.uint32], NDArray[np.float64], NDArray[np.float64]]]
        | tuple[tuple[int, int, int], Sequence[NDArray[np.float64]], Sequence[Sequence[float]], bool],
        resize: Sequence[tuple[int, NDArray[np.uint32], NDArray[np.float32], NDArray[np.float32]]],
        kernels: Sequence[tuple[NDArray[np.float32], str]],
        intensity: tuple[float, float, float, float, float, float],
        *,
        fused: bool,
    ) -> Self:
        """Check and keep the tables of the axes x, y, z.

        Parameters
        ----------
        spacing, resize : sequence of tuple
            For each axis the number of inputs and, for each output, the input before it, that one's weight
            and the weight of the next input. ``spacing`` of turned axes: the lengths of the input, the
            coordinates of the outputs by axis, for the places along x, y, z the factors of the coordinates
            along z, y, x and a summand, and whether these sums round once for each product.
        kernels : sequence of tuple
            For each axis the weights of the Gaussian between the two, and how it sums: ``mul+add``, ``fma``
            or ``blocks``.
        intensity : tuple of float
            ``(from, by, times, plus, low, high)``: ``(v - from) / by * times + plus``, clamped.
        fused : bool
            Whether the interpolation of ``resize`` rounds product and sum once.

        Raises
        ------
        FormatError
            ``invalid_argument`` for a table that leaves its axis.
        """

    def run(
        self,
        source: tuple[str | PathLike[str], bool, int],
        storage: tuple[str, bool, float | None, float | None],
        shape: tuple[int, int, int],
        axes: Sequence[tuple[int, bool]],
        out: NDArray[np.float32],
    ) -> tuple[bool, bool]:
        """Make the tensor of a NIfTI file; the GIL is released.

        Parameters
        ----------
        source : tuple
            Path, whether it is gzipped, and the first byte of the voxels.
        storage : tuple
            Type of the stored numbers (``int16``), whether they are big-endian, factor and summand or None.
        shape : tuple of int
            Voxels along the axes of the file.
        axes : sequence of tuple
            For x, y and z: which axis of the file it is, and whether it runs backwards.
        out : ndarray of float32
            One axis; gets the voxels (x, y, z), z fastest.

        Returns
        -------
        is_constant, is_finite : bool
            Whether all voxels are equal, and whether none is NaN or infinite. Only of a volume that is finite
            and not constant is a tensor made.

        Raises
        ------
        FormatError
            ``bad_deflate``, ``value_past_end`` for a file that ends too early, ``limit_exceeded`` where
            memory is short, ``invalid_argument`` where file, plan and output do not fit.
        SourceError
            The file cannot be read.
        """

    def space(
        self,
        source: tuple[str | PathLike[str], bool, int],
        storage: tuple[str, bool, float | None, float | None],
        shape: tuple[int, int, int],
        axes: Sequence[tuple[int, bool]],
        out: NDArray[np.float32],
    ) -> tuple[bool, bool]:
        """As `run`, but for the volume after the first step: spaced, scaled and clipped.

        Parameters
        ----------
        source, storage, shape, axes, out : tuple, tuple, tuple, sequence, ndarray
            As for `run`.

        Returns
        -------
        is_constant, is_finite : bool
            As from `run`.

        Raises
        ------
        FormatError, SourceError
            As from `run`.
        """

@final
class LabelPicks:
    """Which voxels of a label its result takes: nearest neighbours of both steps."""

    def __new__(cls, lengths: tuple[int, int, int], voxels: Sequence[NDArray[np.uint32]]) -> Self:
        """Check and keep the tables of the axes x, y, z.

        Parameters
        ----------
        lengths : tuple of int
            Voxels of the label.
        voxels : sequence of ndarray
            For each axis and output, the voxel that it takes.

        Raises
        ------
        FormatError
            ``invalid_argument`` for a table that leaves its axis.
        """

    def copy(
        self,
        source: tuple[str | PathLike[str], bool, int],
        storage: tuple[str, bool, float | None, float | None],
        shape: tuple[int, int, int],
        axes: Sequence[tuple[int, bool]],
        out: NDArray[np.float32],
    ) -> None:
        """Copy the voxels of a NIfTI file; the GIL is released.

        Parameters
        ----------
        source, storage, shape, axes, out : tuple, tuple, tuple, sequence, ndarray
            As for `ResamplePlan.run`.

        Raises
        ------
        FormatError, SourceError
            As from `ResamplePlan.run`.
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
INERT_GLOBALS: Final[list[str]]
"""Further globals that are harmless to import and call; beside them every class of ``numpy.dtypes``."""

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
    def refused_opcodes(self) -> list[str]:
        """Opcodes of the pickle, or their families, that ``torch.load(weights_only=True)`` refuses."""

    @property
    def tensors(self) -> list[tuple[str, str, list[int], str]]:
        """Key path, dtype, shape and record of every tensor below the root.

        A sparse tensor has its own shape and the record of its values; an axis of a nested tensor whose parts
        differ is -1.
        """

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
        Report floating-point tensors that are constant, NaN or infinite; a view by its own elements.
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

def save_hot_set(cache: FrameCache, path: str | PathLike[str]) -> int:
    """Write what memory holds to a file, and wait for the disk; return the number of entries."""

def restore_hot_set(cache: FrameCache, path: str | PathLike[str]) -> int:
    """Read a file of `save_hot_set`; return the number of entries that came into memory.

    Raises
    ------
    FormatError
        The file is damaged, or of another version: nothing is put.
    SourceError
        The file cannot be read.
    """

@final
class Gateway:
    """The HTTP server of the gateway: see `voxtier.frames.Gateway`, which answers its questions."""

    def __new__(
        cls,
        cache: FrameCache,
        sources: list[str],
        *,
        roots: list[str | PathLike[str]],
        tokens: list[tuple[str, list[str]]],
        groups_header: str | None,
        cors_origins: list[str],
        viewer: str | PathLike[str] | None,
        index_seconds: float,
        in_flight_bytes: int,
        access_log: int | None,
        page: str,
        viewer_config: str,
    ) -> Gateway: ...
    def start(self, host: str, port: int, workers: int) -> tuple[str, int]:
        """Listen and serve.

        Parameters
        ----------
        host : str
            IP address.
        port : int
            Port; 0 for any free one.
        workers : int
            Threads that serve.

        Returns
        -------
        tuple of str and int
            The address and port that are bound.

        Raises
        ------
        OSError
            The address cannot be bound.
        RuntimeError
            The gateway was started before.
        """

    def stop(self, drain_seconds: float) -> None:
        """Accept nothing more, and wait at most this long for open requests."""

    def abandon(self) -> None:
        """Forget the threads: in a child process, which does not have them."""

    def set_ready(self) -> None:
        """Let ``/ready`` say yes."""

    def counters(self) -> str:
        """Return the counters as a JSON object."""

    def next_job(self, seconds: float) -> GatewayJob | None:
        """Return the next question; None where none comes in time."""

@final
class GatewayJob:
    """A question of the server, to be answered once."""

    @property
    def question(self) -> tuple[str, tuple[Any, ...]]:
        """Its kind and its arguments."""

    def answer_rows(self, rows: bytes) -> None:
        """Answer with rows of the index."""

    def answer_files(self, files: list[tuple[str, list[str]]]) -> None:
        """Answer with SOP Instance UIDs and paths."""

    def answer_rights(self, may_read: list[bool]) -> None:
        """Answer which of the files the groups may read."""

    def answer_http(self, status: int, media_type: str, body: bytes, warning: str | None = None) -> None:
        """Answer with a whole response.

        Parameters
        ----------
        status : int
            HTTP status.
        media_type : str
            Type of the body.
        body : bytes
            The body.
        warning : str or None
            What the client should know, for the header line Warning (RFC 7234 5.5).
        """

    def answer_object(self, state: _Fingerprint, bridge: int, head: Buffer) -> None:
        """Answer with an object of a store.

        Parameters
        ----------
        state : (size, mtime_ns, ctime_ns, inode, etag)
            Its state.
        bridge : int
            Bytes that arrive in the time that a request takes to begin.
        head : buffer
            Its first bytes.
        """

    def answer_ranges(self, parts: Sequence[Buffer]) -> None:
        """Answer with the bytes of ranges of an object."""

    def refuse(self, kind: str, detail: str, errno: int | None = None) -> None:
        """Say why an object cannot be read: as a `SourceError` or `FormatError` does.

        Parameters
        ----------
        kind : str
            One of `ERROR_KINDS`.
        detail : str
            What happened.
        errno : int or None
            The operating system's error number.
        """

    def fail(self, why: str) -> None:
        """Say why there is no answer."""
