"""``voxtier frames export | import``: the index as a Parquet file, for other tools and other indexes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Literal

import click

from voxtier.cli.exit_codes import EXIT_FINDINGS, EXIT_OK, EXIT_PARTIAL
from voxtier.cli.options import AS_JSON, DSN, SOURCE, GivenPath, NewFile, holds_source, open_store
from voxtier.errors import LeftOutWarning
from voxtier.system.text import format_count, on_one_line


@click.command("export")
@click.argument("path", type=NewFile("Parquet", ".parquet"), metavar="OUT.parquet")
@SOURCE
@DSN
@click.option(
    "--rows",
    type=click.Choice(["file", "frame"]),
    default="file",
    help="One row a file, or one a fragment of a frame, with its range of bytes.",
)
@AS_JSON
def export_(path: Path, source: str, dsn: str | None, rows: Literal["file", "frame"], as_json: bool) -> int:
    """Write a source of the index to a Parquet file, for DuckDB, polars, pandas and the like.

    \b
    voxtier frames export index.parquet
    voxtier frames export frames.parquet --rows frame

    The file appears complete or not at all. Rows of files can be imported again. Rows of frames read files
    again whose Basic Offset Table was not checked as a whole. Exit code 1 when there is no file, 3 when some
    could not be read again: they have no rows.
    """
    from voxtier.frames.exchange.arrow import export_index

    with open_store(dsn) as store:
        is_known = holds_source(store, source)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", LeftOutWarning)
            count = export_index(store, source, path, rows=rows)
    left_out = [each.message for each in caught if isinstance(each.message, LeftOutWarning)]
    if as_json:
        row = {"source": source, "path": str(path), "rows": count, "left_out": len(left_out)}
        click.echo(json.dumps(row))
    else:
        click.echo(f"{format_count(count, 'row')} of source {source} in {on_one_line(str(path))}")
    for warning in left_out[:20]:
        click.echo(on_one_line(str(warning)), err=True)
    if left_out:
        return EXIT_PARTIAL
    return EXIT_OK if is_known and count else EXIT_FINDINGS


@click.command("import")
@click.argument("path", type=GivenPath(exists=True, dir_okay=False, path_type=Path), metavar="IN.parquet")
@SOURCE
@DSN
@AS_JSON
def import_(path: Path, source: str, dsn: str | None, as_json: bool) -> int:
    """Import an exported Parquet file (rows of files) into a source of the index.

    \b
    voxtier frames import index.parquet --source archive

    Every record is checked; a file that has changed since its row was written is read anew when it is asked
    for. Exit code 0, 3 when some paths cannot be stored.
    """
    from voxtier.frames.exchange.arrow import import_index

    with open_store(dsn) as store:
        counts = import_index(store, source, path)
    if as_json:
        click.echo(json.dumps({"source": source, **counts._asdict(), "refused": len(counts.refused)}))
    else:
        click.echo(
            f"{format_count(counts.inserted, 'row')} inserted, {counts.updated:,} updated, "
            f"{counts.unchanged:,} unchanged in source {source}"
        )
    for name, fault in counts.refused[:20]:
        click.echo(f"refused: {on_one_line(name)}: {fault}", err=True)
    return EXIT_PARTIAL if counts.refused else EXIT_OK
