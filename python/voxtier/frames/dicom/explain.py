"""Describes a frame table on one page: how the file stores its frames, which table was used and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from voxtier._core import FrameTable
from voxtier.errors import FormatError, SourceError
from voxtier.system.html import facts_html
from voxtier.system.text import format_count

_TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2": "Implicit VR Little Endian",
    "1.2.840.10008.1.2.1": "Explicit VR Little Endian",
    "1.2.840.10008.1.2.1.98": "Encapsulated Uncompressed Explicit VR Little Endian",
    "1.2.840.10008.1.2.1.99": "Deflated Explicit VR Little Endian",
    "1.2.840.10008.1.2.2": "Explicit VR Big Endian (retired)",
    "1.2.840.10008.1.2.4.50": "JPEG Baseline",
    "1.2.840.10008.1.2.4.51": "JPEG Extended",
    "1.2.840.10008.1.2.4.57": "JPEG Lossless",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless, First-Order Prediction",
    "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS Near-Lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.92": "JPEG 2000 Multi-component Lossless",
    "1.2.840.10008.1.2.4.93": "JPEG 2000 Multi-component",
    "1.2.840.10008.1.2.4.94": "JPIP Referenced",
    "1.2.840.10008.1.2.4.95": "JPIP Referenced Deflate",
    "1.2.840.10008.1.2.4.100": "MPEG-2 Main Profile, Main Level",
    "1.2.840.10008.1.2.4.101": "MPEG-2 Main Profile, High Level",
    "1.2.840.10008.1.2.4.102": "MPEG-4 AVC High Profile, Level 4.1",
    "1.2.840.10008.1.2.4.103": "MPEG-4 AVC BD-compatible High Profile, Level 4.1",
    "1.2.840.10008.1.2.4.104": "MPEG-4 AVC High Profile, Level 4.2, 2D",
    "1.2.840.10008.1.2.4.105": "MPEG-4 AVC High Profile, Level 4.2, 3D",
    "1.2.840.10008.1.2.4.106": "MPEG-4 AVC Stereo High Profile, Level 4.2",
    "1.2.840.10008.1.2.4.107": "HEVC Main Profile, Level 5.1",
    "1.2.840.10008.1.2.4.108": "HEVC Main 10 Profile, Level 5.1",
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.202": "High-Throughput JPEG 2000 with RPCL, Lossless",
    "1.2.840.10008.1.2.4.203": "High-Throughput JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE Lossless",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
    "1.2.840.113619.5.2": "GE private: Implicit VR Little Endian, big endian pixels",
}

_METHODS = {
    "native": "native pixels: rows x columns x samples x bits, one frame after another (PS3.5 8.1)",
    "eot": "the Extended Offset Table and its lengths (PS3.3 C.7.6.3.1.8)",
    "eot_offsets_only": "the Extended Offset Table; its lengths are absent or wrong: those of the Items",
    "bot": "the Basic Offset Table (PS3.5 A.4)",
    "tiff": "the tile offsets of the TIFF that shares the file; the DICOM part has no offset table",
    "single_frame": "one frame: all fragments belong to it (PS3.5 A.4)",
    "one_fragment_per_frame": "as many fragments as frames: one each (PS3.5 A.4)",
    "start_markers": "fragments that begin with the codec's start marker begin a frame",
    "end_markers": "fragments that end with the codec's end marker end a frame",
    "video_stream": "video: all fragments are one stream for all frames (PS3.5 8.2.5)",
    "none": "there are no pixels",
}

_VERIFIED = {
    "all": "every entry was checked against the Items of the file",
    "ends": "the first and the last entry were checked against the file",
    "none": "only the number of entries was checked",
}

_NOTES = {
    "no_preamble": "the file has no 128-byte preamble (PS3.10 7.1)",
    "dicm_without_preamble": "the DICM prefix stands at byte 0, without a preamble",
    "dicm_inside_data": "bytes 128 to 131 are DICM, but they are data of a file without preamble",
    "wrong_group_length": "the File Meta Information declares a wrong length",
    "implicit_group2": "the File Meta Information is written without VRs",
    "no_dataset": "the file ends before its data set begins",
    "ts_guessed_explicit_le": "no transfer syntax is declared: guessed Explicit VR Little Endian",
    "ts_guessed_explicit_be": "no transfer syntax is declared: guessed Explicit VR Big Endian",
    "ts_guessed_implicit_le": "no transfer syntax is declared: guessed Implicit VR Little Endian",
    "vr_mode_differs_from_ts": "elements are written with (or without) VRs, against the transfer syntax",
    "endianness_differs_from_ts": "elements have another byte order than the transfer syntax",
    "unknown_vr": "a VR that is not in the standard",
    "implicit_element_in_explicit": "an element without VR among elements with VR",
    "item_delim_instead_of_seq_delim": "an Item delimiter where a Sequence delimiter belongs",
    "seq_delim_instead_of_item_delim": "a Sequence delimiter where an Item delimiter belongs",
    "un_undefined_length_explicit_inside": "a UN of undefined length holds explicit VRs (PS3.5 6.2.2)",
    "undefined_length_on_vr": "an undefined length on a VR that may not have one",
    "stray_delimiter": "a delimiter outside any sequence",
    "tags_not_ascending": "tags do not ascend (PS3.5 7.1)",
    "trailing_bytes": "zero bytes after the last element",
    "pixel_data_url": "the pixels lie elsewhere: Pixel Data Provider URL (JPIP)",
    "number_of_frames_empty": "Number of Frames is empty: taken as 1",
    "number_of_frames_zero": "Number of Frames is 0: taken as 1",
    "bad_number_of_frames": "Number of Frames is not a number",
    "no_pixel_bytes": "the pixel element is empty",
    "odd_pixel_length": "the pixel value has an odd length (PS3.5 8.1 pads to even)",
    "excess_pixel_data": "the pixel value is longer than its frames",
    "short_pixel_data": "the pixel value is shorter than its frames",
    "pixel_data_truncated": "the file ends inside the pixel value",
    "ybr422_declared_but_full": "4:2:2 is declared, but three samples a pixel are stored",
    "encapsulated_with_defined_length": "encapsulated pixels with a defined length",
    "native_in_encapsulated_ts": "native pixels under a compressed transfer syntax",
    "encapsulated_in_native_ts": "encapsulated pixels under an uncompressed transfer syntax",
    "bot_length_not_multiple_of_4": "the Basic Offset Table's length is not a multiple of 4",
    "bot_wrapped": "offsets of the Basic Offset Table pass 2^32: unwrapped and checked against the Items",
    "bot_rejected": "the Basic Offset Table is wrong and was not used",
    "eot_rejected": "the Extended Offset Table is wrong and was not used",
    "tiff_rejected": "the TIFF's tile offsets do not match the fragments and were not used",
    "eot_and_bot": "both offset tables are filled; the standard allows one",
    "eot_length_excludes_padding": "the Extended Offset Table counts lengths without the pad byte",
    "eot_length_exceeds_fragment": "the Extended Offset Table declares more than a fragment holds",
    "table_not_ascending": "the offset table lists frames in another order than the file",
    "odd_fragment_length": "a fragment of odd length (PS3.5 A.4 wants even)",
    "no_sequence_delimiter": "the fragments end without their delimiter",
    "seq_delim_nonzero_length": "the delimiter of the fragments declares a length",
    "bad_fragment_tag": "an Item a few bytes beside the place that the length before it names",
    "last_fragment_truncated": "the file ends inside the last fragment",
    "trailing_empty_fragment": "empty fragments after the last frame were dropped",
    "number_of_frames_unusual": "Number of Frames is written in an unusual way (not as an integer in text)",
    "number_of_frames_from_table": "Number of Frames is missing: an offset table tells it",
    "number_of_frames_from_length": "Number of Frames is no number: the length of the pixel value tells it",
    "item_with_length_and_delim": "an Item has both a length and a delimiter",
    "delimiter_inside_fragment": "the last fragment's length counts the delimiter too: corrected",
    "astray_after_fragment": "bytes that are neither an Item nor the delimiter follow a fragment",
}


def transfer_syntax_name(uid: str) -> str:
    """Return the standard's name of a transfer syntax, or ``"unknown"``."""
    return _TRANSFER_SYNTAXES.get(uid, "unknown")


