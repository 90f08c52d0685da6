"""What else lies in a folder of DICOM: named and left out, or the scan is refused; never in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner, Result
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from volumes.support.images import concatenation, series, slice_dataset
from voxtier.cli.commands import cli
from voxtier.errors import ConfigError, FormatError, IngestError, LeftOutWarning, NotFoundError
from voxtier.volumes import RadiObject, Volume, VolumeCollection
from voxtier.volumes.formats.dicom import find_series, read_series

PLACES = [(0, 0, 2 * k) for k in range(3)]
SECONDARY = "1.2.840.10008.5.1.4.1.1.7"


def save(folder: Path, name: str, dataset: Dataset, **elements: Any) -> Path:
    for element, value in elements.items():
        if value is None:
            delattr(dataset, element)
        else:
            setattr(dataset, element, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    pydicom.dcmwrite(folder / name, dataset, enforce_file_format=True)
    return folder / name


def unplaced(folder: Path, **elements: Any) -> Path:
    nowhere = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
    options = {"series": "1.2.99", "pixels": np.ones((9, 9), np.int16)}
    return save(folder, "other.dcm", slice_dataset((0, 0, 0), **options), **nowhere, **elements)


def colour(folder: Path) -> Path:
    dataset = slice_dataset((0, 0, 0), series="1.2.99")
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    return save(folder, "other.dcm", dataset, PixelData=bytes(72))


def report(folder: Path, uid: str = "1.2.3") -> Path:
    """Write a dose report (PS3.3 A.35.8), in the series of the scan."""
    dataset = slice_dataset((0, 0, 0), series=uid)
    for name in ("Rows", "Columns", "PixelData"):
        delattr(dataset, name)
    return save(folder, "other.dcm", dataset, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67", Modality="SR")


def shipped(name: str) -> Callable[[Path], Path]:
    def copy(folder: Path) -> Path:
        (folder / "other.dcm").write_bytes(Path(get_testdata_file(name)).read_bytes())
        return folder / "other.dcm"

    return copy


def localizer(folder: Path, uid: str = "1.2.99", slices: int = 1) -> Path:
    for number in range(slices):
        dataset = slice_dataset((number, 0, 50), (0, 1, 0, 0, 0, -1), series=uid, number=number + 50)
        save(folder, f"l{number}.dcm", dataset, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return folder / "l0.dcm"


def ingest(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["volume", "ingest", *map(str, arguments)], standalone_mode=False)


OTHERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "secondary capture": (lambda f: unplaced(f, SOPClassUID=SECONDARY), "secondary capture"),
    "secondary capture in the series": (
        lambda f: unplaced(f, SOPClassUID=SECONDARY, SeriesInstanceUID="1.2.3"),
        "secondary capture",
    ),
    "secondary capture with a place": (
        lambda f: save(f, "other.dcm", slice_dataset((0, 0, 0), series="1.9"), SOPClassUID=SECONDARY),
        "secondary capture",
    ),
    "picture of the class of the scan": (lambda f: unplaced(f, Modality="OT"), "ImagePositionPatient is"),
    "dose report": (report, "without an image"),
    "localizer": (localizer, "localizer"),
    "colour image": (colour, "colour"),
    "structured report": (shipped("test-SR.dcm"), "without an image"),
    "dose grid": (shipped("rtdose.dcm"), "radiotherapy"),
    "segmentation": (shipped("liver_1frame.dcm"), "segmentation"),
    "colour capture": (shipped("SC_rgb_jpeg.dcm"), "secondary capture"),
    "electrocardiogram": (shipped("waveform_ecg.dcm"), "without an image"),
    "damaged image of another series": (
        lambda f: save(f, "other.dcm", slice_dataset((0, 0, 0), series="1.9"), PixelSpacing=[0, 1]),
        "PixelSpacing|Pixel Spacing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_scan_is_named_and_left_out(tmp_path: Path, case: str) -> None:
    write, reason = OTHERS[case]
    folder = series(tmp_path / "in", PLACES)
    other = write(folder)
    with pytest.warns(LeftOutWarning) as caught:
        radi = RadiObject.from_dicoms(tmp_path / "r", [(folder, "p")])
    assert radi.all_obs_ids == ["p_CT"]
    assert radi.CT.iloc[0].shape == (3, 4, 3)
    (warning,) = (warning.message for warning in caught)
    assert isinstance(warning, LeftOutWarning)
    assert warning.what == str(other)
    assert any(part in warning.reason for part in reason.split("|"))
    with pytest.warns(LeftOutWarning):
        assert Volume.from_dicom(tmp_path / "v", folder).shape == (3, 4, 3)


@pytest.mark.parametrize(
    "arguments", [(), ("--skip-errors",), ("--dry-run",), ("--dry-run", "--skip-errors")]
)
def test_the_command_line_names_it_and_ends_with_3(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    folder = series(tmp_path / "p1", PLACES)
    other = report(folder)
    done = CliRunner().invoke(
        cli,
        ["volume", "ingest", str(tmp_path / "r"), str(folder), "--json", *arguments],
        standalone_mode=False,
    )
    assert done.return_value == 3
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    left_out = [row for row in rows if row.get("status") == "left out"]
    assert [row["path"] for row in left_out] == [str(other)]
    is_dry = "--dry-run" in arguments
    assert (tmp_path / "r").exists() is not is_dry
    if is_dry:
        assert [row["obs_id"] for row in rows if row["status"] == "would ingest"] == ["p1_CT"]
    else:
        assert RadiObject(tmp_path / "r").all_obs_ids == ["p1_CT"]


@pytest.mark.parametrize("case", [case for case in OTHERS if "localizer" not in case and "place" not in case])
def test_a_folder_without_a_scan_is_refused_for_that_reason(tmp_path: Path, case: str) -> None:
    write, reason = OTHERS[case]
    tmp_path.joinpath("in").mkdir()
    write(tmp_path / "in")
    with pytest.raises(FormatError) as caught:
        read_series(tmp_path / "in")
    assert any(part in str(caught.value) for part in reason.split("|"))
    with pytest.raises(IngestError):
        RadiObject.from_dicoms(tmp_path / "r", [(tmp_path / "in", "p")], on_error="skip")
    assert not (tmp_path / "r").exists()


def test_a_localizer_in_the_series_of_the_scan_has_the_last_name(tmp_path: Path) -> None:
    """Series Instance UID "0..." sorts before anything: names follow slices, not UIDs."""
    folder = series(tmp_path / "in", PLACES[:2])
    localizer(folder, "1.2.3", slices=3)
    radi = RadiObject.from_dicoms(tmp_path / "r", [(folder, "p")])
    assert radi.all_obs_ids == ["p_CT", "p_CT_acq-2"]
    assert radi.get_volume("p_CT").shape[2] == 2
    assert radi.get_volume("p_CT_acq-2").shape[2] == 3


def test_localizers_alone_are_stored(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    localizer(tmp_path / "in")
    assert RadiObject.from_dicoms(tmp_path / "r", [(tmp_path / "in", "p")]).all_obs_ids == ["p_CT"]


def test_the_scan_with_the_most_slices_has_the_plain_name(tmp_path: Path) -> None:
    folder = series(tmp_path / "in", PLACES[:2], series="1.1")
    series(folder, [(9, 9, 3 * k) for k in range(5)], series="1.2", names=[f"b{k}" for k in range(5)])
    radi = RadiObject.from_dicoms(tmp_path / "r", [(folder, "p")])
    assert [radi.get_volume(name).shape[2] for name in ("p_CT", "p_CT_acq-2")] == [5, 2]


def test_a_slice_that_cannot_be_placed_refuses_its_series(tmp_path: Path) -> None:
    """Without it the volume would be a slice short, and nobody could tell."""
    folder = series(tmp_path / "in", PLACES)
    unplaced(folder, SeriesInstanceUID="1.2.3")
    with pytest.raises(FormatError, match=r"other\.dcm: ImagePositionPatient is missing"):
        read_series(folder)
    other = series(tmp_path / "other", PLACES)
    with pytest.raises(IngestError, match=r"series 1\.2\.3.*other\.dcm"):
        RadiObject.from_dicoms(tmp_path / "r", [(folder, "p"), (other, "q")])
    assert not (tmp_path / "r").exists()
    with pytest.warns(LeftOutWarning, match=r"other\.dcm"):
        radi = RadiObject.from_dicoms(tmp_path / "r", [(folder, "p"), (other, "q")], on_error="skip")
    assert radi.all_obs_ids == ["q_CT"]


def test_one_bad_series_of_a_folder_leaves_the_others(tmp_path: Path) -> None:
    folder = series(tmp_path / "in", PLACES, series="1.1")
    series(folder, [(0, 0, 0), (0, 0, 1), (0, 0, 7)], series="1.2", names=["a", "b", "c"])
    with pytest.raises(IngestError, match=r"series 1\.2\).*missing slices"):
        RadiObject.from_dicoms(tmp_path / "r", [(folder, "p")])
    with pytest.warns(LeftOutWarning, match="missing slices"):
        radi = RadiObject.from_dicoms(tmp_path / "r", [(folder, "p")], on_error="skip")
    assert radi.all_obs_ids == ["p_CT"]
    radi = RadiObject.from_dicoms(tmp_path / "f", [(folder, "p")], on_gap="fill")
    assert radi.all_obs_ids == ["p_CT", "p_CT_acq-2"]
    radi.append(dicom_dirs=[(folder, "q")], on_gap="fill")
    assert len(radi.all_obs_ids) == 4
    collection = VolumeCollection.from_dicoms(
        tmp_path / "c", [(folder, "p")], on_gap="fill", validate_dimensions=False
    )
    collection.append(dicom_dirs=[(folder, "q")], on_gap="fill")
    assert len(collection) == 4


@pytest.mark.parametrize("total", [True, False])
def test_the_parts_of_concatenations_are_whole_volumes(tmp_path: Path, total: bool) -> None:
    """In any order, a part twice, two of them in one series."""
    parts = concatenation(tmp_path / "in", [3, 5, 8], total=total)
    parts += concatenation(tmp_path / "in", [2, 6], total=total, height=500, FrameOfReferenceUID="1.2.8")
    (tmp_path / "in/copy.dcm").write_bytes(parts[1].read_bytes())
    images = read_series([tmp_path / "in/copy.dcm", *parts[::-1]])
    assert [image.voxels[0, 0].tolist() for image in images] == [list(range(1, n + 1)) for n in (8, 6)]


@pytest.mark.parametrize(
    ("kept", "total", "elements", "lack"),
    [
        ([1, 2], True, {}, "part 1 of 3"),
        ([0], True, {}, "parts 2, 3 of 3"),
        ([0, 2], True, {}, "part 2 of 3"),
        ([0, 2], False, {}, r"part 2 \(of 3 or more\)"),
        ([2], False, {}, r"parts 1, 2 \(of 3 or more\)"),
        ([0, 2], True, {"InConcatenationNumber": None}, "1 of 3 parts"),
        ([0, 2], False, {"InConcatenationNumber": None}, "frames 4 to 5"),
        ([1], False, {"InConcatenationNumber": 1}, "frames 1 to 3"),
        ([1], True, {"InConcatenationNumber": 65535}, "parts 1, 2, 3, 4, 5 and 65529 more of 65535"),
    ],
)
def test_a_concatenation_that_lacks_a_part_is_refused_with_its_name(
    tmp_path: Path, kept: list[int], total: bool, elements: dict[str, Any], lack: str
) -> None:
    parts = concatenation(tmp_path / "in", [3, 5, 8], total=total)
    for number, path in enumerate(parts):
        if number in kept:
            save(path.parent, path.name, pydicom.dcmread(path), **elements)
        else:
            path.unlink()
    folder = series(tmp_path / "in", PLACES, series="1.9")
    with pytest.raises(IngestError, match=f"missing slices: these files lack {lack} of concatenation"):
        RadiObject.from_dicoms(tmp_path / "r", [(folder, "p")])
    with pytest.warns(LeftOutWarning, match=lack):
        radi = RadiObject.from_dicoms(tmp_path / "r", [(folder, "p")], on_error="skip")
    assert radi.all_obs_ids == ["p_CT"]


def test_lost_parts_are_closed_up_and_filled_only_between_others(tmp_path: Path) -> None:
    parts = concatenation(tmp_path / "in", [3, 5, 8])
    outer = [parts[0], parts[2]]
    [image] = read_series(outer, on_gap="keep")
    assert image.voxels[0, 0].tolist() == [1, 2, 3, 6, 7, 8]
    [image] = read_series(outer, on_gap="fill")
    assert image.voxels[0, 0].tolist() == [1, 2, 3, 1, 1, 6, 7, 8]
    for lost, left in (("part 3", parts[:2]), ("parts 2, 3", parts[:1]), ("part 1", parts[1:])):
        with pytest.raises(FormatError, match=lost):
            read_series(left, on_gap="fill")
        assert read_series(left, on_gap="keep")


def test_a_localizer_does_not_stand_in_for_a_refused_scan(tmp_path: Path) -> None:
    folder = series(tmp_path / "in", [(0, 0, 0), (0, 0, 1), (0, 0, 7)])
    localizer(folder, "1.2.3")
    with (
        pytest.warns(LeftOutWarning, match="localizer"),
        pytest.raises(IngestError, match="missing slices"),
    ):
        RadiObject.from_dicoms(tmp_path / "r", [(folder, "p")], on_error="skip")


@pytest.mark.parametrize(
    ("name", "content", "outcome"),
    [
        ("notes.txt", b"no image", "ignored"),
        (".hidden", b"", "ignored"),
        ("thumbs.db", b"x" * 300, "ignored"),
        ("README", b"no image", "left out"),
        ("1.2.840.77", b"no image", "left out"),
        ("x.dcm", b"no image", "refused"),
        ("x.IMA", b"\0" * 200, "refused"),
        ("IM0009", b"", "refused"),
    ],
)
def test_a_file_that_is_not_dicom_is_never_a_missing_slice_in_silence(
    tmp_path: Path, name: str, content: bytes, outcome: str
) -> None:
    folder = series(tmp_path / "in", PLACES)
    (folder / name).write_bytes(content)
    if outcome == "refused":
        with pytest.raises(FormatError, match=f"{name}: .*not DICOM Part 10") as caught:
            read_series(folder)
        assert caught.value.kind == "not_dicom"
    else:
        left_out = find_series(folder).left_out
        assert [Path(file).name for file, _ in left_out] == ([name] if outcome == "left out" else [])


def test_an_index_of_a_disc_is_passed_over(tmp_path: Path) -> None:
    folder = series(tmp_path / "in", PLACES)
    (folder / "DICOMDIR").write_bytes(Path(get_testdata_file("DICOMDIR")).read_bytes())
    assert find_series(folder).left_out == []
    (tmp_path / "alone").mkdir()
    (folder / "DICOMDIR").rename(tmp_path / "alone" / "DICOMDIR")
    with pytest.raises(NotFoundError, match="subfolders are not read"):
        read_series(tmp_path / "alone")


def test_two_images_with_one_uid_refuse_their_series(tmp_path: Path) -> None:
    """A pseudonymizer that gives every file the same UID must not leave one slice of them."""
    folder = series(tmp_path / "in", PLACES, SOPInstanceUID="1.2.3.4")
    with pytest.raises(FormatError, match=r"two images with one SOP Instance UID 1\.2\.3\.4"):
        read_series(folder)
    same_place = series(tmp_path / "same", [(0, 0, 0), (0, 0, 0)], SOPInstanceUID="1.2.3.4")
    with pytest.raises(FormatError, match="two images with one SOP Instance UID"):
        read_series(same_place)


def test_a_copy_with_another_header_counts_once(tmp_path: Path) -> None:
    folder = series(tmp_path / "in", PLACES)
    dataset = pydicom.dcmread(folder / "002.dcm")
    dataset.StudyDescription = "sent twice"
    pydicom.dcmwrite(folder / "copy.dcm", dataset, enforce_file_format=True)
    (image,) = read_series(folder)
    assert image.voxels.shape[2] == 3


def test_many_files_left_out_for_one_reason_are_one_warning(tmp_path: Path) -> None:
    folder = series(tmp_path / "in", PLACES)
    for number in range(9):
        report(folder).rename(folder / f"r{number}.dcm")
    with pytest.warns(LeftOutWarning) as caught:
        read_series(folder)
    assert len(caught) == 1
    assert str(caught[0].message).count(".dcm") == 5
    assert "and 4 more" in str(caught[0].message)


def test_several_volumes_of_a_folder_are_refused_with_each_uid_once(tmp_path: Path) -> None:
    folder = series(tmp_path / "in", PLACES, EchoTime="15")
    series(folder, PLACES, names=["a", "b", "c"], EchoTime="90")
    with pytest.raises(ConfigError) as caught:
        Volume.from_dicom(tmp_path / "v", folder)
    assert str(caught.value).count("1.2.3") == 1
    assert "RadiObject.from_dicoms" in str(caught.value)
    assert hasattr(RadiObject, "from_dicoms")


def test_files_and_folders_are_named_by_path_glob_or_list(tmp_path: Path) -> None:
    folder = series(tmp_path / "p7", PLACES)
    files = sorted(folder.iterdir())
    assert RadiObject.from_dicoms(tmp_path / "one", [(files[0], "p")]).CT.iloc[0].shape == (3, 4, 1)
    assert RadiObject.from_dicoms(tmp_path / "some", [(files, "p")]).CT.iloc[0].shape == (3, 4, 3)
    for number, (sources, obs_id, slices) in enumerate(
        (
            ([files[1]], "002_CT", 1),
            (files, "p7_CT", 3),
            ([folder / "*.dcm"], "p7_CT", 3),
            ([folder], "p7_CT", 3),
        )
    ):
        store = tmp_path / str(number)
        done = ingest(store, *sources)
        assert done.return_value == 0, done.output
        assert [(v.obs_id, v.shape[2]) for v in RadiObject(store).CT] == [(obs_id, slices)]


def test_a_folder_of_nifti_and_dicom_files_is_asked_about(tmp_path: Path) -> None:
    folder = series(tmp_path / "p7", PLACES)
    (folder / "mask.nii.gz").write_bytes(b"")
    done = CliRunner().invoke(
        cli, ["volume", "ingest", str(tmp_path / "r"), str(folder)], standalone_mode=False
    )
    assert isinstance(done.exception, ConfigError)
    assert "NIfTI files and DICOM files" in str(done.exception)


def test_the_hint_on_gaps_names_an_option_of_the_command_line(tmp_path: Path) -> None:
    folder = series(tmp_path / "p", [(0, 0, 0), (0, 0, 1), (0, 0, 3)])
    assert "--on-gap fill" in str(ingest(tmp_path / "r", folder).exception)
    assert ingest(tmp_path / "r", folder, "--on-gap", "fill").return_value == 0
    assert RadiObject(tmp_path / "r").CT.iloc[0].shape[2] == 4
