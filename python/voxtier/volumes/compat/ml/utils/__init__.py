"""Labels, checks and workers of the origin's datasets."""

from voxtier.volumes.compat.ml.utils.labels import LabelSource, load_labels
from voxtier.volumes.compat.ml.utils.validation import (
    validate_collection_alignment,
    validate_uniform_shapes,
)
from voxtier.volumes.compat.ml.utils.worker_init import worker_init_fn

__all__ = [
    "LabelSource",
    "load_labels",
    "validate_collection_alignment",
    "validate_uniform_shapes",
    "worker_init_fn",
]
