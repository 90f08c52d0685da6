"""Every exception that voxtier raises: one root, each child also of the standard library's kin.

All of them pickle (a DataLoader worker or a Spark task may raise them), and each message says what is
wrong, where (byte offset, tag, frame, path) and what to do.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "ConfigError",
    "FormatError",
    "MissingExtraError",
    "NotFoundError",
    "SourceError",
    "VoxtierError",
]


class VoxtierError(Exception):
    """Root of all exceptions that voxtier raises on purpose."""


class FormatError(VoxtierError, ValueError):
    """The content of a file (or of a packed table) was refused.

    Parameters
    ----------
    kind : str
        One of ``voxtier._core.ERROR_KINDS``; stable, made for code to compare.
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
        ``"io_error"`` or ``"changed_during_read"``.
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

    def __reduce__(self) -> tuple[type[SourceError], tuple[str, int | None, str, int | None]]:
        return type(self), (self.kind, self.offset, self.detail, self.errno)

    def __str__(self) -> str:
        place = "" if self.offset is None else f" at byte {self.offset}"
        return f"{self.kind}{place}: {self.detail}"


class ConfigError(VoxtierError, ValueError):
    """An option, a configuration file or an identifier that cannot be used (exit code 2)."""


class NotFoundError(VoxtierError, LookupError):
    """A path, UID, source, subject or key that the index does not hold."""


class BackendError(VoxtierError, ConnectionError):
    """A database, object store or hub that cannot be reached (exit code 4)."""


class MissingExtraError(VoxtierError, ImportError):
    """An optional dependency is not installed; the message holds the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, extra)
        self.package = package
        self.extra = extra

    def __str__(self) -> str:
        return f"{self.package} is not installed: pip install 'voxtier[{self.extra}]'"
