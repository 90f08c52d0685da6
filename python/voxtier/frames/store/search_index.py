"""The search index: what QIDO-RS returns, in a schema of its own, as it names patients.

It is made on request alone (``voxtier index --search``) and removed by one command. Triggers on the frame
index remove the rows of what changed; `voxtier.frames.indexing.search` fills what is missing; a source is
answered from here while nothing is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from enum import Enum, auto
from importlib import resources
from typing import Any, NamedTuple

from voxtier.errors import ConfigError
from voxtier.frames.store.adapters import Key, Keys
from voxtier.frames.store.file_rows import BATCH
from voxtier.frames.store.statements import SOURCE_ID
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.connection import Connection

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
# Returned attributes (PS3.18 tables 10.6.3-3 to -5), and the dates of a series, for which OHIF asks.
_STUDY_TAGS = (
    "00080005 00080020 00080030 00080050 00080090 00081030 00080201 00100010 00100020 00100030 00100040 "
    "0020000D 00200010"
)
_SERIES_TAGS = "00080021 00080031 00080060 0008103E 0020000E 00200011 00400244 00400245 00400275"
_INSTANCE_TAGS = "00080016 00080018 00200013 00280008 00280010 00280011 00280100"
TAGS = {
    "study": _STUDY_TAGS.split(),
    "series": _SERIES_TAGS.split(),
    "instance": _INSTANCE_TAGS.split(),
}
SHARED_TAGS = frozenset(TAGS["study"] + TAGS["series"])
INDEXED_TAGS = SHARED_TAGS | set(TAGS["instance"])

# That of search_index.sql: whoever changes a rule there, or what is kept, counts it up in both.
VERSION = 3

# All that a row tells of the state of its file, as JSON.
FILE_STATE = "jsonb_build_array(f.size, f.mtime_ns, f.ctime_ns, f.inode, f.etag)"

# The version of one that the frame index does not keep right any more. All triggers must be there, and never
# have been disabled; so must the foreign key, which goes with the table of files when that is dropped.
_DETACHED = 0
# None where there is none, or this role may not read it. The first version was not written down.
_VERSION_OF = f"""
SELECT CASE WHEN has_schema_privilege(made.oid, 'USAGE') THEN CASE
    WHEN made.version <> {VERSION} THEN made.version
    WHEN (SELECT count(*) FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
        WHERE t.tgrelid = to_regclass('voxtier.file') AND p.pronamespace = made.oid AND t.tgenabled = 'A') = 4
    AND EXISTS (SELECT FROM pg_constraint AS c JOIN pg_class AS i ON i.oid = c.conrelid
        WHERE i.relnamespace = made.oid AND i.relname = 'instance'
            AND c.confrelid = to_regclass('voxtier.file') AND c.confdeltype = 'c' AND c.convalidated)
    THEN made.version ELSE {_DETACHED} END END
FROM (SELECT oid,
        coalesce(substring(obj_description(oid, 'pg_namespace') FROM '^version ([0-9]+)$')::int, 1) AS version
    FROM pg_namespace WHERE nspname = 'voxtier_search') AS made
"""
# Of a complete source the transaction that completed it: any file that is added ends that.
_STATE = """
SELECT CASE WHEN s.is_complete THEN s.xmin::text END
FROM voxtier_search.source AS s JOIN voxtier.source AS named USING (source_id)
WHERE named.name = %s
"""
_STATES = """
SELECT named.name, s.is_complete, counted.studies, counted.instances, unread.files
FROM voxtier_search.source AS s JOIN voxtier.source AS named USING (source_id),
    LATERAL (SELECT count(*) AS studies, coalesce(sum(instances), 0)::bigint AS instances
        FROM voxtier_search.study AS t WHERE t.source_id = s.source_id) AS counted,
    LATERAL (SELECT count(*) AS files FROM voxtier_search.instance AS i JOIN voxtier.file AS f USING (key)
        WHERE NOT i.is_read AND f.source_id = s.source_id) AS unread
