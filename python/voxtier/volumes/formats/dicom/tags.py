"""Attributes that tell the slices at one place apart: echoes, time points, b-values, acquisitions.

Those of functional groups (PS3.3 C.7.6.16) and of the classic header have one name each here, that of their
keyword. Values are tuples of numbers, times of day are seconds.
"""

from __future__ import annotations

from typing import Any

from voxtier.volumes.formats.dicom.attributes import find_numbers, find_seconds, find_text, first_item

Value = tuple[float, ...]
"""Numbers of one attribute of one slice."""

ALWAYS_APART = (
    "EchoTime",
    "EffectiveEchoTime",
    "EchoNumbers",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "DiffusionBValue",
)
"""Slices that differ in one of these never belong to one 3-D stack, wherever they lie."""

CONTRASTS = (
    "EchoTime",
    "EffectiveEchoTime",
    "EchoNumbers",
    "InversionTime",
    "FlipAngle",
    "RepetitionTime",
    "KVP",
)
"""Stacks that differ in one of these are images of their own, not time points of one image."""

EXPLAINING = (
    "InversionTime",
    "FlipAngle",
    "RepetitionTime",
    "KVP",
    "DiffusionGradientOrientation",
    "AcquisitionNumber",
    "FrameAcquisitionNumber",
    "NominalCardiacTriggerDelayTime",
    "NominalPercentageOfCardiacPhase",
    "TriggerTime",
    "FrameReferenceTime",
    "AcquisitionDateTime",
    "AcquisitionTime",
    "FrameAcquisitionDateTime",
)
"""Attributes that may explain several slices at one place; they also differ within a single stack."""

ORDERING = {
    "NominalCardiacTriggerDelayTime": False,
    "TriggerTime": False,
    "AcquisitionDateTime": True,
    "AcquisitionTime": True,
    "FrameAcquisitionDateTime": True,
}
"""Those that each slice has for itself: the first at each place make the first stack, and so on.

True where the first stack must end before the second begins; heart phases of several slices need not.
"""

CLOCKS = {
    "FrameReferenceTime": 1e-3,
    "TriggerTime": 1e-3,
    "NominalCardiacTriggerDelayTime": 1e-3,
    "AcquisitionDateTime": 1.0,
    "AcquisitionTime": 1.0,
    "FrameAcquisitionDateTime": 1.0,
}
"""Those that are times, and the seconds of their unit."""

MEASURES = {
    "EchoTime": 1e-3,
    "EffectiveEchoTime": 1e-3,
    "DiffusionBValue": 1.0,
    "InversionTime": 1.0,
    "FlipAngle": 1.0,
    "RepetitionTime": 1.0,
    "KVP": 1.0,
    "DiffusionGradientOrientation": 1.0,
}
"""Measured values, which are equal up to a thousandth (of this number, if they are smaller); the others are
identifiers and clocks, which are equal or not.
"""

HEADER_TAGS = (
    *(
        name
        for name in {**dict.fromkeys(ALWAYS_APART), **dict.fromkeys(EXPLAINING)}
        if "Effective" not in name
    ),
    "AcquisitionDate",
    "MREchoSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
"""Elements that `classic_tags` and `frame_tags` read."""

# Keyword -> the functional group that holds it.
_GROUPS = {
    "EffectiveEchoTime": "MREchoSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "InversionTimes": "MRModifierSequence",
    "FlipAngle": "MRTimingAndRelatedParametersSequence",
    "RepetitionTime": "MRTimingAndRelatedParametersSequence",
    "KVP": "CTXRayDetailsSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "NominalPercentageOfCardiacPhase": "CardiacSynchronizationSequence",
}
_UNASSIGNED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")
_FRAME_TYPES = (
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "XRay3DFrameTypeSequence",
)
_TIMES = {"AcquisitionTime": "AcquisitionDate", "AcquisitionDateTime": "", "FrameAcquisitionDateTime": ""}


def classic_tags(header: Any) -> dict[str, Value]:
    """Return what a single-frame header (or the attributes of one converted frame) states."""
    found = {
        name: find_seconds(header, name, _TIMES[name]) if name in _TIMES else find_numbers(header, name)
        for name in (*ALWAYS_APART, *EXPLAINING)
    }
    found["EffectiveEchoTime"] = find_numbers(first_item(header, "MREchoSequence"), "EffectiveEchoTime")
    return {name: value for name, value in found.items() if value is not None}


def frame_tags(frame: Any, shared: Any) -> dict[str, Value]:
    """Return what the functional groups of a frame state; its own come before the shared ones."""
    found: dict[str, Value] = {}
    for converted in _UNASSIGNED:  # of a legacy converted object (PS3.3 C.7.6.16.2.25)
        found = classic_tags(first_item(frame, converted) or first_item(shared, converted) or {}) | found
    for name, group in _GROUPS.items():
        value = find_numbers(_group(frame, shared, group), name)
        if value is not None:
            found["InversionTime" if name == "InversionTimes" else name] = value
    diffusion = _group(frame, shared, "MRDiffusionSequence")
    gradient = first_item(diffusion, "DiffusionGradientDirectionSequence")
    content = _group(frame, shared, "FrameContentSequence")
    for name, value in (
        ("DiffusionGradientOrientation", find_numbers(gradient, "DiffusionGradientOrientation")),
        ("FrameAcquisitionDateTime", find_seconds(content, "FrameAcquisitionDateTime")),
    ):
        if value is not None:
            found[name] = value
    return found


def frame_type(frame: Any, shared: Any) -> str:
    """Return Frame Type and Complex Image Component of a frame: magnitude and phase are not one volume."""
    groups = [_group(frame, shared, name) for name in _FRAME_TYPES]
    texts = [find_text(group, name) for group in groups for name in ("FrameType", "ComplexImageComponent")]
    return "\\".join(text for text in texts if text)


def _group(frame: Any, shared: Any, name: str) -> Any:
    return first_item(frame, name) or first_item(shared, name)