def explain(path: str, table: FrameTable) -> str:
    """Describe how a file stores its frames, on one page.

    Parameters
    ----------
    path : str
        Printed in the first line.
    table : FrameTable
        The file's table, read with ``verify="all"``.
    """
    return "\n".join([path, *_summary(table), *_frames(table), *_packed(table), *_notes(table)])


def list_facts(table: FrameTable) -> dict[str, Any]:
    """Return the facts of the page of `explain` that a frame table alone does not name, for programs."""
    return {
        "transfer_syntax_name": transfer_syntax_name(table.transfer_syntax_uid),
        "rows": table.rows,
        "columns": table.columns,
        "samples_per_pixel": table.samples_per_pixel,
        "bits_allocated": table.bits_allocated,
        "photometric_interpretation": table.photometric_interpretation,
        "file_bytes": table.size,
        "pixel_data_pos": table.pixel_data_pos,
        "fragments": table.fragment_count,
        "truncated_from": table.truncated_from,
        "packed_bytes": len(table.packed),
        "found_by": _METHODS[table.method],
        "oddities": {note: _NOTES[note] for note in table.notes},
    }


def table_html(table: FrameTable) -> str:
    """Return what notebooks show of a table; the core calls it."""
    facts = {
        "status": table.status,
        "transfer syntax": transfer_syntax_name(table.transfer_syntax_uid),
        "image": f"{table.columns} x {table.rows}, {table.photometric_interpretation}"
        if table.rows
        else None,
        "stored as": table.kind,
        "fragments": f"{table.fragment_count:,}",
        "found by": _METHODS[table.method],
        "verified": _VERIFIED[table.verified],
        "packed": format_count(len(table.packed), "byte"),
        "oddities": "; ".join(_NOTES[note] for note in table.notes) or None,
    }
    return facts_html(f"FrameTable of {format_count(len(table), 'frame')}", facts)


