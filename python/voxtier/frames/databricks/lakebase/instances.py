"""Paths of SOP Instances, and measurements: what a server of images asks beside frames."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from voxtier.errors import ConfigError
from voxtier.frames.databricks.lakebase import statements
from voxtier.frames.databricks.lakebase.backend import (
    Backend,
    Groups,
    add_source,
    allowed,
    checked_path,
    keys_of,
)
from voxtier.frames.databricks.lakebase.frames import claim_parameters
from voxtier.postgres.database import Connection

Instance = dict[str, Any]

_COLUMNS = ("local_path", "study_instance_uid", "series_instance_uid", "sop_instance_uid", "num_frames")


class InstanceMethods(Backend):
    """Where SOP Instances lie: files that the index has read first, then paths that others have inserted.

    Rows are dictionaries with ``local_path``, ``study_instance_uid``, ``series_instance_uid``,
    ``sop_instance_uid`` and ``num_frames``, in the order of their paths.
    """

    def retrieve_instance_path(
        self,
        sop_instance_uid: str,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
        uc_table_name: str | None = None,
        user_groups: Groups = None,
    ) -> Instance | None:
        """Return the instance of a triple of UIDs, or None; what is None is not asked."""
        parameters = {"sop": sop_instance_uid, "study": study_instance_uid, "series": series_instance_uid}
        found = self._instances(statements.INSTANCE, parameters, uc_table_name, user_groups)
        return found[0] if found else None

    def retrieve_instance_paths_by_series(
        self,
        series_instance_uid: str,
        study_instance_uid: str | None = None,
        uc_table_name: str | None = None,
        user_groups: Groups = None,
    ) -> list[Instance]:
        """Return all instances of a series."""
        parameters = {"series": series_instance_uid, "study": study_instance_uid}
        return self._instances(statements.SERIES, parameters, uc_table_name, user_groups)

    def retrieve_instance_paths_by_local_paths(
        self, local_paths: Sequence[str], uc_table_name: str | None = None, user_groups: Groups = None
    ) -> dict[str, Instance]:
        """Return the instances of files by their paths; unknown ones are left out."""
        parameters = {"keys": keys_of(self.source(uc_table_name), local_paths)}
        found = self._instances(statements.BY_PATH, parameters, uc_table_name, user_groups)
        return {row["local_path"]: row for row in found}

    def retrieve_instance_paths_for_preload(
        self, uc_table_name: str | None = None, limit: int = 10_000, user_groups: Groups = None
    ) -> list[Instance]:
        """Return the instances that were used last, then those never used."""
        return self._instances(statements.RECENT, {"limit": max(limit, 0)}, uc_table_name, user_groups)

    def insert_instance_paths_batch(
        self,
        instances: Sequence[Mapping[str, Any]],
        uc_table_name: str | None = None,
        allowed_groups: Groups = None,
        user_groups: Groups = None,
    ) -> int:
        """Insert rows of a catalogue, see the class for their keys; ``local_path`` alone is needed.

        Returns
        -------
        int
            Rows written.

        Raises
        ------
        ConfigError
            A row has no path, or one that cannot be indexed.
        """
        if not instances:
            return 0
        by_path: dict[str, Mapping[str, Any]] = {}
        for number, row in enumerate(instances):
            if not row.get("local_path"):
                raise ConfigError(f"instances[{number}] has no local_path")
            by_path[checked_path(row["local_path"])] = row
        source, may_see = self.source(uc_table_name), allowed(allowed_groups)
        parameters = claim_parameters(
            source,
            list(by_path),
            groups=may_see,
            sops=[row.get("sop_instance_uid") for row in by_path.values()],
            series=[row.get("series_instance_uid") for row in by_path.values()],
            studies=[row.get("study_instance_uid") for row in by_path.values()],
            frames=[row.get("num_frames") for row in by_path.values()],
        )

        def work(connection: Connection) -> int:
            add_source(connection, source)
            return connection.execute(statements.CLAIM.encode(), parameters).rowcount

        return self.run(work, may_see if user_groups is None else user_groups)

    def insert_metrics(self, source: str, metrics: Mapping[str, Any]) -> None:
        """Record the measurements of a component, any JSON object."""
        self.run(
            lambda connection: connection.execute(
                statements.ADD_METRIC.encode(), (source, json.dumps(dict(metrics), allow_nan=False))
            )
        )

    def get_latest_metrics(self, source: str | None = None, limit: int = 60) -> list[dict[str, Any]]:
        """Return the last measurements, newest first: ``source``, ``recorded_at``, ``metrics``."""
        rows = self.rows(statements.LATEST_METRICS, {"source": source, "limit": max(limit, 0)})
        return [dict(zip(("source", "recorded_at", "metrics"), row, strict=True)) for row in rows]

    def _instances(
        self, query: str, parameters: Mapping[str, Any], uc_table_name: str | None, groups: Groups
    ) -> list[Instance]:
        given = {"source": self.source(uc_table_name), **parameters}
        return [dict(zip(_COLUMNS, row[1:6], strict=True)) for row in self.rows(query, given, groups)]
