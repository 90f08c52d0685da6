"""What the commands of ``voxtier volume`` share: opening what an address names, printing rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from voxtier.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from voxtier.volumes import RadiObject, Volume, VolumeCollection

OBS = click.option("--obs", "obs_id", help="Observation of a store; a single volume needs none.")


def emit(row: dict[str, Any], *, as_json: bool) -> None:
    """Print one row, for people or for machines."""
    if as_json:
        click.echo(json.dumps(row, default=str))
    else:
        click.echo("  ".join(f"{key}={value}" for key, value in row.items()))


def open_uri(uri: str) -> Volume | VolumeCollection | RadiObject:
    """Open whatever lies at an address."""
    from voxtier.volumes import RadiObject, Volume, VolumeCollection
    from voxtier.volumes.tiledb.session import Session, as_uri, read_kind, read_members

    address, session = as_uri(uri), Session.of(None)
    kind = read_kind(address, session)
    if kind == "array":
        return Volume.open(address)
    if kind is None:
        raise NotFoundError(f"there is no store at {uri}")
    return (
        RadiObject(address) if "collections" in read_members(address, session) else VolumeCollection(address)
    )


def list_volumes(store: Volume | VolumeCollection | RadiObject) -> list[Volume]:
    """Return every volume of a store."""
    from voxtier.volumes import RadiObject, Volume

    if isinstance(store, Volume):
        return [store]
    if isinstance(store, RadiObject):
        return [volume for name in store.collection_names for volume in store.collection(name)]
    return list(store)


def open_volume(uri: str, obs_id: str | None) -> Volume:
    """Return the volume at an address, or the one of a store that --obs names."""
    from voxtier.volumes import RadiObject, Volume

    store = open_uri(uri)
    if isinstance(store, Volume):
        return store
    if obs_id is None:
        raise ConfigError(f"{uri} holds several volumes: choose one with --obs")
    try:
        found: Volume = store.get_volume(obs_id) if isinstance(store, RadiObject) else store.loc[obs_id]
    except KeyError as error:
        raise NotFoundError(str(error.args[0])) from None
    return found


def chosen_volumes(uri: str, obs_id: str | None) -> list[Volume]:
    """Return the volume that --obs names, or without --obs every volume at an address."""
    return list_volumes(open_uri(uri)) if obs_id is None else [open_volume(uri, obs_id)]
