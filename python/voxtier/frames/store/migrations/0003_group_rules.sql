CREATE INDEX file_truncated ON voxtier.file (source_id, path) WHERE status = 'truncated';

-- A rule of access is of one group: all files of its prefix, or those instances that a condition found. And the
-- question that a reader for a user's groups asks before it serves a file, from whatever tier.

-- Without a primary key it tells a publication of all tables its rows in full.
ALTER TABLE voxtier.access_rule
    REPLICA IDENTITY FULL,
    DROP CONSTRAINT access_rule_pkey,
    ADD COLUMN rule_id bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    ADD COLUMN group_name text COLLATE "C",
    ADD COLUMN access_type text NOT NULL DEFAULT 'full' CHECK (access_type IN ('full', 'conditional')),
    ADD COLUMN uc_filter_sql text,              -- the condition, in the SQL of the catalogue
    ADD COLUMN description text,
    ADD COLUMN in_force boolean NOT NULL DEFAULT true,  -- false after a reset, until the next synchronisation
    ADD CHECK ((access_type = 'conditional') = (uc_filter_sql IS NOT NULL));
INSERT INTO voxtier.access_rule (source_id, path_prefix, allowed_groups, group_name)
SELECT rule.source_id, rule.path_prefix, '{}', given.name
FROM voxtier.access_rule AS rule
CROSS JOIN LATERAL unnest(rule.allowed_groups) WITH ORDINALITY AS given (name, place)
WHERE rule.group_name IS NULL
ORDER BY rule.source_id, rule.path_prefix, given.place;
DELETE FROM voxtier.access_rule AS rule WHERE rule.group_name IS NULL
    OR EXISTS (SELECT FROM voxtier.access_rule AS other
        WHERE (other.source_id, other.path_prefix, other.group_name)
            = (rule.source_id, rule.path_prefix, rule.group_name) AND other.rule_id < rule.rule_id);
ALTER TABLE voxtier.access_rule
    DROP COLUMN allowed_groups,
    ALTER COLUMN group_name SET NOT NULL,
    ADD PRIMARY KEY (source_id, path_prefix, group_name),
    REPLICA IDENTITY DEFAULT;

-- The instances that the condition of a rule found at the last synchronisation.
CREATE TABLE voxtier.rule_instance (
    rule_id bigint REFERENCES voxtier.access_rule (rule_id) ON DELETE CASCADE,
    sop_instance_uid text COLLATE "C",
    PRIMARY KEY (rule_id, sop_instance_uid)
);

-- NULL where no rule fits: everyone. Of the rules that fit, those of the longest prefix decide. With the rights of
-- the owner, so that a role that writes rows need not read rules.
DROP FUNCTION voxtier.groups_by_rule(int, text);
CREATE FUNCTION voxtier.groups_by_rule(in_source int, of_path text, of_sop text) RETURNS text[]
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT coalesce(array_agg(rule.group_name ORDER BY rule.rule_id) FILTER (WHERE rule.access_type = 'full'
        OR EXISTS (SELECT FROM voxtier.rule_instance AS found
            WHERE found.rule_id = rule.rule_id AND found.sop_instance_uid = of_sop)), '{}')
    FROM voxtier.access_rule AS rule
    WHERE rule.source_id = in_source AND rule.in_force AND starts_with(of_path, rule.path_prefix)
        AND octet_length(rule.path_prefix) = (
            SELECT max(octet_length(each.path_prefix)) FROM voxtier.access_rule AS each
            WHERE each.source_id = in_source AND each.in_force AND starts_with(of_path, each.path_prefix))
    HAVING count(*) > 0
$$;

-- Whether a user's groups may see a file, indexed or not. A row that describes another instance than the file
-- holds now says nothing of this instance: then its rules decide, and every other row of the instance. With the
-- rights of the owner, because a row that the role itself may not see must not look like no row.
CREATE FUNCTION voxtier.may_read(of_key uuid, in_source text, of_path text, of_sop text, asking text[])
RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog AS $$
    WITH source AS (SELECT source_id FROM voxtier.source WHERE name = in_source),
    named AS (
        SELECT f.allowed_groups, f.sop_instance_uid FROM voxtier.file AS f WHERE f.key = of_key
    ), saying AS (
        SELECT allowed_groups FROM named
        UNION ALL
        SELECT c.allowed_groups FROM voxtier.claim AS c WHERE c.key = of_key AND NOT EXISTS (SELECT FROM named)
        UNION ALL
        SELECT f.allowed_groups FROM voxtier.file AS f JOIN source USING (source_id)
        WHERE hashtextextended(f.sop_instance_uid, 0) = hashtextextended(of_sop, 0)
            AND f.sop_instance_uid = of_sop
            AND NOT EXISTS (SELECT FROM named WHERE named.sop_instance_uid = of_sop)
        UNION ALL
        SELECT voxtier.groups_by_rule(source_id, of_path, of_sop) FROM source
        WHERE NOT EXISTS (SELECT FROM named WHERE named.sop_instance_uid IS NOT DISTINCT FROM of_sop)
    )
    SELECT coalesce(bool_and(allowed_groups IS NULL OR coalesce(allowed_groups && asking, false)), true) FROM saying
$$;
