"""The origin's helpers for tables and addresses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier.arguments import several
from voxtier.errors import ConfigError
from voxtier.volumes.compat.dataframe import Dataframe
from voxtier.volumes.compat.volume_collection import VolumeCollection
from voxtier.volumes.tiledb.places import remove_own
from voxtier.volumes.tiledb.session import Session, Uri, as_uri, is_remote, read_kind
from voxtier.volumes.tiledb.tables.columns import as_table, import_pandas
from voxtier.volumes.tiledb.tables.names import INDEX_COLUMNS

Collections = Mapping[str, VolumeCollection] | Iterable[VolumeCollection]
"""Some collections, named or not."""


def affine_to_list(affine: NDArray[Any]) -> list[list[float]]:
    """Return an affine as nested lists."""
    rows: list[list[float]] = np.asarray(affine, dtype=np.float64).tolist()
    return rows


def affine_to_json(affine: NDArray[Any]) -> str:
    """Return an affine as JSON, whose numbers parse back to the same doubles."""
    return json.dumps(affine_to_list(affine))


def uri_exists(uri: Uri) -> bool:
    """Return whether an array or a group of TileDB lies at an address."""
    return read_kind(as_uri(uri), Session.of()) is not None


def delete_tiledb_uri(uri: Uri) -> None:
    """Remove the array or the group of TileDB at an address, with the objects in it; nothing there is fine.

    What else lies in its folders stays there.

    Raises
    ------
    ConfigError
        When something else lies there.
    """
    target, session = as_uri(uri), Session.of()
    if read_kind(target, session) is not None:
        remove_own(target, session)
    elif not is_remote(target) and Path(target).exists():
        raise ConfigError(f"{target} is no array or group of TileDB: remove it by hand")


def build_obs_meta_schema(df: Any) -> dict[str, np.dtype[Any]]:
    """Return the types of the columns of subjects, without the key."""
    table = as_table(df)
    return {name: table[name].dtype for name in table.columns if name != "obs_subject_id"}


def ensure_obs_columns(df: Any, *, require_obs_id: bool = False, context: str = "") -> Any:
    """Return a table that has the key columns.

    Parameters
    ----------
    df : DataFrame
        The table.
    require_obs_id : bool
        Whether ``obs_id`` is needed beside ``obs_subject_id``.
    context : str
        Begins the message of the error.

    Returns
    -------
    DataFrame
        The same.

    Raises
    ------
    ConfigError
        When one is missing.
    """
    needed = INDEX_COLUMNS if require_obs_id else ("obs_subject_id",)
    missing = [name for name in needed if name not in df.columns]
    if missing:
        raise ConfigError(f"{context and context + ': '}the table needs a column {missing[0]!r}")
    return df


def validate_no_column_collisions(
    user_columns: set[str], auto_columns: set[str], *, context: str = ""
) -> None:
    """Refuse columns of the user that images fill themselves.

    Parameters
    ----------
    user_columns, auto_columns : set of str
        Names of both.
    context : str
        Begins the message of the error.

    Raises
    ------
    ConfigError
        Names them.
    """
    both = sorted((set(several(user_columns)) - set(INDEX_COLUMNS)) & set(several(auto_columns)))
    if both:
        raise ConfigError(f"{context and context + ': '}the images fill {', '.join(both)} themselves: rename")


def write_obs_dataframe(uri: Uri, df: Any, ctx: object = None, columns: set[str] | None = None) -> None:
    """Write rows into a table that exists: those it holds are changed, others added.

    Parameters
    ----------
    uri : path or URI
        The table.
    df : DataFrame
        Rows with their keys.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    columns : set of str, optional
        Write these columns only.
    """
    frame, table = Dataframe(uri, ctx), as_table(df)
    wanted = set(frame.columns) if columns is None else set(several(columns))
    names = [name for name in table.columns if name in frame.index_columns or name in wanted]
    if len(table):
        frame.update(table.select(names))


def create_and_write_obs_meta(uri: Uri, obs_meta: Any, ctx: object = None) -> None:
    """Create the table ``obs_meta``, keyed by ``obs_subject_id``, and write its rows.

    Parameters
    ----------
    uri : path or URI
        Where it is created below.
    obs_meta : DataFrame
        The rows.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    """
    Dataframe.from_pandas(f"{as_uri(uri)}/obs_meta", obs_meta, ctx, ("obs_subject_id",))


def build_obs_ids_mapping(collections: Collections) -> Any:
    """Return a DataFrame: each subject with its observations in all collections, as a JSON list."""
    ids: dict[str, list[str]] = {}
    for view in collections.values() if isinstance(collections, Mapping) else collections:
        for subject, obs_id in zip(view.obs_subject_ids, view.obs_ids, strict=True):
            ids.setdefault(subject, []).append(obs_id)
    subjects = sorted(ids)
    return import_pandas().DataFrame(
        {"obs_subject_id": subjects, "obs_ids": [json.dumps(sorted(ids[subject])) for subject in subjects]}
    )


def merge_obs_ids(obs_meta: Any, collections: Collections) -> Any:
    """Return a table of subjects with the column ``obs_ids`` (see `build_obs_ids_mapping`)."""
    obs_meta = obs_meta.drop(columns="obs_ids", errors="ignore")
    merged = obs_meta.merge(build_obs_ids_mapping(collections), on="obs_subject_id", how="left")
    return merged.assign(obs_ids=merged["obs_ids"].fillna("[]"))