ORDER BY named.name
"""
_BYTES = """
SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
WHERE relnamespace = to_regnamespace('voxtier_search') AND relkind = 'r'
"""
_MISSING = f"""
SELECT f.key, f.path, f.study_instance_uid, f.series_instance_uid, f.sop_instance_uid, {FILE_STATE}
FROM voxtier.file AS f LEFT JOIN voxtier_search.instance AS i USING (key)
WHERE f.source_id = {SOURCE_ID} AND f.key > %(after)s
    AND f.study_instance_uid IS NOT NULL AND f.series_instance_uid IS NOT NULL
    AND f.sop_instance_uid IS NOT NULL AND (i.key IS NULL OR NOT i.is_read)
ORDER BY f.key LIMIT %(limit)s
"""
_UNREAD = f"""
SELECT f.key, f.path, f.study_instance_uid, f.series_instance_uid, f.sop_instance_uid, {FILE_STATE}
FROM voxtier_search.instance AS i JOIN voxtier.file AS f USING (key)
WHERE NOT i.is_read AND f.source_id = {SOURCE_ID}
ORDER BY i.key LIMIT %(limit)s
"""
_PUT_HEADERS = """
INSERT INTO voxtier_search.header (source_id, digest, attributes, names)
SELECT %(source_id)s, given.digest, given.attributes::jsonb, given.names::jsonb
FROM unnest(%(digests)s::bytea[], %(shared)s::text[], %(names)s::text[]) AS given (digest, attributes, names)
ON CONFLICT (source_id, digest) DO NOTHING
"""
# Only while the frame index still says what it said when the header was read: else it may be that of a file
# which another run has indexed and read anew since.
_PUT_INSTANCES = f"""
INSERT INTO voxtier_search.instance (key, header_id, is_read, attributes)
SELECT f.key, h.header_id, given.is_read, given.own::jsonb
FROM unnest(%(keys)s::uuid[], %(uids)s::text[], %(states)s::text[], %(all_digests)s::bytea[],
        %(is_read)s::bool[], %(own)s::text[])
    AS given (key, uids, state, digest, is_read, own)
JOIN voxtier.file AS f ON f.key = given.key AND {FILE_STATE} = given.state::jsonb
    AND f.study_instance_uid || ' ' || f.series_instance_uid || ' ' || f.sop_instance_uid = given.uids
JOIN voxtier_search.header AS h ON h.source_id = %(source_id)s AND h.digest = given.digest
ON CONFLICT (key) DO UPDATE SET
    (header_id, is_read, attributes) = ROW(excluded.header_id, excluded.is_read, excluded.attributes)
"""
_DROP_UNUSED_HEADERS = """
DELETE FROM voxtier_search.header AS h WHERE h.source_id = %(source_id)s AND h.digest = ANY (%(digests)s)
    AND NOT EXISTS (SELECT FROM voxtier_search.instance AS i WHERE i.header_id = h.header_id)
"""
_COMPLETE = """
UPDATE voxtier_search.source AS s SET is_complete = true
WHERE s.source_id = %(source_id)s AND NOT EXISTS (
    SELECT FROM voxtier.file AS f LEFT JOIN voxtier_search.instance AS i USING (key)
    WHERE f.source_id = %(source_id)s AND f.study_instance_uid IS NOT NULL AND i.key IS NULL
        AND f.series_instance_uid IS NOT NULL AND f.sop_instance_uid IS NOT NULL)
