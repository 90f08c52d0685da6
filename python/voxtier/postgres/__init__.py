"""PostgreSQL: connections to any server, and a server of voxtier's own for those who run none."""
