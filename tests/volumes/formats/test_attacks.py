"""Series that lie, are cut, replaced or scattered: refused by our own errors, never guessed."""

from __future__ import annotations

import random
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from volumes.formats.mosaics import mosaic, protocol, random_scan
from volumes.formats.test_stacks import GROUPS, enhanced, shapes, stack, write
from voxtier.errors import FormatError, LeftOutWarning, NotFoundError, SourceError, VoxtierError
from voxtier.volumes import RadiObject, Volume
from voxtier.volumes.formats.dicom import assemble, files_of, find_series, read_series
from voxtier.volumes.formats.dicom.attributes import find_seconds, silent_pydicom
from voxtier.volumes.formats.nifti import read_nifti

HOSTILE = (
    *(
        b"",
        b"\\",
        b"abc ",
        b"nan ",
        b"inf ",
        b"-0",
        b"1e400 ",
        b"1\\2\\3\\4\\5\\6\\7 ",
        b"1\\\\2 ",
        b"\xff\xfe",
    ),
    *(b"0 ", b"-1", b"99999999999999999999", b"3.000 ", b"1\0", bytes(2), bytes(3), b"\xff\xff", b"../../x "),
)
TAGS = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "EchoTime"),
    *("AcquisitionNumber", "AcquisitionTime", "RescaleSlope", "RescaleIntercept", "BitsStored", "HighBit"),
    *("BitsAllocated", "SamplesPerPixel", "NumberOfFrames", "ImageType", "SOPInstanceUID", "SOPClassUID"),
    *("SeriesInstanceUID", "Modality", "SliceThickness", "PixelPaddingValue", "PhotometricInterpretation"),
    *("PixelRepresentation", "SpacingBetweenSlices", "FrameOfReferenceUID", "TriggerTime", "SeriesNumber"),
)


def replaced(dataset: Dataset, name: str, value: bytes) -> Dataset:
    """Put raw bytes in the place of an element's value."""
    tag = pydicom.datadict.tag_for_keyword(name)
    vr = pydicom.datadict.dictionary_VR(name).split(" ")[0]
    dataset._dict[pydicom.tag.Tag(tag)] = RawDataElement(
        pydicom.tag.Tag(tag), vr, len(value), value, 0, False, True
    )
    return dataset


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", TAGS)
def test_any_value_of_any_attribute_is_read_or_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "in", stack(3))
    path = sorted(folder.iterdir())[1]
    whole = path.read_bytes()
    for value in HOSTILE:
        dataset = replaced(pydicom.dcmread(path), name, value)
        dataset.preamble = bytes(128)
        pydicom.dcmwrite(path, dataset, enforce_file_format=False)
        try:
            images = [assemble(stacks) for stacks in find_series(folder).volumes]
        except VoxtierError:
            pass
        else:
            assert sum(image.voxels[0, 0].size for image in images) <= 3
        path.write_bytes(whole)


def originals(folder: Path) -> Iterator[Path]:
    yield write(folder / "classic", stack(3, EchoTime="15") + stack(3, EchoTime="90"))
    scan = random_scan(np.random.default_rng(0), 5)
    text = protocol([scan.centre(number) for number in range(5)])
    yield write(folder / "mosaic", [mosaic(scan, 1, text=text), mosaic(scan, 2)])
    (folder / "enhanced").mkdir()
    frames = [((0, 0, 3 * k), group) for group in GROUPS["DiffusionBValue"] for k in range(3)]
    enhanced(folder / "enhanced" / "e.dcm", frames)
    yield folder / "enhanced"


def test_damaged_and_cut_files_raise_nothing_but_refusals(tmp_path: Path) -> None:
    rng = random.Random(7)
    for folder in originals(tmp_path):
        names = sorted(path.name for path in folder.iterdir())
        for number in range(60):
            work = tmp_path / "work"
            shutil.copytree(folder, work)
            victim = work / rng.choice(names)
            content = bytearray(victim.read_bytes())
            if number % 3 == 0:
                del content[rng.randrange(len(content)) :]
            for _ in range(rng.choice((1, 4, 16)) if content else 0):
                at = rng.randrange(min(len(content), 2000))
                content[at : at + rng.choice((1, 1, 4))] = rng.choice(
                    (b"\0", b"\xff\xff\xff\xff", b"9", b"\\")
                )
            victim.write_bytes(content)
            try:
                for stacks in find_series(work).volumes:
                    assemble(stacks)
            except VoxtierError:
                pass
            shutil.rmtree(work)


