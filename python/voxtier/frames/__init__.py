"""Where is the frame in the file? Byte ranges of every frame of every DICOM file, checked and kept.

Byte ranges are half-open ``[start, end)``; frames count from 0 here and from 1 on the command line.
"""

from voxtier.frames.table import (
    FrameTable,
    RangedSource,
    TableResult,
    read_frame,
    read_table,
    read_tables,
)

__all__ = ["FrameTable", "RangedSource", "TableResult", "read_frame", "read_table", "read_tables"]
