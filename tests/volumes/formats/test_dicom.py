"""DICOM series: order, affine and units against goldens and against the standard's formula for pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from volumes.support.images import series, slice_dataset
from voxtier.errors import ConfigError, FormatError, NotFoundError
from voxtier.volumes import RadiObject, Volume
from voxtier.volumes.formats.dicom import read_series

AXIAL = (1, 0, 0, 0, 1, 0)
TILT = np.radians(15)
GOLDENS = {
    "axial": (
        AXIAL,
        [(-100, -120, z) for z in (5, 0, 2.5)],
        [2, 3, 1],
        [[-0.8, 0, 0, 100], [0, -0.5, 0, 120], [0, 0, 2.5, 0]],
        "LPS",
    ),
    "sagittal": (
        (0, 1, 0, 0, 0, -1),
        [(x, -120, 80) for x in (10, 7, 4)],
        None,
        [[0, 0, 3, -10], [-0.8, 0, 0, 120], [0, -0.5, 0, 80]],
        "PIR",
    ),
    "coronal": (
        (1, 0, 0, 0, 0, -1),
        [(-100, y, 80) for y in (3, 0)],
        None,
        [[-0.8, 0, 0, 100], [0, 0, -3, 0], [0, -0.5, 0, 80]],
        "LIP",
    ),
}


def world(dataset: Dataset, column: int, row: dict[str, Any]) -> np.ndarray:
    """PS3.3 C.7.6.2.1.1: the place of a pixel, LPS."""
    position, cosines = (
        np.array(dataset.ImagePositionPatient, float),
        np.array(dataset.ImageOrientationPatient, float),
    )
    between_rows, between_columns = (float(v) for v in dataset.PixelSpacing)
    return position + cosines[:3] * between_columns * column + cosines[3:] * between_rows * row


@pytest.mark.parametrize("case", ["axial", "coronal"])
def test_goldens(tmp_path: Path, case: str) -> None:
    orientation, positions, order, affine, codes = GOLDENS[case]
    volume = Volume.from_dicom(tmp_path / "v", series(tmp_path / "in", positions, orientation))
    np.testing.assert_allclose(volume.affine[:3], affine, atol=1e-6)
    assert volume.orientation_info.axcodes == codes
    if order:
        assert [int(volume[0, 0, k]) for k in range(3)] == order


def test_sagittal_positions_along_a_negative_normal_keep_the_order_of_files(tmp_path: Path) -> None:
    """Positions 10, 7, 4 along a normal that points to -x: ascending projection is the order of the files."""
    orientation, positions, _, affine, codes = GOLDENS["sagittal"]
    volume = Volume.from_dicom(tmp_path / "v", series(tmp_path / "in", positions, orientation))
    np.testing.assert_allclose(volume.affine[:3], affine, atol=1e-6)
    assert volume.orientation_info.axcodes == codes
    assert [int(volume[0, 0, k]) for k in range(3)] == [1, 2, 3]


def test_gantry_tilt_keeps_the_shear_and_says_how_much(tmp_path: Path) -> None:
    orientation = (1, 0, 0, 0, np.cos(TILT), -np.sin(TILT))
    volume = Volume.from_dicom(
        tmp_path / "v", series(tmp_path / "in", [(0, 0, 5 * k) for k in range(3)], orientation, (1, 1))
    )
    np.testing.assert_allclose(
        volume.affine[:3, :3].T, [[-1, 0, 0], [0, -0.965926, -0.258819], [0, 0, 5]], atol=1e-5
    )
    assert volume.meta["gantry_tilt_degrees"] == pytest.approx(15.0)
    image = pytest.importorskip("nibabel").load(volume.to_nifti(tmp_path / "t.nii", compression=False))
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-5)


def test_every_pixel_lies_where_the_standard_says(tmp_path: Path) -> None:
    """Generated oblique series, shuffled names and lying InstanceNumber and SliceThickness."""
    rng = np.random.default_rng(0)
    for case in range(40):
        basis = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        orientation, normal = (*basis[:, 0], *basis[:, 1]), np.cross(basis[:, 0], basis[:, 1])
        origin, step, count = rng.uniform(-100, 100, 3), rng.uniform(0.5, 6), int(rng.integers(2, 6))
        spacing = tuple(rng.uniform(0.3, 2, 2))
        order = rng.permutation(count)
        folder = tmp_path / str(case)
        folder.mkdir()
        sources = {}
        for name, k in enumerate(order):
            pixels = rng.integers(-1000, 1000, (3, 4)).astype(np.int16)
            position = [float(f"{v:.9g}") for v in origin + k * step * normal]
            dataset = slice_dataset(
                position,
                [float(f"{v:.9g}") for v in orientation],
                [float(f"{v:.9g}") for v in spacing],
                pixels=pixels,
                number=int(rng.integers(99)),
                SliceThickness=step * 3,
                SpacingBetweenSlices=step / 2,
            )
            pydicom.dcmwrite(folder / f"{name}.dcm", dataset, enforce_file_format=True)
            sources[int(k)] = (dataset, pixels)
        volume = Volume.from_dicom(tmp_path / f"v{case}", folder)
        assert volume.shape == (4, 3, count)
        voxels, affine = volume.to_numpy(), volume.affine
        for k in range(count):
            dataset, pixels = sources[k]
            assert np.array_equal(voxels[:, :, k].T, pixels)
            for column, row in ((0, 0), (3, 2)):
                ours = (affine @ [column, row, k, 1])[:3] * [-1, -1, 1]
                np.testing.assert_allclose(ours, world(dataset, column, row), atol=1e-5)


def test_rescale_gives_int16_hounsfield_units_and_float_pet_by_slice(tmp_path: Path) -> None:
    pixels = np.array([[0, 1000], [2000, 4095]], np.uint16)
    ct = [slice_dataset((0, 0, z), pixels=pixels, RescaleSlope=1, RescaleIntercept=-1024) for z in (0, 1)]
    pet = [slice_dataset((0, 0, z), pixels=pixels, RescaleSlope=0.5 + z, RescaleIntercept=0) for z in (0, 1)]
    for name, datasets in (("ct", ct), ("pet", pet)):
        (tmp_path / name).mkdir()
        for number, dataset in enumerate(datasets):
            pydicom.dcmwrite(tmp_path / name / f"{number}.dcm", dataset, enforce_file_format=True)
    volume = Volume.from_dicom(tmp_path / "vct", tmp_path / "ct")
    assert volume.dtype == np.int16
    assert volume[:, :, 1].T.tolist() == [[-1024, -24], [976, 3071]]
    volume = Volume.from_dicom(tmp_path / "vpet", tmp_path / "pet")
    assert volume.dtype == np.float32
    assert volume[:, :, 1].T.tolist() == [[0, 1500], [3000, 6142.5]]


@pytest.mark.parametrize("signed", [False, True])
def test_unused_high_bits_are_not_voxels(tmp_path: Path, signed: bool) -> None:
    stored = np.array([[5, 0x0FFF], [0x0800, 0x07FF]], np.uint16) | 0xA000
    datasets = [
        slice_dataset((0, 0, z), pixels=stored, BitsStored=12, HighBit=11, PixelRepresentation=int(signed))
        for z in (0, 1)
    ]
    for number, dataset in enumerate(datasets):
        pydicom.dcmwrite(tmp_path / f"{number}.dcm", dataset, enforce_file_format=True)
    found = read_series(tmp_path)[0].voxels[:, :, 0].T.tolist()
    assert found == ([[5, -1], [-2048, 2047]] if signed else [[5, 4095], [2048, 2047]])


@pytest.mark.parametrize("compressed", [None, "RLELossless", "JPEGLSLossless"])
@pytest.mark.parametrize("high", [11, 12, 15])
def test_pixels_are_those_of_pydicom_or_refused(tmp_path: Path, compressed: str | None, high: int) -> None:
    """Where HighBit says that pixels begin above bit 0, pydicom takes the low bits all the same."""
    stored = np.random.default_rng(0).integers(0, 4096, (24, 32)).astype(np.uint16)
    for z in (0, 1):
        dataset = slice_dataset((0, 0, z), pixels=stored, BitsStored=12, HighBit=high)
        if compressed is not None:
            if compressed == "JPEGLSLossless":
                pytest.importorskip("jpeg_ls")
            dataset.compress(getattr(pydicom.uid, compressed))
        pydicom.dcmwrite(tmp_path / f"{z}.dcm", dataset, enforce_file_format=True)
    if high != 11 and compressed != "JPEGLSLossless":
        with pytest.raises(FormatError, match=f"High Bit {high} is not one below Bits Stored 12"):
            read_series(tmp_path)
        return
    voxels = read_series(tmp_path)[0].voxels
    assert np.array_equal(voxels[:, :, 0].T, pydicom.dcmread(tmp_path / "0.dcm").pixel_array)


@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian"])
@pytest.mark.parametrize("pixels", [np.int16, np.uint16])
def test_padding_has_the_sign_of_the_pixels(tmp_path: Path, syntax: str, pixels: Any) -> None:
    padding = -2000 if pixels is np.int16 else 63_536
    for z in (0, 1):
        dataset = slice_dataset((0, 0, z), pixels=np.ones((2, 3), pixels))
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.PixelPaddingValue = "1", "-1024", padding
        dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        pydicom.dcmwrite(tmp_path / f"{z}.dcm", dataset, enforce_file_format=True)
    assert pydicom.dcmread(tmp_path / "0.dcm").PixelPaddingValue == padding
    assert read_series(tmp_path)[0].meta["pixel_padding_value"] == padding - 1024


def test_spacing_is_that_of_the_positions(tmp_path: Path) -> None:
    folder = series(
        tmp_path / "in", [(0, 0, 3 * k) for k in range(4)], SliceThickness=5, SpacingBetweenSlices=7
    )
    assert Volume.from_dicom(tmp_path / "v", folder).spacing[2] == pytest.approx(3)


def test_missing_slices_are_refused_filled_or_closed(tmp_path: Path) -> None:
    folder = series(tmp_path / "in", [(0, 0, z) for z in (0, 1, 2, 5, 6)])
    with pytest.raises(FormatError, match=r"missing slices \(2 after slice 3"):
        Volume.from_dicom(tmp_path / "v", folder)
    filled = Volume.from_dicom(tmp_path / "f", folder, on_gap="fill")
    assert filled.shape[2] == 7
    assert [int(filled[0, 0, k]) for k in (0, 2, 3, 5, 6)] == [1, 3, 1, 4, 5]
    assert (filled.meta["missing_slices"], filled.spacing[2]) == ("3,4", 1)
    assert Volume.from_dicom(tmp_path / "k", folder, on_gap="keep").shape[2] == 5


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([(0, 0, 0), (0, 0, 1), (0, 0, 2.4), (0, 0, 3.4)], "irregular spacing"),
        ([(0, 0, 0), (0, 0, 1), (2, 0, 2), (0, 0, 3)], "beside the line"),
        ([(0, 0, 0), (0, 0, 1), (0, 0, 1)], "tells them apart"),
    ],
)
def test_slices_on_no_regular_grid_are_refused(
    tmp_path: Path, positions: list[tuple[float, ...]], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        Volume.from_dicom(tmp_path / "v", series(tmp_path / "in", positions))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"ImagePositionPatient": None}, "ImagePositionPatient is missing"),
        ({"PixelSpacing": None}, "PixelSpacing is missing"),
        ({"PixelSpacing": [0, 1]}, "must be positive"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]}, "two orthogonal unit vectors"),
        ({"SamplesPerPixel": 3}, "colour"),
        ({"ModalityLUTSequence": Sequence([Dataset()])}, "Modality LUT"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"PixelData": b"\0\0"}, "cannot be decoded"),
    ],
)
def test_bad_tags_are_named(tmp_path: Path, tags: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Volume.from_dicom(tmp_path / "v", series(tmp_path / "in", [(0, 0, 0), (0, 0, 1)], **tags))
    assert not (tmp_path / "v").exists()


def test_the_same_object_twice_counts_once(tmp_path: Path) -> None:
    folder = series(tmp_path / "in", [(0, 0, 0), (0, 0, 1)])
    (folder / "copy.dcm").write_bytes((folder / "001.dcm").read_bytes())
    (folder / "notes.txt").write_text("no image")
    assert Volume.from_dicom(tmp_path / "v", folder).shape[2] == 2


def test_two_series_are_two_volumes(tmp_path: Path) -> None:
    series(tmp_path / "in", [(0, 0, k) for k in range(2)], series="1.1")
    series(tmp_path / "in", [(0, 0, k) for k in range(3)], series="1.2", names=["x1", "x2", "x3"])
    with pytest.raises(ConfigError, match=r"1\.1, 1\.2"):
        Volume.from_dicom(tmp_path / "v", tmp_path / "in")
    radi = RadiObject.from_dicoms(tmp_path / "r", [(tmp_path / "in", "p1")])
    assert radi.CT.obs_ids == ["p1_CT", "p1_CT_acq-2"]
    assert sorted(v.shape[2] for v in radi.CT) == [2, 3]
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError):
        read_series(tmp_path / "empty")


def test_repeated_positions_become_time(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for t in (2, 1, 3):
        series(
            folder,
            [(0, 0, k) for k in range(2)],
            names=[f"{t}a", f"{t}b"],
            TemporalPositionIdentifier=t,
            RescaleSlope=10 * t,
            RescaleIntercept=0,
        )
    volume = Volume.from_dicom(tmp_path / "v", folder)
    assert volume.shape == (3, 4, 2, 3)
    assert volume[0, 0].tolist() == [[10, 20, 30], [20, 40, 60]]
    assert volume.meta["time_tag"] == "TemporalPositionIdentifier"


def enhanced(path: Path, positions: Sequence[Any], stacks: list[int] | None = None) -> Path:
    frames = len(positions)
    pixels = np.stack([np.full((4, 3), n + 1, np.int16) for n in range(frames)])
    dataset = slice_dataset((0, 0, 0), pixels=pixels[0])
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(dataset, name)
    dataset.NumberOfFrames, dataset.PixelData = frames, pixels.tobytes()

    def item(**tags: Any) -> Sequence:
        found = Dataset()
        for name, value in tags.items():
            setattr(found, name, value)
        return Sequence([found])

    shared = Dataset()
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=list(AXIAL))
    shared.PixelMeasuresSequence = item(PixelSpacing=[0.5, 0.8], SliceThickness=9)
    shared.PixelValueTransformationSequence = item(RescaleSlope=2, RescaleIntercept=-10)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    per_frame = []
    for n, position in enumerate(positions):
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=list(position))
        frame.FrameContentSequence = item(StackID=str((stacks or [1] * frames)[n]), TemporalPositionIndex=1)
        per_frame.append(frame)
    per_frame[0].PixelValueTransformationSequence = item(RescaleSlope=2, RescaleIntercept=-11)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(per_frame)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def test_enhanced_multi_frame_takes_groups_of_a_frame_before_shared_ones(tmp_path: Path) -> None:
    path = enhanced(tmp_path / "e.dcm", [(0, 0, 4), (0, 0, 0), (0, 0, 2)])
    volume = Volume.from_dicom(tmp_path / "v", path)
    assert volume.shape == (3, 4, 3)
    assert volume.spacing == pytest.approx((0.8, 0.5, 2))
    assert volume[0, 0].tolist() == [-6, -4, -9]  # per-frame beats shared
    both = enhanced(tmp_path / "s.dcm", [(0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 1)], [1, 1, 2, 2])
    assert len(read_series(both)) == 2


def test_patient_names_and_paths_are_not_stored(tmp_path: Path) -> None:
    folder = series(
        tmp_path / "in", [(0, 0, 0), (0, 0, 1)], PatientID="SECRET-7", PatientName="Secret^Person"
    )
    RadiObject.from_dicoms(tmp_path / "r", [(folder, "p1")])
    stored = b"".join(path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file())
    assert b"SECRET-7" not in stored
    assert b"Secret^Person" not in stored
    assert str(folder).encode() not in stored


def test_a_real_ct_slice_has_the_units_and_the_place_of_the_standard(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm")
    dataset = pydicom.dcmread(path)
    volume = Volume.from_dicom(tmp_path / "v", path)
    wanted = dataset.pixel_array.astype(int) * int(dataset.RescaleSlope) + int(dataset.RescaleIntercept)
    assert np.array_equal(volume.axial(0).T, wanted)
    assert (volume.affine @ [3, 2, 0, 1])[:3] * [-1, -1, 1] == pytest.approx(world(dataset, 3, 2))
    assert volume.meta["slice_spacing_source"] == "header"
    assert volume.orientation_info.confidence == "inferred"
