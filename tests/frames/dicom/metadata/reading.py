"""Reads metadata as the tests compare them: numbers are `Decimal`, keys ascend and stand once."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any

from voxtier.frames import RangedSource, read_metadata_json


def read_exactly(source: Any, **options: Any) -> dict[str, Any]:
    """Read DICOM JSON as it is written: the file's digits, and every key."""
    text = read_metadata_json(source, **options)
    found: dict[str, Any] = json.loads(
        text, parse_float=Decimal, parse_int=Decimal, parse_constant=_refuse, object_pairs_hook=_object
    )
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON (RFC 8259 6)")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs if len(key) == 8]
    assert keys == sorted(set(keys)), "PS3.18 F.2.2: attributes ascend, each once"
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def as_numbers(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes as the oracle has them.

    Numbers that are strings (PS3.18 F.2.3: IS, DS, SV, UV) become numbers; binary floats are compared bit by
    bit, as one may have two shortest texts.
    """
    return {tag: _as_numbers(attribute) for tag, attribute in attributes.items()}


def _as_numbers(attribute: dict[str, Any]) -> dict[str, Any]:
    vr, values = attribute["vr"], attribute.get("Value")
    if values is None:
        return attribute
    if vr == "SQ":
        return attribute | {"Value": [as_numbers(item) for item in values]}
    if vr in ("IS", "DS", "SV", "UV"):
        return attribute | {"Value": [_number(v) for v in values]}
    if vr in ("FL", "FD"):
        return attribute | {"Value": [v if isinstance(v, str) else float(v).hex() for v in values]}
    return attribute


def _number(value: Any) -> Any:
    try:
        return Decimal(value) if isinstance(value, str) else value
    except InvalidOperation:
        return value


def in_ranges(content: bytes) -> RangedSource:
    """Return the same bytes as a source that is read piece by piece."""
    return RangedSource(lambda offset, length: content[offset : offset + length], len(content))
