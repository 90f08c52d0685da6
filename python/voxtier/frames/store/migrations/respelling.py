"""One spelling of paths: what earlier versions kept in another is found and guarded in that of the index.

A step of the migrations and no SQL, so that `as_indexed` stays the one rule of spelling. Where what was kept
apart meets under one path, the stricter groups hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from voxtier._core import file_key, local_path, path_fault
from voxtier.frames.sources.address import as_indexed, is_address, prefix_as_indexed
from voxtier.postgres.connection import Connection

__all__ = ["respell"]

_BATCH = 5000

_LOCK = "LOCK TABLE voxtier.access_rule, voxtier.claim, voxtier.file IN SHARE ROW EXCLUSIVE MODE"

_RULES = """
SELECT rule_id, source_id, path_prefix, group_name, uc_filter_sql, in_force
FROM voxtier.access_rule ORDER BY rule_id
"""
_KEEP_COMMON_INSTANCES = """
DELETE FROM voxtier.rule_instance AS i WHERE i.rule_id = %(kept)s AND EXISTS (
    SELECT FROM unnest(%(others)s::bigint[]) AS other (rule_id) WHERE NOT EXISTS (
        SELECT FROM voxtier.rule_instance AS o
        WHERE o.rule_id = other.rule_id AND o.sop_instance_uid = i.sop_instance_uid))
"""
_DROP_RULES = "DELETE FROM voxtier.access_rule WHERE rule_id = ANY(%s)"
_PUT_RULE = """
UPDATE voxtier.access_rule SET path_prefix = %(prefix)s, in_force = %(in_force)s, uc_filter_sql = %(filter)s,
    access_type = CASE WHEN %(filter)s::text IS NULL THEN 'full' ELSE 'conditional' END
WHERE rule_id = %(kept)s
"""
# A rule of a group that sees nothing: where rules are, those that they do not name see nothing either.
_ADD_NOBODY = """
INSERT INTO voxtier.access_rule
    (source_id, path_prefix, group_name, access_type, uc_filter_sql, description, in_force)
VALUES (%(source)s, %(prefix)s, %(group)s, 'conditional', 'false',
    'spellings of this path were for different groups: set rules again', %(in_force)s)
"""

# Paths that are certainly spelled right are not fetched: nearly all of 10^7.
_RIGHT = r"^((/[^/.][^/]*)+|(s3|gs|az|abfss?)://.*|https?://[a-z0-9.:-]+(/[A-Za-z0-9._~/-]*)?)$"
_OTHERS = f"""
SELECT t.key, source.name, t.path FROM (
    SELECT key, source_id, path FROM voxtier.file WHERE path !~ '{_RIGHT}'
    UNION ALL SELECT key, source_id, path FROM voxtier.claim WHERE path !~ '{_RIGHT}'
) AS t JOIN voxtier.source USING (source_id)
"""
_MEETING = "CREATE TEMP TABLE voxtier_meeting (key uuid PRIMARY KEY, new_key uuid, new_path text)"
_ADD = """
INSERT INTO voxtier_meeting SELECT * FROM unnest(%s::uuid[], %s::uuid[], %s::text[]) ON CONFLICT DO NOTHING
"""
# Beside them those that are spelled right. Then what each spelling says of a file, by its row or else its
# claim: the groups that all name which name any.
_PREPARE = """
INSERT INTO voxtier_meeting
SELECT DISTINCT new_key, new_key, new_path FROM voxtier_meeting ON CONFLICT DO NOTHING;
ANALYZE voxtier_meeting;
CREATE TEMP TABLE voxtier_said AS
WITH each AS (
    SELECT m.new_key, m.key, coalesce(f.allowed_groups, c.allowed_groups) AS allowed
    FROM voxtier_meeting AS m LEFT JOIN voxtier.file AS f USING (key) LEFT JOIN voxtier.claim AS c USING (key)
), counted AS (
    SELECT new_key, count(allowed) AS spellings FROM each GROUP BY new_key
), named AS (
    SELECT new_key, name, count(DISTINCT key) AS times FROM each, unnest(allowed) AS name
    GROUP BY new_key, name
)
SELECT new_key, CASE WHEN spellings > 0
    THEN coalesce(array_agg(name ORDER BY name) FILTER (WHERE times = spellings), '{}') END AS allowed