@pytest.mark.parametrize("cut", range(0, 348, 29))
def test_a_cut_pair_is_refused(tmp_path: Path, cut: int) -> None:
    import nibabel as nib

    nib.save(nib.Nifti1Pair(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "a.hdr")
    for name in ("a.hdr", "a.img"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: cut if name == "a.hdr" else cut // 3])
        with pytest.raises(FormatError):
            read_nifti(tmp_path / "a.hdr")
        (tmp_path / name).write_bytes(content)


def test_empty_folders_and_broken_links_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="subfolders are not read"):
        find_series(tmp_path / "empty")
    with pytest.raises(SourceError, match="there is no file or folder"):
        find_series(tmp_path / "missing")
    folder = write(tmp_path / "in", stack(3))
    (folder / "sub").mkdir()
    (folder / "linked.dcm").symlink_to(tmp_path / "gone.dcm")
    with pytest.raises(SourceError, match=r"linked\.dcm is a link to a file that does not exist"):
        find_series(folder)
    (folder / "linked.dcm").unlink()
    (folder / "linked.dcm").symlink_to(sorted(folder.glob("*.dcm"))[0])
    assert shapes(read_series(folder)) == [(3,)]


def test_a_file_that_is_replaced_between_header_and_pixels_is_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path, stack(3))
    found = find_series(folder)
    victim = sorted(folder.iterdir())[1]
    (other,) = stack(1)
    pydicom.dcmwrite(victim, other, enforce_file_format=True)
    with pytest.raises(SourceError, match="was replaced") as caught:
        assemble(found.volumes[0])
    assert caught.value.kind == "changed_during_read"


def test_a_palette_is_a_colour_image(tmp_path: Path) -> None:
    (dataset,) = stack(1)
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    with pytest.raises(FormatError, match="colour"):
        read_series(write(tmp_path, [dataset]))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_modality_that_is_no_name_makes_no_folder(tmp_path: Path) -> None:
    datasets = stack(2)
    for dataset in datasets:
        replaced(dataset, "Modality", b"../../x ")
    folder = tmp_path / "in"
    folder.mkdir()
    for number, dataset in enumerate(datasets):
        pydicom.dcmwrite(folder / f"{number}.dcm", dataset, enforce_file_format=True)
    assert RadiObject.from_dicoms(tmp_path / "r", [(folder, "p")]).collection_names == ("unknown",)


def test_a_hole_of_a_billion_slices_is_refused_before_it_is_counted(tmp_path: Path) -> None:
    for on_gap in ("error", "keep", "fill"):
        for far in (1e5, 1e7 - 5):
            folder = tmp_path / f"{on_gap}{far}"
            datasets = stack(3, step=0.1) + stack(1, at=(0, 0, far))
            with pytest.raises(FormatError, match="irregular"):
                read_series(write(folder, datasets), on_gap=on_gap)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("time", "date", "seconds"),
    [
        ("101112.5", "", 36672.5),
        ("10:11:12", "", 36672.0),
        ("1011", "", 36660.0),
        ("10", "", 36000.0),
        ("", "", None),
        ("101", "", None),
        ("abc", "", None),
        ("101112.x", "", None),
        ("000001", "20200102", 737426 * 86400 + 1.0),
        ("000001", "2020.01.02", 737426 * 86400 + 1.0),
        ("000001", "nodate", None),
    ],
)
def test_times_of_day_are_seconds(time: str, date: str, seconds: float | None) -> None:
    """PS3.5 6.2 TM and DA, and the forms of ACR-NEMA."""
    header = {"AcquisitionTime": time, "AcquisitionDate": date}
    assert find_seconds(header, "AcquisitionTime", "AcquisitionDate") == (
        None if seconds is None else (seconds,)
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20200102000001", 737426 * 86400 + 1.0),
        ("20200102000001.25", 737426 * 86400 + 1.25),
        ("20200102000001+0100", 737426 * 86400 - 3599.0),
        ("20200102000001.5-0030", 737426 * 86400 + 1801.5),
        ("2020010200", 737426 * 86400.0),
        ("2020", None),
        ("20201302000001", None),
    ],
)
def test_date_times_are_seconds_whatever_their_zone(text: str, seconds: float | None) -> None:
    assert find_seconds({"AcquisitionDateTime": text}, "AcquisitionDateTime") == (
        None if seconds is None else (seconds,)
    )


def test_threads_that_read_leave_the_filters_of_warnings_as_they_were(tmp_path: Path) -> None:
    folder = write(tmp_path, stack(3))
    with warnings.catch_warnings():
        before = list(warnings.filters)
        threads = [threading.Thread(target=read_series, args=(folder,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before
        with silent_pydicom(), pytest.warns(UserWarning, match="of another"):
            warnings.warn("of another library", UserWarning, stacklevel=1)


def test_a_file_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    files = sorted(write(tmp_path, stack(3)).iterdir())
    assert shapes(read_series([*files, files[0], tmp_path / ".." / tmp_path.name / files[1].name])) == [(3,)]
    assert files_of(files) == files


@pytest.mark.parametrize("order", range(3))
def test_frames_of_several_files_are_one_stack(tmp_path: Path, order: int) -> None:
    """Concatenations (PS3.3 C.7.6.16.2.2.4), and classic slices among them, are decoded file by file."""
    places: list[list[Any]] = [[(0, 0, 3 * k) for k in range(start, 12, 3)] for start in range(3)]
    for number in np.roll(range(3), order):
        enhanced(tmp_path / f"{number}.dcm", [(place, {}) for place in places[number]])
    (image,) = read_series(tmp_path)
    assert image.voxels.shape[2] == 12
    assert Volume.from_dicom(tmp_path / "v", sorted(tmp_path.glob("*.dcm"))).shape[2] == 12


def test_warnings_as_errors_store_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", stack(3))
    (folder / "README").write_text("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error", LeftOutWarning)
        with pytest.raises(LeftOutWarning):
            RadiObject.from_dicoms(tmp_path / "r", [(folder, "p")])
    assert not (tmp_path / "r").exists()
