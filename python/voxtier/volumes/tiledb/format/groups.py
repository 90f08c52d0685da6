"""Groups: the metadata and the members of a store and its collections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tiledb

from voxtier.volumes.tiledb.format.messages import translate_errors
from voxtier.volumes.tiledb.format.names import GROUP, META
from voxtier.volumes.tiledb.session import LATEST, Session, as_uri, next_timestamp, now_ms


def create_group(uri: str, meta: Mapping[str, Any], session: Session) -> None:
    """Create a group if it does not exist, and write its metadata.

    Parameters
    ----------
    uri : str
        Address of the group.
    meta : mapping
        Metadata to write; empty writes nothing.
    session : Session
        How it is reached.
    """
    session = session.for_small_writes(uri, 0)
    with translate_errors(f"create the group {uri}"):
        is_new = tiledb.object_type(uri, ctx=session.context()) is None
        if is_new:
            tiledb.Group.create(uri, ctx=session.context())
    if meta:
        write_group(uri, session, meta=meta, timestamp=now_ms() if is_new else None)


def _group(uri: str, mode: str, session: Session, timestamp: int | None) -> Any:
    context = session.context()
    config = context.config()
    if timestamp is not None:
        config["sm.group.timestamp_end"] = str(timestamp)
    return tiledb.Group(uri, mode, config, context)


def read_group_meta(uri: str, session: Session) -> dict[str, Any]:
    """Return the metadata of a group."""
    with translate_errors(f"open the group {uri}"), _group(uri, "r", session, LATEST) as group:
        return dict(group.meta)


def read_members(uri: str, session: Session) -> dict[str, str]:
    """Return the members of a group: name -> address."""
    with translate_errors(f"list the group {uri}"), _group(uri, "r", session, LATEST) as group:
        return {member.name or member.uri.rsplit("/", 1)[-1]: as_uri(member.uri) for member in group}


def write_group(
    uri: str,
    session: Session,
    *,
    meta: Mapping[str, Any] | None = None,
    add: Iterable[str] = (),
    remove: Iterable[str] = (),
    timestamp: int | None = None,
) -> None:
    """Change metadata and members of a group in one write.

    Parameters
    ----------
    uri : str
        Address of the group.
    session : Session
        How it is reached.
    meta : mapping, optional
        Metadata to set; other keys keep their values.
    add, remove : iterable of str
        Names of folders inside the group.
    timestamp : int, optional
        Milliseconds since 1970: of two values of one key the later counts. By default now, or after all that
        was written to the group.
    """
    if timestamp is None:
        timestamp = next_timestamp(uri, (META, GROUP), session)
    session = session.for_small_writes(uri, sum(len(str(value)) for value in (meta or {}).values()))
    with translate_errors(f"write the group {uri}"), _group(uri, "w", session, timestamp) as group:
        for name in remove:
            group.remove(name)
        for name in add:
            group.add(name, name=name, relative=True)
        for key, value in (meta or {}).items():
            group.meta[key] = value
