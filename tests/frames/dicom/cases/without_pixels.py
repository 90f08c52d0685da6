"""Files without pixels, which are no error, and files that are refused."""

from __future__ import annotations

from frames.dicom.cases.model import Case, make, native
from frames.dicom.cases.native import PREAMBLE, icon, nested
from support.builders import (
    DEFLATED_LE,
    EXPLICIT_LE,
    Element,
    Items,
    dicom,
    element,
    file_meta,
    image,
    jpeg,
    pattern,
)

DOCUMENT = [
    element("SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.11"),
    element("SOPInstanceUID", "2.25.1"),
    element("Modality", "SR"),
    Element(0x0040A730, "SQ", Items([[element("Modality", "SR")]], undefined=True)),
]
WAVEFORM = [
    element("Modality", "ECG"),
    Element(0x54000100, "SQ", Items([[Element(0x54001010, "OW", pattern(200))]])),
]
# Rows and Columns of voxels, whose spectra are no Pixel Data (PS3.3 C.8.14.1).
SPECTRA = [
    element("SOPClassUID", "1.2.840.10008.5.1.4.1.1.4.2"),
    *image()[1:],
    Element(0x56000020, "OF", pattern(64)),
]
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
DIRECTORY = [Element(0x00041220, "SQ", Items([[element("Modality", "OT"), icon()]], undefined=True))]
PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + bytes(200)
PLAIN = native("", frames=1).content


def meta_of(sop_class: str) -> bytes:
    """What stands before the data set of a file of this Media Storage SOP Class."""
    return PREAMBLE + b"DICM" + file_meta(sop_class=sop_class)


def no_pixels(name: str, content: bytes, *notes: str, syntax: str | None = EXPLICIT_LE.uid) -> Case:
    return make(
        name, content, status="no_pixels", number_of_frames=1, transfer_syntax_uid=syntax, notes=notes
    )


def refused(name: str, content: bytes, error: str) -> Case:
    return make(name, content, error=error)


def corrupt_deflate() -> bytes:
    """The deflated data set broken in its middle, as a flipped disk block breaks it."""
    content = bytearray(dicom(image(), DEFLATED_LE).content)
    start = len(PREAMBLE) + 4 + len(file_meta(DEFLATED_LE))
    content[start : start + 8] = b"\xff" * 8
    return bytes(content)


CASES = [
    no_pixels("z01_sr_no_pixels", dicom(DOCUMENT).content),
    no_pixels("z02_waveform", dicom(WAVEFORM).content),
    no_pixels("z03_dicomdir_icon", dicom(DIRECTORY, start=meta_of(MEDIA_DIRECTORY)).content),
    no_pixels("z06_only_preamble", PREAMBLE + b"DICM", "no_dataset", syntax=None),
    refused("z07_only_meta", PREAMBLE + b"DICM" + file_meta(), "missing_pixel_data"),
    refused("z08_truncated_mid_header", PLAIN[: PLAIN.index(b"MONOCHROME2") - 3], "truncated_header"),
    refused("z04_empty", b"", "empty"),
    refused(
        "z05_text", b"Dear colleague, please find attached the images of our patient.\n" * 8, "not_dicom"
    ),
    refused("z11_png", PNG, "not_dicom"),
    refused(
        "z09_value_past_end",
        dicom([*image(), Element(0x00291010, "OB", pattern(16), 1_000_000)]).content,
        "value_past_end",
    ),
    refused("z10_deflate_corrupt", corrupt_deflate(), "bad_deflate"),
    refused(
        "z12_deep_nesting_5000",
        dicom([*image(), nested(5000, element("PixelData", jpeg(16), "OB"))]).content,
        "nesting_too_deep",
    ),
]
