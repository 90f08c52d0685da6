"""Frames as pixels, and one after another, against pydicom on the files that it ships."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames as generate_by_pydicom
from pydicom.pixels import pixel_array

from frames.dicom.cases import CASES
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
