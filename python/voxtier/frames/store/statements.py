"""The statements of the frame index. Names come from the core's list of columns alone; values are bound."""

from __future__ import annotations

from zlib import crc32

from voxtier._core import ENVIRONMENT_KINDS, PARSER_VERSION, ROW_COLUMNS

_columns = ", ".join(name for name, _, _ in ROW_COLUMNS)

# The last access in µs since 1970. Infinity has none, and the last years that PostgreSQL knows overflow int8.
_LAST_USED_US = (
    "CASE WHEN isfinite({0}.last_used_at) "
    "THEN least(date_part('epoch', {0}.last_used_at) * 1e6, 9e18)::int8 END"
).format

# A row for `_core.decode_rows`; the second form adds the last access.
ROW = f"ROW({', '.join(f'f.{name}' for name, _, _ in ROW_COLUMNS)})"
_ROW_AND_ACCESS = f"{ROW[:-1]}, {_LAST_USED_US('s')})"

# For statements that bind `source`, a name.
SOURCE_ID = "(SELECT source_id FROM voxtier.source WHERE name = %(source)s)"

ADD_SOURCE = """
INSERT INTO voxtier.source (name)
SELECT %(name)s WHERE NOT EXISTS (SELECT FROM voxtier.source WHERE name = %(name)s)
ON CONFLICT DO NOTHING
"""

# Until the transaction ends, nobody else adds a source of that name in any case. It comes before the question
# whether there is one.
LOCK_NAME = "SELECT pg_advisory_xact_lock(1987541347, hashtext(lower(%(name)s)))"

# First key of the advisory locks on the groups of a source's rows; the second is of the source's name.
_GROUPS_LOCK = 1987541346


def lock_groups(source: str, *, exclusive: bool = False) -> str:
    """Return the statement that keeps the groups of a source's rows in order until the transaction ends.

    Who writes rows shares it, who changes groups has it alone: else each would miss the rows of the other
    that are not committed yet. It comes before the statement that computes groups, which would not see what
    was committed while it waited, and before any lock of a row. The transaction is READ COMMITTED, as those
    of `Connection` are: in any other no later statement would see it either.
    """
    of_name = crc32(source.encode()) - 2**31
    return f"SELECT pg_advisory_xact_lock{'' if exclusive else '_shared'}({_GROUPS_LOCK}, {of_name})"


def own_groups(row: str) -> str:
    """Return the query for the groups of a row that no rule gave it; what rules gave was for its instance."""
    by_rule = f"voxtier.groups_by_rule({row}.source_id, {row}.path, {row}.sop_instance_uid)"
    return f"SELECT unnest({row}.allowed_groups) EXCEPT SELECT unnest({by_rule})"


# A temporary table outlives its transaction, and behind a pooler its client: it is named by its columns, so
# that another version of voxtier does not meet it.
_STAGING = f"voxtier_staging_{crc32(_columns.encode()):08x}"

# `synchronous_commit` is left as the server has it: a run reports files once the commit has waited for the
# disk, and for standbys where that is wanted.
STAGE = f"""
SET LOCAL client_min_messages = warning;
SET LOCAL work_mem = '64MB';
CREATE TEMP TABLE IF NOT EXISTS {_STAGING} (
    {", ".join(f"{name} {sql_type}" for name, sql_type, _ in ROW_COLUMNS)}
) ON COMMIT DELETE ROWS
"""

COPY = f"COPY pg_temp.{_STAGING} ({_columns}) FROM STDIN (FORMAT binary)"

# Whether not the file but its surroundings failed: such a row says nothing of the file.
_kinds = ", ".join(f"'{kind}'" for kind in ENVIRONMENT_KINDS)
_SAYS_NOTHING = f"coalesce({{0}}, '') IN ({_kinds})".format

