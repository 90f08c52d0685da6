"""Commands of the frames room: index, look up, rank, watch."""
