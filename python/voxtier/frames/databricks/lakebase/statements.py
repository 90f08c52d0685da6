"""The SQL of the Lakebase interface; values are bound parameters."""

from __future__ import annotations

from voxtier.frames.store.statements import ROW, SOURCE_ID, own_groups

# Which rows a user may see: tested here too, as row security does not bind the owner.
_SEES_F, _SEES_C = (
    f"((SELECT voxtier.sees_all()) OR voxtier.may_see({table}.allowed_groups))" for table in ("f", "c")
)

# Files that the index has read take precedence over inserted rows of the same file, for groups too that may
# not see what was read; a role that row security binds does not know of it here.
_UNREAD = "NOT EXISTS (SELECT FROM voxtier.file AS g WHERE g.key = {0}.key AND g.error_kind IS NULL)".format

TABLES = f"""
SELECT {ROW} FROM voxtier.file AS f
WHERE f.key = ANY(%(keys)s) AND {_SEES_F}
"""

CLAIMED_FRAMES = f"""
SELECT c.path, c.transfer_syntax_uid, s.frame, s.start_pos, s.end_pos, s.pixel_data_pos
FROM voxtier.claim AS c JOIN voxtier.claimed_frame AS s USING (key)
WHERE c.key = ANY(%(keys)s) AND {_SEES_C} AND {_UNREAD("c")}
ORDER BY c.key, s.frame
"""

# A claim of another instance than before keeps what no rule gave it, and gets the groups of the new one.
CLAIM = f"""
INSERT INTO voxtier.claim AS c (key, source_id, path, inserted_at, transfer_syntax_uid, sop_instance_uid,
    series_instance_uid, study_instance_uid, num_frames, allowed_groups)
SELECT key, {SOURCE_ID}, path, clock_timestamp(), syntax, sop, series, study, frames,
    CASE WHEN %(groups)s::text[] IS NULL THEN voxtier.groups_by_rule({SOURCE_ID}, path, sop)
        ELSE ARRAY(SELECT DISTINCT unnest(
            voxtier.groups_by_rule({SOURCE_ID}, path, sop) || %(groups)s::text[])) END
FROM unnest(%(keys)s::uuid[], %(paths)s::text[], %(syntaxes)s::text[], %(sops)s::text[], %(series)s::text[],
    %(studies)s::text[], %(frames)s::int[]) AS given (key, path, syntax, sop, series, study, frames)
ORDER BY key
ON CONFLICT (key) DO UPDATE SET
    transfer_syntax_uid = coalesce(excluded.transfer_syntax_uid, c.transfer_syntax_uid),
    sop_instance_uid = coalesce(excluded.sop_instance_uid, c.sop_instance_uid),
    series_instance_uid = coalesce(excluded.series_instance_uid, c.series_instance_uid),
    study_instance_uid = coalesce(excluded.study_instance_uid, c.study_instance_uid),
    num_frames = coalesce(excluded.num_frames, c.num_frames),
    allowed_groups = CASE
        WHEN excluded.sop_instance_uid IS NOT NULL
            AND excluded.sop_instance_uid IS DISTINCT FROM c.sop_instance_uid
            AND voxtier.groups_by_rule(c.source_id, c.path, NULL) IS NOT NULL
        THEN ARRAY({own_groups("c")} UNION SELECT unnest(excluded.allowed_groups))
        WHEN %(groups)s::text[] IS NULL THEN c.allowed_groups
        ELSE ARRAY(SELECT DISTINCT unnest(c.allowed_groups || %(groups)s::text[])) END
"""
# Whether a table has rules in force, and the source of another name that is made of it never had any.
IS_LEFT_OPEN = """
WITH rule AS (SELECT name, in_force FROM voxtier.access_rule JOIN voxtier.source USING (source_id))
SELECT EXISTS (SELECT FROM rule WHERE lower(name) = lower(%(table)s) AND in_force)
    AND NOT EXISTS (SELECT FROM rule WHERE lower(name) = lower(%(source)s))
"""
# The rows that the index has of the same files: what everyone saw is now for the groups of the claim.
CLAIM_FILES = """
UPDATE voxtier.file AS f SET allowed_groups = CASE WHEN f.allowed_groups IS NULL THEN c.allowed_groups
    ELSE ARRAY(SELECT DISTINCT unnest(f.allowed_groups || %(groups)s::text[])) END
FROM voxtier.claim AS c
WHERE f.key = ANY(%(keys)s) AND c.key = f.key AND c.allowed_groups IS NOT NULL
    AND (f.allowed_groups IS NULL OR NOT f.allowed_groups @> %(groups)s::text[])
"""

