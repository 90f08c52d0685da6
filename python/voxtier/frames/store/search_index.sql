-- The search index: what QIDO-RS returns of each instance (PS3.18 tables 10.6.3-3 to -5), which is patient data.
-- A schema of its own, on which the roles of the frame index have no right. Dropping it removes all of it.

-- It can be run again: what an older version made becomes what this one makes, and roles keep their rights.

CREATE SCHEMA IF NOT EXISTS voxtier_search;
COMMENT ON SCHEMA voxtier_search IS 'version 3';

CREATE TABLE IF NOT EXISTS voxtier_search.source (
    source_id int PRIMARY KEY,
    is_complete boolean NOT NULL DEFAULT false  -- every instance of the frame index has its row here
);

-- Attributes of study and series as one file has them; most files of a series share a row.
CREATE TABLE IF NOT EXISTS voxtier_search.header (
    header_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id int NOT NULL,
    digest bytea NOT NULL,
    attributes jsonb NOT NULL,                  -- in the DICOM JSON model
    names jsonb NOT NULL,                       -- by tag what is compared in another form: names of persons
                                                -- in no case, dates and times
    UNIQUE (source_id, digest)
);

CREATE TABLE IF NOT EXISTS voxtier_search.instance (
    key uuid PRIMARY KEY,                       -- of voxtier.file, see below
    header_id bigint NOT NULL REFERENCES voxtier_search.header,
    is_read boolean NOT NULL,                   -- false: the file could not be read, and is tried again
    attributes jsonb NOT NULL
);
CREATE INDEX IF NOT EXISTS instance_header ON voxtier_search.instance (header_id);
CREATE INDEX IF NOT EXISTS instance_unread ON voxtier_search.instance (key) WHERE NOT is_read;

CREATE TABLE IF NOT EXISTS voxtier_search.series (
    source_id int,
    study_instance_uid text COLLATE "C",
    series_instance_uid text COLLATE "C",
    header_id bigint NOT NULL,                  -- of its first file that was read, in the order of paths
    instances bigint NOT NULL,
    PRIMARY KEY (source_id, study_instance_uid, series_instance_uid)
);

CREATE TABLE IF NOT EXISTS voxtier_search.study (
    source_id int,
    study_instance_uid text COLLATE "C",
    header_id bigint NOT NULL,
    modalities text[] NOT NULL,
    series bigint NOT NULL,
    instances bigint NOT NULL,
    PRIMARY KEY (source_id, study_instance_uid)
);

