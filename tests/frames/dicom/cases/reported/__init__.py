"""Files after public bug reports of other readers, and neighbours of each.

Every one of these was once answered "ok" with wrong frames by some reader, voxtier among them.
"""

from frames.dicom.cases.model import Case
from frames.dicom.cases.reported import counts, pixels, structure

CASES: list[Case] = [*counts.CASES, *structure.CASES, *pixels.CASES]
