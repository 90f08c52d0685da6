"""``voxtier volumes consolidate | vacuum | verify``: what keeps a store fast and right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK, EXIT_PARTIAL
from voxtier.cli.options import AS_JSON, DRY_RUN, RenamedOption, say
from voxtier.cli.volumes.stores import OBS, chosen_volumes, emit, for_each, list_volumes, open_uri
from voxtier.errors import BackendError, ConfigError, FormatError, SourceError, VoxtierError
from voxtier.system.text import format_count

if TYPE_CHECKING:
    from voxtier.volumes import RadiObject, Volume, VolumeCollection
    from voxtier.volumes.store.snapshots import Store


_LOST = "its lists of commits name fragments that are gone"


@click.command()
@click.argument("uri")
@OBS
@DRY_RUN
@AS_JSON
def consolidate(uri: str, obs_id: str | None, dry_run: bool, as_json: bool) -> int:
    """Merge the fragments that updates left, then remove what they replace.

    \b
    voxtier volumes consolidate cohort --dry-run

    Exit code 1 when the store holds no volume, or each of them failed; 3 when some did.
    """

    def merge(volume: Volume) -> None:
        count = len(volume.fragments())
        if count > 1 and not dry_run:
            volume.consolidate()
        emit(
            {"obs_id": volume.obs_id, "fragments": count, "merged": count > 1 and not dry_run},
            as_json=as_json,
        )

    return for_each(uri, chosen_volumes(uri, obs_id), merge, as_json=as_json)


@click.command()
@click.argument("uri")
@OBS
@AS_JSON
def vacuum(uri: str, obs_id: str | None, as_json: bool) -> int:
    """Remove what earlier consolidations replaced.

    \b
    voxtier volumes vacuum cohort --obs sub-1_T1w

    Exit code 1 when the store holds no volume, or each of them failed; 3 when some did.
    """

    def remove(volume: Volume) -> None:
        before = volume.stored_bytes()
        volume.vacuum()
        emit({"obs_id": volume.obs_id, "removed_bytes": before - volume.stored_bytes()}, as_json=as_json)

    return for_each(uri, chosen_volumes(uri, obs_id), remove, as_json=as_json)


@click.command()
@click.argument("uri")
@click.option(
    "--fix",
    "repair",
    cls=RenamedOption,
    old=["--repair"],
    is_flag=True,
    help="Remove arrays that no commit refers to (left by a killed ingest), renew replicas, open volumes"
    " whose lists of commits name fragments that were merged and removed.",
)
@AS_JSON
def verify(uri: str, repair: bool, as_json: bool) -> int:
    """Read every volume, check that it is the one that its row names, and list what is there.

    \b
    voxtier volumes verify cohort

    Exit code 1 when one is not, where an ingest was cut off, and when the store holds no volume; 3 when some
    could not be read, for want of memory or rights, so that nothing is known of them.
    """
    from voxtier.volumes import RadiObject, Volume
    from voxtier.volumes.store.snapshots import find_unfinished
    from voxtier.volumes.tiledb.session import Session, as_uri

    unfinished = find_unfinished(as_uri(uri), Session.of(None))
    if unfinished is not None:
        emit(_repair_unfinished(unfinished, repair=repair), as_json=as_json)
        return EXIT_OK if repair else EXIT_FINDINGS
    store = _open_to_verify(uri)
    findings = unread = 0
    volumes = list_volumes(store)
    for volume in volumes:
        row = _verify_volume(volume, repair=repair)
        findings += row["status"] == "bad"
        unread += row["status"] == "unread"
        emit(row, as_json=as_json)
    if not findings and not isinstance(store, Volume):
        try:
            store.validate()
        except (BackendError, SourceError) as error:
            unread += 1
            emit({"uri": uri, "status": "unread", "detail": str(error)}, as_json=as_json)
        except VoxtierError as error:
            findings += 1
            emit({"uri": uri, "status": "bad", "detail": str(error)}, as_json=as_json)
    orphans: list[str] = []
    if isinstance(store, RadiObject) or (not isinstance(store, Volume) and store.stands_alone):
        try:
            orphans = store.repair(dry_run=not repair)
        except (BackendError, SourceError, ConfigError) as error:
            if repair:
                raise
            say(f"could not look for left-over arrays: {error}", err=True)
    for orphan in orphans:
        findings += not repair
        emit({"uri": orphan, "status": "removed" if repair else "orphan"}, as_json=as_json)
    found = format_count(findings, "finding")
    click.echo(
        f"{_describe(store, len(volumes))}, {found}{f', {unread:,} not read' if unread else ''}", err=True
    )
    if findings or not volumes:
        return EXIT_FINDINGS
    return EXIT_PARTIAL if unread else EXIT_OK


def _open_to_verify(uri: str) -> Volume | VolumeCollection | RadiObject:
    """Open what an address names, also a volume that cannot be read before it is repaired."""
    from voxtier.volumes import Volume
    from voxtier.volumes.tiledb.format.fragments import find_lost
    from voxtier.volumes.tiledb.session import Session, as_uri

    return Volume(uri) if find_lost(as_uri(uri), Session.of(None)) else open_uri(uri)


def _verify_volume(volume: Volume, *, repair: bool) -> dict[str, Any]:
    from voxtier.volumes.tiledb import replicas
    from voxtier.volumes.tiledb.format import fragments
    from voxtier.volumes.tiledb.session import Session

    row: dict[str, Any] = {"uri": volume.uri, "status": "ok"}
    session = Session.of(None)
    try:
        if lost := fragments.find_lost(volume.uri, session):
            if not repair:
                raise FormatError("store_damaged", None, f"{_LOST}: {', '.join(lost)}; see --fix")
            fragments.ignore_lost(volume.uri, session)
            row["ignored"] = ", ".join(lost)
        volume.to_numpy(raw=True)
        shape = "x".join(map(str, volume.shape))
        row |= {"obs_id": volume.obs_id, "shape": shape, "dtype": str(volume.stored_dtype)}
        stale = (replicas.renew if repair else replicas.find_differences)(volume.uri, session)
        if stale and repair:
            row["renewed"] = "; ".join(stale)
        elif stale:
            row |= {"status": "bad", "detail": "; ".join(stale)}
    except (BackendError, SourceError) as error:
        row |= {"status": "unread", "detail": str(error)}
    except VoxtierError as error:
        row |= {"status": "bad", "detail": str(error)}
    return row


def _describe(store: Volume | VolumeCollection | RadiObject, count: int) -> str:
    from voxtier.volumes import RadiObject

    volumes = format_count(count, "volume")
    if not isinstance(store, RadiObject):
        return volumes
    names = ", ".join(store.collection_names) or "no collection"
    return f"{volumes} of {format_count(len(store), 'subject')} in {names}"


def _repair_unfinished(store: Store, *, repair: bool) -> dict[str, Any]:
    from voxtier.volumes.store.commits import repair as repair_store

    arrays = repair_store(store, dry_run=not repair)
    row = {"uri": store.root, "status": "removed" if repair else "cut off", "volumes": len(arrays)}
    if not repair:
        row["detail"] = (
            "an ingest was killed before its first commit: repeat it (what it finished is taken over), or"
            " remove it with --fix"
        )
    return row
