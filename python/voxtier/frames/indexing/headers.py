"""What searches ask for of a header, and how its values are compared; by the index and by searches alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from voxtier import _core
from voxtier.errors import FormatError, SourceError
from voxtier.frames.dicom.moments import MOMENT_VRS, sortable
from voxtier.frames.dicom.table import Fingerprint
from voxtier.frames.sources.objects import RemoteObject
from voxtier.frames.sources.opening import open_source
from voxtier.frames.store.search_index import INDEXED_TAGS, INSTANCE, SERIES, STUDY

# Behind it stand pixels and, in a slide, an Item for each frame; none of the attributes that are kept.
_LAST_TAG = 0x0040FFFF
# Bytes of a value, of VRs that may be bulk data (PS3.18 F.2.2), beyond which searches know nothing of it: a
# text (LT) has 10,240 characters, a document or a table of a vendor has megabytes.
_LONGEST_VALUE = 16 << 10
# Of a person's name (PS3.5 6.2.1.2), in the order in which ``=`` delimits them.
_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def read_indexed(
    path: str, study: str, series: str, instance: str, tags: AbstractSet[str] | None = INDEXED_TAGS
) -> tuple[dict[str, Any], Fingerprint | None]:
    """Read those attributes of a file that searches ask for, without bulk data.

    Parameters
    ----------
    path : str
        The file.
    study, series, instance : str
        The UIDs that it holds, as the index says.
    tags : set of str or None
        What is wanted, `INDEXED_TAGS` among them, which the search index keeps; None for everything.

    Returns
    -------
    dict
        In the DICOM JSON model, without pixels and values of more than 16 KiB that may be bulk data. Empty
        where the file cannot be read, or holds another instance now. The next try may
        succeed: only what was read may be kept.
    Fingerprint or None
        The state of the file as it was read; None where it changed meanwhile.
    """
    last = None if tags is None else max(_LAST_TAG, *(int(tag, 16) for tag in tags))
    try:
        source = open_source(path)
        before = None if isinstance(source, RemoteObject) else _state_of(path)
        text = _core.read_metadata_json(source, bulk_data_uri="-", inline_limit=_LONGEST_VALUE, last_tag=last)
        header: dict[str, Any] = json.loads(text)
        after = source.state if isinstance(source, RemoteObject) else _state_of(path)
    except (FormatError, SourceError, OSError):
        return {}, None
    if not is_of(header, study, series, instance):
        return {}, None
    found = {tag: each for tag, each in header.items() if tags is None or tag in tags}
    return _storable(found), after if before in (None, after) else None


def _state_of(path: str) -> Fingerprint:
    status = Path(_core.local_path(path)).stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, None


def is_state(now: Fingerprint | None, indexed: Sequence[Any]) -> bool:
    """Return whether a file has size, time and entity tag of its row; what one does not tell agrees."""
    if now is None:
        return False
    pairs = [(now[place], indexed[place]) for place in (0, 1, 4)]
    return all(None in pair or pair[0] == pair[1] for pair in pairs)


def is_of(header: Mapping[str, Any], study: str, series: str, instance: str) -> bool:
    """Return whether a header is that of an instance.

    Parameters
    ----------
    header : mapping
        In the DICOM JSON model.
    study, series, instance : str
        The UIDs that are wanted.

    Returns
    -------
    bool
        Whether it has all three.
    """
    wanted = {STUDY: study, SERIES: series, INSTANCE: instance}
    return all(header.get(tag, {}).get("Value") == [uid] for tag, uid in wanted.items())


def texts(element: Mapping[str, Any] | None) -> list[str]:
    """Return the values of an element as text that is compared.

    A name and each of its groups, in no case (`str.casefold`); dates and times as `sortable` writes them.
    """
    found: list[str] = []
    vr = (element or {}).get("vr", "")
    for value in (element or {}).get("Value", []):
        if isinstance(value, Mapping):
            groups = [str(value.get(each, "")).casefold() for each in _NAME_GROUPS]
            whole = "=".join(groups).rstrip("=")
            found += dict.fromkeys([*filter(None, groups), whole]) if vr == "PN" else ()
        else:
            text = "" if value is None else str(value)
            found.append(sortable(vr, text) if vr in MOMENT_VRS else text)
    return found


def _storable(value: Any) -> Any:
    """Return a value as the database can store it, without the elements that stand for bulk data."""
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, list):
        return [_storable(each) for each in value]
    if isinstance(value, dict):
        return {name: _storable(each) for name, each in value.items() if not _is_bulk(each)}
    return value


def _is_bulk(element: Any) -> bool:
    return isinstance(element, dict) and "BulkDataURI" in element