# Sorted, so that batches that meet take their locks in one order; of two rows of one file the later counts,
# unless it says nothing. A new row is for the groups that a claim names for its file and those of the rules;
# what the rules gave a claim was for the instance that it names, which the file may not hold. A file that
# holds another instance than before gets the groups of the new one, where any are named. A refusal without
# UIDs, from one who did not look for them, takes none away.
_INSERT = f"""
WITH merged AS (
    INSERT INTO voxtier.file AS f (source_id, inserted_at, allowed_groups, {_columns})
    SELECT DISTINCT ON (key) {SOURCE_ID}, statement_timestamp(),
        coalesce(CASE WHEN EXISTS (SELECT FROM voxtier.claim) THEN (
                SELECT CASE WHEN NOT EXISTS (SELECT FROM voxtier.access_rule) THEN c.allowed_groups ELSE
                    ARRAY({own_groups("c")}
                    UNION SELECT unnest(
                        voxtier.groups_by_rule(c.source_id, given.path, given.sop_instance_uid))) END
                FROM voxtier.claim AS c WHERE c.key = given.key AND c.allowed_groups IS NOT NULL) END,
            CASE WHEN EXISTS (SELECT FROM voxtier.access_rule) THEN
                voxtier.groups_by_rule({SOURCE_ID}, path, sop_instance_uid) END),
        {_columns}
    FROM pg_temp.{_STAGING} AS given
    ORDER BY key, {_SAYS_NOTHING("error_kind")}, ctid DESC
"""
_COUNTS = """
    RETURNING xmax = 0 AS is_new
)
SELECT count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new) FROM merged
"""
# What a reader found at a path may be a copy of, or a link to, an instance that only some groups see under
# the name that it has in the index: a row of its own would show it to everybody. A row of an older instance
# stays, as it says nothing of the file that is there now.
LEAVE_OUT_COPIES = f"""
DELETE FROM pg_temp.{_STAGING} AS given
WHERE EXISTS (
    SELECT FROM voxtier.file AS f WHERE f.source_id = {SOURCE_ID} AND f.key <> given.key
        AND hashtextextended(f.sop_instance_uid, 0) = hashtextextended(given.sop_instance_uid, 0)
        AND f.sop_instance_uid = given.sop_instance_uid AND f.allowed_groups IS NOT NULL
) AND NOT EXISTS (
    SELECT FROM voxtier.file AS f WHERE f.key = given.key AND f.sop_instance_uid = given.sop_instance_uid)
"""
# A fifth less work; it fails where another run was faster with one of the files.
INSERT = _INSERT + _COUNTS
# An expired key, a broken disk or a file that is gone takes nothing away: what was read stays, with the state
# in which it was read, so that the next run reads a file that has changed.
MERGE = (
    _INSERT
    + f"""
    ON CONFLICT (key) DO UPDATE SET
        ({_columns}) = ROW({", ".join(f"excluded.{name}" for name, _, _ in ROW_COLUMNS)}),
        inserted_at = CASE
            WHEN (f.size, f.mtime_ns, f.etag)
                IS DISTINCT FROM (excluded.size, excluded.mtime_ns, excluded.etag)
            THEN excluded.inserted_at ELSE f.inserted_at END,
        allowed_groups = CASE
            WHEN f.sop_instance_uid IS DISTINCT FROM excluded.sop_instance_uid
            THEN coalesce(excluded.allowed_groups, f.allowed_groups) ELSE f.allowed_groups END
    WHERE (NOT {_SAYS_NOTHING("excluded.error_kind")} OR {_SAYS_NOTHING("f.error_kind")}) AND (%(force)s
        OR (f.size, f.mtime_ns, f.ctime_ns, f.inode, f.etag, f.parser_version, f.status, f.verified,
            f.error_kind)
        IS DISTINCT FROM (excluded.size, excluded.mtime_ns, excluded.ctime_ns, excluded.inode, excluded.etag,
            excluded.parser_version, excluded.status, excluded.verified, excluded.error_kind)
        OR f.frames IS DISTINCT FROM excluded.frames
        OR f.error_kind IS NOT NULL AND f.sop_instance_uid IS DISTINCT FROM excluded.sop_instance_uid
            AND excluded.sop_instance_uid IS NOT NULL)
"""
    + _COUNTS
)

