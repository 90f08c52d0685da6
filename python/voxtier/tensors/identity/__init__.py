"""What decides the name of a file: configuration, keys, transforms."""
