"""Truths found the slow way, to hold against voxtier's answers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO

import pydicom
from pydicom.encaps import generate_frames, parse_basic_offsets, parse_fragments
from pydicom.filebase import DicomBytesIO

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


@dataclass(frozen=True)
class Truth:
    """What pydicom makes of a file: every frame's bytes and every payload's place."""

    frames: list[bytes]
    offsets: list[int]  # of each native frame, or of each fragment's payload
    encapsulated: bool
    transfer_syntax_uid: str | None


def pydicom_truth(content: bytes) -> Truth | None:
    """Read with pydicom at its best; None where it finds no pixels. Raises whatever pydicom raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(BytesIO(content), force=True)
        keyword = next((name for name in PIXEL_KEYWORDS if name in dataset), None)
        if keyword is None:
            return None
        raw = dataset.get_item(keyword)
        undefined, start = raw.length == 0xFFFFFFFF, raw.value_tell
        uid = getattr(dataset.file_meta, "TransferSyntaxUID", None)
        value = dataset[keyword].value
        if undefined:
            frames, offsets = _encapsulated(dataset, value, start)
        else:
            frames, offsets = _native(dataset, value, start)
        return Truth(frames, offsets, undefined, None if uid is None else str(uid))


def _encapsulated(dataset: pydicom.Dataset, value: bytes, start: int) -> tuple[list[bytes], list[int]]:
    number = int(dataset.get("NumberOfFrames") or 1)
    extended = None
    if "ExtendedOffsetTable" in dataset:
        extended = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    frames = list(generate_frames(value, number_of_frames=number, extended_offsets=extended))
    stream = DicomBytesIO(value)
    stream.is_little_endian = True
    parse_basic_offsets(stream)
    _, items = parse_fragments(stream)
    return frames, [start + item + 8 for item in items]


def _native(dataset: pydicom.Dataset, value: bytes, start: int) -> tuple[list[bytes], list[int]]:
    number = int(dataset.get("NumberOfFrames") or 1)
    bits = bits_of_a_frame(
        dataset.Rows,
        dataset.Columns,
        dataset.get("SamplesPerPixel", 1),
        dataset.BitsAllocated,
        dataset.get("PhotometricInterpretation", ""),
    )
    if number > len(value) * 8:
        raise ValueError("more frames than bits")
    spans = [byte_span(index * bits, bits) for index in range(number)]
    return [value[first:last] for first, last in spans], [start + first for first, _ in spans]


def bits_of_a_frame(rows: int, columns: int, samples: int, allocated: int, photometric: str) -> int:
    """Length of a native frame in bits (PS3.5 8.1); subsampled chroma stores 2 or 1.5 samples a pixel."""
    full = rows * columns * samples * allocated
    if photometric.endswith("_422"):
        return full * 2 // 3
    return full // 2 if photometric.endswith("_420") else full


def byte_span(first_bit: int, bits: int) -> tuple[int, int]:
    """The bytes that hold a run of bits."""
    return first_bit // 8, (first_bit + bits + 7) // 8
