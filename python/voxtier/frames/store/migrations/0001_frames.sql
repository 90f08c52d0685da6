-- One row per file, its frame table packed in one value; access statistics apart; a view for readers that
-- expect a row per frame.

CREATE TYPE voxtier.table_status AS ENUM ('ok', 'truncated', 'no_pixels', 'ambiguous', 'error');
CREATE TYPE voxtier.pixel_kind AS ENUM ('native', 'encapsulated', 'video', 'none', 'error');
CREATE TYPE voxtier.table_method AS ENUM (
    'native', 'eot', 'eot_offsets_only', 'bot', 'tiff', 'single_frame', 'one_fragment_per_frame',
    'start_markers', 'end_markers', 'video_stream', 'none');
CREATE TYPE voxtier.table_verified AS ENUM ('none', 'ends', 'all');
CREATE TYPE voxtier.offsets_in AS ENUM ('file', 'inflated');

CREATE TABLE voxtier.source (
    source_id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE voxtier.file (
    key uuid PRIMARY KEY,                   -- blake2b-128 of source name, NUL, path
    inserted_at timestamptz NOT NULL,       -- moves only when the file's content does
    size bigint,                            -- fingerprint; NULL where the file could not be read
    mtime_ns bigint,
    pixel_data_pos bigint,                  -- offset of the pixel element's tag
    error_offset bigint,
    source_id int NOT NULL,
    status voxtier.table_status NOT NULL,
    kind voxtier.pixel_kind NOT NULL,
    method voxtier.table_method NOT NULL,
    verified voxtier.table_verified NOT NULL,
    offsets_in voxtier.offsets_in NOT NULL,
    truncated_from int,                     -- first frame that is not wholly in the file
    number_of_frames int,                   -- as declared
    frame_count int NOT NULL,               -- frames that can be addressed; a video is one
    rows int,
    columns int,
    samples_per_pixel int,
    bits_allocated int,
    parser_version smallint NOT NULL,
    path text COLLATE "C" NOT NULL,
    etag text COLLATE "C",                  -- fingerprint of objects that have no modification time
    transfer_syntax_uid text COLLATE "C",
    photometric_interpretation text COLLATE "C",
    sop_instance_uid text COLLATE "C",
    series_instance_uid text COLLATE "C",
    study_instance_uid text COLLATE "C",
    notes text[],
    error_kind text COLLATE "C",
    error_detail text,
    frames bytea                            -- packed table, NULL without frames
);
ALTER TABLE voxtier.file ALTER frames SET STORAGE EXTERNAL;
-- For readers of the view, who know the path alone: 48 bytes a row whatever its length.
CREATE INDEX file_path ON voxtier.file USING hash (path);
-- A third of the size of an index of the UIDs themselves. Not USING hash: a million copies of one instance
-- would make one endless bucket, where a B-tree lets equal entries share their key.
CREATE INDEX file_sop_instance ON voxtier.file (hashtextextended(sop_instance_uid, 0));
CREATE INDEX file_series ON voxtier.file (hashtextextended(series_instance_uid, 0));
CREATE INDEX file_refused ON voxtier.file (source_id, path) WHERE error_kind IS NOT NULL;

-- Rows appear at the first touch. No second index and room in the pages, so that touches stay HOT.
CREATE TABLE voxtier.file_stats (
    key uuid PRIMARY KEY,
    last_used_at timestamptz NOT NULL,
    access_count bigint NOT NULL
) WITH (fillfactor = 80);

CREATE FUNCTION voxtier.u32_at(packed bytea, at int) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT get_byte(packed, at) + 256::bigint * (get_byte(packed, at + 1)
         + 256 * (get_byte(packed, at + 2) + 256 * get_byte(packed, at + 3)))
$$;

CREATE FUNCTION voxtier.u64_at(packed bytea, at int) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT voxtier.u32_at(packed, at) | (voxtier.u32_at(packed, at + 4) << 32)
$$;

-- The first byte, the last byte (inclusive) and the number of fragments of each frame of a packed table:
-- 32 bytes of header (form at 1, flags at 2, items at 8, frames at 12, base at 16, stride in bits at 24),
-- then per form AFFINE (1) nothing, RAW (4) u64 tags and u32 (flag 64: u64) lengths, U32CKPT (5) a u64 tag
-- per 256 items and u32 lengths; with flag 8 the first item of each frame. Sections are padded to 8 bytes.
CREATE FUNCTION voxtier.frame_spans(packed bytea)
RETURNS TABLE (frame int, start_pos bigint, end_pos bigint, fragment_count int)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE ROWS 100 AS $$
DECLARE
    form int;
    flags int;
    items int;
    frames int;
    base bigint;
    stride bigint;
    lengths int := 32;      -- where the section of lengths begins
    map int := 0;           -- where the fragment map begins, 0 for none
    item int := 0;
    past int;               -- first item of the next frame
    tag bigint;
    payload bigint;
    length bigint;
BEGIN
    packed := packed || ''::bytea;  -- fetched and unpacked once, not at each byte
    form := get_byte(packed, 1);
    flags := get_byte(packed, 2);
    items := voxtier.u32_at(packed, 8);
    frames := voxtier.u32_at(packed, 12);
    base := voxtier.u64_at(packed, 16);
    IF get_byte(packed, 0) <> 1 OR form NOT IN (1, 4, 5) OR flags & ~78 <> 0 THEN
        RAISE EXCEPTION 'a packed frame table of a form that SQL does not decode'
            USING HINT = 'read it through voxtier, or index the file again';
    END IF;
    IF form = 1 THEN
        stride := voxtier.u64_at(packed, 24);
    ELSIF form = 4 THEN
        lengths := 32 + 8 * items;
    ELSE
        lengths := 32 + 8 * ((items + 255) / 256);
    END IF;
    IF flags & 8 <> 0 THEN
        map := CASE WHEN form = 1 THEN 32 WHEN flags & 64 <> 0 THEN lengths + 8 * items
               ELSE lengths + 8 * ((items + 1) / 2) END;
    END IF;
    IF flags & 2 <> 0 THEN
        RETURN QUERY SELECT i, base + i * stride / 8, base + ((i + 1) * stride + 7) / 8 - 1, 1
            FROM generate_series(0, frames - 1) AS i;
        RETURN;
    ELSIF form = 1 AND map = 0 AND flags & 4 = 0 THEN
        RETURN QUERY SELECT i, base + i * (stride / 8) + 8, base + (i + 1) * (stride / 8) - 1, 1
            FROM generate_series(0, frames - 1) AS i;
        RETURN;
    END IF;
    tag := base;
    FOR i IN 0 .. frames - 1 LOOP
        past := CASE WHEN map > 0 THEN voxtier.u32_at(packed, map + 4 * i + 4)
                WHEN flags & 4 <> 0 THEN items ELSE i + 1 END;
        fragment_count := past - item;
        start_pos := NULL;
        end_pos := NULL;
        WHILE item < past LOOP
            IF form = 1 THEN
                length := stride / 8 - 8;
            ELSIF form = 4 THEN
                tag := voxtier.u64_at(packed, 32 + 8 * item);
                length := CASE WHEN flags & 64 <> 0 THEN voxtier.u64_at(packed, lengths + 8 * item)
                          ELSE voxtier.u32_at(packed, lengths + 4 * item) END;
            ELSE
                length := voxtier.u32_at(packed, lengths + 4 * item);
            END IF;
            payload := tag + 8;
            tag := payload + length;
            start_pos := least(start_pos, payload);
            end_pos := greatest(end_pos, tag - 1);
            item := item + 1;
        END LOOP;
        frame := i;
        RETURN NEXT;
    END LOOP;
END
$$;

-- The columns of a table with a row per frame: frames from 0, end_pos inclusive. Only what lies in the file
-- as it is: no frames past the end of a truncated file, none of a deflated one.
CREATE VIEW voxtier.dicom_frames AS
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
    NULL::text[] AS allowed_groups,
    -- above 1 the span holds item headers; not known for a table that was not held against its fragments
    CASE WHEN f.method <> 'bot' OR f.verified = 'all' THEN s.fragment_count END AS fragment_count
FROM voxtier.file AS f
JOIN voxtier.source USING (source_id)
LEFT JOIN voxtier.file_stats AS stats USING (key)
CROSS JOIN LATERAL voxtier.frame_spans(f.frames) AS s
WHERE f.offsets_in = 'file' AND s.frame < coalesce(f.truncated_from, f.frame_count);
