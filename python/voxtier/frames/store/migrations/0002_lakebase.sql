-- What the published Lakebase interface adds to the index: who may see a row, what others say of files that
-- the index has not read itself, and measurements.

ALTER TABLE voxtier.file ADD COLUMN allowed_groups text[];  -- NULL: everyone

-- What others say of a file: rows of another table, a catalogue. Never used to read a file; a row of
-- voxtier.file with a table of its own comes first.
CREATE TABLE voxtier.claim (
    key uuid PRIMARY KEY,                   -- as in voxtier.file
    source_id int NOT NULL,
    path text COLLATE "C" NOT NULL,
    inserted_at timestamptz NOT NULL,
    transfer_syntax_uid text COLLATE "C",
    sop_instance_uid text COLLATE "C",
    series_instance_uid text COLLATE "C",
    study_instance_uid text COLLATE "C",
    num_frames int,
    allowed_groups text[]
);
CREATE INDEX claim_path ON voxtier.claim USING hash (path);
CREATE INDEX claim_sop_instance ON voxtier.claim (hashtextextended(sop_instance_uid, 0));
CREATE INDEX claim_series ON voxtier.claim (hashtextextended(series_instance_uid, 0));

CREATE TABLE voxtier.claimed_frame (
    key uuid REFERENCES voxtier.claim ON DELETE CASCADE,
    frame int CHECK (frame >= 0),
    start_pos bigint NOT NULL CHECK (start_pos >= 0),
    end_pos bigint NOT NULL,                -- inclusive
    pixel_data_pos bigint,
    PRIMARY KEY (key, frame),
    CHECK (end_pos >= start_pos - 1)
);

CREATE TABLE voxtier.access_rule (
    source_id int,
    path_prefix text COLLATE "C",           -- the longest that fits decides
    allowed_groups text[] NOT NULL,
    PRIMARY KEY (source_id, path_prefix)
);

CREATE TABLE voxtier.user_groups (
    user_name text COLLATE "C" PRIMARY KEY,
    groups text[] NOT NULL,
    synced_at timestamptz NOT NULL
);

CREATE TABLE voxtier.metric (
    metric_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    source text COLLATE "C" NOT NULL,
    metrics jsonb NOT NULL
);
CREATE INDEX metric_source ON voxtier.metric (source, metric_id);

-- The groups of whom this transaction serves, as text of an array, so that names may hold commas; NULL: unset.
CREATE FUNCTION voxtier.groups() RETURNS text[] LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT nullif(current_setting('voxtier.groups', true), '')::text[]
$$;

CREATE FUNCTION voxtier.may_see(allowed text[]) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT allowed IS NULL OR coalesce(allowed && voxtier.groups(), false)
$$;

-- Roles that row security does not bind (the owner, superusers) see everything until they name groups. Ask it
-- as (SELECT voxtier.sees_all()), once a statement.
CREATE FUNCTION voxtier.sees_all() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT voxtier.groups() IS NULL AND NOT row_security_active('voxtier.file')
$$;

CREATE FUNCTION voxtier.groups_by_rule(in_source int, of_path text) RETURNS text[]
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT rule.allowed_groups FROM voxtier.access_rule AS rule
    WHERE rule.source_id = in_source AND starts_with(of_path, rule.path_prefix)
    ORDER BY octet_length(rule.path_prefix) DESC LIMIT 1
$$;

ALTER TABLE voxtier.file ENABLE ROW LEVEL SECURITY;
CREATE POLICY by_group ON voxtier.file
    USING (voxtier.may_see(allowed_groups)) WITH CHECK (voxtier.may_see(allowed_groups));
ALTER TABLE voxtier.claim ENABLE ROW LEVEL SECURITY;
CREATE POLICY by_group ON voxtier.claim
    USING (voxtier.may_see(allowed_groups)) WITH CHECK (voxtier.may_see(allowed_groups));
ALTER TABLE voxtier.claimed_frame ENABLE ROW LEVEL SECURITY;
CREATE POLICY by_claim ON voxtier.claimed_frame
    USING (EXISTS (SELECT FROM voxtier.claim AS c WHERE c.key = claimed_frame.key))
    WITH CHECK (EXISTS (SELECT FROM voxtier.claim AS c WHERE c.key = claimed_frame.key));

-- A view reads with the rights of its owner, whom row security does not bind: it asks by itself.
CREATE OR REPLACE VIEW voxtier.dicom_frames AS
SELECT
    f.path AS filename,
    s.frame,
    s.start_pos,
    s.end_pos,
    f.pixel_data_pos,
    source.name AS uc_table_name,
    f.transfer_syntax_uid,
    f.inserted_at,
    stats.last_used_at,
    coalesce(stats.access_count, 0) AS access_count,
    f.allowed_groups,
    -- above 1 the span holds item headers; not known for a table that was not held against its fragments
    CASE WHEN f.method <> 'bot' OR f.verified = 'all' THEN s.fragment_count END AS fragment_count,
    f.verified
FROM voxtier.file AS f
JOIN voxtier.source USING (source_id)
LEFT JOIN voxtier.file_stats AS stats USING (key)
CROSS JOIN LATERAL voxtier.frame_spans(f.frames) AS s
WHERE f.offsets_in = 'file' AND s.frame < coalesce(f.truncated_from, f.frame_count)
    AND ((SELECT voxtier.sees_all()) OR voxtier.may_see(f.allowed_groups))
UNION ALL
SELECT
    c.path, s.frame, s.start_pos, s.end_pos, s.pixel_data_pos, source.name, c.transfer_syntax_uid, c.inserted_at,
    stats.last_used_at, coalesce(stats.access_count, 0), c.allowed_groups, NULL, 'none'
FROM voxtier.claim AS c
JOIN voxtier.claimed_frame AS s USING (key)
JOIN voxtier.source USING (source_id)
LEFT JOIN voxtier.file_stats AS stats USING (key)
WHERE ((SELECT voxtier.sees_all()) OR voxtier.may_see(c.allowed_groups))
    AND NOT EXISTS (SELECT FROM voxtier.file AS f WHERE f.key = c.key AND f.error_kind IS NULL);
