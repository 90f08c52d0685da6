"""What collections must have in common to become items together."""

from __future__ import annotations

from collections.abc import Mapping

from voxtier.errors import ConfigError
from voxtier.volumes.cohort.collection_view import CollectionView


def validate_collection_alignment(collections: Mapping[str, CollectionView]) -> None:
    """Refuse collections of different numbers of volumes or of different subjects.

    Raises
    ------
    ConfigError
        Names the collection.
    """
    views = list(collections.items())
    for name, view in views[1:]:
        first_name, first = views[0]
        if len(view) != len(first):
            raise ConfigError(f"collection {name!r} has {len(view)} volumes, {first_name!r} {len(first)}")
        apart = view.subjects ^ first.subjects
        if len(apart):
            raise ConfigError(
                f"collections {name!r} and {first_name!r} differ in subjects: {', '.join(apart.keys[:5])}"
            )


def validate_uniform_shapes(collections: Mapping[str, CollectionView]) -> tuple[int, ...]:
    """Return the one shape of all volumes.

    Raises
    ------
    ConfigError
        When they differ, and without a collection.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, view in collections.items():
        shape = view.shape
        if shape is None:
            raise ConfigError(f"the volumes of collection {name!r} differ in shape: resample them first")
        shapes[name] = shape
    if len(set(shapes.values())) != 1:
        raise ConfigError(f"the collections differ in shape: {shapes or 'there is none'}")
    return next(iter(shapes.values()))
