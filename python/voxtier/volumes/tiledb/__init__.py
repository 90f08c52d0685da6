"""The door to TileDB: sessions, arrays, tables, and what this package assumes of the format."""
