"""Readers of other libraries over the same data."""
