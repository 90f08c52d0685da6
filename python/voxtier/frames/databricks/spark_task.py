"""The index job within a Spark task: batches as in the local index run, one store for each Python worker.

A module of its own, so that workers need not import ``pyspark.ml`` with `voxtier.frames.databricks.spark`.
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtier.errors import BackendError, ConfigError
from voxtier.frames.indexing.paths import absolute, matches
from voxtier.system.s3_config import S3Config

if TYPE_CHECKING:
    import pyarrow as pa

    from voxtier.frames.dicom.table import Verify
    from voxtier.frames.indexing.run import FileIndexer, FileReport
    from voxtier.frames.store.store import FrameStore
    from voxtier.postgres.connection_string import Prepare

Status = Mapping[str, str | int]

# A worker serves all tasks of an application, which have few destinations and options.
_indexers: dict[tuple[Destination, IndexOptions], FileIndexer] = {}
_MOST_INDEXERS = 4
_opening = threading.Lock()


class MaskedValues:
    """Passwords on their way to a worker, whose text stands in no pickle, plan or log.

    A mask is no cipher: it is in the pickle too. Serverless Spark has no other way to a worker than the
    closure, and who reads closures can run code there anyway. With ``credentials=`` nothing needs to travel.

    Parameters
    ----------
    values : mapping
        Text by name.
    """

    __slots__ = ("_text",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._text = json.dumps(dict(values), sort_keys=True)

    def reveal(self) -> dict[str, str]:
        """Return the values."""
        return dict(json.loads(self._text))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MaskedValues) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "MaskedValues(...)"

    def __reduce__(self) -> tuple[Callable[[bytes, bytes], MaskedValues], tuple[bytes, bytes]]:
        text = self._text.encode()
        mask = secrets.token_bytes(len(text))
        return _unmask, (mask, _xor(text, mask))


def _unmask(mask: bytes, masked: bytes) -> MaskedValues:
    return MaskedValues(json.loads(_xor(masked, mask)))


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


@dataclass(frozen=True, slots=True)
class KeyedS3Config(S3Config):
    """How ``s3://`` is reached on a worker that has no keys of its own: with those of another machine.

    Parameters
    ----------
    keys : MaskedValues
        What `credentials` returns.
    """

    keys: MaskedValues = field(kw_only=True)

    @classmethod
    def of_this_process(cls, config: S3Config) -> KeyedS3Config:
        """Return a configuration with the keys, region and endpoint that this process uses now.

        Raises
        ------
        ConfigError
            There are no keys, or no such profile.
        """
        keys = config.credentials()
        if not keys and not config.anonymous:
            raise ConfigError(
                "s3_keys='driver', and the driver has none: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or S3Config(profile=...); s3_keys='worker' uses the role of each worker"
            )
        environment = os.environ
        own: dict[str, Any] = {each.name: getattr(config, each.name) for each in fields(config)}
        own |= {"profile": None, "keys": MaskedValues(keys)}
        region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        if region and config.region is None:
            own["region"] = region
        if own["endpoint"] is None and (endpoint := environment.get("AWS_ENDPOINT_URL")):
            in_host_name = environment.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in ("true", "1")
            own |= {"endpoint": endpoint, "use_virtual_addressing": in_host_name}
        return cls(**own)

    def credentials(self) -> dict[str, str]:
        """Return the keys that came along."""
        return self.keys.reveal()


@dataclass(frozen=True, slots=True)
class Destination:
    """The database that rows are written to: Spark sends it to workers and may log it.

    Attributes
    ----------
    dsn : str or None
        Connection string without password.
    instance : str or None
        Lakebase instance, when there is no `dsn`.
    host : str or None
        Databricks workspace.
    database : str or None
        Name of the database of the instance.
    credentials : str or None
        ``package.module:function``, which the worker calls for connection parameters.
    home : str or None
        Folder of the embedded server, when there is no other database (local mode only).
    secret : MaskedValues or None
        Passwords of the `dsn`, or the ``token`` of the workspace.
    prepare : {"auto", "off"} or None
        Prepared statements: see `voxtier.postgres.database.Database`.
    """

    dsn: str | None = None
    instance: str | None = None
    host: str | None = None
    database: str | None = None
    credentials: str | None = None
    home: str | None = None
    secret: MaskedValues | None = None
    prepare: Prepare | None = None


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How files are indexed.

    Attributes
    ----------
    source : str
        Source that the files are indexed under.
    extension : str or None
        End of the paths that are indexed; None for all.
    force : bool
        Whether unchanged files are read again.
    threads : int
        Files read at once.
    batch_size : int
        Files in one transaction at most.
    verify : {"all", "ends"}
        How far offset tables are compared with files.
    s3 : S3Config or None
        How ``s3://`` is reached, as configured where the job was made; None: by the worker's environment.
    """

    source: str
    extension: str | None
    force: bool
    threads: int
    batch_size: int
    verify: Verify
    s3: S3Config | None = None


