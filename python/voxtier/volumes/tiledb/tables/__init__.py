"""Tables of observations: in memory, and as sparse arrays."""
