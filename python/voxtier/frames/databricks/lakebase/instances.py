"""Paths of SOP Instances and metrics, for servers of images."""

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
    check_allowed_groups,
    check_path,
    keys_of,
)
from voxtier.frames.databricks.lakebase.claims import claim_parameters
from voxtier.postgres.connection import Connection

Instance = dict[str, Any]

_COLUMNS = ("local_path", "study_instance_uid", "series_instance_uid", "sop_instance_uid", "num_frames")


class InstanceMethods(Backend):
    """Paths of SOP Instances: those of files that the index has read, then those that were inserted.

    An instance is a dictionary with ``local_path``, ``study_instance_uid``, ``series_instance_uid``,
    ``sop_instance_uid`` and ``num_frames``. Lists are sorted by path.
    """

    def retrieve_instance_path(
        self,
        sop_instance_uid: str,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
        uc_table_name: str | None = None,
        user_groups: Groups = None,
    ) -> Instance | None:
        """Look up an instance by its UIDs.

        Parameters
        ----------
        sop_instance_uid : str
            SOP Instance UID.
        study_instance_uid, series_instance_uid : str or None
            UIDs of study and series; None for any.
        uc_table_name : str or None
            The source; None: that of the constructor.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        dict or None
            The instance; None for an unknown one.
        """
        parameters = {"sop": sop_instance_uid, "study": study_instance_uid, "series": series_instance_uid}
        instances = self._instances(statements.INSTANCE, parameters, uc_table_name, user_groups)
        return instances[0] if instances else None

    def retrieve_instance_paths_by_series(
        self,
        series_instance_uid: str,
        study_instance_uid: str | None = None,
        uc_table_name: str | None = None,
        user_groups: Groups = None,
    ) -> list[Instance]:
        """Look up all instances of a series.

        Parameters
        ----------
        series_instance_uid : str
            UID of the series.
        study_instance_uid : str or None
            UID of its study; None for any.
        uc_table_name : str or None
            The source; None: that of the constructor.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        list of dict
            The instances.
        """
        parameters = {"series": series_instance_uid, "study": study_instance_uid}
        return self._instances(statements.SERIES, parameters, uc_table_name, user_groups)

    def retrieve_instance_paths_by_local_paths(
        self, local_paths: Sequence[str], uc_table_name: str | None = None, user_groups: Groups = None
    ) -> dict[str, Instance]:
        """Look up instances by the paths of their files.

        Parameters
        ----------
        local_paths : sequence of str
            Paths of the files.
        uc_table_name : str or None
            The source; None: that of the constructor.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        dict
            Instances by path; without unknown files.
        """
        parameters = {"keys": keys_of(self.source(uc_table_name), local_paths)}
        instances = self._instances(statements.BY_PATH, parameters, uc_table_name, user_groups)
        return {instance["local_path"]: instance for instance in instances}

    def retrieve_instance_paths_for_preload(
        self, uc_table_name: str | None = None, limit: int = 10_000, user_groups: Groups = None
    ) -> list[Instance]:
        """List instances by their last use, the latest first, then those never used.

        Parameters
        ----------
        uc_table_name : str or None
            The source; None: that of the constructor.
        limit : int
            Instances to return at most.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        list of dict
            The instances.
        """
        return self._instances(statements.RECENT, {"limit": max(limit, 0)}, uc_table_name, user_groups)

    def insert_instance_paths_batch(
        self,
        instances: Sequence[Mapping[str, Any]],
        uc_table_name: str | None = None,
        allowed_groups: Groups = None,
        user_groups: Groups = None,
    ) -> int:
        """Insert instances of a catalogue without reading their files.

        Parameters
        ----------
        instances : sequence of mapping
            See the class for their keys, of which only ``local_path`` is required.
        uc_table_name : str or None
            The source; None: that of the constructor.
        allowed_groups : sequence of str or None
            Groups that may see the rows; None: as the access rules say, or everyone.
        user_groups : sequence of str or None
            Groups of the writer; None: `allowed_groups`.

        Returns
        -------
        int
            Number of rows written.

        Raises
        ------
        ConfigError
            A row has no path, or one that cannot be indexed; or `allowed_groups` is empty.
        """
        if not instances:
            return 0
        by_path: dict[str, Mapping[str, Any]] = {}
        for number, row in enumerate(instances):
            if not row.get("local_path"):
                raise ConfigError(f"instances[{number}] has no local_path")
            by_path[check_path(row["local_path"])] = row
        source, may_see = self.source(uc_table_name), check_allowed_groups(allowed_groups)
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
        """Record the metrics of a component: any JSON object."""
        self.run(
            lambda connection: connection.execute(
                statements.ADD_METRIC.encode(), (source, json.dumps(dict(metrics), allow_nan=False))
            )
        )

    def get_latest_metrics(self, source: str | None = None, limit: int = 60) -> list[dict[str, Any]]:
        """Return the last metrics, newest first, each with ``source``, ``recorded_at`` and ``metrics``."""
        rows = self.rows(statements.LATEST_METRICS, {"source": source, "limit": max(limit, 0)})
        return [dict(zip(("source", "recorded_at", "metrics"), row, strict=True)) for row in rows]

    def _instances(
        self, query: str, parameters: Mapping[str, Any], uc_table_name: str | None, groups: Groups
    ) -> list[Instance]:
        rows = self.rows(query, {"source": self.source(uc_table_name), **parameters}, groups)
        return [dict(zip(_COLUMNS, row[1:6], strict=True)) for row in rows]
