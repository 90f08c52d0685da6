"""``voxtier volume consolidate|vacuum|verify``: what keeps a store fast and right."""

from __future__ import annotations

from typing import Any

import click

from voxtier.cli.volumes.stores import JSON, OBS, emit, one_volume, opened, volumes_of
from voxtier.errors import BackendError, ConfigError, SourceError, VoxtierError


@click.command()
@click.argument("uri")
@OBS
@click.option("--dry-run", is_flag=True, help="only say what would be merged")
@JSON
def consolidate(uri: str, obs_id: str | None, dry_run: bool, as_json: bool) -> None:
    """Merge the fragments that updates left, then remove what they replace."""
    for chosen in volumes_of(opened(uri)) if obs_id is None else [one_volume(uri, obs_id)]:
        count = len(chosen.fragments())
        if count > 1 and not dry_run:
            chosen.consolidate()
        emit(
            {"obs_id": chosen.obs_id, "fragments": count, "merged": count > 1 and not dry_run},
            as_json=as_json,
        )


@click.command()
@click.argument("uri")
@OBS
def vacuum(uri: str, obs_id: str | None) -> None:
    """Remove what earlier consolidations have replaced."""
    for chosen in volumes_of(opened(uri)) if obs_id is None else [one_volume(uri, obs_id)]:
        chosen.vacuum()


@click.command()
@click.argument("uri")
@click.option(
    "--repair", is_flag=True, help="remove arrays that no commit refers to (left by a killed ingest)"
)
@JSON
def verify(uri: str, repair: bool, as_json: bool) -> None:
    """Read every volume and check that it is the one that its row names; exit code 1 when one is not."""
    from voxtier.volumes import RadiObject, Volume
    from voxtier.volumes.tiledb import replicas
    from voxtier.volumes.tiledb.session import Session

    store = opened(uri)
    findings = 0
    for chosen in volumes_of(store):
        row: dict[str, Any] = {"uri": chosen.uri, "status": "ok"}
        try:
            chosen.to_numpy(raw=True)
            row["obs_id"] = chosen.obs_id
            troubles = replicas.differing(chosen.uri, Session.of(None))
            if troubles and repair:
                chosen.replicate()
                row["renewed"] = "; ".join(troubles)
            elif troubles:
                findings += 1
                row |= {"status": "bad", "detail": "; ".join(troubles)}
        except VoxtierError as error:
            findings += 1
            row |= {"status": "bad", "detail": str(error)}
        if as_json or row["status"] != "ok":
            emit(row, as_json=as_json)
    whole = isinstance(store, RadiObject) or (not isinstance(store, Volume) and store.stands_alone)
    try:
        orphans = store.repair(dry_run=not repair) if whole and not isinstance(store, Volume) else []
    except (BackendError, SourceError, ConfigError) as error:
        if repair:
            raise
        click.echo(f"left-over arrays were not looked for: {error}", err=True)
        orphans = []
    for orphan in orphans:
        findings += not repair
        emit({"uri": orphan, "status": "removed" if repair else "orphan"}, as_json=as_json)
    click.echo(f"{findings} findings", err=True)
    if findings:
        raise click.exceptions.Exit(1)
