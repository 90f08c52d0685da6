"""QIDO-RS (PS3.18 10.6): what a search asks, where its answer is found, and how it is told."""
