"""voxtier: any frame, slice or training tensor of a medical image, found at once and checked.

Three rooms, imported one by one so that each costs only what it needs:

``voxtier.frames``
    Byte ranges of every frame of every DICOM file, kept in memory, in Postgres, or computed.
``voxtier.volumes``
    Radiology volumes in TileDB.
``voxtier.tensors``
    The MONAI ``PersistentDataset`` cache, generated, verified and mapped.
"""

import sys

if sys.platform == "win32":
    raise ImportError("voxtier does not run on Windows: files are read by pread, locked by flock. Use WSL 2.")

from voxtier._core import DEBUG_BUILD, __version__
from voxtier.errors import (
    BackendError,
    ConfigError,
    FormatError,
    MissingExtraError,
    NotFoundError,
    SourceError,
    VoxtierError,
)

__all__ = [
    "BackendError",
    "ConfigError",
    "FormatError",
    "MissingExtraError",
    "NotFoundError",
    "SourceError",
    "VoxtierError",
    "__version__",
]

if DEBUG_BUILD:  # nobody shall benchmark a debug build by mistake
    import warnings

    warnings.warn("voxtier._core is a debug build: slow by design", RuntimeWarning, stacklevel=2)
