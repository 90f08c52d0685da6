"""Every exception and warning of voxtier: one root, each child also of the standard library's kin.

All of them pickle (a DataLoader worker or a Spark task may raise them), and each message says what is
wrong, where (byte offset, tag, frame, path) and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

ENVIRONMENT_KINDS = frozenset({"io_error", "changed_during_read"})
"""Kinds of `SourceError`: the surroundings failed, not the content, and the next try may succeed."""

VOLUME_KINDS = (
    "images_refused",
    "bad_header",
    "bad_geometry",
    "unsupported_image",
    "undecodable_pixels",
    "bad_values",
    "not_a_volume",
    "store_changed",
    "store_damaged",
)
"""Kinds of the `FormatError` of volumes, beside those of the core.

``images_refused`` of an ingest, ``bad_header`` a field that is missing or outside its domain,
``bad_geometry`` voxels on no regular grid or off the grid of their image, ``unsupported_image`` a valid image
of a sort that is not stored (colour, Modality LUT, five dimensions), ``undecodable_pixels`` pixel data that
cannot be decoded, ``bad_values`` voxels that are NaN or complex where real numbers are needed,
``not_a_volume`` a TileDB object of another shape, ``store_changed`` a store whose parts contradict each
other because something else than voxtier wrote to it, ``store_damaged`` files that TileDB cannot use or that
read back differently.
"""


class VoxtierError(Exception):
    """Root of all exceptions that voxtier raises on purpose."""


class FormatError(VoxtierError, ValueError):
    """The content of a file (or of a packed table) was refused.

    Parameters
    ----------
    kind : str
        One of ``voxtier._core.ERROR_KINDS`` or of `VOLUME_KINDS`; stable, made for code to compare.
    offset : int or None
        Absolute byte offset that the refusal concerns.
    detail : str
        What was found and what would have been right; never holds values of patient attributes.
    """

    def __init__(self, kind: str, offset: int | None = None, detail: str = "") -> None:
        super().__init__(kind, offset, detail)
        self.kind = kind
        self.offset = offset
        self.detail = detail

    def __str__(self) -> str:
        place = "" if self.offset is None else f" at byte {self.offset}"
        return f"{self.kind}{place}: {self.detail}"


class SourceError(VoxtierError, OSError):
    """A file or a reader could not be read, or changed while it was read: trying again may succeed.

    Parameters
    ----------
    kind : str
        One of `ENVIRONMENT_KINDS`.
    offset : int or None
        Absolute byte offset of the failed read, where known.
    detail : str
        The operating system's words, or what changed.
    errno : int or None
        The operating system's error number.
    """

    def __init__(
        self, kind: str, offset: int | None = None, detail: str = "", errno: int | None = None
    ) -> None:
        super().__init__(kind, offset, detail, errno)
        self.kind = kind
        self.offset = offset
        self.detail = detail
        self.errno = errno

    @classmethod
    def from_os(cls, error: OSError, what: object = None) -> SourceError:
        """Return the error that stands for a refusal of the operating system; its number is kept.

        Parameters
        ----------
        error : OSError
            The refusal.
        what : object
            The path or the action that was refused, put before the system's words.

        Returns
        -------
        SourceError
            Of kind ``"io_error"``.
        """
        words = error.strerror or str(error) or type(error).__name__
        return cls("io_error", None, words if what is None else f"{what}: {words}", error.errno)

    def __reduce__(self) -> tuple[type[SourceError], tuple[str | int | None, ...], dict[str, Any]]:
        return type(self), (self.kind, self.offset, self.detail, self.errno), self.__dict__

    def __str__(self) -> str:
        place = "" if self.offset is None else f" at byte {self.offset}"
        return f"{self.kind}{place}: {self.detail}"


class KeyFaultError(SourceError):
    """A listing lacks objects near a key that the client of its store cannot name, such as ``a//b``.

    Parameters
    ----------
    key : str
        The key, or the folder, that it could not read.
    detail : str
        What is missing, and what to do.
    """

    def __init__(self, key: str, detail: str) -> None:
        super().__init__("io_error", None, detail)
        self.key = key

    def __reduce__(self) -> tuple[type[KeyFaultError], tuple[str, str], dict[str, Any]]:
        return type(self), (self.key, self.detail), self.__dict__


class ConfigError(VoxtierError, ValueError):
    """An option, a configuration file or an identifier that cannot be used (exit code 2)."""


class EngineLimitError(VoxtierError, NotImplementedError):
    """The resampling engine cannot give MONAI's bits for a volume, or with this torch: MONAI makes it.

    Parameters
    ----------
    reason : str
        A word or two, for manifest and summary: ``oblique``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the resampling engine does not take this volume: {self.reason}; use MONAI's pipeline"


