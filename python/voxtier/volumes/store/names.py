"""Names in a store: of folders, as the user wrote them or made up, and of observations, each at most once."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from voxtier.errors import ConfigError
from voxtier.system.text import is_unicode
from voxtier.volumes.formats.sources import SUBJECT_OF
from voxtier.volumes.tiledb.format.names import is_reserved
from voxtier.volumes.tiledb.session import is_removing

# A folder of DICOM files gives its name to the subject, and `CT-2` is a folder of many patients.
_IF_ANOTHERS = f"an image of another subject needs its name: {SUBJECT_OF}"


def array_name(obs_id: str, *content: object) -> str:
    """Return a folder name for one array: readable, unique for the id and the content that it is given."""
    told = "\0".join((obs_id, *map(str, content)))  # with paths, which may be no UTF-8
    digest = hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", obs_id)[:48].strip(".-") or "volume"
    return f"{readable}-{digest}"


def is_array_name(name: str) -> bool:
    """Return whether `array_name` may have made this name."""
    return re.fullmatch(r"[A-Za-z0-9._-]{1,48}-[0-9a-f]{16}", name) is not None


def versioned(folder: str, commit: int) -> str:
    """Return the name for a folder beside one that a commit uses."""
    return f"{folder}-{commit:013d}"


def is_version_of(folder: str, name: str) -> bool:
    """Return whether a folder's name is this name, or `versioned` made it of this name."""
    return re.fullmatch(re.escape(name) + r"(-\d{13})*", folder) is not None


def checked_name(kind: str, name: str) -> str:
    """Return a name that may become a folder.

    Raises
    ------
    ConfigError
        When it is empty, no UTF-8 text, holds a slash, or is reserved by TileDB, the file system or voxtier.
    """
    if not is_unicode(name):
        raise ConfigError(f"{kind} {name!r} cannot name a folder: it is no UTF-8 text")
    if not name or name in (".", "..") or re.search(r"[/\\\0]", name) or is_reserved(name):
        raise ConfigError(
            f"{kind} {name!r} cannot name a folder: no slashes, not empty, not starting with '__'"
        )
    if is_removing(name):
        raise ConfigError(f"{kind} {name!r} cannot name a folder: folders that are removed have such names")
    return name


def refuse_unusable_ids(ids: Iterable[str]) -> None:
    """Refuse names of subjects and observations that no row can hold, before anything is written.

    Raises
    ------
    ConfigError
        For one that is empty, holds a zero byte, or is no UTF-8 text.
    """
    for name in map(str, ids):
        if not name or "\0" in name or not is_unicode(name):
            raise ConfigError(
                f"{name!r} cannot name a subject or an observation: such a name is UTF-8 text, not empty"
                " and without zero bytes"
            )


def refuse_duplicates(
    obs_ids: Iterable[str], present: Iterable[str] = (), *, labels: Sequence[object] = ()
) -> None:
    """Refuse an observation that would exist twice, before anything is written.

    Parameters
    ----------
    obs_ids : iterable of str
        Observations to write.
    present : iterable of str
        Observations that exist.
    labels : sequence, optional
        Name of the image of each of ``obs_ids``, for the message.

    Raises
    ------
    ConfigError
        Names the observations, and the images of the first of them.
    """
    obs_ids = list(obs_ids)
    counts = Counter(obs_ids)
    twice = sorted(obs_id for obs_id, count in counts.items() if count > 1)
    if twice:
        hint = (
            f"{_IF_ANOTHERS}; leave one out, put them into two collections (collection_name=, --collection),"
            " or give paths (without subjects) whose names differ by ses- or run-"
        )
        named = _named(twice[:1], obs_ids, labels) + (f" and {len(twice) - 1} more" if len(twice) > 1 else "")
        raise ConfigError(f"two images for the same observation: {named}" + (f"; {hint}" if labels else ""))
    again = sorted(counts.keys() & set(present))
    if again:
        named = _named(again[:5], obs_ids, labels)
        raise ConfigError(f"already in the store: {named}" + (f"; {_IF_ANOTHERS}" if labels else ""))


def _named(some: Iterable[str], obs_ids: Sequence[str], labels: Sequence[object]) -> str:
    """Return observations, and behind each its images."""
    images: dict[str, list[str]] = {}
    for obs_id, label in zip(obs_ids, labels, strict=False):
        images.setdefault(obs_id, []).append(str(label))
    return ", ".join(
        f"{obs_id} ({', '.join(images[obs_id][:3])})" if obs_id in images else obs_id for obs_id in some
    )
