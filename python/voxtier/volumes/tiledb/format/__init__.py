"""What this package assumes of TileDB's private format, and nothing else in the package may."""
