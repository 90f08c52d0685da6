"""Processes that fill batches, and the memory through which they hand them over."""
