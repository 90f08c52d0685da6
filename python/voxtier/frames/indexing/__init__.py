"""Which files are new or changed; they are read and written to the store."""
