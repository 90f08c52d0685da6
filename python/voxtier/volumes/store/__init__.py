"""All or nothing: commits, locks, ingest and append."""