# As one value, which the core takes apart: a tuple of Python a row would take longer than the look-up.
FILE_STATES = """
SELECT string_agg(record_send(ROW(f.path, f.size, f.mtime_ns, f.ctime_ns, f.inode, f.etag, f.parser_version,
    f.error_kind, f.frame_count, f.truncated_from)), ''::bytea)
FROM unnest(%s::uuid[]) AS given (key) JOIN voxtier.file AS f USING (key)
"""

# In the name of a user's groups, until the transaction ends.
SET_GROUPS = "SELECT set_config('voxtier.groups', %s::text[]::text, true)"
MAY_READ = "SELECT voxtier.groups_may_read(%(key)s, %(source)s, %(path)s, %(sop)s, %(groups)s::text[])"
# Not for one file: see `GET_MANY`.
MAY_READ_EACH = """
SELECT number, voxtier.groups_may_read(key, %(source)s, path, sop, %(groups)s::text[])
FROM unnest(%(numbers)s::int[], %(keys)s::uuid[], %(paths)s::text[], %(sops)s::text[])
    AS given (number, key, path, sop)
"""

# Whether paths are named by which groups may see what lies there, whatever instance it is.
NAMES_PATHS = """
SELECT EXISTS (SELECT FROM voxtier.access_rule)
    OR EXISTS (SELECT FROM voxtier.claim WHERE allowed_groups IS NOT NULL)
"""

# Groups that another index or table had for files, indexed or not; rules of this index come first.
RESTRICT = (
    """
INSERT INTO voxtier.claim AS c (key, source_id, path, inserted_at, allowed_groups)
SELECT key, source_id, path, clock_timestamp(), ARRAY(SELECT jsonb_array_elements_text(groups::jsonb))
FROM unnest(%(keys)s::uuid[], %(paths)s::text[], %(groups)s::text[]) AS given (key, path, groups),
    voxtier.source
WHERE name = %(source)s AND voxtier.groups_by_rule(source_id, path, NULL) IS NULL
ORDER BY key
ON CONFLICT (key) DO UPDATE SET allowed_groups = excluded.allowed_groups
""",
    """
UPDATE voxtier.file AS f SET allowed_groups = ARRAY(SELECT jsonb_array_elements_text(groups::jsonb))
FROM unnest(%(keys)s::uuid[], %(groups)s::text[]) AS given (key, groups)
WHERE f.key = given.key AND voxtier.groups_by_rule(f.source_id, f.path, f.sop_instance_uid) IS NULL
    AND f.allowed_groups IS DISTINCT FROM ARRAY(SELECT jsonb_array_elements_text(groups::jsonb))
""",
)

GET = f"SELECT {ROW} FROM voxtier.file AS f WHERE f.key = %(key)s"
# Not for one key: PostgreSQL plans a prepared statement with an array at each execution.
GET_MANY = f"SELECT {ROW} FROM voxtier.file AS f WHERE f.key = ANY(%s)"

# The last access too: a file that comes back into memory soon after it left counts once.
RECALL = f"""
SELECT {_ROW_AND_ACCESS}
FROM voxtier.file AS f LEFT JOIN voxtier.file_stats AS s USING (key) WHERE f.key = %(key)s
"""

# The same, then the other files of its series within two limits, those behind it in the order of paths first.
RECALL_SERIES = f"""
WITH asked AS (SELECT key, source_id, path, series_instance_uid FROM voxtier.file WHERE key = %(key)s),
others AS (
    SELECT f.key, f.path <= asked.path AS before,
        sum(octet_length(f.frames)) OVER (ORDER BY f.path <= asked.path, f.path) AS bytes
    FROM asked JOIN voxtier.file AS f ON f.source_id = asked.source_id AND f.key <> asked.key
        AND hashtextextended(f.series_instance_uid, 0) = hashtextextended(asked.series_instance_uid, 0)
        AND f.series_instance_uid = asked.series_instance_uid
    WHERE f.frame_count > 0
    ORDER BY f.path <= asked.path, f.path LIMIT %(most)s
), wanted AS (
    SELECT key, 0 AS place FROM asked
    UNION ALL SELECT key, CASE WHEN before THEN 2 ELSE 1 END FROM others WHERE bytes <= %(bytes)s
)
SELECT {_ROW_AND_ACCESS}
FROM wanted JOIN voxtier.file AS f USING (key) LEFT JOIN voxtier.file_stats AS s USING (key)
ORDER BY place, f.path
"""