class ViewError(VoxtierError, TypeError):
    """A view was asked to change what it shows: change the root, or write the view to a place of its own."""


class NotFoundError(VoxtierError, LookupError):
    """A path, UID, source, subject or key that the index does not hold."""


class NoStackError(VoxtierError, ValueError):
    """DICOM slices lie on no regular grid. Who has the series makes a `FormatError` of it, which names it.

    Parameters
    ----------
    cause : {"gaps", "one_place", "off_grid"}
        Regular but for some gaps, two at one place, or anything else.
    reason : str
        A sentence for the message.
    """

    def __init__(self, cause: Literal["gaps", "one_place", "off_grid"], reason: str) -> None:
        super().__init__(cause, reason)
        self.cause = cause
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class BackendError(VoxtierError, ConnectionError):
    """A database, object store or hub that cannot be reached (exit code 4)."""


class UnfinishedError(BackendError):
    """A search took longer than its client waits; the message says what the next one does."""


class TooBroadError(VoxtierError, ValueError):
    """A search found more than one answer may hold; the message says how to ask for less."""


class MissingExtraError(VoxtierError, ImportError):
    """An optional dependency is not installed; the message holds the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, extra)
        self.package = package
        self.extra = extra

    def __str__(self) -> str:
        return f"{self.package} is not installed: pip install 'voxtier[{self.extra}]'"


class LeftOutWarning(UserWarning):
    """Something in the place of an ingest, or of an export, was not stored, and the rest was.

    Parameters
    ----------
    what : str
        Files, or a series.
    reason : str
        Why.
    """

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(what, reason)
        self.what = what
        self.reason = reason

    def __str__(self) -> str:
        return f"left out: {self.what}: {self.reason}"


class IngestError(FormatError):
    """Some images of an ingest were refused; nothing of it became visible.

    Parameters
    ----------
    failures : sequence of (str, str)
        File and reason.
    """

    def __init__(self, failures: Sequence[tuple[str, str]]) -> None:
        lines = "; ".join(f"{name}: {reason}" for name, reason in failures[:5])
        more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
        super().__init__("images_refused", None, f"{len(failures)} image(s) refused: {lines}{more}")
        self.failures = list(failures)

    def __reduce__(self) -> tuple[type[IngestError], tuple[list[tuple[str, str]]], dict[str, Any]]:
        return type(self), (self.failures,), self.__dict__


class NotIntactError(VoxtierError, OSError):
    """A file that was just written does not read back right: the disk or the memory is bad."""


class NotLoadedError(VoxtierError, ValueError):
    """A tensor file that is not damaged, or an item for one, holds what must not or cannot be loaded here."""


class WrongContentError(VoxtierError, ValueError):
    """The hub delivered, several times, bytes that do not match the file's checksum."""


class CircuitOpenError(VoxtierError, RuntimeError):
    """So many files look bad that something else must be wrong; nothing was touched."""


class StoppedError(VoxtierError, RuntimeError):
    """The work was told to stop; what was fetched so far is kept for the next run."""


class TransientError(VoxtierError, RuntimeError):
    """A request to the hub failed in a way that may pass: it is repeated, and no caller sees this error.

    Parameters
    ----------
    reason : str
        What the server or the network said.
    retry_after : float
        Seconds that the server asks to wait.
    """

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def error_of(kind: str, offset: int | None = None, detail: str = "") -> FormatError | SourceError:
    """Return the error of a kind: who refused, the content or the surroundings, decides its class.

    Parameters
    ----------
    kind : str
        As stored in an index row or reported by the core.
    offset : int or None
        Absolute byte offset, where known.
    detail : str
        What was found.

    Returns
    -------
    FormatError or SourceError
        `SourceError` for `ENVIRONMENT_KINDS`.
    """
    return (SourceError if kind in ENVIRONMENT_KINDS else FormatError)(kind, offset, detail)
