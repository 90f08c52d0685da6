"""Functions over volumes: lazy queries, eager results, and what both call."""
