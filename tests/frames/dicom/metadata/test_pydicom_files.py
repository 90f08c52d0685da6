"""pydicom as oracle: `to_json_dict` of every file that it ships, and the dictionary made of its own."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pydicom
import pytest
from pydicom.data import get_charset_files, get_testdata_files
from pydicom.errors import InvalidDicomError
from pydicom.uid import ImplicitVRLittleEndian

from frames.dicom.metadata.differences import REFUSED, REFUSED_BY_PYDICOM, by_the_standard
from frames.dicom.metadata.reading import as_numbers, in_ranges, read_exactly
from tree.graph import ROOT
from voxtier.errors import FormatError
from voxtier.frames import read_metadata_json, read_table

FILES = sorted({Path(n) for n in (*get_testdata_files(), *get_charset_files()) if Path(n).is_file()})


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_of_pydicom_has_the_json_that_pydicom_makes(path: Path) -> None:
    try:
        found = as_numbers(read_exactly(path))
    except FormatError as refused:
        if path.name in REFUSED:
            assert refused.kind == REFUSED[path.name][0]
        else:
            assert refused.kind == "not_dicom"
            assert not is_dicom(path)
        return
    assert path.name not in REFUSED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            expected = by_the_standard(pydicom.dcmread(path, force=True))
        except ValueError:
            assert path.name in REFUSED_BY_PYDICOM
            return
        finally:
            logging.disable(logging.NOTSET)
    assert path.name not in REFUSED_BY_PYDICOM
    assert found == expected


def is_dicom(path: Path) -> bool:
    """Whether pydicom finds an attribute of an image in a file that is read as DICOM whatever it holds."""
    dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    return "SOPClassUID" in dataset or "Modality" in dataset


@pytest.mark.parametrize("undefined", [False, True])
def test_the_same_files_without_vrs_have_the_json_that_pydicom_makes(undefined: bool) -> None:
    """Real headers in Implicit VR Little Endian, sequences and Items with a length and with delimiters."""
    compared = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            for path in (path for path in FILES if path.name not in REFUSED_BY_PYDICOM):
                content = without_vrs(path, undefined=undefined)
                if content is not None:
                    expected = by_the_standard(pydicom.dcmread(BytesIO(content)))
                    assert as_numbers(read_exactly(content)) == expected, path.name
                    compared += 1
        finally:
            logging.disable(logging.NOTSET)
    assert compared > 120


def without_vrs(path: Path, *, undefined: bool) -> bytes | None:
    """Return a file's attributes in Implicit VR Little Endian; None where pydicom cannot write them so."""
    target = BytesIO()
    try:
        dataset = pydicom.dcmread(path)
        for tag in (0x7FE00001, 0x7FE00002, 0x7FE00008, 0x7FE00009, 0x7FE00010):
            dataset.pop(tag, None)
        set_lengths(dataset, undefined=undefined)
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        dataset.save_as(target, implicit_vr=True, little_endian=True)
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError, InvalidDicomError):
        return None
    return target.getvalue()


def set_lengths(dataset: pydicom.Dataset, *, undefined: bool) -> None:
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for item in element.value:
                item.is_undefined_length_sequence_item = undefined
                set_lengths(item, undefined=undefined)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_source_that_is_read_in_pieces_gives_the_same_text(path: Path) -> None:
    content = path.read_bytes()
    texts = []
    for source in (content, in_ranges(content), path):
        try:
            texts.append(read_metadata_json(source))
        except FormatError as refused:
            texts.append(f"{refused.kind} {refused.offset}".encode())
    assert texts[0] == texts[1] == texts[2]


def test_what_is_refused_has_no_frames_either() -> None:
    """The metadata of a file are refused only where its table is, or where its header is cut."""
    for path in FILES:
        if REFUSED.get(path.name, ("",))[0] == "not_dicom":
            with pytest.raises(FormatError, match="not_dicom"):
                read_table(path)


def test_the_dictionary_is_that_of_the_pinned_pydicom() -> None:
    script = load(ROOT / "rust" / "dictionary.py")
    written = script.DICTIONARY.read_text().splitlines()
    assert written == script.lines(), "run python rust/dictionary.py"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