SLIDE_MAPS = """
SELECT f.path, m.map FROM voxtier.slide_map AS m JOIN voxtier.file AS f USING (key) WHERE m.key = ANY(%s)
"""
# Of files that have a row: what is kept goes with it. In the order of keys, as all writes.
KEEP_SLIDE_MAPS = """
INSERT INTO voxtier.slide_map AS m (key, map)
SELECT given.key, given.map
FROM unnest(%s::uuid[], %s::bytea[]) AS given (key, map) JOIN voxtier.file AS f USING (key)
ORDER BY given.key FOR KEY SHARE OF f
ON CONFLICT (key) DO UPDATE SET map = excluded.map
RETURNING key
"""

_BY_UID = f"""
SELECT source.name, {ROW}
FROM voxtier.file AS f JOIN voxtier.source USING (source_id)
WHERE hashtextextended(f.COLUMN, 0) = hashtextextended(%(uid)s, 0) AND f.COLUMN = %(uid)s
    AND (%(source)s::text IS NULL OR source.name = %(source)s)
ORDER BY f.path, source.name
"""
BY_SOP_INSTANCE = _BY_UID.replace("COLUMN", "sop_instance_uid")
BY_SERIES = _BY_UID.replace("COLUMN", "series_instance_uid")

SOURCES = "SELECT name FROM voxtier.source ORDER BY name"
SOURCES_IN_ANY_CASE = "SELECT name FROM voxtier.source WHERE lower(name) = lower(%s) ORDER BY name"

SUMMARY = f"""
SELECT
    CASE grouping(status, kind, transfer_syntax_uid, method)
        WHEN 7 THEN 'status' WHEN 11 THEN 'kind' WHEN 13 THEN 'transfer_syntax_uid' WHEN 14 THEN 'method'
        ELSE '' END,
    coalesce(status::text, kind::text, transfer_syntax_uid, method::text, ''),
    count(*), coalesce(sum(frame_count), 0)::bigint, coalesce(sum(size), 0)::bigint,
    coalesce(sum(octet_length(frames)), 0)::bigint
FROM voxtier.file
WHERE source_id = {SOURCE_ID}
GROUP BY GROUPING SETS ((), (status), (kind), (transfer_syntax_uid), (method))
ORDER BY 1, 3 DESC, 2
"""

REFUSED_FILES = f"""
SELECT f.path, f.error_kind, f.error_offset, f.error_detail FROM voxtier.file AS f
WHERE f.source_id = {SOURCE_ID} AND f.error_kind IS NOT NULL AND f.path > %(after)s
ORDER BY f.path LIMIT %(limit)s
"""

TRUNCATED_FILES = f"""
SELECT f.path, f.truncated_from, f.frame_count FROM voxtier.file AS f
WHERE f.source_id = {SOURCE_ID} AND f.status = 'truncated' AND f.path > %(after)s
ORDER BY f.path LIMIT %(limit)s
"""

# With each path the transaction that wrote its row last.
PATHS = f"""
SELECT f.key, f.path, f.xmin::text FROM voxtier.file AS f
WHERE f.source_id = {SOURCE_ID} AND f.key > %(after)s::uuid
    AND (%(under)s::text[] IS NULL OR EXISTS (
        SELECT FROM unnest(%(under)s::text[]) AS root
        WHERE f.path = root OR starts_with(f.path, rtrim(root, '/') || '/')))
ORDER BY f.key LIMIT %(limit)s
"""

