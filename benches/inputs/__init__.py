"""What the journeys read: files, cache entries, traces of requests."""
