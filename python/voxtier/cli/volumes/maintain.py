"""``voxtier volume consolidate | vacuum | verify``: what keeps a store fast and right."""

from __future__ import annotations

from typing import Any

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK
from voxtier.cli.options import AS_JSON
from voxtier.cli.volumes.stores import OBS, chosen_volumes, emit, list_volumes, open_uri
from voxtier.errors import BackendError, ConfigError, SourceError, VoxtierError


@click.command()
@click.argument("uri")
@OBS
@click.option("--dry-run", is_flag=True, help="Only say what would be merged.")
@AS_JSON
def consolidate(uri: str, obs_id: str | None, dry_run: bool, as_json: bool) -> None:
    """Merge the fragments that updates left, then remove what they replace.

    \b
    voxtier volume consolidate cohort --dry-run
    """
    for volume in chosen_volumes(uri, obs_id):
        count = len(volume.fragments())
        if count > 1 and not dry_run:
            volume.consolidate()
        emit(
            {"obs_id": volume.obs_id, "fragments": count, "merged": count > 1 and not dry_run},
            as_json=as_json,
        )


@click.command()
@click.argument("uri")
@OBS
def vacuum(uri: str, obs_id: str | None) -> None:
    """Remove what earlier consolidations replaced.

    \b
    voxtier volume vacuum cohort --obs sub-1_T1w
    """
    for volume in chosen_volumes(uri, obs_id):
        volume.vacuum()


@click.command()
@click.argument("uri")
@click.option(
    "--repair", is_flag=True, help="Remove arrays that no commit refers to (left by a killed ingest)."
)
@AS_JSON
def verify(uri: str, repair: bool, as_json: bool) -> int:
    """Read every volume and check that it is the one that its row names.

    \b
    voxtier volume verify cohort

    Exit code 1 when one is not.
    """
    from voxtier.volumes import RadiObject, Volume
    from voxtier.volumes.tiledb import replicas
    from voxtier.volumes.tiledb.session import Session

    store = open_uri(uri)
    findings = 0
    for volume in list_volumes(store):
        row: dict[str, Any] = {"uri": volume.uri, "status": "ok"}
        try:
            volume.to_numpy(raw=True)
            row["obs_id"] = volume.obs_id
            stale = replicas.find_differences(volume.uri, Session.of(None))
            if stale and repair:
                volume.replicate()
                row["renewed"] = "; ".join(stale)
            elif stale:
                findings += 1
                row |= {"status": "bad", "detail": "; ".join(stale)}
        except VoxtierError as error:
            findings += 1
            row |= {"status": "bad", "detail": str(error)}
        if as_json or row["status"] != "ok":
            emit(row, as_json=as_json)
    orphans: list[str] = []
    if isinstance(store, RadiObject) or (not isinstance(store, Volume) and store.stands_alone):
        try:
            orphans = store.repair(dry_run=not repair)
        except (BackendError, SourceError, ConfigError) as error:
            if repair:
                raise
            click.echo(f"could not look for left-over arrays: {error}", err=True)
    for orphan in orphans:
        findings += not repair
        emit({"uri": orphan, "status": "removed" if repair else "orphan"}, as_json=as_json)
    click.echo(f"{findings} findings", err=True)
    return EXIT_FINDINGS if findings else EXIT_OK