CLAIM_FRAMES = """
INSERT INTO voxtier.claimed_frame AS s (key, frame, start_pos, end_pos, pixel_data_pos)
SELECT %(key)s, frame, start_pos, end_pos, pixel_data_pos
FROM unnest(%(frames)s::int[], %(starts)s::bigint[], %(ends)s::bigint[], %(pixels)s::bigint[])
    AS given (frame, start_pos, end_pos, pixel_data_pos)
ORDER BY frame
ON CONFLICT (key, frame) DO UPDATE SET
    (start_pos, end_pos, pixel_data_pos) = ROW(excluded.start_pos, excluded.end_pos, excluded.pixel_data_pos)
"""

TOUCH = f"""
INSERT INTO voxtier.file_stats AS s (key, last_used_at, access_count)
SELECT key, clock_timestamp(), 1 FROM (
    SELECT f.key FROM voxtier.file AS f WHERE f.key = ANY(%(keys)s) AND {_SEES_F}
    UNION
    SELECT c.key FROM voxtier.claim AS c WHERE c.key = ANY(%(keys)s) AND {_SEES_C} AND {_UNREAD("c")}
) AS seen
ORDER BY key
ON CONFLICT (key) DO UPDATE SET
    access_count = s.access_count + 1, last_used_at = greatest(s.last_used_at, excluded.last_used_at)
RETURNING key
"""

_INSTANCES = f"""
SELECT * FROM (
    SELECT f.key, f.path, f.study_instance_uid, f.series_instance_uid, f.sop_instance_uid, f.frame_count
    FROM voxtier.file AS f
    WHERE f.source_id = {SOURCE_ID} AND f.error_kind IS NULL AND f.sop_instance_uid IS NOT NULL AND {_SEES_F}
        AND {{of_file}}
    UNION ALL
    SELECT f.key, f.path, f.study_instance_uid, f.series_instance_uid, f.sop_instance_uid,
        coalesce(f.num_frames, 1)
    FROM voxtier.claim AS f
    WHERE f.source_id = {SOURCE_ID} AND f.sop_instance_uid IS NOT NULL AND {_SEES_F}
        AND {_UNREAD("f")} AND {{of_file}}
) AS instance
"""
_same = "hashtextextended(f.{0}, 0) = hashtextextended(%({1})s, 0) AND f.{0} = %({1})s".format
_IS_INSTANCE = (
    _same("sop_instance_uid", "sop")
    + " AND (%(study)s::text IS NULL OR f.study_instance_uid = %(study)s)"
    + " AND (%(series)s::text IS NULL OR f.series_instance_uid = %(series)s)"
)
_IS_SERIES = (
    _same("series_instance_uid", "series")
    + " AND (%(study)s::text IS NULL OR f.study_instance_uid = %(study)s)"
)
INSTANCE = _INSTANCES.format(of_file=_IS_INSTANCE) + "ORDER BY path"
SERIES = _INSTANCES.format(of_file=_IS_SERIES) + "ORDER BY path"
BY_PATH = _INSTANCES.format(of_file="f.key = ANY(%(keys)s)") + "ORDER BY path"
RECENT = (
    _INSTANCES.format(of_file="true")
    + "LEFT JOIN voxtier.file_stats AS s USING (key) "
    + "ORDER BY s.last_used_at DESC NULLS LAST, path LIMIT %(limit)s"
)

ADD_METRIC = "INSERT INTO voxtier.metric (source, metrics) VALUES (%s, %s::jsonb)"
LATEST_METRICS = """
SELECT m.source, m.recorded_at, m.metrics FROM voxtier.metric AS m
WHERE %(source)s::text IS NULL OR m.source = %(source)s
ORDER BY m.metric_id DESC LIMIT %(limit)s
"""

