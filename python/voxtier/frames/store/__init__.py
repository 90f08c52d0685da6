"""Postgres: one row a file. The only SQL of the room, but for that of databricks/."""

try:
    import psycopg as _psycopg  # noqa: F401 -- asked for here, so that the message names the extra
except ImportError as error:
    from voxtier.errors import MissingExtraError

    raise MissingExtraError("psycopg", "frames") from error
