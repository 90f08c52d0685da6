"""``voxtier frames``: what files hold, what the index holds, what memory should hold."""

from __future__ import annotations

import click

from voxtier.cli.lazy_group import LazyGroup

_COMMANDS = {
    "table": ("files:table", "print the frame table of each file, without a database"),
    "read": ("files:read", "write the bytes of one frame"),
    "metadata": ("metadata:metadata", "print the attributes of each file"),
    "summary": ("indexed:summary", "count what is indexed"),
    "errors": ("indexed:errors", "list the files that were refused, each with its reason"),
    "export": ("exchange:export_", "write the index to a Parquet file"),
    "import": ("exchange:import_", "take an exported index into this one"),
    "forget": ("search:forget", "remove the search index, which names patients"),
    "priority": ("memory:priority", "list the files that deserve memory most, and why"),
    "preload": ("memory:preload", "try out what a preload would hold in memory"),
    "simulate": ("simulate:simulate", "replay a trace: what another budget of memory would bring"),
    "stats": ("readers:stats", "show what the running readers answered, from which tier"),
    "top": ("readers:top", "watch the running readers: requests a second, tiers, memory"),
}


@click.group(cls=LazyGroup, package="voxtier.cli.frames", places=_COMMANDS)
def frames() -> None:
    """Look into DICOM files, and look after the index of their frames.

    \b
    voxtier frames table    slide.dcm
    voxtier frames read     slide.dcm 17 -o tile.jpg
    voxtier frames summary
    voxtier frames export   index.parquet
    voxtier frames simulate trace.txt
    """
