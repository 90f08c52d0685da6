-- A process of an older version that still runs asks by the keys and spellings of its own, for which no row, no
-- claim and maybe no rule is found any more: every file would be open to it. It is told to start anew. The question
-- has another name from here on, and a key that is not of the folder of its path gets no.

CREATE OR REPLACE FUNCTION voxtier.may_read(of_key uuid, in_source text, of_path text, of_sop text, asking text[])
RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RAISE EXCEPTION 'a newer version of voxtier has upgraded this index: start this process anew, with that version';
END
$$;

-- As before it in all else.
CREATE OR REPLACE FUNCTION voxtier.groups_may_read(
    of_key uuid, in_source text, of_path text, of_sop text, asking text[])
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
    SELECT substring(uuid_send(of_key) FOR 4)
            = substring(sha256(convert_to(regexp_replace(of_path, '[^/]*$', ''), 'UTF8')) FOR 4)
        AND coalesce(bool_and(allowed_groups IS NULL OR coalesce(allowed_groups && asking, false)), true)
    FROM saying
$$;
