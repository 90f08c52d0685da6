"""Waiting for the advisory locks of the index."""

from __future__ import annotations

import time

import psycopg


def waits_for_lock(dsn: str) -> bool:
    """Return whether a session waits for an advisory lock, within ten seconds."""
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(200):
            if connection.execute(query).fetchone() != (0,):
                return True
            time.sleep(0.05)
    return False
