"""What the state of a tensor file allows: the groups of ``voxtier._core.TENSOR_STATES``.

`verify` adds three states that only a listing can tell: ``gds_marker``, ``orphan``, ``leftover_temp``.
Making, keeping and `HealingPersistentDataset` decide by these groups. `FINDINGS` are of volumes, before there
is a file.
"""

from __future__ import annotations

INTACT = frozenset({"ok", "ok_trailing"})
"""Structure and every CRC-32 are right: the raw file may go."""
FINE = INTACT | {"ok_no_crc", "gds_marker"}
"""Nothing to report."""
NOTED = frozenset({"orphan", "leftover_temp"})
"""Reported, but no finding: the file is not damaged, only not wanted."""
DAMAGED = frozenset({"truncated", "bad_structure", "bad_crc"})
"""The content proves that the file is damaged: it may be deleted if it can be made again."""
FIXABLE = DAMAGED | {"unsafe_globals"}
"""``verify --fix`` moves these files to quarantine."""
UNREADABLE = frozenset({"io_error", "unknown"})
"""The surroundings failed, not the file, as in ``voxtier.errors.ENVIRONMENT_KINDS``: it is left alone."""
LOADABLE = INTACT | {"ok_no_crc", "compressed_storage", "not_weights_only", "legacy_format"}
"""`load_safely` gives the values that were saved, unless `refusal` says why not."""
FINDINGS = ("constant", "nan", "4d", "affine", "damaged")
"""What keeps a tensor from being made unless it is accepted: all voxels equal, voxels that are NaN or
infinite, several time points or channels, an affine that maps the volume to a plane, a gzip stream that its
checksum calls damaged."""
