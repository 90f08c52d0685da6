"""What a store or its client says when it fails, as one error that names object and remedy."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from voxtier.errors import KeyFaultError, SourceError

_STATUS = re.compile(
    r"status code:? (\d{3})|\bHTTP status (?:client|server) error \((\d{3})|\b(\d{3}) [A-Z][a-z]+"
)
_CODE = re.compile(r"<Code>(\w+)</Code>")
_FAULTY_KEY = re.compile(r'Path "(.+)"(?:: Encountered illegal| contained empty)', re.DOTALL)
_REGION = re.compile(r"<Region>([a-z0-9-]{1,40})</Region>")
_THROTTLED = (429, 503)
_MAY_HELP = (408, 425, 429, 500, 502, 503, 504)
_EXPIRED = ("ExpiredToken", "RequestExpired", "TokenRefreshRequired", "InvalidToken")
_ELSEWHERE = "the bucket lies in another region: set AWS_REGION, or S3Config(region=...)"
_REMEDIES = {
    400: "the store does not understand the request: check region, endpoint and path style (S3Config)",
    401: "the store does not know who asks: check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, role)",
    403: (
        "the credentials may not read it, or none were found (AWS_ACCESS_KEY_ID, AWS_PROFILE, role): grant "
        "them read and list, or ask anonymously where it is public"
    ),
    404: "there is no such object: list the prefix again",
    416: "the object is shorter than it was: read its table again",
    429: "the store asks for fewer requests: try again later, or with fewer threads",
    503: "the store asks for fewer requests: try again later, or with fewer threads",
}
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_ERRNO = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 429: errno.EBUSY, 503: errno.EBUSY}


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed.

    Attributes
    ----------
    what : str
        What happened, and the remedy.
    status : int or None
        Status of the store's answer, where there was one.
    may_help : bool
        Whether the same request may succeed a moment later.
    is_credentials : bool
        Whether other credentials may.
    number : int or None
        The operating system's number of the error that means the same.
    region : str or None
        Where the bucket lies, if in another region than was asked; empty where the store does not name it.
    faulty_key : str or None
        The key that the client cannot name.
    """

    what: str
    status: int | None = None
    may_help: bool = False
    is_credentials: bool = False
    number: int | None = None
    region: str | None = None
    faulty_key: str | None = None

    @property
    def is_throttled(self) -> bool:
        """Whether the store asks for fewer requests."""
        return self.status in _THROTTLED

    def as_error(self, name: str, offset: int | None) -> SourceError:
        """Return the error for callers; `name` is the object."""
        detail = f"{name}: {self.what}"
        if self.faulty_key is None:
            return SourceError("io_error", offset, detail, self.number)
        return KeyFaultError(self.faulty_key, detail)


def replaced(name: str) -> SourceError:
    """Return the error for an object that has another state than it had."""
    detail = f"{name}: the object was replaced since its table was read: read its table again"
    return SourceError("changed_during_read", None, detail)


def failure_of(error: Exception) -> Failure:
    """Return what an exception of the client means."""
    kind, text = type(error).__name__, str(error)
    if kind == "InvalidPathError":
        faulty = _FAULTY_KEY.search(text)
        return Failure(
            f"the listing breaks off at a key that the client cannot name ({_cause(text)}): copy that object "
            "to another key, or name the folders beside it one by one",
            faulty_key=faulty[1] if faulty else None,
        )
    code = _CODE.search(text)
    status = _status(kind, text)
    if code and code[1] in _EXPIRED:
        what = f"the credentials have expired ({code[1]}): renew them"
        return Failure(what, status, is_credentials=True, number=errno.EACCES)
    named = _REGION.search(text)
    is_redirect = "edirect" in text and ("LOCATION" in text or "region" in text)
    if is_redirect or status in (301, 307) or (named and status == 400):
        return Failure(_ELSEWHERE, status or 301, region=named[1] if named else "")
    if status is not None:
        remedy = _REMEDIES.get(status, "the store failed: try again later")
        if code and code[1] in _NO_BUCKET:
            remedy = "there is no such bucket: check its name, and whose account or endpoint is asked"
        said = f"status {status}" + (f" ({code[1]})" if code else "")
        return Failure(
            f"{said}: {remedy}",
            status,
            may_help=status in _MAY_HELP,
            is_credentials=status in (401, 403),
            number=_ERRNO.get(status),
        )
    if "range" in text.lower() and ("not support" in text.lower() or kind == "NotSupportedError"):
        return Failure("the server answers no ranges of bytes: fetch the file, and give its path")
    if "content-range" in text.lower() or "requested range" in text.lower():
        return Failure("the answer is of another range than was asked for", may_help=True)
    if kind in ("GenericError", "BaseError", "JoinError"):
        first = _cause(text)
        if "timed out" in text.lower() or "TimedOut" in text:
            return Failure("the store did not answer in time", may_help=True, number=errno.ETIMEDOUT)
        return Failure(f"the store could not be reached or broke off: {first}", may_help=True)
    return Failure(f"{kind}: {_cause(text)}")


def _status(kind: str, text: str) -> int | None:
    by_kind = {"FileNotFoundError": 404, "PermissionDeniedError": 403, "UnauthenticatedError": 401}
    if kind in by_kind:
        return by_kind[kind]
    found = _STATUS.search(text.partition("Debug source")[0])
    return int(next(filter(None, found.groups()))) if found else None


def _cause(text: str) -> str:
    return " ".join(text.partition("Debug source")[0].split())[:200]