-- Counts the series and instances of studies anew, copies of an instance once. One transaction at a time for each source.
CREATE OR REPLACE FUNCTION voxtier_search.refresh(in_source int, studies text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1987541345, in_source);
    DELETE FROM voxtier_search.series AS s WHERE s.source_id = in_source AND s.study_instance_uid = ANY (studies);
    DELETE FROM voxtier_search.study AS s WHERE s.source_id = in_source AND s.study_instance_uid = ANY (studies);
    INSERT INTO voxtier_search.series
    SELECT in_source, f.study_instance_uid, f.series_instance_uid,
        (array_agg(i.header_id ORDER BY i.is_read DESC, f.path COLLATE "C"))[1],
        count(DISTINCT f.sop_instance_uid)
    FROM voxtier.file AS f JOIN voxtier_search.instance AS i USING (key)
    WHERE f.source_id = in_source AND f.study_instance_uid = ANY (studies)
        AND hashtextextended(f.study_instance_uid, 0)
            = ANY (ARRAY(SELECT hashtextextended(uid, 0) FROM unnest(studies) AS uid))
        AND f.series_instance_uid IS NOT NULL AND f.sop_instance_uid IS NOT NULL
    GROUP BY f.study_instance_uid, f.series_instance_uid;
    INSERT INTO voxtier_search.study
    SELECT in_source, s.study_instance_uid,
        (SELECT i.header_id FROM voxtier.file AS f JOIN voxtier_search.instance AS i USING (key)
         WHERE f.source_id = in_source AND f.study_instance_uid = s.study_instance_uid
            AND hashtextextended(f.study_instance_uid, 0) = hashtextextended(s.study_instance_uid, 0)
            AND f.series_instance_uid IS NOT NULL AND f.sop_instance_uid IS NOT NULL
         ORDER BY i.is_read DESC, f.path COLLATE "C" LIMIT 1),
        coalesce(array_agg(DISTINCT h.attributes #>> '{00080060,Value,0}' COLLATE "C")
            FILTER (WHERE h.attributes #>> '{00080060,Value,0}' <> ''), '{}'),
        count(*), sum(s.instances)
    FROM voxtier_search.series AS s JOIN voxtier_search.header AS h USING (header_id)
    WHERE s.source_id = in_source AND s.study_instance_uid = ANY (studies)
    GROUP BY s.study_instance_uid;
END
$$;

-- Removes what is known of instances.
CREATE OR REPLACE FUNCTION voxtier_search.forget(in_source int, keys uuid[], studies text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    IF cardinality(keys) = 0 THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(1987541345, in_source);
    DELETE FROM voxtier_search.instance AS i WHERE i.key = ANY (keys);
    PERFORM voxtier_search.refresh(in_source,
        ARRAY(SELECT DISTINCT study FROM unnest(studies) AS study WHERE study IS NOT NULL));
    DELETE FROM voxtier_search.header AS h WHERE h.source_id = in_source
        AND NOT EXISTS (SELECT FROM voxtier_search.instance AS i WHERE i.header_id = h.header_id);
END
$$;

-- What changes in the frame index changes here, whoever writes it: with the rights of the owner, as a role that
-- writes frames has none here.
CREATE OR REPLACE FUNCTION voxtier_search.after_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    PERFORM FROM voxtier_search.source AS s WHERE s.source_id IN (SELECT source_id FROM added) FOR KEY SHARE;
    UPDATE voxtier_search.source AS s SET is_complete = false
    WHERE s.is_complete AND s.source_id IN (SELECT source_id FROM added);
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION voxtier_search.after_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    of_source int;
BEGIN
    FOR of_source IN
        SELECT s.source_id FROM voxtier_search.source AS s
        WHERE s.source_id IN (SELECT source_id FROM gone) ORDER BY 1 FOR KEY SHARE
    LOOP
        PERFORM voxtier_search.forget(
            of_source, coalesce(array_agg(o.key), '{}'), coalesce(array_agg(o.study_instance_uid), '{}'))
        FROM gone AS o JOIN added AS n USING (key)
        WHERE o.source_id = of_source AND
            (o.size, o.mtime_ns, o.ctime_ns, o.inode, o.etag,
                o.sop_instance_uid, o.series_instance_uid, o.study_instance_uid)
            IS DISTINCT FROM
            (n.size, n.mtime_ns, n.ctime_ns, n.inode, n.etag,
                n.sop_instance_uid, n.series_instance_uid, n.study_instance_uid);
        -- Files without UIDs are in no search: they are never in it.
        UPDATE voxtier_search.source AS s SET is_complete = false
        WHERE s.is_complete AND s.source_id = of_source AND EXISTS (
            SELECT FROM added AS o WHERE o.source_id = of_source AND o.study_instance_uid IS NOT NULL
                AND o.series_instance_uid IS NOT NULL AND o.sop_instance_uid IS NOT NULL
                AND NOT EXISTS (SELECT FROM voxtier_search.instance AS i WHERE i.key = o.key));
    END LOOP;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION voxtier_search.after_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    of_source int;
BEGIN
    FOR of_source IN
        SELECT s.source_id FROM voxtier_search.source AS s
        WHERE s.source_id IN (SELECT source_id FROM gone) ORDER BY 1 FOR KEY SHARE
    LOOP
        PERFORM voxtier_search.forget(of_source,
            ARRAY(SELECT o.key FROM gone AS o WHERE o.source_id = of_source),
            ARRAY(SELECT o.study_instance_uid FROM gone AS o WHERE o.source_id = of_source));
    END LOOP;
    RETURN NULL;
END
$$;

-- Rows of instances went with those of files, as voxtier.file is emptied with what refers to it, or not at all.
CREATE OR REPLACE FUNCTION voxtier_search.after_truncate() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    DELETE FROM voxtier_search.study;
    DELETE FROM voxtier_search.series;
    DELETE FROM voxtier_search.header;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER search_insert AFTER INSERT ON voxtier.file REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION voxtier_search.after_insert();
CREATE OR REPLACE TRIGGER search_update AFTER UPDATE ON voxtier.file REFERENCING OLD TABLE AS gone NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION voxtier_search.after_update();
CREATE OR REPLACE TRIGGER search_delete AFTER DELETE ON voxtier.file REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION voxtier_search.after_delete();
CREATE OR REPLACE TRIGGER search_truncate AFTER TRUNCATE ON voxtier.file
    FOR EACH STATEMENT EXECUTE FUNCTION voxtier_search.after_truncate();
-- Also in a session that loads data as a replica. DISABLE TRIGGER and ENABLE TRIGGER, as of pg_restore
-- --disable-triggers, leave another state than this one, which tells that rows may have come or gone unseen.
ALTER TABLE voxtier.file
    ENABLE ALWAYS TRIGGER search_insert, ENABLE ALWAYS TRIGGER search_update,
    ENABLE ALWAYS TRIGGER search_delete, ENABLE ALWAYS TRIGGER search_truncate;

-- Whether an attribute matches what a search asks for (PS3.4 C.2.2.2): see rule_of in matching.py, which has the
-- same rules for headers.
DROP FUNCTION IF EXISTS voxtier_search.matches(jsonb, jsonb, text, text, text, text);
CREATE OR REPLACE FUNCTION voxtier_search.matches(
    attributes jsonb, names jsonb, tag text, rule jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    element jsonb := attributes -> tag;
    vr text := coalesce(element ->> 'vr', '');
    given text[];
    number_form CONSTANT text := '^[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?$';
BEGIN
    IF rule = '{}' THEN
        RETURN true;
    END IF;
    given := CASE WHEN names ? tag
        THEN ARRAY(SELECT jsonb_array_elements_text(names -> tag))
        ELSE ARRAY(SELECT coalesce(value #>> '{}', '') FROM jsonb_array_elements(element -> 'Value') AS value
            WHERE jsonb_typeof(value) <> 'object') END;
    IF vr IN ('DA', 'TM', 'DT') THEN
        rule := rule -> vr;
        RETURN EXISTS (SELECT FROM unnest(given) AS value WHERE voxtier_search.hold(rule, value));
    ELSIF vr IN ('IS', 'DS', 'US', 'UL', 'SS', 'SL', 'SV', 'UV', 'FL', 'FD') THEN
        RETURN rule ->> 'text' = ANY (given) OR EXISTS (SELECT FROM unnest(given) AS value
            WHERE CASE WHEN value ~ number_form THEN value::numeric = (rule ->> vr)::numeric END);
    END IF;
    IF cardinality(given) = 0 THEN
        given := ARRAY[''];
    END IF;
    RETURN EXISTS (SELECT FROM unnest(given) AS value,
            jsonb_array_elements_text(coalesce(rule -> vr, rule -> '')) AS patterns (pattern)
        WHERE value LIKE pattern);
END
$$;

-- Whether a date or time is in a range: Bounds of moments.py, with the same rules.
CREATE OR REPLACE FUNCTION voxtier_search.hold(bounds jsonb, value text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT CASE
        WHEN bounds ->> 0 = '' THEN true
        WHEN bounds ->> 1 <> '' AND split_part(value, E'\t', 2) <> ''
        THEN split_part(value, E'\t', 2) COLLATE "C" >= bounds ->> 1
        ELSE split_part(value, E'\t', 1) COLLATE "C" >= bounds ->> 0 END
    AND CASE
        WHEN bounds ->> 2 = '' THEN true
        WHEN bounds ->> 3 <> '' AND split_part(value, E'\t', 2) <> ''
        THEN split_part(value, E'\t', 2) COLLATE "C" <= bounds ->> 3
        ELSE split_part(value, E'\t', 1) COLLATE "C" <= bounds ->> 2 END
$$;

-- Whether a date with its time is in a range; one without a time counts as its first moment.
CREATE OR REPLACE FUNCTION voxtier_search.is_between(
    attributes jsonb, names jsonb, date_tag text, time_tag text, span jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT EXISTS (SELECT
    FROM jsonb_array_elements_text(coalesce(names -> date_tag, attributes -> date_tag -> 'Value'))
        WITH ORDINALITY AS dates (date, place)
    LEFT JOIN jsonb_array_elements_text(coalesce(names -> time_tag, attributes -> time_tag -> 'Value'))
        WITH ORDINALITY AS times (time, place) USING (place)
    WHERE date <> '' AND voxtier_search.hold(span, date || coalesce(nullif(time, ''), '000000')))
$$;

-- What another version kept is read anew.
TRUNCATE voxtier_search.instance, voxtier_search.header, voxtier_search.series, voxtier_search.study;
UPDATE voxtier_search.source SET is_complete = false;
ALTER TABLE voxtier_search.instance DROP CONSTRAINT IF EXISTS instance_key_fkey,
    ADD CONSTRAINT instance_key_fkey FOREIGN KEY (key) REFERENCES voxtier.file ON DELETE CASCADE;
