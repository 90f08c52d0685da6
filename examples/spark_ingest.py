"""The ingest notebook as a script: catalogue -> BOTCacheBuilder -> result table -> what came of it.

    python examples/spark_ingest.py --files DIR --work DIR [--dsn postgresql://...]

The first run indexes every file; a run after new files arrived takes only these; a run that was killed is
finished by the next one. On Databricks the session, the catalogue and the Delta tables are there already, and
what remains is `index_new_files` and `report`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtier.frames import BOTCacheBuilder, CachePriorityScorer, LakebaseUtils
from voxtier.frames.databricks.spark import local_session
from voxtier.frames.indexing.paths import iter_files

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

CATALOGUE = "path_id long, local_path string, extension string"
RESULTS = f"{CATALOGUE}, bot_cache_status string"
# Positions are 64-bit: a slide has more than 2 GiB.
FRAME = "struct<frame_number: int, start_pos: bigint, end_pos: bigint, pixel_data_pos: bigint>"
PRIORITY = (
    "filename string, frame_count int, transfer_syntax_uid string, last_used_at timestamp, "
    f"inserted_at timestamp, access_count bigint, priority_score double, frames array<{FRAME}>"
)


def add_to_catalogue(spark: SparkSession, files: Path, catalogue: Path, *, format_: str = "parquet") -> int:
    """Append the files that the catalogue does not list; return how many.

    Names are compared and written as bytes: one that is not UTF-8 is listed once too, and gets an error.
    """
    known: set[bytes] = set()
    if catalogue.exists():
        # With its schema, which a folder does not tell where the first run was killed before it wrote a file.
        listed = spark.read.format(format_).schema(CATALOGUE).load(str(catalogue))
        known = {
            row.name for row in listed.selectExpr("cast(local_path AS binary) AS name").toLocalIterator()
        }
    found = (os.fsencode(path) for path in iter_files([str(files)], extension=None))
    new = [name for name in found if name not in known]
    if new or not known:  # without any file too: there is a catalogue then
        rows = [(len(known) + i, name, _extension(name)) for i, name in enumerate(new)]
        frame = spark.createDataFrame(rows, "path_id long, name binary, extension string")
        frame = frame.selectExpr("path_id", "cast(name AS string) AS local_path", "extension")
        frame.write.format(format_).mode("append").save(str(catalogue))
    return len(new)


def _extension(name: bytes) -> str:
    return Path(os.fsdecode(name)).suffix.lstrip(".").lower().encode("utf-8", "replace").decode()


def index_new_files(
    spark: SparkSession,
    builder: BOTCacheBuilder,
    catalogue: Path,
    results: Path,
    checkpoint: Path,
    *,
    format_: str = "parquet",
    files_per_batch: int = 1,
) -> None:
    """Index what the catalogue has gained since the last run, and append a status for each path."""
    stream = (
        spark.readStream.format(format_)
        .schema(CATALOGUE)
        .option("maxFilesPerTrigger", files_per_batch)
        .load(str(catalogue))
    )
    query = (
        builder.transform(stream)
        .writeStream.format(format_)
        .option("path", str(results))
        .option("checkpointLocation", str(checkpoint))
        .trigger(availableNow=True)
        .start()
    )
    query.awaitTermination()


def report(
    spark: SparkSession, lakebase: LakebaseUtils, source: str, results: Path, *, format_: str = "parquet"
) -> dict[str, Any]:
    """Count the statuses, list the errors, look at the files that deserve memory most."""
    status = "get_json_object(bot_cache_status, '$.{}') AS {}"
    rows = spark.read.format(format_).schema(RESULTS).load(str(results)).selectExpr(
        "local_path", *(status.format(name, name) for name in ("status", "reason", "error"))
    )  # fmt: skip
    summary = rows.groupBy("status", "reason").count().orderBy("status", "reason").collect()
    errors = rows.where("status = 'error'").select("local_path", "error").orderBy("local_path").limit(20)
    return {
        "summary": [row.asDict() for row in summary],
        "errors": [row.asDict() for row in errors.collect()],
        "priority": [
            row.asDict() for row in preview(spark, lakebase, source, limit=5).drop("frames").collect()
        ],
    }


def preview(spark: SparkSession, lakebase: LakebaseUtils, source: str, *, limit: int) -> DataFrame:
    """Return the files that would be preloaded, best first, with 64-bit positions."""
    return spark.createDataFrame(CachePriorityScorer(lakebase).get_preload_list(source, limit), PRIORITY)


def main(arguments: list[str] | None = None) -> int:
    """Run the whole flow; print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--files", type=Path, required=True, help="folder of DICOM files")
    parser.add_argument("--work", type=Path, required=True, help="folder of the tables and the checkpoint")
    parser.add_argument("--dsn", help="PostgreSQL; without it VOXTIER_DSN, else the embedded server")
    parser.add_argument("--source", default="main.pixels.object_catalog", help="catalog.schema.table")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--format", default="parquet", help="parquet, or delta where Spark has its jars")
    options = parser.parse_args(arguments)
    if not options.files.is_dir():
        parser.error(f"--files {options.files}: no such folder")

    spark = local_session(cores=options.cores, conf={"spark.log.level": "ERROR"})
    catalogue, results, checkpoint = (options.work / name for name in ("catalogue", "results", "checkpoint"))
    added = add_to_catalogue(spark, options.files, catalogue, format_=options.format)
    builder = BOTCacheBuilder(options.source, dsn=options.dsn)
    index_new_files(spark, builder, catalogue, results, checkpoint, format_=options.format)
    with LakebaseUtils(dsn=options.dsn, uc_table_name=options.source) as lakebase:
        found = report(spark, lakebase, options.source, results, format_=options.format)
    sys.stdout.write(json.dumps({"added": added, **found}, default=str) + "\n")
    spark.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
