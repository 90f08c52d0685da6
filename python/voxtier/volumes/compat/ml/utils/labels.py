"""Labels by the place of a volume, from a column, a table, a dict or a function."""

from __future__ import annotations

from typing import Any

from voxtier.errors import ConfigError
from voxtier.volumes.cohort.collection_view import CollectionView
from voxtier.volumes.compat._types import LabelSource
from voxtier.volumes.training.matching import is_label, refuse_two_labels

__all__ = ["LabelSource", "load_labels"]


def load_labels(collection: CollectionView, labels: LabelSource, obs_df: Any = None) -> dict[int, Any] | None:
    """Return the label of each volume that has one, by its place; None without any.

    Parameters
    ----------
    collection : CollectionView
        The volumes.
    labels : str, DataFrame, dict, callable or None
        Column of the rows, table with ``obs_id`` as a column or index and the label beside it, label by
        ``obs_id``, or function of ``obs_id``.
    obs_df : DataFrame, optional
        The rows that hold the column, by default those of the collection.

    Returns
    -------
    dict or None
        Place -> label.

    Raises
    ------
    ConfigError
        When there is no such column, and for a table with two labels of one observation.
    TypeError
        For labels of another sort.
    """
    if labels is None:
        return None
    if callable(labels):
        labels = {obs_id: labels(obs_id) for obs_id in collection.obs_ids}
    if isinstance(labels, str):
        labels = _column(collection.to_obs() if obs_df is None else obs_df, labels, is_given=False)
    elif hasattr(labels, "columns"):
        columns = [name for name in labels.columns if name not in ("obs_id", "obs_subject_id")]
        if not columns:
            raise ConfigError("a table of labels has the columns obs_id and one more")
        labels = _column(labels, columns[0], is_given=True)
    elif not isinstance(labels, dict):
        raise TypeError(
            f"labels are a column name, a DataFrame, a dict, a function or None, got {type(labels).__name__}"
        )
    places = enumerate(collection.obs_ids)
    found = {place: labels[key] for place, key in places if key in labels and is_label(labels[key])}
    return found or None


def _column(table: Any, name: str, *, is_given: bool) -> dict[str, Any]:
    if name not in table.columns:
        raise ConfigError(f"no column {name!r}; there are {', '.join(map(str, table.columns))}")
    ids = table["obs_id"] if "obs_id" in table.columns else table.index
    if not all(isinstance(key, str) for key in ids):
        raise ConfigError("a table of labels needs obs_id as a column or as its index")
    if is_given:  # rows of a view may stand twice
        refuse_two_labels(ids)
    return dict(zip(ids, table[name], strict=True))
