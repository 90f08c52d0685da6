"""Files that a reader holds open: on disk, in object stores, and for a user's groups."""
