"""The origin's exceptions: ours under its names."""

from voxtier.errors import ConfigError, IngestError, ViewError, VoxtierError

__all__ = [
    "AlignmentError",
    "ConfigurationError",
    "IngestError",
    "RadiObjectError",
    "SchemaError",
    "ShapeError",
    "StorageError",
    "ViewError",
]

RadiObjectError = StorageError = VoxtierError
AlignmentError = ConfigurationError = SchemaError = ShapeError = ConfigError
