"""TileDB's errors in voxtier's classes, told apart by the words of their messages (they have no codes)."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import tiledb

from voxtier.errors import BackendError, ConfigError, FormatError, NotFoundError, SourceError
from voxtier.system.machine import available_memory

_MISSING = re.compile(r"does not exist|not found|NoSuchKey|NoSuchBucket|not an array|No such file", re.I)
_REMOTE = re.compile(
    r"HTTP response code: 4\d\d|HTTP Response Code: -?\d+|Access ?Denied|InvalidAccessKeyId"
    r"|SignatureDoesNotMatch|curlCode|resolve host|timeout|credentials|Network",
    re.I,
)
# What the system says of itself, not of the files; what begins another one's words stands behind it.
_CODES = (
    "ENOSPC EDQUOT EFBIG EACCES EPERM EROFS EIO ESTALE ENOMEM EAGAIN ENFILE EMFILE ETIMEDOUT ENOTCONN EBUSY"
)
_SURROUNDINGS = {os.strerror(code): code for code in (getattr(errno, name) for name in _CODES.split())}
_BRIEF = {
    errno.ENOSPC: "the disk is full",
    errno.EROFS: "permission denied: the file system is read-only",
    errno.EAGAIN: "no more threads or processes are allowed (ulimit -u, a limit of the container)",
    errno.EMFILE: "too many open files (ulimit -n)",
}
_ROOM = 1 << 30


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Turn TileDB's errors into voxtier's; ``what`` names the action and the place.

    Raises
    ------
    SourceError
        When the disk is full, access is denied, or memory, threads or descriptors are short: nothing is known
        of what lies there.
    BackendError
        When an object store refuses or does not answer.
    ConfigError
        When gzip has no room for a tile that does not shrink.
    NotFoundError
        When nothing lies at the address.
    FormatError
        For anything else: TileDB cannot use what lies there.
    """
    try:
        yield
    except tiledb.TileDBError as error:
        raise _translate(what, str(error)) from None
    except PermissionError as error:
        raise SourceError.from_os(error, what) from None


def is_object_gone(error: BackendError) -> bool:
    """Return whether an object store has no such object: it was removed since it was listed."""
    return re.search(r"Response Code: 404|NoSuchKey", str(error), re.I) is not None


def _is_memory_short() -> bool:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return limit != resource.RLIM_INFINITY or available_memory() < _ROOM


def _translate(what: str, text: str) -> Exception:
    brief = re.sub(r"\s+", " ", text)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        secret = os.environ.get(name)
        if secret:
            brief = brief.replace(secret, "[hidden]")
    if "S3" in brief and _REMOTE.search(brief):  # first: servers and curl have the system's words too
        return BackendError(f"{what}: the object store refused or did not answer: {brief}")
    for words, code in _SURROUNDINGS.items():
        if words in brief:
            return SourceError("io_error", None, f"{what}: {_BRIEF.get(code, words.lower())}", code)
    # A damaged size asks for more memory than there is, too.
    if re.search("bad_alloc|MemoryError", brief) and _is_memory_short():
        return SourceError("io_error", None, f"{what}: there is not enough memory", errno.ENOMEM)
    if "GZipException" in brief and "buffer too small" in brief:
        return ConfigError(
            f"{what}: a tile does not shrink, and TileDB's gzip has no room for it; nothing is damaged: store"
            " the volume anew with another compression, such as zstd"
        )
    if _MISSING.search(brief):
        return NotFoundError(f"{what}: {brief}")
    return FormatError("store_damaged", None, f"{what}: {brief}")
