"""Requests to a store: what they cost, how many at a time, which ones together, which ones ahead."""
