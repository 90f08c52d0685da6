"""An index of names: the algebra keeps the order of the first, and duplicates are refused where asked."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from voxtier.errors import ConfigError
from voxtier.volumes.cohort.index import Index, align

FIRST, SECOND = ["d", "a", "c", "b"], ["b", "x", "d"]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (Index(FIRST) & Index(SECOND), ["d", "b"]),
        (Index(FIRST) & frozenset(SECOND), ["d", "b"]),
        (Index(FIRST) | Index(SECOND), ["d", "a", "c", "b", "x"]),
        (Index(FIRST) | frozenset(["z", "y"]), ["d", "a", "c", "b", "y", "z"]),
        (Index(FIRST) | Index(["x", "x"]), ["d", "a", "c", "b", "x"]),
        (Index(FIRST) - Index(SECOND), ["a", "c"]),
        (Index(FIRST) - {"a"}, ["d", "c", "b"]),
        (Index(FIRST) ^ Index(SECOND), ["a", "c", "x"]),
        (Index(FIRST).take([3, 0, 0]), ["b", "d", "d"]),
        (Index(FIRST).mask(np.array([True, False, False, True])), ["d", "b"]),
        (align(Index(FIRST), Index(SECOND), Index(["d"])), ["d"]),
        (align(Index(FIRST)), FIRST),
        (align(), []),
    ],
)
def test_algebra_keeps_the_order_of_the_first(found: Index, wanted: list[str]) -> None:
    assert found.to_list() == list(found) == list(found.keys) == wanted
    assert found.to_set() == frozenset(wanted)
    assert all(
        found.keys[found.get_index(key)] == key == found.get_key(found.get_index(key)) for key in wanted
    )
    assert found.key_to_idx == {key: wanted.index(key) for key in wanted}


def test_names_are_compared_with_what_they_are() -> None:
    subjects, observations = Index(FIRST, "obs_subject_id"), Index(FIRST, "obs_id")
    assert subjects != observations
    assert subjects.is_aligned(observations)
    assert not subjects.is_aligned(Index(sorted(FIRST)))
    assert (subjects & observations).name == "obs_subject_id"
    assert Index(["a"]) <= subjects >= Index(["b", "a"])
    assert not subjects <= Index(["a"])
    assert {subjects: 1}[Index.build(FIRST, name="obs_subject_id")] == 1
    assert pickle.loads(pickle.dumps(subjects)) == subjects


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: Index.build(["a", "b", "a"]), ConfigError),
        (lambda: Index(FIRST).mask([True]), ConfigError),
        (lambda: Index(FIRST).take([4]), IndexError),
        (lambda: Index(FIRST).get_key(-1), IndexError),
        (lambda: Index(FIRST).get_index("x"), KeyError),
    ],
)
def test_what_is_not_there_is_refused(call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call()
