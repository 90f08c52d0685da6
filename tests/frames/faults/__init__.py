"""A long run of faults over one folder and one index: who writes, who reads, and what was right to read."""