def explain_refusal(path: str, error: FormatError | SourceError) -> str:
    """Describe why a file was refused."""
    place = "" if error.offset is None else f" at byte {error.offset:,}"
    return f"{path}\n\n  refused         {error.kind}{place}\n                  {error.detail}"


def _summary(table: FrameTable) -> Iterator[str]:
    yield ""
    yield f"  status          {table.status}"
    name = transfer_syntax_name(table.transfer_syntax_uid)
    yield f"  transfer syntax {table.transfer_syntax_uid} ({name})"
    if table.rows and table.columns:
        bits = f"{table.samples_per_pixel} x {table.bits_allocated} bit"
        yield f"  image           {table.columns} x {table.rows}, {bits}, {table.photometric_interpretation}"
    yield f"  stored as       {table.kind}, {format_count(table.size, 'byte')} in all"
    if table.offsets_in == "inflated":
        yield "                  offsets count in the inflated data set (PS3.5 A.5)"
    if table.pixel_data_pos is not None:
        yield f"  pixel element   at byte {table.pixel_data_pos:,}"


def _frames(table: FrameTable) -> Iterator[str]:
    if not len(table):
        return
    declared = "" if table.number_of_frames == len(table) else f" ({table.number_of_frames:,} declared)"
    yield ""
    yield f"  frames          {len(table):,}{declared} in {format_count(table.fragment_count, 'fragment')}"
    yield f"  found by        {_METHODS[table.method]}"
    yield f"  verified        {_VERIFIED[table.verified]}"
    if table.truncated_from is not None:
        yield f"  cut             frames from {table.truncated_from + 1:,} on are not in the file"
    if table.kind != "native":
        yield from _fragment_counts(table)
    shown = min(len(table), 5)
    for index in range(shown):
        ranges = ", ".join(f"[{start:,}, {end:,})" for start, end in table.ranges(index)[:4])
        more = len(table.ranges(index)) - 4
        bit = f" from bit {table.bit_offset(index)}" if (table.frame_bits or 0) % 8 else ""
        yield f"    frame {index + 1:<8,}{ranges}{f' and {more} more' if more > 0 else ''}{bit}"
    if len(table) > shown:
        yield f"    ... and {len(table) - shown:,} more"


def _fragment_counts(table: FrameTable) -> Iterator[str]:
    counts = Counter(np.diff(table.frame_first).tolist())
    each = ", ".join(f"{frames:,} of {count}" for count, frames in sorted(counts.items())[:5])
    lengths = table.lengths
    yield f"  fragments       frames by number of fragments: {each}"
    if len(lengths):
        least, most = int(lengths.min()), int(lengths.max())
        each = format_count(most, "byte") if least == most else f"{least:,} to {format_count(most, 'byte')}"
        yield f"                  {each} each"


def _packed(table: FrameTable) -> Iterator[str]:
    packed = len(table.packed)
    if packed:
        yield ""
        yield f"  packed table    {format_count(packed, 'byte')}, {packed / max(len(table), 1):.1f} a frame"


def _notes(table: FrameTable) -> Iterator[str]:
    if table.notes:
        yield ""
        yield "  accepted oddities"
    for note in table.notes:
        yield f"    {note}: {_NOTES[note]}"
