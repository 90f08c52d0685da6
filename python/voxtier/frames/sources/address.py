"""Names of files in one spelling, and addresses: the store and the key that ``s3://bucket/key`` names."""

from __future__ import annotations

import os
import re
import sys
from typing import NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes

from voxtier._core import local_path
from voxtier.errors import SourceError

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# Other names of the same objects.
_SCHEMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "azure": "az"}
_KNOWN = ("s3", "gs", "az", "abfs", "abfss", "https", "http")
_LONGEST_KEY = 1024
_INVALID = 22  # EINVAL
_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")
_STRAY_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")
# What the client sends as it is, beside those.
_SENT = "/!$&'()*+,;=:@[]^|"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Address(NamedTuple):
    """An object of a store.

    Attributes
    ----------
    root : str
        The store: ``s3://bucket``, ``https://host``.
    key : str
        The object's name there; of a web server, the path as it is asked: see `as_asked`.
    """

    root: str
    key: str

    @property
    def can_list(self) -> bool:
        """Whether the store names the objects below a prefix."""
        return not self.root.startswith("http")


def is_address(name: str) -> bool:
    """Return whether a text is an address: a scheme of two letters or more and ``://``."""
    return "://" in name and _ADDRESS.match(name) is not None


def normal(name: str) -> str:
    """Return an address in the form under which its object is indexed: one scheme for each store.

    Of a web server the path is that which is asked: an object has one name, and rules of access hold for it.
    """
    scheme, _, rest = name.partition("://")
    scheme = scheme.lower()
    if scheme in ("http", "https") and not {"?", "#"} & set(rest) and not _is_unprintable(rest):
        host, slash, path = rest.partition("/")
        rest = f"{host.lower()}{slash}{as_asked(path)}"
    return f"{_SCHEMES.get(scheme, scheme)}://{rest}"


def as_indexed(name: str, folder: str = "") -> str:
    """Return the path under which a file is indexed: absolute; symbolic links are not resolved.

    ``dbfs:/a`` and ``file:///a`` name ``/a``: see `voxtier._core.local_path`. The address of an object stays
    one, with the scheme of its store. A relative path begins in `folder`, or in the working folder.
    """
    if "://" in name:
        if (local := local_path(name)) != name:
            return as_indexed(local, folder)  # one form may stand in another, such as dbfs:file:///x
        if is_address(name):
            return normal(name)
    if name[4:5] == ":" and (local := local_path(name)) != name:  # cheaper than to ask for each of 10^8 files
        return as_indexed(local, folder)
    if name[:1] == "/" and "//" not in name and "/." not in name and name[-1] != "/":
        return name  # nothing to make absolute; to find that out takes a tenth of `abspath`
    # No file is named "" or holds a NUL: both are refused later. "" would become a folder, and CPython before
    # 3.11.5 cuts at NUL.
    if not name or "\0" in name:
        return name
    name = os.path.abspath(os.path.join(folder, name))  # noqa: PTH100, PTH118 - once for each of 10^8 files
    return name[1:] if name[:2] == "//" else name  # POSIX lets two slashes at the beginning mean another root


def is_misread(name: str) -> bool:
    """Return whether the locale is not UTF-8, so that to the core and the index a path is another file's."""
    return not name.isascii() and sys.getfilesystemencoding() != "utf-8" and not is_address(name)


def is_text(name: str) -> bool:
    """Return whether a name is text: one of bytes that are not UTF-8 is not. Memory and index hold none."""
    if name.isascii():
        return True
    if is_misread(name):
        return False
    try:
        name.encode()
    except UnicodeEncodeError:  # what `os.fsdecode` escaped
        return False
    return True


def anchored(name: str) -> str:
    """Return a name for what is opened later: of the same file, whatever the working folder is by then.

    Nothing else of it changes: ``..`` behind a link to a folder is the system's to follow.
    """
    local = local_path(name)
    if not local or local[0] == "/" or is_address(local):
        return name
    try:
        return os.path.join(os.getcwd(), local)  # noqa: PTH109, PTH118 - Path drops "." and a slash at the end
    except FileNotFoundError:  # the working folder was deleted: reading says that there is no such file
        return name


def prefix_as_indexed(prefix: str) -> str:
    """Return a beginning of paths in the spelling of the index, so that it is one of theirs.

    What stands behind the last slash is the beginning of a name, and stays. So does text that begins no
    absolute path: nobody knows which folder it meant.
    """
    text = prefix
    while (local := local_path(text)) != text:
        text = local
    if is_address(text):
        return normal(text)
    folder, _, name = text.rpartition("/")
    if text[:1] != "/" or name in (".", ".."):
        return prefix
    return f"{as_indexed(f'{folder}/').rstrip('/')}/{name}"


def parse(name: str) -> Address:
    """Return the store and the key that an address names.

    Raises
    ------
    SourceError
        The scheme is of no store that is read, or no client can ask for the key.
    """
    scheme, _, rest = normal(name).partition("://")
    if scheme not in _KNOWN:
        raise refused(name, f"no store of scheme {scheme!r} is read: open the file with fsspec and give that")
    place, slash, key = rest.partition("/")
    if not place:
        raise refused(name, f"the address names no {'host' if scheme.startswith('http') else 'bucket'}")
    if scheme.startswith("http"):
        if "?" in key or "#" in key:
            raise refused(
                name, "an address with a query is not read: open it with fsspec's http file and give that"
            )
        if _is_unprintable(key):
            raise refused(name, "the address has characters that are not printable: write them as %XX")
        key = as_asked(key)
    return Address(f"{scheme}://{place}", key if slash else "")


def as_asked(path: str) -> str:
    """Return a path as a web server is asked for it: as it is written, but for what names the same object.

    The hex digits of escapes are capitals, unreserved characters have none, and what cannot stand in an
    address has one (RFC 3986, 6.2.2). ``%2F`` is no slash, and ``%2B`` no plus (2.2).
    """
    path = quote(_STRAY_PERCENT.sub("%25", path), safe=_SENT + "%")
    return _ESCAPE.sub(lambda found: _shortest(found[0]), path)


def _shortest(escape: str) -> str:
    character = chr(int(escape[1:], 16))
    return character if _UNRESERVED.match(character) else escape.upper()


def plain_key(path: str) -> str | None:
    """Return the key for which the client sends this path; None where it cannot: it escapes keys itself."""
    key = unquote(path)
    return key if quote(key, safe=_SENT) == path and not _CONTROL.search(key) else None


def check_key(name: str, key: str) -> None:
    """Refuse a key that the client would change on its way to the store: another object would be read.

    Raises
    ------
    SourceError
        Names the address and the remedy.
    """
    parts = key.split("/")
    length = len(unquote_to_bytes(key) if name.startswith("http") else key.encode(errors="replace"))
    if length > _LONGEST_KEY:
        why = f"has {length} bytes, more than {_LONGEST_KEY}"
    elif "." in parts or ".." in parts:
        why = "has . or .. between slashes"
    elif "" in parts:
        why = "is empty, begins or ends with a slash, or has two of them in a row"
    elif _is_unprintable(key):
        why = "has characters that are not printable"
    else:
        return
    raise refused(
        name, f"the key {why}: copy the object to another key, or open it with fsspec and give that"
    )


def _is_unprintable(text: str) -> bool:
    return not text.isprintable() or "\ufffd" in text


def refused(name: str, why: str) -> SourceError:
    """Return the error for an address that cannot be read whatever the store says."""
    return SourceError("io_error", None, f"{name}: {why}", _INVALID)