ALL_ROWS = f"""
SELECT f.key, {ROW}, f.allowed_groups FROM voxtier.file AS f
WHERE f.source_id = {SOURCE_ID} AND f.key > %(after)s::uuid
ORDER BY f.key LIMIT %(limit)s
"""

# Times of the lists are for `adapters.sent_times`.

# Files that can be ranked: of one source, with frames, seen by the groups of the transaction.
_RANKABLE = f"""
    f.frame_count > 0 AND ((SELECT voxtier.sees_all()) OR voxtier.may_see(f.allowed_groups))
    AND f.source_id = {SOURCE_ID}
    AND (NOT %(has_ranges)s OR (f.offsets_in = 'file' AND coalesce(f.truncated_from, 1) > 0))
"""
_RANKED_COLUMNS = "f.path, f.frame_count, f.transfer_syntax_uid"

# The best files of a source by ``score``; its last bits differ from those of the core.
RANKED = f"""
SELECT {_RANKED_COLUMNS}, timestamptz_send(s.last_used_at), timestamptz_send(f.inserted_at),
    coalesce(s.access_count, 0), coalesce(octet_length(f.frames), 0)
FROM voxtier.file AS f LEFT JOIN voxtier.file_stats AS s USING (key)
WHERE {_RANKABLE}
ORDER BY {{score}} DESC NULLS LAST, f.path COLLATE "C" LIMIT %(limit)s
"""

# Few rows pass the comparisons of plain columns: see `voxtier.frames.memory.bounds`. A file without
# statistics was never used, and passes by its insertion or not at all.
_PASSING = f"""(
    SELECT {{columns}}, f.inserted_at, s.last_used_at, s.access_count
    FROM voxtier.file_stats AS s JOIN voxtier.file AS f USING (key)
    WHERE ({{{{used}}}}) AND f.inserted_at < to_timestamp(%(inserted_since)s) AND {_RANKABLE}
    UNION ALL
    SELECT {{columns}}, f.inserted_at, s.last_used_at, coalesce(s.access_count, 0)
    FROM voxtier.file AS f LEFT JOIN voxtier.file_stats AS s USING (key)
    WHERE f.inserted_at >= to_timestamp(%(inserted_since)s) AND {_RANKABLE}
) AS f"""

# All files of a source whose ``score`` reaches a threshold, in no order.
RANKED_ABOVE = f"""
SELECT {_RANKED_COLUMNS}, timestamptz_send(f.last_used_at), timestamptz_send(f.inserted_at),
    f.access_count, coalesce(octet_length(f.frames), 0)
FROM {_PASSING.format(columns=f"{_RANKED_COLUMNS}, f.frames")}
WHERE {{score}} >= %(threshold)s
"""

FILE_PAGES = "SELECT pg_relation_size('voxtier.file') / current_setting('block_size')::int"
# What the files in some pages score by. LATERAL: each looked up, as they are few.
RANKED_SAMPLE = f"""
SELECT timestamptz_send(s.last_used_at), timestamptz_send(f.inserted_at), coalesce(s.access_count, 0)
FROM voxtier.file AS f TABLESAMPLE SYSTEM (%(percent)s::float4) REPEATABLE (1)
LEFT JOIN LATERAL (SELECT * FROM voxtier.file_stats AS s WHERE s.key = f.key OFFSET 0) AS s ON true
WHERE {_RANKABLE}
"""

