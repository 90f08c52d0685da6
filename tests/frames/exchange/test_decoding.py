"""Frames as pixels, and one after another, against pydicom on the files that it ships."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames as generate_by_pydicom
from pydicom.pixels import pixel_array

from frames.dicom.cases import CASES
from support.builders import EXPLICIT_BE, PIXEL_DATA, Element, dicom, image, pattern
from voxtier.errors import FormatError, VoxtierError
from voxtier.frames import generate_frames, read_frame, read_table
from voxtier.frames.dicom.table import RangedSource

# Those of a few hundred kilobytes: the codecs are not what is tested.
FILES = sorted(
    path
    for path in (Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm")
    if path.stat().st_size < 700_000 and "dicomdir" not in str(path)
)


def by_pydicom(path: Path, index: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pixel_array(path, index=index)


def test_decoded_frames_are_those_of_pydicom() -> None:
    compared, syntaxes = 0, set()
    for path in FILES:
        try:
            table = read_table(path, verify="all")
        except VoxtierError:
            continue
        for index in sorted({0, len(table) - 1} if len(table) else ()):
            try:
                want = by_pydicom(path, index)
            except Exception:  # what pydicom cannot decode has no oracle
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    found = read_frame(path, table, index, decode=True)
                except FormatError as error:
                    assert error.kind in ("unsupported_image", "truncated_frame"), (path, error)
                    continue
            assert found.dtype == want.dtype, path
            assert np.array_equal(found, want), (path, index)
            compared += 1
            syntaxes.add(table.transfer_syntax_uid)
    assert compared > 60
    assert len(syntaxes) >= 6


def test_frames_one_after_another_are_those_of_pydicom() -> None:
    compared = 0
    for path in FILES:
        try:
            table = read_table(path, verify="all")
        except VoxtierError:
            continue
        if table.kind != "encapsulated" or table.status != "ok" or len(table) != table.number_of_frames:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path)
        frames = list(generate_frames(path))
        assert frames == list(generate_by_pydicom(data.PixelData, number_of_frames=len(table))), path
        assert frames == [read_frame(path, table, index) for index in range(len(table))]
        compared += 1
    assert compared > 15


def test_every_kind_of_source_is_decoded() -> None:
    path = next(path for path in FILES if path.name == "MR_small.dcm")
    content = path.read_bytes()
    want = by_pydicom(path, 0)
    ranged = RangedSource(lambda offset, length: content[offset : offset + length], len(content))
    for source in (path, str(path), content, memoryview(content), ranged):
        [found] = generate_frames(source, decode=True)
        assert np.array_equal(found, want)


def test_bits_of_neighbours_do_not_reach_a_decoded_frame() -> None:
    path = next(path for path in FILES if path.name == "liver_1frame.dcm")
    table = read_table(path)
    assert np.array_equal(read_frame(path, table, 0, decode=True), by_pydicom(path, 0))


@pytest.mark.parametrize(("vr", "frames"), [("OB", 1), ("OB", 2), ("OB", 3), ("OW", 1), ("OW", 4)])
@pytest.mark.parametrize(("samples", "columns"), [(1, 3), (3, 3), (1, 2)])
def test_big_endian_frames_of_odd_length_are_those_of_pydicom(
    tmp_path: Path, vr: str, frames: int, samples: int, columns: int
) -> None:
    """Two bytes of OW are a word, and so are the last one of an odd image and the padding."""
    form = {"samples": 3, "planar": 0, "photometric": "RGB"} if samples == 3 else {}
    elements = image(rows=3, columns=columns, frames=frames, **form)
    size = 3 * columns * samples * frames
    path = tmp_path / "odd.dcm"
    content = dicom([*elements, Element(PIXEL_DATA, vr, pattern(size + size % 2))], EXPLICIT_BE).content
    path.write_bytes(content)
    if vr == "OW" and frames > 1 and columns == 3:
        with pytest.raises(FormatError, match="ambiguous_frame_size"):  # they share words
            read_table(path)
        return
    ranged = RangedSource(lambda offset, length: content[offset : offset + length], len(content))
    for index in range(frames):
        want = by_pydicom(path, index)
        for source in (path, content, ranged, io.BytesIO(content)):
            table = read_table(source)
            assert np.array_equal(read_frame(source, table, index, decode=True), want)
            assert np.array_equal(read_frame(source, table, index - frames, decode=True), want)
    if vr == "OW" and size % 2:
        with pytest.raises(FormatError, match="truncated_frame"):
            read_frame(content[:-1], read_table(content[:-1]), 0, decode=True)


def test_every_file_of_pydicom_in_big_endian_is_decoded() -> None:
    found = [
        path for path in FILES if path.name in ("SC_rgb_small_odd_big_endian.dcm", "MR_small_bigendian.dcm")
    ]
    assert len(found) == 2
    for path in found:
        assert np.array_equal(read_frame(path, read_table(path), 0, decode=True), by_pydicom(path, 0))


def test_a_video_is_no_sequence_of_images() -> None:
    case = next(case for case in CASES if read_kind(case.content) == "video")
    with pytest.raises(FormatError, match=r"unsupported_image.*a video"):
        read_frame(case.content, read_table(case.content), 0, decode=True)
    assert len(list(generate_frames(case.content))) == 1


def read_kind(content: bytes) -> str | None:
    try:
        return read_table(content).kind
    except VoxtierError:
        return None
