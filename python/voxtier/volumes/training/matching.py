"""What belongs to one item: volumes of one subject, session and place, its label, the classes of its mask."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError, FormatError
from voxtier.volumes import geometry
from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.tiledb.tables.columns import as_table, is_value
from voxtier.volumes.tiledb.tables.names import INDEX_COLUMNS
from voxtier.volumes.volume import Volume


def match_volumes(collection: VolumeCollection, reference: VolumeCollection) -> list[Volume]:
    """Return one volume for each volume of a reference: of the same subject, and of its session where told.

    A volume that states a run serves that run alone, one that states none serves all.

    Raises
    ------
    ConfigError
        For a subject without a volume, for one with several, and where the runs differ.
    """
    places: dict[str, list[int]] = {}
    keys = _keys_of(collection)
    for place, (subject, _, _) in enumerate(keys):
        places.setdefault(subject, []).append(place)
    chosen, missing = [], []
    for subject, session, run in _keys_of(reference):
        found = places.get(subject, [])
        same = [place for place in found if keys[place][1] == session]
        unstated = [place for place in found if keys[place][1] is None]
        found = same or (found if session is None else unstated)
        label = subject if session is None else f"{subject} (session {session})"
        if run is not None and len({keys[place][1] for place in found}) == 1:
            other = keys[found[0]][2]
            same = [place for place in found if keys[place][2] == run]
            found = same or [place for place in found if keys[place][2] is None]
            if not found:
                raise ConfigError(
                    f"collection {collection.name!r} has no volume of {label!r} of run {run}, only of run"
                    f" {other}: select the volumes that have a partner first, or drop its obs column 'run'"
                    " where runs do not matter"
                )
        if len(found) > 1:
            raise ConfigError(
                f"collection {collection.name!r} has several volumes of {label!r}: select one first"
            )
        chosen += found
        missing += [] if found else [label]
    if missing:
        raise ConfigError(f"collection {collection.name!r} lacks the subjects {', '.join(missing[:5])}")
    return [collection.iloc[place] for place in chosen]


def _keys_of(collection: VolumeCollection) -> list[tuple[str, str | None, str | None]]:
    """Return subject, session and run of each volume."""
    rows = collection.table.rows()
    return [(str(row["obs_subject_id"]), row.get("session"), _run_of(row.get("run"))) for row in rows]


def _run_of(value: object) -> str | None:
    """Return a run as text; it is a number (BIDS 1.10, "Entities"), so 01 is 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # what a table makes of runs where one is missing
    text = None if value is None else str(value)
    return str(int(text)) if text is not None and text.isdecimal() else text


def refuse_misplaced(first: Volume, other: Volume) -> None:
    """Refuse two volumes of different shapes, or that lie apart.

    Raises
    ------
    FormatError
        Names both.
    """
    if first.shape[:3] != other.shape[:3]:
        raise FormatError(
            "bad_geometry", None, f"{other.obs_id} has shape {other.shape}, {first.obs_id} has {first.shape}"
        )
    here, there = first.affine, other.affine
    if here is not None and there is not None and not np.allclose(here, there, atol=1e-3):
        error = geometry.corner_error(here, there, first.shape)
        raise FormatError(
            "bad_geometry", None, f"{other.obs_id} lies up to {error:.3g} mm beside {first.obs_id}"
        )


def refuse_times(mask: Volume) -> None:
    """Refuse a mask of several points in time, in which a sampler is to look for classes.

    Raises
    ------
    ConfigError
        Names the mask.
    """
    if mask.ndim == 4 and mask.shape[3] != 1:
        raise ConfigError(
            f"the mask {mask.obs_id or mask.uri} has {mask.shape[3]} points in time, patches by class"
            " need a mask of one: store it as (x, y, z)"
        )


def check_label(label: object) -> None:
    """Refuse what is no class of a mask; masks that are scaled may have fractions."""
    try:
        number = operator.index(label)  # type: ignore[arg-type]  # arrays and tensors of one whole number too
    except TypeError:
        number = label  # type: ignore[assignment]
    if isinstance(label, bool) or not isinstance(number, (int, float, np.floating)) or number != number:
        raise ConfigError(f"label is a class of the mask, a number, got {label!r}")


def read_classes(mask: Volume, box: tuple[slice, ...] | None = None) -> NDArray[Any]:
    """Return the classes of a mask as its patches hold them: scaled, (x, y, z) also where t is 1.

    Parameters
    ----------
    mask : Volume
        The mask.
    box : tuple of slice, optional
        Along x, y, z; by default all.

    Returns
    -------
    numpy.ndarray
        Numbers of the stored type, or ``float64`` where they are scaled.

    Raises
    ------
    ConfigError
        For a mask of several points in time.
    """
    refuse_times(mask)
    if mask.ndim == 4:
        cells = mask.read((..., 0) if box is None else (*box, 0), raw=True)
    else:
        cells = mask.read(raw=True) if box is None else mask.read(box, raw=True)
    return mask.array.scaling.classes(cells)


def read_labels(labels: object, collection: VolumeCollection) -> dict[str, Any] | None:
    """Return the label of each observation, from any of the forms that `VolumeCollectionDataset` takes.

    Raises
    ------
    ConfigError
        For a column that is not there, a table of another form or with two labels of one observation, and an
        observation without a label.
    """
    if labels is None:
        return None
    ids = collection.obs_ids
    if callable(labels):
        by_id = {obs_id: labels(obs_id) for obs_id in ids}
    elif isinstance(labels, str):
        table = collection.table
        if labels not in table:
            raise ConfigError(f"no column {labels!r}; there are {', '.join(table.columns)}")
        by_id = dict(zip(ids, [row[labels] for row in table.rows()], strict=True))
    elif isinstance(labels, Mapping) and "obs_id" not in labels:
        by_id = {str(key): value for key, value in labels.items()}
    else:
        table = as_table(labels)
        values = [name for name in table.columns if name not in INDEX_COLUMNS]
        if "obs_id" not in table or len(values) != 1:
            raise ConfigError("a table of labels has the columns obs_id and one more")
        told = table.ids("obs_id")
        refuse_two_labels(told)
        by_id = dict(zip(told, (row[values[0]] for row in table.rows()), strict=True))
    missing = [obs_id for obs_id in ids if not is_label(by_id.get(obs_id))]
    if missing:
        raise ConfigError(
            f"no label for {', '.join(missing[:5])}: give each one, or select the observations that have one"
        )
    return {obs_id: by_id[obs_id] for obs_id in ids}


def refuse_two_labels(obs_ids: Iterable[str]) -> None:
    """Refuse a table of labels in which an observation stands twice.

    Raises
    ------
    ConfigError
        Names the observations.
    """
    twice = [obs_id for obs_id, count in Counter(obs_ids).items() if count > 1]
    if twice:
        raise ConfigError(f"two labels for {', '.join(twice[:5])}: give each observation one")


def is_label(value: object) -> bool:
    """Return whether a label is there; an array of several numbers is one, whatever they are."""
    return getattr(value, "ndim", 0) > 0 or is_value(value)
