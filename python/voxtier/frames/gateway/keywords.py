"""Tags of the attributes that searches name by keyword (PS3.6 6)."""

from __future__ import annotations

import re
from functools import lru_cache

_TAGS = {
    "SpecificCharacterSet": "00080005",
    "SOPClassUID": "00080016",
    "SOPInstanceUID": "00080018",
    "StudyDate": "00080020",
    "SeriesDate": "00080021",
    "AcquisitionDate": "00080022",
    "ContentDate": "00080023",
    "StudyTime": "00080030",
    "SeriesTime": "00080031",
    "AccessionNumber": "00080050",
    "InstanceAvailability": "00080056",
    "Modality": "00080060",
    "ModalitiesInStudy": "00080061",
    "Manufacturer": "00080070",
    "InstitutionName": "00080080",
    "ReferringPhysicianName": "00080090",
    "TimezoneOffsetFromUTC": "00080201",
    "StudyDescription": "00081030",
    "SeriesDescription": "0008103E",
    "ManufacturerModelName": "00081090",
    "RetrieveURL": "00081190",
    "AvailableTransferSyntaxUID": "00083002",
    "PatientName": "00100010",
    "PatientID": "00100020",
    "IssuerOfPatientID": "00100021",
    "PatientBirthDate": "00100030",
    "PatientSex": "00100040",
    "PatientAge": "00101010",
    "BodyPartExamined": "00180015",
    "SliceThickness": "00180050",
    "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E",
    "StudyID": "00200010",
    "SeriesNumber": "00200011",
    "AcquisitionNumber": "00200012",
    "InstanceNumber": "00200013",
    "FrameOfReferenceUID": "00200052",
    "Laterality": "00200060",
    "NumberOfStudyRelatedSeries": "00201206",
    "NumberOfStudyRelatedInstances": "00201208",
    "NumberOfSeriesRelatedInstances": "00201209",
    "NumberOfFrames": "00280008",
    "Rows": "00280010",
    "Columns": "00280011",
    "BitsAllocated": "00280100",
    "RequestedProcedureDescription": "00321060",
    "PerformedProcedureStepStartDate": "00400244",
    "PerformedProcedureStepStartTime": "00400245",
    "RequestAttributesSequence": "00400275",
    "ContainerIdentifier": "00400512",
}


def tag_of(name: str) -> str | None:
    """Return the tag of an attribute as eight hexadecimal digits.

    A keyword that is not in this table is looked up in pydicom's dictionary where that is installed. None for
    a name that nothing knows.
    """
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        return name.upper()
    if name in _TAGS:
        return _TAGS[name]
    try:
        from pydicom.datadict import tag_for_keyword
    except ImportError:
        return None
    tag = tag_for_keyword(name)
    return None if tag is None else f"{tag:08X}"


def is_parameter(name: str) -> bool:
    """Return whether a name in a query can only be a parameter, not an attribute that somebody misspelt.

    Parameters begin with a small letter (PS3.18 8.3), keywords of attributes with a capital one, tags with a
    digit. Keywords in another case are misspelt.
    """
    return re.match(r"[a-z_]", name) is not None and name.partition(".")[0].casefold() not in _in_no_case()


@lru_cache(maxsize=1)
def _in_no_case() -> frozenset[str]:
    try:
        from pydicom.datadict import keyword_dict
    except ImportError:
        return frozenset(keyword.casefold() for keyword in _TAGS)
    return frozenset(keyword.casefold() for keyword in (*_TAGS, *keyword_dict))