FROM counted LEFT JOIN named USING (new_key) GROUP BY new_key, spellings;
CREATE TEMP TABLE voxtier_moved AS
SELECT new_key AS key, max(last_used_at) AS last_used_at, sum(access_count)::bigint AS access_count
FROM voxtier.file_stats JOIN voxtier_meeting USING (key) GROUP BY new_key;
DELETE FROM voxtier.file_stats AS s USING voxtier_meeting AS m WHERE m.key = s.key;
INSERT INTO voxtier.file_stats (key, last_used_at, access_count)
SELECT key, last_used_at, access_count FROM voxtier_moved;
DROP TABLE voxtier_moved
"""
# Of rows that meet the best goes on. What refers to any of them goes, but for the frames of claims: searches
# and slides read headers again. Groups beyond those of the rules were given to the file itself.
_MOVE = """
CREATE TEMP TABLE voxtier_moved AS
SELECT DISTINCT ON (m.new_key) t.*, m.new_key, m.new_path
FROM voxtier_meeting AS m JOIN voxtier.{table} AS t USING (key)
ORDER BY m.new_key, {is_worse}, t.inserted_at DESC, t.key;
CREATE TEMP TABLE voxtier_frames AS
SELECT m.new_key, r.frame, r.start_pos, r.end_pos, r.pixel_data_pos
FROM voxtier.claimed_frame AS r JOIN voxtier_moved AS m USING (key);
DELETE FROM voxtier.{table} AS t USING voxtier_meeting AS m WHERE m.key = t.key;
UPDATE voxtier_moved AS t SET key = t.new_key, path = t.new_path, allowed_groups = said.allowed
FROM voxtier_said AS said WHERE said.new_key = t.new_key;
ALTER TABLE voxtier_moved DROP COLUMN new_key, DROP COLUMN new_path;
UPDATE voxtier_moved AS t SET allowed_groups = voxtier.groups_by_rule(t.source_id, t.path, t.sop_instance_uid)
WHERE voxtier.groups_by_rule(t.source_id, t.path, t.sop_instance_uid) IS NOT NULL
    AND t.allowed_groups @> voxtier.groups_by_rule(t.source_id, t.path, t.sop_instance_uid) IS NOT TRUE;
INSERT INTO voxtier.{table} SELECT * FROM voxtier_moved
"""
_MOVE_FILES = _MOVE.format(table="file", is_worse="t.error_kind IS NOT NULL")
_MOVE_CLAIMS = (
    _MOVE.format(
        table="claim", is_worse="NOT EXISTS (SELECT FROM voxtier.claimed_frame AS r WHERE r.key = t.key)"
    )
    + """;
INSERT INTO voxtier.claimed_frame (key, frame, start_pos, end_pos, pixel_data_pos) TABLE voxtier_frames
"""
)

# Of all that stands below a rule whose prefix has changed.
_APPLY = """
UPDATE voxtier.{table} AS f
SET allowed_groups = voxtier.groups_by_rule(f.source_id, f.path, f.sop_instance_uid)
FROM unnest(%s::int[], %s::text[]) AS named (source_id, prefix)
WHERE f.source_id = named.source_id AND starts_with(f.path, named.prefix)
    AND voxtier.groups_by_rule(f.source_id, f.path, f.sop_instance_uid) IS NOT NULL
    AND f.allowed_groups IS DISTINCT FROM voxtier.groups_by_rule(f.source_id, f.path, f.sop_instance_uid)