@dataclass(frozen=True, slots=True)
class IndexTask:
    """Function for ``mapInArrow``: indexes the files of each batch and appends a column of statuses.

    Attributes
    ----------
    destination, options
        Where rows go, and how files are indexed.
    input_column, output_column : str
        Columns of the paths, and of the statuses, which is added.
    folder : str
        Working folder of the driver, where relative paths begin: that of an executor is new in each run.
    """

    destination: Destination
    options: IndexOptions
    input_column: str
    output_column: str
    folder: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield each batch with its statuses once its files are indexed; one batch is in memory at a time."""
        import pyarrow

        for batch in batches:
            names = batch.column(self.input_column).cast(pyarrow.large_binary()).to_pylist()
            # As the system names files that are not UTF-8: these get a status, as in the local run.
            paths = [None if name is None else name.decode("utf-8", "surrogateescape") for name in names]
            column = pyarrow.array(
                [json.dumps(status) for status in self.statuses(paths)], type=pyarrow.string()
            )
            yield pyarrow.RecordBatch.from_arrays(
                [*batch.columns, column], names=[*batch.schema.names, self.output_column]
            )

    def statuses(self, paths: list[str | None]) -> list[Status]:
        """Return the status of each row; a file that is named twice, in whatever spelling, is read once."""
        named = [None if path is None or not path.strip() else absolute(path, self.folder) for path in paths]
        extension, size = self.options.extension, self.options.batch_size
        files = list(dict.fromkeys(path for path in named if path is not None and matches(path, extension)))
        statuses: dict[str, Status] = {}
        for start in range(0, len(files), size):
            reports = self._index(files[start : start + size])
            statuses.update((report.path, report.as_status()) for report in reports)
        return [self._status(path, statuses) for path in named]

    def _index(self, files: list[str]) -> list[FileReport]:
        try:
            return _indexer(self.destination, self.options).index_batch(files)
        except BackendError as error:
            refused = getattr(error.__cause__, "pgconn", None)
            if refused is None or not refused.needs_password:
                raise
            raise BackendError(
                f"{error}; a builder that was pickled or saved has no password: make it anew with dsn=, use "
                "credentials=, or give the workers PGPASSWORD or a password file"
            ) from error

    def _status(self, path: str | None, statuses: Mapping[str, Status]) -> Status:
        if path is None:
            return {"status": "skipped", "reason": "empty_path"}
        if not matches(path, self.options.extension):
            return {"status": "skipped", "reason": "not_dcm"}
        return statuses[path]


def _indexer(destination: Destination, options: IndexOptions) -> FileIndexer:
    """Return this worker's indexer, with its one pool of connections and its reading threads."""
    key = (destination, options)
    with _opening:
        if key not in _indexers:
            from voxtier.frames.indexing.run import FileIndexer

            while len(_indexers) >= _MOST_INDEXERS:
                _indexers.pop(next(iter(_indexers))).store.close()
            store = open_store(destination)
            _indexers[key] = FileIndexer(
                store,
                source=store.add_source_of_table(options.source),
                threads=options.threads,
                verify=options.verify,
                force=options.force,
                s3=options.s3,
            )
        return _indexers[key]


def open_store(destination: Destination) -> FrameStore:
    """Open the frame index of a destination.

    A worker has the environment of the moment when Spark began, which may name another database: the
    destination alone decides.
    """
    from voxtier.frames.store.store import FrameStore
    from voxtier.postgres.database import Database

    secret = destination.secret.reveal() if destination.secret is not None else {}
    provider: Callable[[], Mapping[str, Any]] | None = (
        load_provider(destination.credentials) if destination.credentials else None
    )
    options: dict[str, Any] = {"max_size": 2, "prepare": destination.prepare}
    dsn: str | Callable[[], str] = destination.dsn or (lambda: "")  # "" and None would mean VOXTIER_DSN
    if destination.instance is not None:
        from voxtier.frames.databricks.lakebase import DatabricksCredentials

        provider = provider or DatabricksCredentials(
            destination.instance,
            host=destination.host,
            token=secret.get("token"),
            database=destination.database,
        )
        return FrameStore(Database(dsn, credentials=provider, **options))
    if destination.home is not None:
        return FrameStore(Database(home=Path(destination.home), **options))
    if provider is None and secret:
        return FrameStore(Database(dsn, credentials=lambda: secret, **options))
    return FrameStore(Database(dsn, credentials=provider, **options))


def load_provider(name: str) -> Callable[[], Mapping[str, Any]]:
    """Import the function that ``package.module:function`` names.

    Raises
    ------
    ConfigError
        There is no such function.
    """
    module, _, attribute = name.partition(":")
    try:
        provider = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"credentials={name!r}: write package.module:function ({error})") from error
    if not callable(provider):
        raise ConfigError(f"credentials={name!r} is not callable: name a function")
    return provider  # type: ignore[no-any-return]
