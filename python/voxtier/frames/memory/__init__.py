"""What stays in memory: the cache, the score of a file, the preload."""
