"""A request for a frame: memory, Postgres, then the file."""
