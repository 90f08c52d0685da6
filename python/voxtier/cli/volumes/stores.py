"""What the commands of ``voxtier volumes`` share: opening what an address names, printing rows."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK
from voxtier.cli.options import say
from voxtier.errors import ConfigError, NotFoundError

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


def say_if_empty(uri: str, volumes: Sequence[Volume]) -> int:
    """Return the exit code of a command that goes through volumes: of none, it says so."""
    if not volumes:
        say(f"voxtier: {uri}: there is no volume", err=True)
    return EXIT_OK if volumes else EXIT_FINDINGS
