"""Which slices of a series make one stack, and which stacks make one volume.

Slices are told apart by distances and by the attributes of `tags`, never by names or the order of files.
Stacks that lie at the same place become the time points of a 4-D volume; those that do not, and those of
another contrast, become volumes of their own, each with its own affine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import NoStackError
from voxtier.volumes.formats.dicom.attributes import refusal
from voxtier.volumes.formats.dicom.grid import (
    Grid,
    OnGap,
    Stack,
    is_same_grid,
    lay_out,
    same_place,
    sort_slices,
)
from voxtier.volumes.formats.dicom.scales import check_scales
from voxtier.volumes.formats.dicom.slices import Slice
from voxtier.volumes.formats.dicom.tags import ALWAYS_APART, CONTRASTS, EXPLAINING, MEASURES, ORDERING, Value

_TURN = 2e-3
"""Direction cosines of neighbours in one volume differ by no more; the corners decide in millimetres."""
_STRETCH = 1e-3
"""So do their pixel spacings, as a share."""
_SAME_NUMBER = 1e-3
"""Measured values that differ by this share, or less, are one value."""
_SAME_CLOCK = 1e-4
"""Identifiers and times that differ by this, or less, are one: text keeps no more digits of them."""

_ALL = tuple(dict.fromkeys((*ALWAYS_APART, *EXPLAINING)))
_Key = tuple[tuple[str, Value | None], ...]
_Parts = list[tuple[Value | None, list[Slice]]]


def volumes_of(slices: Sequence[Slice], name: str, on_gap: OnGap) -> list[list[Stack]]:
    """Return the volumes that slices of one `Kind` make: each the stacks of its time points, in order.

    Parameters
    ----------
    slices : sequence of Slice
        In any order.
    name : str
        The series, for messages.
    on_gap : {"error", "keep", "fill"}
        What becomes of missing slices.

    Returns
    -------
    list of list of Stack
        Stacks of one volume lie at the same place and show the same contrast.

    Raises
    ------
    FormatError
        ``bad_geometry`` for slices on no regular grid, and for slices at one place that nothing tells apart;
        ``unsupported_image`` for slices whose scales are not known.
    """
    stacks: list[Stack] = []
    for plane in _planes(slices):
        for key, group in _always_apart(plane, name):
            try:
                found = _stacks_of(group, on_gap)
            except NoStackError as error:
                raise refusal("bad_geometry", ", ".join([name, *_texts(key)]), error.reason) from None
            stacks += [Stack(tuple(part), grid, key | more) for more, part, grid in found]
    contrasts: dict[_Key, list[Stack]] = defaultdict(list)
    for stack in stacks:
        contrasts[tuple((n, v) for n, v in sorted(stack.key.items()) if n in CONTRASTS)].append(stack)
    volumes = [volume for group in contrasts.values() for volume in _at_one_place(group)]
    for volume in volumes:
        check_scales((item.scale for stack in volume for item in stack.slices), name)
    return volumes


def volume_label(stacks: Sequence[Stack]) -> str:
    """Return how messages tell a volume from the others of its series."""
    shared = {
        name: value
        for name, value in stacks[0].key.items()
        if all(stack.key.get(name) == value for stack in stacks)
    }
    return ", ".join([f"series {stacks[0].slices[0].kind.series}", *_texts(shared)])


def _texts(key: dict[str, Value | None]) -> list[str]:
    return [
        f"{tag} {'absent' if value is None else '/'.join(f'{number:g}' for number in value)}"
        for tag, value in key.items()
    ]


def _at_one_place(stacks: Iterable[Stack]) -> list[list[Stack]]:
    """Return stacks grouped by the first of them that each lies upon: no chain of small moves joins them."""
    volumes: list[list[Stack]] = []
    for stack in sorted(stacks, key=_rank):
        volume = next((found for found in volumes if is_same_grid(stack, found[0])), None)
        if volume is None:
            volumes.append([stack])
        else:
            volume.append(stack)
    return volumes


def _rank(stack: Stack) -> list[tuple[int, Value]]:
    return [(place, stack.key[name] or ()) for place, name in enumerate(_ALL) if name in stack.key]


def cluster(points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return a number for each point, equal where a chain of points less than 1 apart joins them.

    Numbers follow the order of the clusters' least points, whatever the order of the points is.
    """
    unique, places = np.unique(points, axis=0, return_inverse=True)
    labels = np.full(len(unique), -1)
    widest = int(np.argmax(np.ptp(unique, axis=0))) if len(unique) else 0
    order = np.argsort(unique[:, widest], kind="stable")  # neighbours are near each other along any axis
    along = unique[order, widest]
    for start in range(len(unique)):
        if labels[start] >= 0:
            continue
        labels[start] = start
        waiting = [start]
        while waiting:
            point = unique[waiting.pop()]
            low, high = np.searchsorted(along, (point[widest] - 1.001, point[widest] + 1.001))
            free = order[low:high][labels[order[low:high]] < 0]
            near = free[np.abs(unique[free] - point).max(axis=1, initial=0) <= 1]
            labels[near] = start
            waiting.extend(near.tolist())
    _, numbers = np.unique(labels, return_inverse=True)
    found: NDArray[np.intp] = numbers.ravel()[places.ravel()]
    return found