"""


class _Rule(NamedTuple):
    """A rule of one group; `filter` is the condition of a conditional one."""

    rule_id: int
    source_id: int
    prefix: str
    group: str
    filter: str | None
    in_force: bool


def respell(connection: Connection) -> None:
    """Give rules, rows and claims the spelling of the index, in the transaction of a migration."""
    connection.execute(_LOCK)
    changed = _respell_rules(connection)
    _respell_rows(connection)
    if changed:
        for table in ("file", "claim"):
            of_source, prefixes = map(list, zip(*changed, strict=True))
            connection.execute(_APPLY.format(table=table).encode(), (of_source, prefixes))


def _respell_rules(connection: Connection) -> list[tuple[int, str]]:
    """Respell rules, and return the sources and prefixes of those that changed."""
    meeting = defaultdict(list)
    for rule in map(_Rule._make, connection.execute(_RULES)):
        meeting[rule.source_id, prefix_as_indexed(rule.prefix)].append(rule)
    changed = [place for place, rules in meeting.items() if {rule.prefix for rule in rules} != {place[1]}]
    for place in changed:
        _join_rules(connection, place[1], meeting[place])
    return changed


def _join_rules(connection: Connection, prefix: str, rules: Sequence[_Rule]) -> None:
    """Leave of rules that meet in a prefix those of groups that all spellings name, or one for nobody."""
    of_group = defaultdict(list)
    for rule in rules:
        of_group[rule.group].append(rule)
    spellings = len({rule.prefix for rule in rules})
    common = [same for same in of_group.values() if len(same) == spellings]
    # A conditional rule, where there is one, has the instances that it found.
    kept = [min(same, key=lambda rule: rule.filter is None) for same in common]
    for rule, same in zip(kept, common, strict=True):
        others = [each.rule_id for each in same if each.filter is not None]
        connection.execute(_KEEP_COMMON_INSTANCES, {"kept": rule.rule_id, "others": others})
    dropped = {rule.rule_id for rule in rules} - {rule.rule_id for rule in kept}
    connection.execute(_DROP_RULES, (list(dropped),))
    put = {"prefix": prefix, "in_force": any(rule.in_force for rule in rules)}
    for rule, same in zip(kept, common, strict=True):
        connection.execute(_PUT_RULE, put | {"kept": rule.rule_id, "filter": _all_of(same)})
    if not kept:
        connection.execute(_ADD_NOBODY, put | {"source": rules[0].source_id, "group": rules[0].group})


def _all_of(rules: Sequence[_Rule]) -> str | None:
    """Return the condition that is true where those of all rules are; None where none has one."""
    conditions = list(dict.fromkeys(rule.filter for rule in rules if rule.filter is not None))
    if len(conditions) < 2:
        return conditions[0] if conditions else None
    return " AND ".join(f"(\n{each}\n)" for each in conditions)  # a condition may end in a comment


def _respell_rows(connection: Connection) -> None:
    connection.execute(_MEETING)
    found = False
    with connection.cursor("voxtier_others") as cursor:
        cursor.execute(_OTHERS.encode())
        while rows := cursor.fetchmany(_BATCH):
            moved = [(key, source, new) for key, source, path in rows if (new := _spelled(path)) != path]
            if moved:
                keys = [key for key, _, _ in moved]
                new_keys = [UUID(bytes=file_key(source, path)) for _, source, path in moved]
                connection.execute(_ADD, (keys, new_keys, [path for _, _, path in moved]))
                found = True
    if found:
        for statements in (_PREPARE, _MOVE_FILES, _MOVE_CLAIMS):
            connection.execute(statements.encode())
            if statements is not _PREPARE:
                connection.execute("DROP TABLE voxtier_moved, voxtier_frames")
        connection.execute("DROP TABLE voxtier_said")
    connection.execute("DROP TABLE voxtier_meeting")


def _spelled(path: str) -> str:
    """Return a path as files are indexed; a relative one as it is: nobody knows where it began."""
    whole = path
    while (local := local_path(whole)) != whole:
        whole = local
    if whole[:1] != "/" and not is_address(whole):
        return path
    spelled = as_indexed(whole)
    return path if path_fault(spelled) else spelled
