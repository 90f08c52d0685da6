"""Writes the VR of every public attribute (PS3.6 6 to 9) as pydicom's dictionary has it, for the core.

Run it by ``python rust/dictionary.py`` after a change of pydicom's version; `tests/frames/dicom/metadata` holds the
file against pydicom. A line is a tag, a blank and a VR; ``x`` is any digit of a repeating group (PS3.5 7.6).
VRs that depend on other attributes have the names of DCMTK: ``xs`` is US or SS, ``ox`` is OB or OW, ``lt`` is
US, SS or OW.
"""

from __future__ import annotations

from pathlib import Path

from pydicom._dicom_dict import DicomDictionary, RepeatersDictionary

DICTIONARY = Path(__file__).parent / "src" / "dicom" / "json" / "vr" / "dictionary.txt"
AMBIGUOUS = {"US or SS": "xs", "OB or OW": "ox", "US or OW": "lt", "US or SS or OW": "lt"}


def lines() -> list[str]:
    """Return the lines of the file, sorted by tag."""
    vrs = {f"{tag:08X}": entry[0] for tag, entry in DicomDictionary.items()}
    vrs |= {mask: entry[0] for mask, entry in RepeatersDictionary.items()}
    # Items and their delimiters have no VR (PS3.5 7.5).
    return sorted(f"{tag} {AMBIGUOUS.get(vr, vr)}" for tag, vr in vrs.items() if vr != "NONE")


if __name__ == "__main__":
    DICTIONARY.write_text("\n".join(lines()) + "\n")