def _planes(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Return slices apart by orientation and pixel spacing."""
    turn = np.array([item.orientation for item in slices]) / _TURN
    stretch = np.log([item.pixel_spacing for item in slices]) / _STRETCH
    return _grouped(slices, cluster(np.hstack([turn, stretch])))


def _grouped(slices: Sequence[Slice], labels: Iterable[int]) -> list[list[Slice]]:
    groups: dict[int, list[Slice]] = defaultdict(list)
    for item, label in zip(slices, labels, strict=True):
        groups[int(label)].append(item)
    return [groups[label] for label in sorted(groups)]


def _by_value(slices: Sequence[Slice], tag: str) -> _Parts:
    """Return slices apart by the value of an attribute; those without it first."""
    without = [item for item in slices if tag not in item.tags]
    parts: _Parts = [(None, without)] if without else []
    lengths: dict[int, list[Slice]] = defaultdict(list)
    for item in slices:
        if tag in item.tags:
            lengths[len(item.tags[tag])].append(item)
    for _, group in sorted(lengths.items()):
        values = np.array([item.tags[tag] for item in group])
        if tag in MEASURES:  # equal shares become equal distances
            points = np.sign(values) * np.log1p(np.abs(values) / MEASURES[tag]) / _SAME_NUMBER
        else:
            points = values / _SAME_CLOCK
        parts += [(min(item.tags[tag] for item in part), part) for part in _grouped(group, cluster(points))]
    return parts


def _always_apart(slices: list[Slice], name: str) -> list[tuple[dict[str, Value | None], list[Slice]]]:
    """Return slices apart by the attributes of which no stack has two values."""
    keys: dict[int, dict[str, Value | None]] = {id(item): {} for item in slices}
    for tag in ALWAYS_APART:
        parts = _by_value(slices, tag)
        for value, part in parts if len(parts) > 1 else ():
            for item in part:
                keys[id(item)][tag] = value
    groups: dict[_Key, list[Slice]] = defaultdict(list)
    for item in slices:
        groups[tuple(keys[id(item)].items())].append(item)
    ordered = sorted(groups.items(), key=lambda pair: [value or () for _, value in pair[0]])
    _refuse_lacking(ordered, name)
    return [(dict(key), group) for key, group in ordered]


def _refuse_lacking(groups: Sequence[tuple[_Key, list[Slice]]], name: str) -> None:
    """Refuse slices that lack an attribute which others have, where nothing else tells them from those.

    Images of b = 0 are written without a b-value.
    """
    lacking = {tag for key, _ in groups for tag, value in key if value is None} - {"DiffusionBValue"}
    for tag in sorted(lacking):
        sides: dict[_Key, dict[bool, list[Slice]]] = defaultdict(lambda: {True: [], False: []})
        for key, group in groups:
            rest = tuple(pair for pair in key if pair[0] not in lacking)
            sides[rest][dict(key)[tag] is None] += group
        for side in sides.values():
            if side[True] and side[False]:
                raise refusal(
                    "bad_header",
                    name,
                    f"{len(side[True])} slices without {tag} ({side[True][0].path.name})"
                    f" beside {len(side[False])} with it",
                )


def _stacks_of(slices: list[Slice], on_gap: OnGap) -> list[tuple[dict[str, Value | None], list[Slice], Grid]]:
    """Return slices of one contrast and time as stacks: one, or as many as an attribute explains."""
    ordered = sort_slices(slices)
    try:
        grid = lay_out(ordered, "error")
    except NoStackError as error:
        if error.cause == "gaps":  # no attribute may explain away that slices were lost
            return [({}, ordered, lay_out(ordered, on_gap))]
        return _explained(ordered, on_gap, error)
    interleaved = _interleaved(ordered)
    if interleaved:
        with suppress(NoStackError):
            return [
                ({"AcquisitionNumber": value}, part, lay_out(part, "error")) for value, part in interleaved
            ]
    return [({}, ordered, grid)]


def _interleaved(ordered: list[Slice]) -> _Parts:
    """Return acquisitions apart where the slices of one lie between those of another.

    Acquisitions that follow each other along the normal (step and shoot, stations of a table) are one stack.
    """
    parts = _by_value(ordered, "AcquisitionNumber")
    if len(parts) < 2 or any(len(part) < 2 for _, part in parts):
        return []
    places = {id(item): place for place, item in enumerate(ordered)}
    ends = sorted((places[id(part[0])], places[id(part[-1])]) for _, part in parts)
    is_between = any(later[0] < earlier[1] for earlier, later in pairwise(ends))
    return parts if is_between else []


def _explained(
    ordered: list[Slice], on_gap: OnGap, error: NoStackError
) -> list[tuple[dict[str, Value | None], list[Slice], Grid]]:
    """Return the stacks of the first attribute that makes regular ones of them; without gaps if any does."""
    locations = _locations(ordered)
    is_one_place = len(locations) == 1
    later: NoStackError | None = None
    gaps: tuple[OnGap, ...] = ("error",) if on_gap == "error" else ("error", on_gap)
    for gap in gaps:
        for tag in EXPLAINING:
            for divide in (_by_value, _by_turn):
                parts = divide(ordered, tag)
                if len(parts) < 2 or (not is_one_place and any(len(part) < 2 for _, part in parts)):
                    continue
                if any(value is None for value, _ in parts):
                    continue
                try:
                    return [({tag: value}, part, lay_out(part, gap)) for value, part in parts]
                except NoStackError as found:
                    if found.cause != "one_place":
                        later = later or NoStackError(found.cause, f"apart by {tag}: {found.reason}")
    if len(locations) == len(ordered):
        if on_gap != "error":
            return [({}, ordered, lay_out(ordered, on_gap))]
        raise error
    if later is not None:
        raise later
    raise NoStackError(
        "one_place",
        f"{len(ordered)} slices at {len(locations)} positions, and no tag of"
        f" {', '.join(_ALL)} tells them apart",
    )


def _locations(slices: Sequence[Slice]) -> list[list[Slice]]:
    positions = np.array([item.position for item in slices])
    return _grouped(slices, cluster(positions / same_place(slices)))


def _by_turn(slices: Sequence[Slice], tag: str) -> _Parts:
    """Return slices apart by their turn at each place, for attributes that each slice has for itself."""
    if tag not in ORDERING or any(tag not in item.tags for item in slices):
        return []

    def turn(item: Slice) -> Value:
        return item.tags[tag]

    locations = [sorted(location, key=turn) for location in _locations(slices)]
    count = len(locations[0])
    if any(len(location) != count for location in locations):
        return []
    if any(turn(a) == turn(b) for location in locations for a, b in pairwise(location)):
        return []
    parts = [[location[number] for location in locations] for number in range(count)]
    ends = [(min(map(turn, part)), max(map(turn, part))) for part in parts]
    if ORDERING[tag] and any(a[1] >= b[0] for a, b in pairwise(ends)):
        return []
    return [(first, sort_slices(part)) for (first, _), part in zip(ends, parts, strict=True)]
