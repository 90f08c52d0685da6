"""One file a journey: what is measured, against whom, with which goals."""
