"""Many subjects: collections, observations, queries."""
