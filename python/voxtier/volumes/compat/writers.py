"""The origin's writers under the names that its present head gives them."""

from voxtier.volumes.compat.streaming import RadiObjectWriter
from voxtier.volumes.compat.streaming import StreamingWriter as VolumeCollectionWriter

__all__ = ["RadiObjectWriter", "VolumeCollectionWriter"]
