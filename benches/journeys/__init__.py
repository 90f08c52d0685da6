"""One file per journey: what is measured, against which rivals, with which goals."""
