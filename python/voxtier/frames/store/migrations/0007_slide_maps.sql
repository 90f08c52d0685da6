-- Where the tiles of a slide lie, as its header says: a row for each tiled image that somebody has looked at, none
-- for other files. Written by the first look, read by every later one; the core checks it, and the state of the file
-- that it holds. It goes with its file's row, whoever deletes that.

CREATE TABLE voxtier.slide_map (
    key uuid PRIMARY KEY REFERENCES voxtier.file ON DELETE CASCADE,
    map bytea NOT NULL                      -- docs/formats/slide-map.md
);
ALTER TABLE voxtier.slide_map ALTER map SET STORAGE EXTERNAL;

-- Whoever sees the row of a file sees its map.
ALTER TABLE voxtier.slide_map ENABLE ROW LEVEL SECURITY;
CREATE POLICY by_file ON voxtier.slide_map
    USING (EXISTS (SELECT FROM voxtier.file AS f WHERE f.key = slide_map.key))
    WITH CHECK (EXISTS (SELECT FROM voxtier.file AS f WHERE f.key = slide_map.key));
