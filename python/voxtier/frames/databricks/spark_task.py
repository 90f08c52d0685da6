"""What a Spark task does with its rows: the same batches as the local index run, one store per Python worker.

Kept apart from `voxtier.frames.databricks.spark`, so that workers need not load pyspark.ml.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from voxtier.errors import ConfigError
from voxtier.frames.databricks.table_names import local_path
from voxtier.frames.indexing.paths import matches

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

    from voxtier.frames.indexing.run import FileIndexer, FileReport
    from voxtier.frames.table import Verify

Status = Mapping[str, str | int]

# A worker is reused by the tasks of one application: few places, and few kinds of work.
_indexers: dict[tuple[Place, Work, str], FileIndexer] = {}
_opening = threading.Lock()


@dataclass(frozen=True, slots=True)
class Place:
    """Where the rows go, without any secret: this travels to the workers, and Spark may log it.

    Attributes
    ----------
    dsn : str or None
        Connection string without password.
    instance : str or None
        Lakebase instance to ask Databricks for, when there is no `dsn`.
    host : str or None
        Databricks workspace.
    database : str or None
        Database of the instance.
    credentials : str or None
        ``package.module:function``, called on the worker for connection parameters.
    home : str or None
        Folder of the embedded server, when nothing else is named (local mode only).
    secret : str or None
        Key of the session's configuration that holds the password or token; Spark hands it to tasks beside
        the closure, and redacts it in its logs.
    """

    dsn: str | None = None
    instance: str | None = None
    host: str | None = None
    database: str | None = None
    credentials: str | None = None
    home: str | None = None
    secret: str | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What to do with each path."""

    source: str
    extension: str | None
    force: bool
    threads: int
    batch_size: int
    verify: Verify


@dataclass(frozen=True, slots=True)
class IndexTask:
    """Callable for ``mapInArrow``: the batches that come in, each with a column of statuses."""

    place: Place
    work: Work
    input_column: str
    output_column: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Index the files of each batch before it is passed on; memory holds one batch at a time."""
        import pyarrow

        for batch in batches:
            paths = batch.column(self.input_column).to_pylist()
            column = pyarrow.array(
                [json.dumps(status) for status in self.statuses(paths)], type=pyarrow.string()
            )
            kept = [name for name in batch.schema.names if name != self.output_column]
            yield pyarrow.RecordBatch.from_arrays(
                [*(batch.column(name) for name in kept), column], names=[*kept, self.output_column]
            )

    def statuses(self, paths: list[str | None]) -> list[Status]:
        """Return the status of each row; a path that occurs twice is read once."""
        named = [None if path is None or not path.strip() else local_path(path) for path in paths]
        wanted = list(
            dict.fromkeys(path for path in named if path is not None and matches(path, self.work.extension))
        )
        done: dict[str, Status] = {}
        for start in range(0, len(wanted), self.work.batch_size):
            reports = self._index(wanted[start : start + self.work.batch_size])
            done.update((report.path, report.as_status()) for report in reports)
        return [self._status(path, done) for path in named]

    def _status(self, path: str | None, done: Mapping[str, Status]) -> Status:
        if path is None:
            return {"status": "skipped", "reason": "empty_path"}
        if not matches(path, self.work.extension):
            return {"status": "skipped", "reason": "not_dcm"}
        return done[path]

    def _index(self, paths: list[str]) -> list[FileReport]:
        return _indexer(self.place, self.work).index_batch(paths)


def _indexer(place: Place, work: Work) -> FileIndexer:
    """Return this worker's indexer, which holds its one pool of connections and its reading threads."""
    secret = _secret(place)
    key = (place, work, secret)
    with _opening:
        if key not in _indexers:
            from voxtier.frames.indexing.run import FileIndexer

            while len(_indexers) >= 4:
                _indexers.pop(next(iter(_indexers))).store.close()
            store = open_store(place, json.loads(secret))
            _indexers[key] = FileIndexer(
                store, source=work.source, threads=work.threads, verify=work.verify, force=work.force
            )
        return _indexers[key]


def _secret(place: Place) -> str:
    from pyspark import TaskContext

    context = TaskContext.get()
    found = context.getLocalProperty(place.secret) if context is not None and place.secret else None
    if place.secret and not found:
        raise ConfigError(
            "the task does not know the password that the builder was given: call transform() in the session "
            "that runs the query, or use credentials='package.module:function'"
        )
    return found or "{}"


def open_store(place: Place, secret: Mapping[str, str]) -> Any:
    """Open the frame index of a place with what `secret` adds to it."""
    from voxtier.frames.store.store import FrameStore
    from voxtier.postgres.database import Database

    provider: Callable[[], Mapping[str, Any]] | None = (
        load_provider(place.credentials) if place.credentials else None
    )
    if place.instance is not None:
        from voxtier.frames.databricks.lakebase import DatabricksCredentials

        found = provider or DatabricksCredentials(
            place.instance, host=place.host, token=secret.get("token"), database=place.database
        )
        return FrameStore(Database(lambda: "", credentials=found, max_size=2))
    if place.home is not None:
        os.environ.setdefault("VOXTIER_HOME", place.home)
        return FrameStore(Database(max_size=2))
    if provider is None and secret:
        return FrameStore(Database(place.dsn, credentials=lambda: secret, max_size=2))
    return FrameStore(Database(place.dsn or (lambda: ""), credentials=provider, max_size=2))


def load_provider(name: str) -> Callable[[], Mapping[str, Any]]:
    """Import ``package.module:function``.

    Raises
    ------
    ConfigError
        There is no such function.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"credentials={name!r}: write package.module:function ({error})") from error
    if not callable(found):
        raise ConfigError(f"credentials={name!r} is not callable")
    return found  # type: ignore[no-any-return]
