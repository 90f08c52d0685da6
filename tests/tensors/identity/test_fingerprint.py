"""Differences of parameters are named, one line each."""

from __future__ import annotations

from voxtier.tensors.identity.fingerprint import differences


def test_parameter_differences_are_named() -> None:
    old = {"transforms": [{"class": "Spacingd", "pixdim": [1.0, 1.0, float("nan")]}, {"class": "X", "b": 1}]}
    new = {
        "transforms": [{"class": "Spacingd", "pixdim": [1.0, 2.0, float("nan")]}, {"class": "X", "b": 1.0}]
    }
    assert differences(old, new) == [
        "transforms[Spacingd].pixdim: [1.0, 1.0, NaN] -> [1.0, 2.0, NaN]",
        "transforms[X].b: 1 -> 1.0",
    ]
    assert differences(old, old) == []
