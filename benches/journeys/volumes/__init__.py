"""How fast volumes are read and written."""
