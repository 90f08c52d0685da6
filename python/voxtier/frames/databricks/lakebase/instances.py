"""Paths of SOP Instances and metrics, for servers of images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from voxtier.arguments import whole_number
from voxtier.errors import ConfigError
from voxtier.frames.databricks.lakebase import statements
from voxtier.frames.databricks.lakebase.backend import (
    INSTANCES_TABLE,
    Backend,
    Groups,
    add_source,
    check_allowed_groups,
    check_limit,
    check_path,
    check_paths,
    check_text,
    keys_of,
)
from voxtier.frames.databricks.lakebase.claims import add_claims, claim_parameters
from voxtier.postgres.connection import Connection

Instance = dict[str, Any]

_UIDS = ("study_instance_uid", "series_instance_uid", "sop_instance_uid")
_KNOWN = (*_UIDS, "num_frames")


class InstanceMethods(Backend):
    """Paths of SOP Instances: those of files that the index has read, then those that were inserted.

    An instance is a dictionary with ``path``, again as ``local_path``, ``num_frames``,
    ``study_instance_uid``, ``series_instance_uid`` and ``sop_instance_uid``. Several come by their SOP
    Instance UID, in the order of their paths; of two files that hold one instance the first counts.
    """

    def retrieve_instance_path(
        self,
        study_instance_uid: str | None,
        series_instance_uid: str | None,
        sop_instance_uid: str,
        uc_table_name: str | None = None,
        table: str = INSTANCES_TABLE,
        user_groups: Groups = None,
    ) -> Instance | None:
        """Look up an instance by its UIDs.

        Parameters
        ----------
        study_instance_uid, series_instance_uid : str or None
            UIDs of study and series; None for any.
        sop_instance_uid : str
            SOP Instance UID.
        uc_table_name, table : str or None
            The source; None: that of the constructor.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        dict or None
            The instance; None for an unknown one.
        """
        parameters = {
            "study": check_text(study_instance_uid, "study_instance_uid", optional=True),
            "series": check_text(series_instance_uid, "series_instance_uid", optional=True),
            "sop": check_text(sop_instance_uid, "sop_instance_uid"),
        }
        found = self._instances(statements.INSTANCE, parameters, uc_table_name, table, user_groups)
        return next(iter(found.values()), None)

    def retrieve_instance_paths_by_series(
        self,
        study_instance_uid: str | None,
        series_instance_uid: str,
        uc_table_name: str | None = None,
        table: str = INSTANCES_TABLE,
        user_groups: Groups = None,
    ) -> dict[str, Instance] | None:
        """Look up all instances of a series.

        Parameters
        ----------
        study_instance_uid : str or None
            UID of its study; None for any.
        series_instance_uid : str
            UID of the series.
        uc_table_name, table : str or None
            The source; None: that of the constructor.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        dict or None
            The instances by SOP Instance UID; None when there are none.
        """
        parameters = {
            "study": check_text(study_instance_uid, "study_instance_uid", optional=True),
            "series": check_text(series_instance_uid, "series_instance_uid"),
        }
        return self._instances(statements.SERIES, parameters, uc_table_name, table, user_groups) or None

    def retrieve_instance_paths_by_local_paths(
        self,
        local_paths: Sequence[str],
        uc_table_name: str | None = None,
        table: str = INSTANCES_TABLE,
        user_groups: Groups = None,
    ) -> dict[str, Instance]:
        """Look up instances by the paths of their files.

        Parameters
        ----------
        local_paths : sequence of str
            Paths of the files.
        uc_table_name, table : str or None
            The source; None: that of the constructor.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        dict
            The instances by SOP Instance UID; without unknown files.
        """
        paths = check_paths(local_paths, "local_paths")
        parameters = {"keys": keys_of(self.source(uc_table_name, table), paths)}
        return self._instances(statements.BY_PATH, parameters, uc_table_name, table, user_groups)

    def retrieve_instance_paths_for_preload(
        self,
        uc_table_name: str | None = None,
        limit: int = 10_000,
        table: str = INSTANCES_TABLE,
        user_groups: Groups = None,
    ) -> dict[str, Instance]:
        """List instances by their last use, the latest first, then those never used.

        Parameters
        ----------
        uc_table_name : str or None
            The source; None: that of the constructor.
        limit : int
            Files to look up at most.
        table : str
            ``instance_paths``; another name is a source of its own.
        user_groups : sequence of str or None
            Groups of the user who asks; None: asks as the database role.

        Returns
        -------
        dict
            The instances by SOP Instance UID.
        """
        parameters = {"limit": check_limit(limit)}
        return self._instances(statements.RECENT, parameters, uc_table_name, table, user_groups)

    def insert_instance_paths_batch(
        self,
        entries: Sequence[Mapping[str, Any]],
        table: str = INSTANCES_TABLE,
        allowed_groups: Groups = None,
        *,
        uc_table_name: str | None = None,
        user_groups: Groups = None,
    ) -> int:
        """Insert instances of a catalogue without reading their files, all or none of them.

        Parameters
        ----------
        entries : sequence of mapping
            Each with ``local_path``, and as far as they are known ``sop_instance_uid``,
            ``study_instance_uid``, ``series_instance_uid``, ``num_frames`` and ``uc_table_name``, the source
            of this entry. What a later entry of a file knows replaces what was known before.
        table : str
            ``instance_paths``; another name makes sources of their own, with access rules of their own.
        allowed_groups : sequence of str or None
            Groups that may see the rows, beside those of earlier calls and of the access rules, also where
            the file is indexed; None or empty: as before, for new rows as the access rules say, or everyone.
        uc_table_name : str or None
            Source of entries that name none; None: that of the constructor.
        user_groups : sequence of str or None
            Groups of the writer; None: `allowed_groups`.

        Returns
        -------
        int
            Number of rows written.

        Raises
        ------
        ConfigError
            An entry has no path, or one that cannot be indexed, no source, or a value of a wrong type; or it
            would be open to everyone: see `insert_frame_ranges`.
        """
        if not isinstance(entries, Sequence):
            raise ConfigError(f"entries={entries!r}: give a list of mappings")
        may_see = check_allowed_groups(allowed_groups)
        paths = [_check_entry(entry, f"entries[{number}]") for number, entry in enumerate(entries)]
        by_source: dict[str, dict[str, dict[str, Any]]] = {}
        for path, entry in zip(paths, entries, strict=True):
            source = self.source(entry.get("uc_table_name") or uc_table_name, table, is_written=True)
            row = by_source.setdefault(source, {}).setdefault(path, {})
            row |= {name: entry[name] for name in _KNOWN if entry.get(name) is not None}

        def work(connection: Connection) -> int:
            written = 0
            for source, rows in sorted(by_source.items()):
                add_source(connection, source, sets_groups=may_see is not None)
                columns = {name: [row.get(name) for row in rows.values()] for name in _KNOWN}
                parameters = claim_parameters(
                    source,
                    list(rows),
                    groups=may_see,
                    sops=columns["sop_instance_uid"],
                    series=columns["series_instance_uid"],
                    studies=columns["study_instance_uid"],
                    frames=columns["num_frames"],
                )
                written += add_claims(connection, parameters)
            return written

        return self.run(work, may_see if user_groups is None else user_groups)

    def insert_metrics(self, source: str, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of a component: any JSON object."""
        name = check_text(source, "source")
        if not isinstance(metrics, Mapping):
            raise ConfigError(f"metrics={metrics!r}: give a mapping")
        try:
            text, words = json.dumps(dict(metrics), allow_nan=False), list(_texts(metrics))
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"metrics of {name!r} are no JSON object: {error}") from error
        for word in words:
            check_text(word, f"a text in the metrics of {name!r}")
        self.run(lambda connection: connection.execute(statements.ADD_METRIC.encode(), (name, text)))

    def get_latest_metrics(self, source: str | None = None, limit: int = 60) -> list[dict[str, Any]]:
        """Return the last metrics, newest first.

        Each has ``source``, ``recorded_at`` (ISO 8601, as JSON needs it) and ``metrics``.
        """
        asked = {"source": check_text(source, "source", optional=True) or None, "limit": check_limit(limit)}
        rows = self.rows(statements.LATEST_METRICS, asked)
        return [{"source": name, "recorded_at": at.isoformat(), "metrics": found} for name, at, found in rows]

    def _instances(
        self,
        query: str,
        parameters: Mapping[str, Any],
        uc_table_name: str | None,
        table: str,
        groups: Groups,
    ) -> dict[str, Instance]:
        rows = self.rows(query, {"source": self.source(uc_table_name, table), **parameters}, groups)
        found: dict[str, Instance] = {}
        for _, path, study, series, sop, frames in (row[:6] for row in rows):
            uids = dict(zip(_UIDS, (study, series, sop), strict=True))
            found.setdefault(sop, {"path": path, "local_path": path, "num_frames": frames, **uids})
        return found


def _texts(value: object) -> Iterator[str]:
    """Yield the keys and texts of what JSON can hold."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(key)
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _check_entry(entry: object, what: str) -> str:
    """Return the path of an entry for `InstanceMethods.insert_instance_paths_batch` in its local form."""
    if not isinstance(entry, Mapping) or not entry.get("local_path"):
        raise ConfigError(f"{what} has no local_path")
    for name in _UIDS:
        check_text(entry.get(name), f"{what}: {name}", optional=True)
    frames = entry.get("num_frames")
    if frames is not None:
        whole_number(f"{what}: num_frames", frames, 0, 2**31 - 1)
    return check_path(entry["local_path"])