USER_GROUPS = "SELECT groups FROM voxtier.user_groups WHERE user_name = %s"
SYNC_USER_GROUPS = """
WITH given AS (SELECT * FROM jsonb_each(%(users)s::jsonb)),
gone AS (DELETE FROM voxtier.user_groups AS u WHERE NOT EXISTS (SELECT FROM given WHERE key = u.user_name))
INSERT INTO voxtier.user_groups (user_name, groups, synced_at)
SELECT key, ARRAY(SELECT jsonb_array_elements_text(value)), clock_timestamp() FROM given
ON CONFLICT (user_name) DO UPDATE SET groups = excluded.groups, synced_at = excluded.synced_at
"""

ADD_RULE = f"""
INSERT INTO voxtier.access_rule AS r
    (source_id, path_prefix, group_name, access_type, uc_filter_sql, description)
VALUES ({SOURCE_ID}, %(prefix)s, %(group)s, %(type)s, %(filter)s, %(description)s)
ON CONFLICT (source_id, path_prefix, group_name) DO UPDATE SET
    (access_type, uc_filter_sql, description, in_force)
    = ROW(excluded.access_type, excluded.uc_filter_sql, excluded.description, true)
"""
# What an older condition found says nothing of another one.
FORGET_OTHER_CONDITION = f"""
DELETE FROM voxtier.rule_instance AS found USING voxtier.access_rule AS r
WHERE found.rule_id = r.rule_id AND r.source_id = {SOURCE_ID} AND r.path_prefix = %(prefix)s
    AND r.group_name = %(group)s AND r.uc_filter_sql IS DISTINCT FROM %(filter)s::text
"""
FORGET_INSTANCES = "DELETE FROM voxtier.rule_instance WHERE rule_id = %(rule)s"
ADD_INSTANCES = """
INSERT INTO voxtier.rule_instance (rule_id, sop_instance_uid)
SELECT DISTINCT %(rule)s::bigint, uid FROM unnest(%(uids)s::text[]) AS uid
"""
RULES = f"""
SELECT rule_id, group_name, access_type, uc_filter_sql, description, path_prefix, in_force
FROM voxtier.access_rule WHERE source_id = {SOURCE_ID} ORDER BY rule_id
"""
# With each rule the transaction that wrote it last.
CONDITIONS = f"""
SELECT rule_id, xmin::text, group_name, uc_filter_sql
FROM voxtier.access_rule WHERE source_id = {SOURCE_ID} AND access_type = 'conditional' ORDER BY rule_id
"""
SET_IN_FORCE = f"UPDATE voxtier.access_rule SET in_force = %(in_force)s WHERE source_id = {SOURCE_ID}"
DROP_RULES = f"DELETE FROM voxtier.access_rule WHERE source_id = {SOURCE_ID}"
_BY_RULE = "voxtier.groups_by_rule(f.source_id, f.path, f.sop_instance_uid)"


def _changed(groups: str) -> str:
    """Return a statement that gives files their groups, and returns how many it changed.

    One that is indexed and claimed has two rows.
    """
    files, claims = (
        f"""
    UPDATE voxtier.{table} AS f SET allowed_groups = {groups}
    WHERE f.source_id = {SOURCE_ID} AND starts_with(f.path, %(prefix)s)
        AND f.allowed_groups IS DISTINCT FROM {groups}
    RETURNING f.key"""
        for table in ("file", "claim")
    )
    return f"""
WITH files AS ({files}
), claims AS ({claims}
)
SELECT count(*) FROM (SELECT key FROM files UNION SELECT key FROM claims) AS changed
"""


# Where no rule fits, what a writer or an import named stays.
APPLY_RULES = _changed(f"coalesce({_BY_RULE}, f.allowed_groups)")
# Before the rules go: what they did not give stays.
LIFT_RULES = _changed(
    f"CASE WHEN {_BY_RULE} IS NULL THEN f.allowed_groups ELSE nullif(ARRAY({own_groups('f')}), '{{}}') END"
)
OPEN = _changed("NULL")