# Rows of the best files for memory, NULL where it keeps no value; of all files, of those whose score reaches
# a threshold, or of the rest.
_IN_MEMORY = ", ".join(f"f.{name}" if kept else "NULL" for name, _, kept in ROW_COLUMNS)
_BEST_FIRST = 'ORDER BY {score} DESC NULLS LAST, f.path COLLATE "C" LIMIT %(limit)s'
PRELOAD = f"""
COPY (
    SELECT {_IN_MEMORY}, {_LAST_USED_US("s")}
    FROM voxtier.file AS f LEFT JOIN voxtier.file_stats AS s USING (key)
    WHERE f.frame_count > 0 AND f.source_id = {SOURCE_ID}
        AND f.parser_version = {PARSER_VERSION} AND {{rest}}
    {_BEST_FIRST}
) TO STDOUT (FORMAT binary)
"""
PRELOAD_ABOVE = f"""
COPY (
    SELECT {_IN_MEMORY}, {_LAST_USED_US("f")}
    FROM {_PASSING.format(columns=", ".join(f"f.{name}" for name, _, _ in ROW_COLUMNS))}
    WHERE {{score}} >= %(threshold)s AND f.parser_version = {PARSER_VERSION}
    {_BEST_FIRST}
) TO STDOUT (FORMAT binary)
"""

# Statistics are inserted at the first touch, in the order of the keys, so that flushes never deadlock.
TOUCH = """
WITH given AS (
    SELECT key, sum(n)::bigint AS n, max(at) AS at
    FROM unnest(%s::uuid[], %s::bigint[], %s::timestamptz[]) AS given (key, n, at)
    GROUP BY key
)
INSERT INTO voxtier.file_stats AS s (key, last_used_at, access_count)
SELECT key, least(given.at, clock_timestamp()), n FROM given
WHERE EXISTS (SELECT FROM voxtier.file AS f WHERE f.key = given.key)
ORDER BY key
ON CONFLICT (key) DO UPDATE SET
    access_count = s.access_count + excluded.access_count,
    last_used_at = greatest(s.last_used_at, excluded.last_used_at)
RETURNING key
"""

# Of a row that was last written by a given transaction, or by any where that is NULL. Groups that no rule
# gave stay behind as a claim of the path alone: the file may come back, and must not be open to everyone
# then; with any instance, so that what a condition found for the one that is gone does not stay.
DELETE = f"""
WITH locked AS (
    SELECT f.key FROM voxtier.file AS f
    JOIN unnest(%s::uuid[], %s::text[], %s::text[]) AS given (key, path, writer) USING (key)
    WHERE f.path = given.path AND (given.writer IS NULL OR f.xmin::text = given.writer)
    ORDER BY f.key FOR UPDATE OF f
), gone AS (
    DELETE FROM voxtier.file AS f USING locked WHERE f.key = locked.key
    RETURNING f.key, f.source_id, f.path, f.sop_instance_uid, f.allowed_groups
), kept AS (
    SELECT key, source_id, path,
        CASE WHEN by_path IS NULL THEN groups ELSE ARRAY(SELECT unnest(own) UNION SELECT unnest(by_path)) END
            AS groups
    FROM (
        SELECT gone.key, gone.source_id, gone.path, ARRAY({own_groups("gone")}) AS own,
            coalesce(gone.allowed_groups, c.allowed_groups) AS groups,
            voxtier.groups_by_rule(gone.source_id, gone.path, NULL) AS by_path
        FROM gone LEFT JOIN voxtier.claim AS c USING (key)
    ) AS known WHERE CASE WHEN by_path IS NULL THEN groups IS NOT NULL ELSE own <> '{{}}' END
), swept AS (
    DELETE FROM voxtier.file_stats AS s USING gone WHERE s.key = gone.key
), unclaimed AS (
    DELETE FROM voxtier.claim AS c USING gone
    WHERE c.key = gone.key AND NOT EXISTS (SELECT FROM kept WHERE kept.key = c.key)
), unframed AS (
    DELETE FROM voxtier.claimed_frame AS r USING kept WHERE r.key = kept.key
), claimed AS (
    INSERT INTO voxtier.claim AS c (key, source_id, path, inserted_at, allowed_groups)
    SELECT key, source_id, path, clock_timestamp(), groups FROM kept ORDER BY key
    ON CONFLICT (key) DO UPDATE SET allowed_groups = excluded.allowed_groups,
        (transfer_syntax_uid, sop_instance_uid, series_instance_uid, study_instance_uid, num_frames)
        = ROW(NULL, NULL, NULL, NULL, NULL)
)
SELECT count(*) FROM gone
"""
