-- The files that were inserted last, for the ranked lists of a large index. A batch of a run has one time, so that
-- its entries share their key: 7 bytes a file.

CREATE INDEX file_inserted ON voxtier.file (source_id, inserted_at);
