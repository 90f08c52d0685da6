"""Threads that fill batches, and the memory in which they hand them over."""
