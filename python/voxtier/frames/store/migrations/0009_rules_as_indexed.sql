-- Files are indexed under one spelling of their paths; rules of access were kept in that of their writer, and those with
-- s3a:// or with slashes in a row fitted no file but such as earlier versions had indexed so. Beside each such rule stands now
-- the same one in the spelling of the index. The old one stays, for the rows that it guards.

CREATE TEMP TABLE voxtier_respelled ON COMMIT DROP AS
SELECT * FROM (
    SELECT rule.rule_id, rule.source_id, rule.group_name, rule.in_force, CASE
        WHEN rule.path_prefix ~ '^s3[an]://' THEN regexp_replace(rule.path_prefix, '^s3[an]:', 's3:')
        WHEN starts_with(rule.path_prefix, 'gcs://') THEN regexp_replace(rule.path_prefix, '^gcs:', 'gs:')
        WHEN starts_with(rule.path_prefix, 'azure://') THEN regexp_replace(rule.path_prefix, '^azure:', 'az:')
        WHEN starts_with(rule.path_prefix, '/') THEN regexp_replace(rule.path_prefix, '/{2,}', '/', 'g')
        ELSE rule.path_prefix END AS path_prefix, rule.path_prefix AS written
    FROM voxtier.access_rule AS rule
) AS each WHERE path_prefix <> written;
ANALYZE voxtier_respelled;

-- Where the group has a rule of that prefix, that one stays.
WITH added AS (
    INSERT INTO voxtier.access_rule
        (source_id, path_prefix, group_name, access_type, uc_filter_sql, description, in_force)
    SELECT named.source_id, named.path_prefix, named.group_name, rule.access_type, rule.uc_filter_sql, rule.description,
        rule.in_force
    FROM voxtier_respelled AS named JOIN voxtier.access_rule AS rule USING (rule_id)
    ORDER BY rule_id
    ON CONFLICT (source_id, path_prefix, group_name) DO NOTHING
    RETURNING rule_id, source_id, path_prefix, group_name
)
INSERT INTO voxtier.rule_instance (rule_id, sop_instance_uid)
SELECT DISTINCT added.rule_id, found.sop_instance_uid
FROM added JOIN voxtier_respelled AS named USING (source_id, path_prefix, group_name)
    JOIN voxtier.rule_instance AS found ON found.rule_id = named.rule_id;

-- The files that are indexed already: they are for the groups of the rules that fit now, and no file is opened.
UPDATE voxtier.file AS f
SET allowed_groups = voxtier.groups_by_rule(f.source_id, f.path, f.sop_instance_uid)
FROM (SELECT DISTINCT source_id, path_prefix FROM voxtier_respelled WHERE in_force) AS named
WHERE f.source_id = named.source_id AND starts_with(f.path, named.path_prefix)
    AND voxtier.groups_by_rule(f.source_id, f.path, f.sop_instance_uid) IS NOT NULL
    AND f.allowed_groups IS DISTINCT FROM voxtier.groups_by_rule(f.source_id, f.path, f.sop_instance_uid);
UPDATE voxtier.claim AS f
SET allowed_groups = voxtier.groups_by_rule(f.source_id, f.path, f.sop_instance_uid)
FROM (SELECT DISTINCT source_id, path_prefix FROM voxtier_respelled WHERE in_force) AS named
WHERE f.source_id = named.source_id AND starts_with(f.path, named.path_prefix)
    AND voxtier.groups_by_rule(f.source_id, f.path, f.sop_instance_uid) IS NOT NULL
    AND f.allowed_groups IS DISTINCT FROM voxtier.groups_by_rule(f.source_id, f.path, f.sop_instance_uid);
