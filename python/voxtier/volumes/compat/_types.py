"""Types of arguments under the origin's names, and how a transform's result is taken apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from voxtier.volumes.cohort.queries.transforms import Transform as TransformFn
from voxtier.volumes.cohort.queries.transforms import split_result as normalize_transform_result

__all__ = ["AttrValue", "BatchTransformFn", "LabelSource", "TransformFn", "normalize_transform_result"]

AttrValue: TypeAlias = int | float | bool | str
"""What a column of a row holds."""

BatchTransformFn: TypeAlias = Callable[[list[tuple[Any, Any]]], Sequence[Any]]
"""Takes a list of (voxels, row), gives one result for each."""

LabelSource: TypeAlias = Any
"""A column name, a DataFrame, a dict by obs_id, a function of obs_id, or None."""
