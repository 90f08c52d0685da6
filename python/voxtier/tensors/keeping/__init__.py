"""A cache is verified, adopted, migrated and kept small."""
