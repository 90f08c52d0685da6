-- The rest of a file's fingerprint. Size and modification time are set back by cp -p, rsync -t and touch -r; the
-- time of the last change and the number of the file are not. NULL: not known, or not of this file system.

ALTER TABLE voxtier.file
    ADD COLUMN ctime_ns bigint,
    ADD COLUMN inode bigint;                -- as a signed number
