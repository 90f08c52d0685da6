-- Keys put the files of one folder side by side (docs/decisions/157-keys-by-folder.md): a run that asks about a
-- folder, or writes it, meets a few pages of the primary key and not one for each file. Every key that earlier
-- versions made is made anew, wherever it stands.

-- The key of a file of that path, of which the rest is known: its first four bytes tell the folder. The rest is a
-- digest that SQL has no function for.
CREATE FUNCTION voxtier.key_by_folder(of_key uuid, of_path text) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT encode(substring(sha256(convert_to(regexp_replace(of_path, '[^/]*$', ''), 'UTF8')) FOR 4)
        || substring(uuid_send(of_key) FROM 5), 'hex')::uuid
$$;

-- While a table has no primary key, a publication that takes it is told rows in full; else it forbids to write.
DO $$
DECLARE
    made_full text := '';
    of_table regclass;
BEGIN
    FOR of_table IN SELECT oid FROM pg_class
        WHERE oid IN ('voxtier.file'::regclass, 'voxtier.file_stats'::regclass) AND relreplident <> 'f'
    LOOP
        EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', of_table);
        made_full := made_full || format('ALTER TABLE %s REPLICA IDENTITY DEFAULT;', of_table);
    END LOOP;
    PERFORM set_config('voxtier.made_full', made_full, true);
END
$$;

-- What refers to keys, so that each table can be written by itself.
ALTER TABLE voxtier.slide_map DROP CONSTRAINT slide_map_key_fkey;
ALTER TABLE voxtier.claimed_frame DROP CONSTRAINT claimed_frame_key_fkey;
-- Nothing has changed for the triggers of the search index.
ALTER TABLE voxtier.file DISABLE TRIGGER USER;

-- Indexes of the two large tables are built once at the end, and not row by row: that is faster, and their pages are
-- full. The keys of files tell the statistics theirs, and go behind them.
ALTER TABLE voxtier.file_stats DROP CONSTRAINT file_stats_pkey;
UPDATE voxtier.file_stats AS s SET key = voxtier.key_by_folder(f.key, f.path)
FROM voxtier.file AS f WHERE f.key = s.key;
UPDATE voxtier.file_stats AS s SET key = voxtier.key_by_folder(c.key, c.path)
FROM voxtier.claim AS c WHERE c.key = s.key;
ALTER TABLE voxtier.file_stats ADD PRIMARY KEY (key);
UPDATE voxtier.slide_map AS m SET key = voxtier.key_by_folder(f.key, f.path)
FROM voxtier.file AS f WHERE f.key = m.key;
UPDATE voxtier.claimed_frame AS r SET key = voxtier.key_by_folder(c.key, c.path)
FROM voxtier.claim AS c WHERE c.key = r.key;
UPDATE voxtier.claim SET key = voxtier.key_by_folder(key, path);
-- The search index where it was made, and by whoever owns this one. What a restored dump left behind has lost what
-- binds it to files, and maybe holds others; that of another role loses it below. Neither is used until it is made anew.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_constraint AS bond JOIN pg_class AS i ON i.oid = bond.conrelid
        WHERE i.relnamespace = to_regnamespace('voxtier_search') AND bond.conname = 'instance_key_fkey'
            AND pg_has_role(i.relowner, 'USAGE')) THEN
        ALTER TABLE voxtier_search.instance DROP CONSTRAINT instance_key_fkey;
        UPDATE voxtier_search.instance AS i SET key = voxtier.key_by_folder(f.key, f.path)
        FROM voxtier.file AS f WHERE f.key = i.key;
    END IF;
END
$$;

ALTER TABLE voxtier.file DROP CONSTRAINT file_pkey CASCADE;
DROP INDEX IF EXISTS voxtier.file_path, voxtier.file_sop_instance, voxtier.file_series, voxtier.file_study,
    voxtier.file_refused, voxtier.file_truncated, voxtier.file_inserted;
UPDATE voxtier.file SET key = voxtier.key_by_folder(key, path);
ALTER TABLE voxtier.file ADD PRIMARY KEY (key);
CREATE INDEX file_path ON voxtier.file USING hash (path);
CREATE INDEX file_sop_instance ON voxtier.file (hashtextextended(sop_instance_uid, 0));
CREATE INDEX file_series ON voxtier.file (hashtextextended(series_instance_uid, 0));
CREATE INDEX file_study ON voxtier.file (hashtextextended(study_instance_uid, 0));
CREATE INDEX file_refused ON voxtier.file (source_id, path) WHERE error_kind IS NOT NULL;
CREATE INDEX file_truncated ON voxtier.file (source_id, path) WHERE status = 'truncated';
CREATE INDEX file_inserted ON voxtier.file (source_id, inserted_at);

-- A process of an older version that still runs would add its files a second time, under keys by which no later
-- version finds them, not even to delete them. Not by the function: a call takes three times as long.
ALTER TABLE voxtier.file ADD CONSTRAINT key_by_folder CHECK (substring(uuid_send(key) FOR 4)
    = substring(sha256(convert_to(regexp_replace(path, '[^/]*$', ''), 'UTF8')) FOR 4));
ALTER TABLE voxtier.claim ADD CONSTRAINT key_by_folder CHECK (substring(uuid_send(key) FOR 4)
    = substring(sha256(convert_to(regexp_replace(path, '[^/]*$', ''), 'UTF8')) FOR 4));
ALTER TABLE voxtier.slide_map ADD FOREIGN KEY (key) REFERENCES voxtier.file ON DELETE CASCADE;
ALTER TABLE voxtier.claimed_frame ADD FOREIGN KEY (key) REFERENCES voxtier.claim ON DELETE CASCADE;
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace('voxtier_search') AND relname = 'instance'
            AND pg_has_role(relowner, 'USAGE')) THEN
        ALTER TABLE voxtier_search.instance ADD CONSTRAINT instance_key_fkey
            FOREIGN KEY (key) REFERENCES voxtier.file ON DELETE CASCADE NOT VALID;
        BEGIN
            ALTER TABLE voxtier_search.instance VALIDATE CONSTRAINT instance_key_fkey;
        EXCEPTION WHEN foreign_key_violation THEN
            NULL;  -- one whose bond does not hold is not used
        END;
    END IF;
    EXECUTE current_setting('voxtier.made_full');
END
$$;
ALTER TABLE voxtier.file ENABLE TRIGGER USER;
DROP FUNCTION voxtier.key_by_folder(uuid, text);
