"""``voxtier volume``: stores of radiology volumes."""

from __future__ import annotations

import click

from voxtier.cli.volume_ingest import ingest
from voxtier.cli.volume_keep import consolidate, vacuum, verify
from voxtier.cli.volume_look import bench, export, info, slice_, stats


@click.group()
def volume() -> None:
    """Radiology volumes in TileDB: read by the slice, patch or whole, local or on s3://."""


for command in (ingest, info, slice_, stats, consolidate, vacuum, verify, export, bench):
    volume.add_command(command)
