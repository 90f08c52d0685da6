"""Where pydicom's `to_json_dict` is not DICOM JSON, each with the clause that says so.

`by_the_standard` is what pydicom makes of a data set, with these differences put right: `RULES` names each
and its clause, and the tests of the rules are in `test_values.py`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from pydicom import Dataset
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.tag import BaseTag
from pydicom.valuerep import PersonName

RULES = {
    "group lengths are left out": "PS3.18 F.2.2",
    "the padding behind a data set is left out": "PS3.10 7.2: no significance shall be placed on it",
    "pixels are left out where they have no URI": "PS3.18 10.4.1.1.2: metadata come without bulk data",
    "a sequence without Items has no Value": "PS3.18 F.2.5",
    "an empty value of several is null": "PS3.18 F.2.5",
    "a name has its component groups that are not empty": "PS3.18 F.2.2",
    "blanks behind each of several values are padding": "PS3.5 6.2",
    "a decimal string has its own digits": "PS3.18 F.2.3",
    "words are little endian": "PS3.5 A.1 and PS3.18 F.2.7: InlineBinary has no other byte order",
    "private attributes have the VR of the file, else UN": "PS3.5 7.8.1: the standard does not know them",
    "US and SS are what they are in the first value of LUT Descriptor": "PS3.18 F.2.3",
}
# Files that one of the two refuses.
REFUSED = {
    "no_meta.dcm": ("not_dicom", "no preamble, and its first element is none that a data set begins with"),
    "rtplan_truncated.dcm": (
        "value_past_end",
        "cut; pydicom takes the rest of the last value for all of it",
    ),
    "DICOMDIR-nooffset": ("value_past_end", "cut; pydicom takes the rest of the last Item for all of it"),
}
REFUSED_BY_PYDICOM = {"badVR.dcm": "an Integer String 1A, which is a string (PS3.18 F.2.3); pydicom raises"}

_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_TRAILING_PADDING = 0xFFFCFFFC
_WORDS = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


def by_the_standard(dataset: Dataset) -> dict[str, Any]:
    """Return what pydicom makes of a data set, with `RULES` applied; numbers are `Decimal`."""
    return dict(_attributes(dataset))


def _attributes(dataset: Dataset) -> Iterator[tuple[str, dict[str, Any]]]:
    for tag in sorted(dataset.keys()):
        if tag.element == 0 or tag == _TRAILING_PADDING or tag in _PIXELS:
            continue
        value = _unknown_value(dataset, tag)
        yield f"{tag:08X}", _attribute(dataset, dataset[tag]) if value is None else _binary("UN", value)


def _unknown_value(dataset: Dataset, tag: BaseTag) -> bytes | None:
    """Return the bytes of a private attribute of which the file says no VR."""
    if not tag.is_private or tag.is_private_creator:
        return None
    raw = dataset.get_item(tag)
    if isinstance(raw, RawDataElement):
        return (raw.value or b"") if raw.VR in (None, "UN") else None
    # Without a value pydicom has looked the VR up at once.
    return b"" if dataset.original_encoding[0] and raw.is_empty and raw.VR != "SQ" else None


def _binary(vr: str, value: bytes) -> dict[str, Any]:
    return {"vr": vr, "InlineBinary": base64.b64encode(value).decode()} if value else {"vr": vr}


def _attribute(dataset: Dataset, element: DataElement) -> dict[str, Any]:
    vr = element.VR
    if vr == "SQ":
        items = [by_the_standard(item) for item in element.value]
        return {"vr": vr, "Value": items} if items else {"vr": vr}
    if vr in _WORDS and not dataset.original_encoding[1]:
        size, value = _WORDS[vr], element.value or b""
        return _binary(vr, b"".join(value[at : at + size][::-1] for at in range(0, len(value), size)))
    values = element.value if element.VM > 1 else [element.value]
    if vr == "PN":  # pydicom fails where one of several names is empty
        return {"vr": vr, "Value": [_name(name) for name in values]} if not element.is_empty else {"vr": vr}
    found = element.to_json_dict(None, 0)
    if "Value" in found:
        pairs = zip(found["Value"], values, strict=True)
        found["Value"] = [_value(vr, each, original) for each, original in pairs]
    return found


def _name(name: PersonName) -> dict[str, str] | None:
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), name.components, strict=False)
    return {group: text for group, text in groups if text} or None


def _value(vr: str, value: Any, original: Any) -> Any:
    if vr in ("DS", "IS"):
        text = getattr(original, "original_string", None)
        return decimal(text if text is not None else value) if value not in (None, "") else None
    if isinstance(value, str):
        return value.rstrip(" \0") or None
    return decimal(value)


def decimal(value: Any) -> Any:
    """Return a number as `as_numbers` has it; what is none as the string that stands for it in JSON."""
    if isinstance(value, float):
        names = {math.inf: "Infinity", -math.inf: "-Infinity"}
        return "NaN" if math.isnan(value) else names.get(value, value.hex())
    return Decimal(str(value).strip())
