"""Postgres: one row a file. The only SQL of the room, but for that of databricks/."""
