"""What the commands of ``voxtier volumes`` share: opening what an address names, printing rows."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK, EXIT_PARTIAL
from voxtier.cli.options import say
from voxtier.errors import ConfigError, NotFoundError, VoxtierError
from voxtier.system.text import format_count

if TYPE_CHECKING:
    from voxtier.volumes import RadiObject, Volume, VolumeCollection

OBS = click.option(
    "--obs", "obs_id", help="Observation of a store; one that holds a single volume needs none."
)


def emit(row: dict[str, Any], *, as_json: bool) -> None:
    """Print one row, for people or for machines: JSON has no word for NaN and infinity, which become null."""
    if as_json:
        click.echo(json.dumps(_without_nan(row), default=str, allow_nan=False))
    else:
        say("  ".join(f"{key}={value}" for key, value in row.items()))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_uri(uri: str) -> Volume | VolumeCollection | RadiObject:
    """Open whatever lies at an address."""
    from voxtier.volumes import RadiObject, Volume, VolumeCollection
    from voxtier.volumes.tiledb.format.groups import read_group_meta, read_members
    from voxtier.volumes.tiledb.session import Session, as_uri, read_kind

    address, session = as_uri(uri), Session.of(None)
    kind = read_kind(address, session)
    if kind == "array":
        return Volume.open(address)
    if kind is None:
        raise NotFoundError(f"there is no store at {uri}")
    stated = read_group_meta(address, session).get("voxtier_kind")
    is_cohort = "collections" in read_members(address, session) if stated is None else stated == "radi_object"
    return RadiObject(address) if is_cohort else VolumeCollection(address)


def list_collections(store: VolumeCollection | RadiObject) -> list[VolumeCollection]:
    """Return the collections of a store."""
    from voxtier.volumes import RadiObject

    if isinstance(store, RadiObject):
        return [store.collection(name) for name in store.collection_names]
    return [store]


def list_volumes(store: Volume | VolumeCollection | RadiObject) -> list[Volume]:
    """Return every volume of a store."""
    from voxtier.volumes import Volume

    if isinstance(store, Volume):
        return [store]
    return [volume for collection in list_collections(store) for volume in collection]


def open_volume(uri: str, obs_id: str | None) -> Volume:
    """Return the volume at an address, or the one of a store that --obs names."""
    from voxtier.volumes import RadiObject, Volume

    store = open_uri(uri)
    if isinstance(store, Volume):
        return store
    ids = store.all_obs_ids if isinstance(store, RadiObject) else store.obs_ids
    if obs_id is None and len(ids) != 1:
        raise ConfigError(f"{uri} holds {len(ids)} volumes: choose one with --obs ({_some(ids)})")
    wanted = ids[0] if obs_id is None else obs_id
    if wanted not in ids:
        near = difflib.get_close_matches(wanted, ids, n=3) if len(ids) > 5 else []
        takes = f"ids such as {', '.join(near)}" if near else f"one of {_some(ids)}"
        raise NotFoundError(f"{uri} holds no volume {wanted!r}: --obs takes {takes}")
    found: Volume = store.get_volume(wanted) if isinstance(store, RadiObject) else store.loc[wanted]
    return found


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def chosen_volumes(uri: str, obs_id: str | None) -> list[Volume]:
    """Return the volume that --obs names, or without --obs every volume at an address."""
    return list_volumes(open_uri(uri)) if obs_id is None else [open_volume(uri, obs_id)]


def name_of(volume: Volume) -> str:
    """Return the id of a volume, or where it has none, or cannot be opened, the name of its folder."""
    with suppress(VoxtierError):
        if volume.obs_id is not None:
            return volume.obs_id
    return volume.uri.rpartition("/")[2]


def for_each(uri: str, volumes: Sequence[Volume], act: Callable[[Volume], None], *, as_json: bool) -> int:
    """Do something with each volume at an address; one of several that fails is told and does not end it.

    Parameters
    ----------
    uri : str
        Address, for messages.
    volumes : sequence of Volume
        All of them.
    act : callable
        Does it, and prints the row of a volume.
    as_json : bool
        Print failures as rows too, not as lines on stderr.

    Returns
    -------
    int
        The exit code: there is nothing to do, or all failed; a part failed; all is done.

    Raises
    ------
    VoxtierError
        What ``act`` raised for the only volume.
    """
    failed = 0
    for volume in volumes:
        try:
            act(volume)
        except VoxtierError as error:
            if len(volumes) == 1:
                raise
            failed += 1
            if as_json:
                row = {"obs_id": name_of(volume), "uri": volume.uri, "status": "failed", "detail": str(error)}
                emit(row, as_json=True)
            else:
                say(f"voxtier: {name_of(volume)}: {error}", err=True)
    if not volumes:
        say(f"voxtier: {uri}: there is no volume", err=True)
    if failed:
        say(f"voxtier: {failed:,} of {format_count(len(volumes), 'volume')} failed", err=True)
    return EXIT_FINDINGS if failed == len(volumes) else EXIT_PARTIAL if failed else EXIT_OK
