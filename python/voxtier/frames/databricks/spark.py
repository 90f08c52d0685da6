"""The index job on Spark: a transformer that indexes the files whose paths a column holds.

`BOTCacheBuilder` does in Spark tasks what `voxtier.frames.indexing.run` does on one machine: it looks up
fingerprints in batches, reads new and changed files by threads without the GIL, and upserts rows in batches.
It works on batch and streaming frames, in classic Spark and over Spark Connect.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from voxtier.arguments import whole_number
from voxtier.errors import ConfigError, MissingExtraError
from voxtier.frames.databricks.place import choose_place, default_table
from voxtier.frames.databricks.spark_task import (
    Destination,
    IndexOptions,
    IndexTask,
    KeyedS3Config,
    MaskedValues,
    load_provider,
)
from voxtier.frames.databricks.table_names import TableName
from voxtier.frames.dicom.table import Verify
from voxtier.frames.indexing.run import BATCH_SIZE
from voxtier.system.s3_config import S3Config, get_s3_config

try:
    import pyarrow  # noqa: F401 - the workers need it
    from pyspark.errors import PySparkException
    from pyspark.ml import Transformer
    from pyspark.ml.param import Param, Params, TypeConverters
    from pyspark.ml.param.shared import HasInputCol, HasOutputCol
    from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StringType, StructField, StructType

    from voxtier.frames.databricks.spark_columns import PlacedColumns, place_name
except ImportError as error:
    raise MissingExtraError((error.name or "pyspark").partition(".")[0], "spark") from error

if TYPE_CHECKING:
    from voxtier.postgres.connection_string import Prepare

_OLDEST_JAVA = 17


class _Secrets:
    """What a builder was given and keeps in memory only: copies of the builder have it, pickles do not.

    Parameters
    ----------
    token : str or None
        Access token of a workspace; empty where a pickle left one out, so that the place stays the same.
    dsn : str
        The connection string that the passwords are of: no other server gets them.
    passwords : mapping or None
        Passwords by name.
    """

    def __init__(self, token: str | None, dsn: str = "", passwords: Mapping[str, str] | None = None) -> None:
        self.token, self._dsn, self._passwords = token, dsn, dict(passwords or {})

    def passwords_of(self, dsn: str) -> dict[str, str]:
        """Return the passwords that a connection string was given with."""
        return dict(self._passwords) if dsn == self._dsn else {}

    def __deepcopy__(self, memo: object) -> _Secrets:
        return self

    def __reduce__(self) -> tuple[type[_Secrets], tuple[str | None]]:
        return _Secrets, (None if self.token is None else "",)


class BOTCacheBuilder(
    Transformer, HasInputCol, HasOutputCol, DefaultParamsReadable["BOTCacheBuilder"], DefaultParamsWritable
):
    """Indexes the frames of the files whose paths a column holds, and reports on each in another column.

    Parameters
    ----------
    uc_table_name : str or None
        ``catalog.schema.table`` of the catalogue of files: the source that they are indexed under. Empty:
        ``DATABRICKS_PIXELS_TABLE``.
    lakebase_instance_name : str
        Databricks Lakebase instance; used on Databricks when no other database is named.
    inputCol, outputCol : str
        Columns of the paths (text) and of the statuses (JSON text). Relative paths begin in the working
        folder of the driver.
    skip_existing : bool
        Skip files whose row is up to date: same size, modification time and parser version. False reads every
        file again.
    filter_extension : str or None
        End of the paths to index, in any case; None for all paths. Where it is an extension with its dot, a
        column ``extension`` is filtered by it first.
    host, token : str or None
        Databricks workspace and access token; None: as the worker's environment says.
    dsn : str or None
        Connection string of any PostgreSQL instead. None: ``VOXTIER_DSN``, then Databricks, then (in local
        mode) the embedded server.
    credentials : str, callable or None
        ``package.module:function``, or that function: returns connection parameters for each new connection
        of a worker, such as ``{"user": ..., "password": ...}``.
    threads : int
        Files read at once by each Python worker.
    batch_size : int
        Files in one transaction at most; Spark passes ``spark.sql.execution.arrow.maxRecordsPerBatch`` at a
        time.
    partitions : int or None
        Number of partitions to make first; None keeps those of the input.
    verify : {"all", "ends"}
        How far offset tables are compared with the files.
    prepare : {"auto", "off"} or None
        Prepared statements: "off" behind a pooler that keeps none, "auto" finds out. None: as `dsn` or
        ``VOXTIER_PREPARE`` says.
    s3_keys : {"worker", "driver"}
        What signs requests for ``s3://``: "worker", the environment, profile or role of each worker;
        "driver", the keys (with region and endpoint) that this process has when the job is made, for workers
        that have none. Other stores are reached as the worker's environment says.

    Raises
    ------
    ConfigError
        An option is out of range, or `credentials` cannot be imported by workers.

    Notes
    -----
    The statuses are those of the published job: ``cached``, ``skipped`` (``already_cached``, ``not_dcm``,
    ``empty_path``, ``no_pixels``), ``partial`` and ``error``. A bad file is a status and never ends the job.
    A database that cannot be reached fails the task, which Spark repeats; repeated tasks and batches have no
    further effect.

    No setting of Spark is changed, as serverless Spark refuses unknown ones. Passwords and tokens travel
    masked in the closure of the task: their text stands in no plan, pickle, log or saved builder, but who can
    read the closure can find them out. A copy of the builder has them, a pickled or saved one does not: make
    it anew, or let the workers have their own. With ``credentials`` none of the database's travels, and keys
    of S3 travel with ``s3_keys="driver"`` only.
    """

    uc_table_name: Param[str] = Param(
        Params._dummy(), "uc_table_name", "source of the rows", TypeConverters.toString
    )
    lakebase_instance_name: Param[str] = Param(
        Params._dummy(), "lakebase_instance_name", "Databricks Lakebase instance", TypeConverters.toString
    )
    skip_existing: Param[bool] = Param(
        Params._dummy(), "skip_existing", "skip files whose row is up to date", TypeConverters.toBoolean
    )
    filter_extension: Param[str] = Param(
        Params._dummy(), "filter_extension", "end of the paths; empty for all", TypeConverters.toString
    )
    host: Param[str] = Param(Params._dummy(), "host", "Databricks workspace", TypeConverters.toString)
    dsn: Param[str] = Param(Params._dummy(), "dsn", "PostgreSQL, without password", TypeConverters.toString)
    credentials: Param[str] = Param(
        Params._dummy(), "credentials", "package.module:function", TypeConverters.toString
    )
    threads: Param[int] = Param(
        Params._dummy(), "threads", "files read at once by a worker", TypeConverters.toInt
    )
    batch_size: Param[int] = Param(
        Params._dummy(), "batch_size", "files in one transaction", TypeConverters.toInt
    )
    partitions: Param[int] = Param(
        Params._dummy(), "partitions", "repartition first; 0 keeps the input's", TypeConverters.toInt
    )
    prepare: Param[str] = Param(
        Params._dummy(), "prepare", "prepared statements: auto or off", TypeConverters.toString
    )
    verify: Param[str] = Param(
        Params._dummy(), "verify", "how far tables are compared with files", TypeConverters.toString
    )

    s3_keys: Param[str] = Param(
        Params._dummy(), "s3_keys", "what signs requests for s3: worker or driver", TypeConverters.toString
    )

    def __init__(
        self,
        uc_table_name: str | None = "",
        lakebase_instance_name: str = "pixels-lakebase",
        inputCol: str = "local_path",  # noqa: N803 - the published name
        outputCol: str = "bot_cache_status",  # noqa: N803
        skip_existing: bool = True,  # noqa: FBT001, FBT002 - the published order
        filter_extension: str | None = ".dcm",
        host: str | None = None,
        token: str | None = None,
        *,
        dsn: str | None = None,
        credentials: str | Callable[[], Mapping[str, Any]] | None = None,
        threads: int = 16,
        batch_size: int = BATCH_SIZE,
        partitions: int | None = None,
        verify: Verify = "all",
        prepare: Prepare | None = None,
        s3_keys: Literal["worker", "driver"] = "worker",
    ) -> None:
        super().__init__()
        for name, text in (("host", host), ("token", token), ("dsn", dsn)):
            if text is not None and not isinstance(text, str):
                raise ConfigError(f"{name}={text!r}: must be text")
        passwords: dict[str, str] = {}
        if dsn:
            from voxtier.postgres.connection_string import split_secrets

            dsn, passwords = split_secrets(dsn)
        self._secrets = _Secrets(token or None, dsn or "", passwords)
        options = {
            "uc_table_name": uc_table_name,
            "lakebase_instance_name": lakebase_instance_name,
            "inputCol": inputCol,
            "outputCol": outputCol,
            "skip_existing": skip_existing,
            "filter_extension": filter_extension,
            "host": host,
            "dsn": dsn,
            "credentials": _importable_name(credentials),
            "threads": threads,
            "batch_size": batch_size,
            "partitions": partitions,
            "verify": verify,
            "prepare": prepare,
            "s3_keys": s3_keys,
        }
        try:
            self._set(**_checked(options))
        except TypeError as error:
            raise ConfigError(f"BOTCacheBuilder: {error}") from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not isinstance(state.get("_secrets"), _Secrets):  # pickled by an earlier version, which wrote none
            self._secrets = _Secrets(None)

    def _options(self) -> dict[str, Any]:
        """Return the parameters by name; those given to ``transform`` or ``set`` were not checked before."""
        return _checked({param.name: self.getOrDefault(param) for param in self.params})

    def _transform(self, dataset: DataFrame) -> DataFrame:
        session = dataset.sparkSession
        task, options = self._task(session), self._options()
        columns = PlacedColumns(dataset, case_sensitive=_is_case_sensitive(session))
        paths = columns.place_of_paths(task.input_column)
        frame = columns.filter(columns.placed(dataset), options["filter_extension"])
        if options["partitions"]:
            frame = frame.repartition(options["partitions"])
        schema = StructType([*columns.schema_in_arrow(), StructField("status", StringType())])
        placed_task = replace(task, input_column=place_name(paths), output_column="status")
        done = columns.to_arrow(frame).mapInArrow(placed_task, schema)
        return columns.from_arrow(done, "status", name=task.output_column)

    def _task(self, session: SparkSession) -> IndexTask:
        given = self._options()
        source = TableName.parse(default_table(given["uc_table_name"]) or "")
        options = IndexOptions(
            source=str(source),
            extension=given["filter_extension"] or None,
            force=not given["skip_existing"],
            threads=given["threads"],
            batch_size=given["batch_size"],
            verify=cast(Verify, given["verify"]),
            s3=_s3_config(given["s3_keys"]),
        )
        prepare = given["prepare"] or os.environ.get("VOXTIER_PREPARE") or None
        destination = replace(
            self._choose_destination(session, source, given), prepare=cast("Prepare | None", prepare)
        )
        return IndexTask(
            destination, options, given["inputCol"], given["outputCol"], folder=_working_folder()
        )

    def _choose_destination(
        self, session: SparkSession, source: TableName, given: Mapping[str, Any]
    ) -> Destination:
        credentials = given["credentials"] or None
        host, token = given["host"], self._secrets.token
        place, dsn = choose_place(
            given["dsn"] or None,
            has_credentials=credentials is not None,
            workspace=bool(host) or token is not None,
        )
        if place == "dsn" and dsn is not None:
            from voxtier.postgres.connection_string import split_secrets

            passwords = self._secrets.passwords_of(dsn)
            dsn, others = split_secrets(dsn)
            passwords |= others
            secret = MaskedValues(passwords) if passwords and credentials is None else None
            return Destination(dsn=dsn, credentials=credentials, secret=secret)
        if place == "credentials":
            return Destination(credentials=credentials)
        if place == "databricks":
            return Destination(
                instance=given["lakebase_instance_name"],
                host=host or os.environ.get("DATABRICKS_HOST"),
                database=source.catalog,
                secret=MaskedValues({"token": token}) if token else None,
            )
        if not _is_local(session):
            raise ConfigError(
                "name the database with dsn= or VOXTIER_DSN: the embedded server serves one machine, and "
                "this Spark is not in local mode"
            )
        from voxtier.postgres.embedded import default_home

        return Destination(home=str(default_home()))


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a builder with "" and 0 for None, or raise ConfigError for one out of range."""
    options = dict(options)
    for name in ("lakebase_instance_name", "inputCol", "outputCol"):
        if not isinstance(options[name], str) or not options[name]:
            raise ConfigError(f"{name}={options[name]!r}: must be a name")
    for name in ("uc_table_name", "filter_extension", "host", "dsn", "credentials", "prepare"):
        options[name] = options[name] or ""
    options["partitions"] = options["partitions"] or 0
    for name, least in (("threads", 1), ("batch_size", 1), ("partitions", 0)):
        options[name] = whole_number(name, options[name], least)
    if not isinstance(options["skip_existing"], bool):
        raise ConfigError(f"skip_existing={options['skip_existing']!r}: must be True or False")
    words = {"prepare": ("auto", "off"), "verify": ("all", "ends"), "s3_keys": ("worker", "driver")}
    for name, (one, other) in words.items():
        if options[name] not in (one, other) and (name != "prepare" or options[name]):
            raise ConfigError(f"{name}={options[name]!r}: must be {one!r} or {other!r}")
    return options


