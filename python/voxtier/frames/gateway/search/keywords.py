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

TIMES = {
    "00080012": "00080013",
    "00080020": "00080030",
    "00080021": "00080031",
    "00080022": "00080032",
    "00080023": "00080033",
    "00080024": "00080034",
    "00080025": "00080035",
    "00100030": "00100032",
    "00140102": "00140103",
    "00143076": "00143077",
    "0014407E": "0014407C",
    "00181012": "00181014",
    "00181200": "00181201",
    "0018700C": "0018700E",
    "00203403": "00203405",
    "00320032": "00320033",
    "00320034": "00320035",
    "00321000": "00321001",
    "00321010": "00321011",
    "00321040": "00321041",
    "00321050": "00321051",
    "0038001A": "0038001B",
    "0038001C": "0038001D",
    "00380020": "00380021",
    "00380030": "00380032",
    "00400002": "00400003",
    "00400004": "00400005",
    "00400244": "00400245",
    "00400250": "00400251",
    "00402004": "00402005",
    "0040A023": "0040A024",
    "0040A121": "0040A122",
    "0040A192": "0040A193",
    "00700082": "00700083",
    "21000040": "21000050",
    "30060008": "30060009",
    "30080024": "30080025",
    "30080162": "30080164",
    "30080166": "30080168",
    "30080250": "30080251",
    "300A0006": "300A0007",
    "300A022C": "300A022E",
    "300E0004": "300E0005",
    "40080100": "40080101",
    "40080108": "40080109",
    "40080112": "40080113",
}
"""The time (TM) that goes with a date (DA), such as Study Time with Study Date (PS3.6 6)."""


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
