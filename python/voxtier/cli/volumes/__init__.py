"""``voxtier volumes``: stores of radiology volumes."""

from __future__ import annotations

import click

from voxtier.cli.lazy_group import LazyGroup

_COMMANDS = {
    "ingest": ("ingest:ingest", "store NIfTI files or folders of DICOM series"),
    "info": ("read:info", "describe a store or a volume, and draw its tiles"),
    "slice": ("read:slice_", "write one plane of a volume as a picture"),
    "stats": ("read:stats", "compute mean, deviation and percentiles"),
    "consolidate": ("maintain:consolidate", "merge the fragments that updates left"),
    "vacuum": ("maintain:vacuum", "remove what earlier consolidations replaced"),
    "verify": ("maintain:verify", "read every volume and check that it is the right one"),
    "export": ("read:export", "write volumes as NIfTI files"),
    "bench": ("read:bench", "time reads of one volume"),
}


@click.group(cls=LazyGroup, package="voxtier.cli.volumes", places=_COMMANDS)
def volumes() -> None:
    """Ingest, read, verify and export radiology volumes in TileDB, local or on s3://.

    \b
    voxtier volumes ingest cohort scans/*_T1w.nii.gz
    voxtier volumes info   cohort
    voxtier volumes slice  cohort middle.png --obs sub-1_T1w --plane coronal
    """