def _s3_config(s3_keys: str) -> S3Config | None:
    config = get_s3_config()
    if s3_keys == "driver":
        return KeyedS3Config.of_this_process(config)
    return None if config == S3Config() else config


def _working_folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it was removed, which a job with absolute paths need not know
        return "/"


def _is_local(session: SparkSession) -> bool:
    return _setting(session, "spark.master", "").startswith("local")


def _is_case_sensitive(session: SparkSession) -> bool:
    return _setting(session, "spark.sql.caseSensitive", "false").lower() == "true"


def _setting(session: SparkSession, key: str, otherwise: str) -> str:
    try:
        return session.conf.get(key, otherwise) or otherwise
    except PySparkException:  # serverless Spark does not tell
        return otherwise


def local_session(
    *, cores: int = 2, app_name: str = "voxtier", conf: Mapping[str, str] | None = None
) -> SparkSession:
    """Return a Spark session on this machine whose workers run this Python, and start it if necessary.

    Parameters
    ----------
    cores : int
        Tasks that run at once.
    app_name : str
        Name of the application.
    conf : mapping or None
        Further settings of Spark.

    Returns
    -------
    SparkSession
        The session.

    Raises
    ------
    ConfigError
        Java is missing or too old.
    """
    _check_java()
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder.master(f"local[{cores}]").appName(app_name)
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.shuffle.partitions": str(cores),
        "spark.sql.session.timeZone": "UTC",
    }
    for key, value in {**settings, **(conf or {})}.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def _check_java() -> None:
    remedy = (
        f"install Java {_OLDEST_JAVA} or newer (Debian: apt install openjdk-17-jre-headless) and set "
        "JAVA_HOME to it"
    )
    home = os.environ.get("JAVA_HOME")
    program = str(Path(home, "bin", "java")) if home else shutil.which("java")
    try:
        output = subprocess.run(
            [program or "java", "-version"], capture_output=True, text=True, timeout=60, check=True
        ).stderr
    except (OSError, subprocess.SubprocessError) as error:
        where = f"JAVA_HOME={home}" if home else "the PATH"
        raise ConfigError(f"Spark needs Java, and {where} has none that runs: {remedy}") from error
    version = re.search(r'version "(?:1\.)?(\d+)', output)
    if version and int(version[1]) < _OLDEST_JAVA:
        raise ConfigError(f"Spark needs Java {_OLDEST_JAVA}, {program} is Java {version[1]}: {remedy}")


def _importable_name(provider: str | Callable[[], Mapping[str, Any]] | None) -> str:
    """Return the name by which workers import a function; sending a closure might send a secret."""
    if provider is None:
        return ""
    if isinstance(provider, str):
        load_provider(provider)
        return provider
    name = f"{getattr(provider, '__module__', '')}:{getattr(provider, '__qualname__', '')}"
    if "<" in name or "." in name.partition(":")[2] or name.startswith("__main__:"):
        raise ConfigError(
            f"credentials={name}: workers must be able to import it, so use a function at the top of a module"
        )
    load_provider(name)
    return name
