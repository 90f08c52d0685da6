"""``voxtier volume``: stores of radiology volumes."""

from __future__ import annotations

import click

from voxtier.cli.volumes.ingest import ingest
from voxtier.cli.volumes.look import bench, export, info, slice_, stats
from voxtier.cli.volumes.maintain import consolidate, vacuum, verify


@click.group()
def volume() -> None:
    """Radiology volumes in TileDB: read by the slice, patch or whole, local or on s3://."""


for command in (ingest, info, slice_, stats, consolidate, vacuum, verify, export, bench):
    volume.add_command(command)
