"""What stored numbers stand for: rescale, or the Real World Value Mapping of a parametric map.

Only a parametric map is what its mapping says (PS3.3 A.75, C.7.6.16.2.11). Beside the rescale of other
objects a mapping is a second reading (SUV beside Bq/ml), which no reader of images applies by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from voxtier.volumes.formats.dicom.attributes import (
    find_numbers,
    find_text,
    first_item,
    read_number,
    refusal,
)

MAPPINGS = "RealWorldValueMappingSequence"

_PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
_QUANTITY = ("246205007", "G-C1C6")  # SCT, and SRT before it: the name of the item that says what is measured
_ENDS = (  # integers, or floats where stored values are floats
    ("RealWorldValueFirstValueMapped", "RealWorldValueLastValueMapped"),
    ("DoubleFloatRealWorldValueFirstValueMapped", "DoubleFloatRealWorldValueLastValueMapped"),
)


class Scale(NamedTuple):
    """From the stored numbers of a slice to those of its voxels: slope times stored plus intercept."""

    slope: float
    intercept: float
    mapped: tuple[float, float] | None = None
    """Least and largest stored number that has a meaning; None for all."""
    unit: str | None = None
    """What a mapping measures in, by its code (UCUM); None for a rescale."""
    quantity: str = ""
    """What a mapping measures."""
    unused: tuple[object, ...] = ()
    """Mappings that stand beside a rescale."""


def is_parametric_map(header: Any) -> bool:
    """Return whether an object is a parametric map (PS3.4 B.5)."""
    return find_text(header, "SOPClassUID") == _PARAMETRIC_MAP


def read_scale(header: Any, rescale: Any, mapping: Any, where: str) -> Scale:
    """Return the scale of a slice.

    Parameters
    ----------
    header : pydicom.Dataset
        Of its file.
    rescale, mapping : pydicom.Dataset
        Where Rescale Slope and Real World Value Mapping Sequence stand.
    where : str
        The slice, for messages.

    Returns
    -------
    Scale
        The mapping of a parametric map that has one, else the rescale.

    Raises
    ------
    FormatError
        ``bad_header`` or ``unsupported_image`` for a scale that cannot be applied.
    """
    items = list(mapping.get(MAPPINGS) or []) if first_item(mapping, MAPPINGS) is not None else []
    if items and is_parametric_map(header):
        scales = {_mapped(item, where) for item in items}
        if len(scales) > 1:
            raise refusal(
                "unsupported_image",
                where,
                f"{len(items)} Real World Value Mappings that differ, and nothing says which one is meant;"
                " write the map again with one",
            )
        return scales.pop()
    unused = tuple(
        tuple(find_numbers(item, f"RealWorldValue{name}") for name in ("Slope", "Intercept", "LUTData"))
        for item in items
    )
    slope = read_number(rescale, "RescaleSlope", 1.0, where)
    if slope == 0:
        raise refusal("bad_header", where, "RescaleSlope is 0")
    return Scale(slope, read_number(rescale, "RescaleIntercept", 0.0, where), unused=unused)


def check_scales(scales: Iterable[Scale], name: str) -> None:
    """Refuse slices of one volume that have no rescale, and mappings that differ: none compares with another.

    Raises
    ------
    FormatError
        ``unsupported_image``.
    """
    found = set(scales)
    is_plain = all((scale.slope, scale.intercept, scale.unit) == (1.0, 0.0, None) for scale in found)
    if is_plain and len({scale.unused for scale in found}) > 1:
        raise refusal(
            "unsupported_image",
            name,
            "its slices have Real World Value Mappings that differ, and no rescale: stored numbers of one are"
            " not those of another; write them again with Rescale Slope and Intercept",
        )


def _mapped(item: Any, where: str) -> Scale:
    if find_numbers(item, "RealWorldValueLUTData") is not None:
        raise refusal(
            "unsupported_image", where, "Real World Value LUT Data are not supported; only a slope is"
        )
    for name in ("RealWorldValueSlope", "RealWorldValueIntercept"):
        if item.get(name) is None:
            raise refusal("bad_header", where, f"{name} is missing")
    slope = read_number(item, "RealWorldValueSlope", 0.0, where)
    intercept = read_number(item, "RealWorldValueIntercept", 0.0, where)
    if slope == 0:
        raise refusal("bad_header", where, "RealWorldValueSlope is 0")
    unit = first_item(item, "MeasurementUnitsCodeSequence")
    return Scale(
        slope,
        intercept,
        _ends(item),
        _code(unit) or find_text(unit, "CodeMeaning"),
        _quantity(item),
    )


def _ends(item: Any) -> tuple[float, float] | None:
    for names in _ENDS:
        first, last = (find_numbers(item, name) for name in names)
        if first and last:
            return min(first[0], last[0]), max(first[0], last[0])
    return None


def _quantity(item: Any) -> str:
    if first_item(item, "QuantityDefinitionSequence") is None:
        return ""
    for content in item.QuantityDefinitionSequence:
        value = first_item(content, "ConceptCodeSequence")
        if _code(first_item(content, "ConceptNameCodeSequence")) in _QUANTITY:
            return find_text(value, "CodeMeaning") or _code(value)
    return ""


def _code(item: Any) -> str:
    texts = (find_text(item, name) for name in ("CodeValue", "LongCodeValue", "URNCodeValue"))
    return next((text for text in texts if text), "")
