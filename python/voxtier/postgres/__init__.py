"""The door to PostgreSQL: connections and their errors, and a server of voxtier's own."""