"""


class Making(Enum):
    """What there is of a search index; one that is `CURRENT` answers searches, no other does.

    `NONE`: none was made, or this role may not read it. `OLDER` and `NEWER`: another version of voxtier made
    it. `DETACHED`: the frame index does not keep it right any more, as a dump was restored or triggers were
    disabled for a while.
    """

    NONE = auto()
    CURRENT = auto()
    OLDER = auto()
    NEWER = auto()
    DETACHED = auto()

    @property
    def remedy(self) -> str:
        """What helps where it is of another version: `SearchIndex.switch_on` makes an older one anew."""
        is_newer = self is Making.NEWER
        return "upgrade voxtier" if is_newer else "run `voxtier index --search`, which makes it anew"


class Unsearched(NamedTuple):
    """An instance of the frame index that the search index does not hold, and the state of its file there."""

    key: bytes
    path: str
    study: str
    series: str
    instance: str
    state: list[Any]


class Searched(NamedTuple):
    """The attributes of an instance: of its study and series, and its own.

    `names` are those of persons in no case, and dates and times that are compared in another form.
    `is_read` is False where the file could not be read; nothing but its UIDs is known then.
    """

    of: Unsearched
    shared: dict[str, Any]
    names: dict[str, list[str]]
    own: dict[str, Any]
    is_read: bool


class SearchedSource(NamedTuple):
    """What the search index holds of a source; searches read headers of files until it is complete.

    Of `unread` files it has only the UIDs, as they could not be read.
    """

    source: str
    is_complete: bool
    studies: int
    instances: int
    unread: int


class SearchIndex:
    """The search index of a database.

    Parameters
    ----------
    store : FrameStore
        The frame index of the same database.
    """

    def __init__(self, store: FrameStore) -> None:
        self.store = store

    def making(self) -> Making:
        """Return what there is for this role, by one statement; the answer may be of a moment ago."""
        rows = self.store.query(_VERSION_OF, ())
        version = rows[0][0] if rows else None
        if version is None:
            return Making.NONE
        if version == _DETACHED:
            return Making.DETACHED
        if version == VERSION:
            return Making.CURRENT
        return Making.OLDER if version < VERSION else Making.NEWER

    def holds(self, source: str) -> bool:
        """Return whether a source is to be kept in one that is `Making.CURRENT`."""
        return bool(self.store.query(_STATE, (source,)))

    def is_complete(self, source: str) -> bool:
        """Return whether it has tried every instance of a source as the frame index has it, see `unread`."""
        return self.completion(source) is not None

    def completion(self, source: str) -> str | None:
        """Return what names the content of a complete source, and None of any other: see `is_complete`.

        As long as it is the same, no file was added.
        """
        rows = self.store.query(_STATE, (source,)) if self.making() is Making.CURRENT else []
        return rows[0][0] if rows else None

    def sources(self) -> list[SearchedSource]:
        """Return what one of any version holds of each source, by name.

        Not of one that is `Making.DETACHED`: the numbers of its sources may be those of others.
        """
        return [SearchedSource(*row) for row in self.store.query(_STATES, ())]

    def unread(self, source: str, limit: int) -> list[Unsearched]:
        """Return instances of a source whose files could not be read, in the order of their keys."""
        rows = self.store.query(_UNREAD, {"source": source, "limit": limit})
        return [Unsearched(key.bytes, *rest) for key, *rest in rows]

    def bytes_on_disk(self) -> int:
        """Return the size of its tables and their indexes; 0 where the database has none."""
        [(size,)] = self.store.query(_BYTES, ())
        return int(size)

    def switch_on(self, source: str) -> None:
        """Make the search index where there is none, and have it hold a source from now on.

        One of an older version is made anew: it holds the same sources and nothing of them, until
        `fill_search_index` has read them. A detached one is made anew for this source alone.

        Raises
        ------
        ConfigError
            The role may not make it: it must own the schema of the frame index. Or a newer version made it.
        """

        def work(connection: Connection) -> None:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(1987541345)")
                made = connection.execute(_VERSION_OF.encode()).fetchone()
                version = made[0] if made else 1  # what is not there is made as an older one is made anew
                if version is not None and version > VERSION:
                    raise ConfigError(
                        f"the search index has version {version}, this voxtier knows {VERSION}: "
                        f"{Making.NEWER.remedy}"
                    )
                if version is not None and version < VERSION:
                    connection.execute(_schema().encode())
                if version == _DETACHED:
                    connection.execute(b"TRUNCATE voxtier_search.source")
                connection.execute(
                    b"INSERT INTO voxtier.source (name) VALUES (%s) ON CONFLICT DO NOTHING", (source,)
                )
                connection.execute(
                    b"INSERT INTO voxtier_search.source (source_id) SELECT source_id FROM voxtier.source "
                    b"WHERE name = %s ON CONFLICT DO NOTHING",
                    (source,),
                )

        self.store.database.run(work)

    def drop(self) -> bool:
        """Remove the search index of all sources with all that it holds; return whether there was one."""

        def work(connection: Connection) -> bool:
            with connection.transaction():
                found = connection.execute("SELECT to_regnamespace('voxtier_search')").fetchone()
                connection.execute(b"DROP SCHEMA IF EXISTS voxtier_search CASCADE")
            return found != (None,)

        return self.store.database.run(work)

    def missing(self, source: str, after: bytes = bytes(16)) -> list[Unsearched]:
        """Return instances of a source that it does not hold, or holds unread, in the order of their keys.

        Parameters
        ----------
        source : str
            Name of the source.
        after : bytes
            Key of the last one that is not wanted.

        Returns
        -------
        list of Unsearched
            At most 5,000; none at the end.
        """
        rows = self.store.query(_MISSING, {"source": source, "after": Key(after), "limit": BATCH})
        return [Unsearched(key.bytes, *rest) for key, *rest in rows]

    def put(self, source: str, found: Sequence[Searched]) -> int:
        """Store the attributes of instances, and count their studies anew; return how many were stored.

        Those of a file whose row has changed since are not.
        """
        if not found:
            return 0
        texts = [json.dumps([each.shared, each.names], sort_keys=True) for each in found]
        digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        headers = dict(zip(digests, found, strict=True))
        parameters = {
            "digests": sorted(headers),
            "shared": [json.dumps(headers[digest].shared) for digest in sorted(headers)],
            "names": [json.dumps(headers[digest].names) for digest in sorted(headers)],
            "keys": Keys(each.of.key for each in found),
            "uids": [f"{each.of.study} {each.of.series} {each.of.instance}" for each in found],
            "states": [json.dumps(each.of.state) for each in found],
            "all_digests": digests,
            "is_read": [each.is_read for each in found],
            "own": [json.dumps(each.own) for each in found],
        }
        studies = sorted({each.of.study for each in found})

        def work(connection: Connection) -> int:
            with connection.transaction():
                parameters["source_id"] = source_id = _source_id(connection, source)
                connection.execute(b"SELECT pg_advisory_xact_lock(1987541345, %s)", (source_id,))
                connection.execute(_PUT_HEADERS.encode(), parameters)
                stored = connection.execute(_PUT_INSTANCES.encode(), parameters).rowcount
                if stored < len(found):
                    connection.execute(_DROP_UNUSED_HEADERS.encode(), parameters)
                connection.execute(b"SELECT voxtier_search.refresh(%s, %s)", (source_id, studies))
            return stored

        return self.store.database.run(work)

    def complete(self, source: str) -> bool:
        """Answer from here from now on, if nothing is missing; return whether that is so."""

        def work(connection: Connection) -> None:
            with connection.transaction():
                source_id = _source_id(connection, source)
                # Waits for those that add files: what they add is missing then.
                statement = b"SELECT FROM voxtier_search.source WHERE source_id = %s FOR UPDATE"
                connection.execute(statement, (source_id,))
                connection.execute(_COMPLETE.encode(), {"source_id": source_id})

        self.store.database.run(work)
        return self.is_complete(source)


def _schema() -> str:
    return resources.files(__package__).joinpath("search_index.sql").read_text("utf-8")


def _source_id(connection: Connection, source: str) -> int:
    row = connection.execute(b"SELECT source_id FROM voxtier.source WHERE name = %s", (source,)).fetchone()
    if row is None:
        raise ConfigError(f"the index has no source {source!r}")
    return int(row[0])
