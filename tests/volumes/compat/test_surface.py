"""The origin's surface: what is missing of it is known, and little."""

from __future__ import annotations

import importlib

import pytest

from volumes.compat.surface import RELEASE, accepts, compare, merged, report

# Validators of pydantic models, and the constructors of queries and of `Index`, which users never call.
ABSENT = (
    ".validate_",
    "HAS_TORCHIO",
    "Index(key_to_idx)",
    "query:CollectionQuery(",
    "query:Query(",
)


def test_nothing_is_missing_but_what_is_listed() -> None:
    missing, percentage = report()
    assert [name for name in missing if not any(part in name for part in ABSENT)] == []
    assert percentage >= 97.5


def test_a_name_a_member_and_a_parameter_that_are_gone_are_seen() -> None:
    surface = {
        "": {
            "Absent": None,
            "RadiObject": {"()": ["uri", "nothing"], "append": ["niftis", "nope"], "gone": []},
        },
        ".nowhere": {"x": []},
    }
    assert [name for name, is_there in compare(surface) if not is_there] == [
        ".:Absent",
        ".:RadiObject(nothing)",
        ".:RadiObject.append(nope)",
        ".:RadiObject.gone",
        ".nowhere:x",
    ]
    assert accepts(lambda **options: None, "anything")


@pytest.mark.parametrize("module", sorted(merged()))
def test_each_module_of_the_origin_lies_under_its_name(module: str) -> None:
    ours = importlib.import_module(f"voxtier.volumes.compat{module}")
    assert ours.__doc__
    assert RELEASE == "0.1.1"
