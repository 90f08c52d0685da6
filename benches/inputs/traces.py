"""Synthetic requests: clinicians who read studies and priors, and training that reads the whole archive."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

HOUR = 3_600_000_000
DAY = 24 * HOUR
DEBOUNCE = 600_000_000
# Share of the studies, series of one, files of a series: radiographs, CT, MR, ultrasound.
_MODALITIES = ((0.45, 1, 2), (0.30, 2, 250), (0.20, 6, 35), (0.05, 1, 40))


class Trace(NamedTuple):
    """Requests in the order of time, and the files that they ask for.

    ``keys`` are file numbers, ``times`` microseconds; ``inserted`` and ``series`` are those of the files.
    """

    keys: Any
    times: Any
    scans: Any
    inserted: Any
    series: Any


def viewer(days: int, studies_a_day: int, seed: int = 0) -> Trace:
    """Draw what radiologists and clinicians read: new studies with their priors, repeats, and old ones."""
    dice = np.random.default_rng(seed)
    inserted: list[Any] = []
    series: list[Any] = []
    of_patient: dict[int, list[int]] = {}
    studies: list[tuple[int, int, int]] = []  # first file, series, files of each
    views: list[tuple[float, int]] = []
    files = number_of_series = 0
    for study in range(days * studies_a_day):
        day = study // studies_a_day
        arrival = _at_work(day, dice.random())
        _, count, length = _MODALITIES[dice.choice(4, p=[m[0] for m in _MODALITIES])]
        length = max(int(length * dice.lognormal(0, 0.3)), 1)
        studies.append((files, count, length))
        inserted.append(np.full(count * length, int(arrival)))
        series.append(number_of_series + np.repeat(np.arange(count), length))
        files, number_of_series = files + count * length, number_of_series + count
        priors = of_patient.setdefault(int(dice.integers(0, days * studies_a_day // 3)), [])
        read = arrival + dice.exponential(1.5) * HOUR
        views.append((read, study))
        if dice.random() < 0.6:
            views += [(read + 60_000_000 * place, prior) for place, prior in enumerate(priors[-2:], 1)]
        for chance, wait in ((0.5, 0.6), (0.2, 4.0)):  # the ward the next day, the clinic next week
            if dice.random() < chance:
                later = arrival // DAY + dice.exponential(wait) + 0.5
                views.append((_at_work(int(later), dice.random()), study))
        priors.append(study)
    keys, times = [], []
    for time, study in views:
        first, count, length = studies[study]
        for number in range(count):
            if number and dice.random() > 0.7:
                continue
            slices = first + number * length + np.arange(length)
            if dice.random() < 0.2:  # scrolled back and forth
                slices = np.concatenate((slices, slices[length // 2 :][::-1]))
            keys.append(slices)
            times.append(int(time) + number * 30_000_000 + np.arange(len(slices)) * 40_000)
    key, time = np.concatenate(keys), np.concatenate(times)
    order = np.argsort(time, kind="stable")
    order = order[time[order] < days * DAY]
    scans = np.zeros(len(order), np.bool_)
    return Trace(key[order], time[order], scans, np.concatenate(inserted), np.concatenate(series))


def mixed(days: int, studies_a_day: int, seed: int = 0) -> Trace:
    """Add training to `viewer`: each night and each day an epoch over all files of that moment."""
    trace = viewer(days, studies_a_day, seed)
    keys, times = [trace.keys], [trace.times]
    for day in range(1, days):
        known = np.flatnonzero(trace.inserted < day * DAY)
        keys.append(np.random.default_rng(day).permutation(known))
        times.append(day * DAY + np.arange(len(known)) * (DAY // max(len(known), 1)))
    key, time = np.concatenate(keys), np.concatenate(times)
    scans = np.arange(len(key)) >= len(trace.keys)
    order = np.argsort(time, kind="stable")
    return trace._replace(keys=key[order], times=time[order], scans=scans[order])


def statistics_at(trace: Trace, moment: int) -> tuple[Any, Any]:
    """Return last access and file loads of each file before a moment, debounced as the cache does."""
    before = trace.times < moment
    keys, times = trace.keys[before], trace.times[before]
    last_used = np.full(len(trace.inserted), np.iinfo(np.int64).min)
    np.maximum.at(last_used, keys, times)
    order = np.lexsort((times, keys))
    keys, times = keys[order], times[order]
    counts = np.ones(len(keys), np.bool_)
    counts[1:] = (keys[1:] != keys[:-1]) | (times[1:] - times[:-1] > DEBOUNCE)
    return last_used, np.bincount(keys[counts], minlength=len(trace.inserted)).astype(np.int64)


def _at_work(day: int, share: float) -> float:
    return day * DAY + (7 + 11 * share) * HOUR
