"""Series and maps against dicom2nifti and highdicom: the same numbers at the same millimetres."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import EnhancedMRImageStorage, ImplicitVRLittleEndian

from volumes.support.checks import names_oblique_axes
from volumes.support.images import slice_dataset
from voxtier.errors import FormatError
from voxtier.volumes import Volume
from voxtier.volumes.formats.dicom import find_series, read_series

pytestmark = pytest.mark.filterwarnings("ignore")
REAL = Path(pydicom.__file__).parent / "data/test_files/dicomdirtests/98892001/CT5N"


def series(folder: Path, seed: int, *, tilt: float = 0.0) -> Path:
    """Write an oblique (or tilted) CT series with shuffled names; return the folder."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    if tilt:
        basis = np.eye(3)
        angle = np.radians(tilt)
        basis[:, 1] = 0, np.cos(angle), np.sin(angle)
    step = rng.uniform(1, 5) * (np.array([0, 0, 1.0]) if tilt else np.cross(basis[:, 0], basis[:, 1]))
    origin, spacing = rng.uniform(-90, 90, 3), [round(float(v), 4) for v in rng.uniform(0.4, 2, 2)]
    cosines = [f"{v:.10g}" for v in (*basis[:, 0], *basis[:, 1])]
    folder.mkdir()
    for name, k in enumerate(rng.permutation(6)):
        dataset = slice_dataset(
            [f"{v:.10g}" for v in origin + k * step],
            cosines,
            spacing,
            pixels=rng.integers(0, 3000, (7, 9)).astype(np.int16),
            number=int(k) + 1,
            RescaleSlope=1,
            RescaleIntercept=-1024,
            Manufacturer="nobody",
            ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
            PatientID="p",
            PatientName="p",
            PatientBirthDate="",
            PatientSex="",
            StudyInstanceUID="1.2.7",
            StudyID="",
            StudyDate="",
            StudyTime="",
            AccessionNumber="",
            ReferringPhysicianName="",
            SeriesNumber=1,
        )
        pydicom.dcmwrite(folder / f"{name}.dcm", dataset, enforce_file_format=True)
    return folder


def datasets(folder: Path) -> list[Dataset]:
    found = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    for dataset in found:
        dataset.pixel_array  # noqa: B018 -- decoded once, as its users expect
    return found


def same_place(volume: Volume, image: nib.Nifti1Image, *, values: float = 0.001) -> None:
    """Compare a volume with a nibabel image, whatever the order of their axes."""
    ours = nib.as_closest_canonical(nib.Nifti1Image(volume.to_numpy().astype(np.float64), volume.affine))
    theirs = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(image.dataobj, np.float64), image.affine))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    np.testing.assert_allclose(np.asarray(ours.dataobj), np.asarray(theirs.dataobj), atol=values)


def from_dicom2nifti(folder: Path) -> nib.Nifti1Image:
    from dicom2nifti import convert_dicom, settings

    settings.disable_validate_orthogonal()
    settings.disable_validate_slice_increment()
    return convert_dicom.dicom_array_to_nifti(datasets(folder), None, reorient_nifti=False)["NII"]


def from_highdicom(folder: Path) -> nib.Nifti1Image:
    from highdicom.image import get_volume_from_series

    volume = get_volume_from_series(datasets(folder))
    return nib.Nifti1Image(volume.array, np.diag([-1.0, -1, 1, 1]) @ volume.affine)


@names_oblique_axes
@pytest.mark.parametrize("oracle", [from_dicom2nifti, from_highdicom])
@pytest.mark.parametrize("seed", range(12))
def test_generated_oblique_series_lie_where_other_libraries_put_them(
    tmp_path: Path, seed: int, oracle: Callable[[Path], nib.Nifti1Image]
) -> None:
    folder = series(tmp_path / "in", seed)
    same_place(Volume.from_dicom(tmp_path / "v", folder), oracle(folder))


@pytest.mark.parametrize("tilt", [-12.0, 7.5, 20.0])
def test_a_tilted_series_lies_where_dicom2nifti_puts_it(tmp_path: Path, tilt: float) -> None:
    """highdicom refuses a shear; dicom2nifti keeps it in the affine, as we do."""
    folder = series(tmp_path / "in", 3, tilt=tilt)
    volume = Volume.from_dicom(tmp_path / "v", folder)
    assert volume.meta["gantry_tilt_degrees"] == pytest.approx(abs(tilt), abs=1e-2)
    same_place(volume, from_dicom2nifti(folder))


@pytest.mark.parametrize("oracle", [from_dicom2nifti, from_highdicom])
def test_a_real_ct_series_lies_where_other_libraries_put_it(
    tmp_path: Path, oracle: Callable[[Path], nib.Nifti1Image]
) -> None:
    same_place(Volume.from_dicom(tmp_path / "v", REAL), oracle(REAL))


def test_an_enhanced_image_of_highdicom_reads_back_equal(tmp_path: Path) -> None:
    """The real series converted into one multi-frame object (PS3.3 A.70), in any order of frames."""
    from highdicom import UID
    from highdicom.legacy import LegacyConvertedEnhancedCTImage

    slices = datasets(REAL)
    whole = LegacyConvertedEnhancedCTImage(
        slices[::-1], series_instance_uid=UID(), series_number=9, sop_instance_uid=UID(), instance_number=1
    )
    whole.save_as(tmp_path / "enhanced.dcm")
    one = Volume.from_dicom(tmp_path / "e", tmp_path / "enhanced.dcm")
    many = Volume.from_dicom(tmp_path / "m", REAL)
    assert np.array_equal(one.to_numpy(), many.to_numpy())
    np.testing.assert_allclose(one.affine, many.affine, atol=1e-6)


def mapping(slope: float = 1e-6, intercept: float = 0.25, **options: Any) -> hd.pm.RealWorldValueMapping:
    quantity = codes.DCM.ApparentDiffusionCoefficient
    options = {"value_range": [0, 65535], "quantity_definition": quantity} | options
    return hd.pm.RealWorldValueMapping(
        "ADC", "ADC", codes.UCUM.SquareMillimeterPerSecond, slope=slope, intercept=intercept, **options
    )


def parametric_map(pixels: NDArray[Any], *mappings: hd.pm.RealWorldValueMapping) -> hd.pm.ParametricMap:
    """Return a map of slices every 2 mm, of one mapping or of one for each frame (PS3.3 C.7.6.16.2.11)."""
    source = datasets(REAL)[0]
    sources = []
    for k in range(len(pixels)):
        sources.append(copy.deepcopy(source))
        sources[-1].SOPInstanceUID = hd.UID()
        sources[-1].ImagePositionPatient = [0, 0, 2 * k]
        sources[-1].Rows, sources[-1].Columns = pixels.shape[1:]
    described = (hd.UID(), 1, hd.UID(), 1, "maker", "model", "1", "number", False)
    found = hd.pm.ParametricMap(sources, pixels, *described, [mappings[0]], 0.0, 1.0)
    if len(mappings) > 1:
        del found.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
        for frame, one in zip(found.PerFrameFunctionalGroupsSequence, mappings, strict=True):
            frame.RealWorldValueMappingSequence = [copy.deepcopy(one)]
    return found


def items(found: Dataset) -> Any:
    return found.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence


def numbers_of_highdicom(path: Path, mappings: list[hd.pm.RealWorldValueMapping]) -> NDArray[Any]:
    """Return the mapped values of its slices by their height, (column, row, slice)."""
    found = pydicom.dcmread(path)
    frames = found.PerFrameFunctionalGroupsSequence
    height = [frame.PlanePositionSequence[0].ImagePositionPatient[2] for frame in frames]
    mappings = mappings if len(mappings) > 1 else mappings * len(frames)
    values = [one.apply(pixels) for one, pixels in zip(mappings, found.pixel_array, strict=True)]
    return np.array(values)[np.argsort(height)].transpose(2, 1, 0)


@pytest.mark.parametrize("slopes", [(1e-6,), (3,), (1,), (1e-6, 2e-6, 3e-6, 4e-6)])
@pytest.mark.parametrize("dtype", ["u2", "f4", "f8"])
def test_a_parametric_map_holds_its_real_world_values(
    tmp_path: Path, dtype: str, slopes: tuple[float, ...]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 5, 6)).astype(dtype)
    ends = [0, 65535] if dtype == "u2" else [0.0, 65535.0]
    mappings = [mapping(slope, value_range=ends) for slope in slopes]
    parametric_map(pixels, *mappings).save_as(tmp_path / "m.dcm")
    volume = Volume.from_dicom(tmp_path / "v", tmp_path / "m.dcm")
    wanted = numbers_of_highdicom(tmp_path / "m.dcm", mappings)
    np.testing.assert_allclose(volume.to_numpy(), wanted, rtol=2e-7)
    if dtype == "u2":  # the frames of floats it cannot give
        image = hd.imread(tmp_path / "m.dcm").get_frames().transpose(2, 1, 0)
        assert np.array_equal(np.sort(image, axis=None), np.sort(wanted, axis=None))
    assert volume.meta["measurement_unit"] == "mm2/s"
    assert volume.meta["measurement_quantity"] == "Apparent Diffusion Coefficient"


def test_a_signed_map_without_vrs_is_read_by_its_sign(tmp_path: Path) -> None:
    """First and Last Value Mapped are US or SS as Pixel Representation says (PS3.5 A.1)."""
    pixels = np.random.default_rng(0).integers(-30000, 30000, (3, 5, 6)).astype("<i2")
    found = parametric_map(pixels.view("u2"), mapping(2, 5))
    found.PixelRepresentation = 1
    for name, value in (("First", -30000), ("Last", 30000)):
        found_name = f"RealWorldValue{name}ValueMapped"
        delattr(items(found)[0], found_name)
        items(found)[0].add_new(found_name, "SS", value)
    found.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    plain = Dataset(found)
    plain.file_meta = found.file_meta
    pydicom.dcmwrite(
        tmp_path / "m.dcm", plain, enforce_file_format=True, implicit_vr=True, little_endian=True
    )
    [image] = read_series(tmp_path / "m.dcm")
    assert np.array_equal(np.sort(image.voxels.ravel()), np.sort(pixels.astype(int).ravel()) * 2 + 5)


def test_two_quantities_are_two_volumes_and_equal_mappings_are_one(tmp_path: Path) -> None:
    pixels = np.arange(120, dtype="u2").reshape(4, 5, 6)
    other = mapping(quantity_definition=codes.SCT.Volume)
    found = parametric_map(pixels, mapping(), mapping(), other, other)
    for frame in found.PerFrameFunctionalGroupsSequence:
        frame.RealWorldValueMappingSequence.append(copy.deepcopy(frame.RealWorldValueMappingSequence[0]))
    found.save_as(tmp_path / "m.dcm")
    images = read_series(tmp_path / "m.dcm")
    assert [image.voxels.shape for image in images] == [(6, 5, 2)] * 2
    assert len({image.meta["measurement_quantity"] for image in images}) == 2


def test_values_of_float32_reach_the_ends_of_their_mapping_and_nan_is_none(tmp_path: Path) -> None:
    """0.1 as float32 is more than 0.1; so is what a writer rounds."""
    pixels = np.full((2, 5, 6), np.float32(0.1))
    pixels[0, 0, 0], pixels[1] = np.nan, 0
    parametric_map(pixels, mapping(2, 0, value_range=[0.0, 0.1])).save_as(tmp_path / "m.dcm")
    [image] = read_series(tmp_path / "m.dcm")
    assert np.isnan(image.voxels[0, 0]).sum() == 1
    assert np.nanmax(image.voxels) == np.float32(0.2)


def add_another(found: Dataset) -> None:
    items(found).append(mapping(7))


def make_table(found: Dataset) -> None:
    table = mapping(None, None, value_range=[0, 9], lut_data=list(range(10)))
    found.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence = [table]


def bare_frame(found: Dataset) -> None:
    for frame in found.PerFrameFunctionalGroupsSequence[1:]:
        frame.RealWorldValueMappingSequence = items(found)
    del found.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence


def set_first(name: str, value: object) -> Callable[[Dataset], None]:
    return lambda found: setattr(items(found)[0], name, value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (add_another, "2 Real World Value Mappings that differ"),
        (make_table, "LUT Data are not supported"),
        (bare_frame, "frame 1: a frame without a Real World Value Mapping"),
        (set_first("RealWorldValueSlope", 0.0), "RealWorldValueSlope is 0"),
        (set_first("RealWorldValueSlope", None), "RealWorldValueSlope is missing"),
        (set_first("RealWorldValueIntercept", None), "RealWorldValueIntercept is missing"),
        (set_first("RealWorldValueLastValueMapped", 100), "frame 1: 19 pixels .* from 0 to 100"),
    ],
)
def test_a_map_whose_numbers_mean_nothing_is_refused(
    tmp_path: Path, change: Callable[[Dataset], None], why: str
) -> None:
    found = parametric_map(np.arange(120, dtype="u2").reshape(4, 5, 6), mapping())
    change(found)
    found.save_as(tmp_path / "m.dcm")
    with pytest.raises(FormatError, match=why):
        read_series(tmp_path / "m.dcm")


@pytest.mark.parametrize("is_enhanced", [True, False])
@pytest.mark.parametrize(("rescale", "slopes"), [(3, [1, 2]), (1, [2, 2]), (1, [1, 2])])
def test_mappings_beside_a_rescale_are_not_applied_and_alone_must_agree(
    tmp_path: Path, is_enhanced: bool, rescale: int, slopes: list[int]
) -> None:
    """SimpleITK reads stored numbers of both slices, which are not comparable where the mappings differ."""
    pixels = np.arange(60, dtype="u2").reshape(2, 5, 6)
    mappings = [mapping(slope, 0) for slope in slopes]
    folder = tmp_path / "in"
    folder.mkdir()
    if is_enhanced:
        found = parametric_map(pixels, *mappings)
        found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
        transformed = found.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
        transformed.RescaleSlope = rescale
        found.save_as(folder / "m.dcm")
    else:
        for k, one in enumerate(mappings):
            dataset = slice_dataset((0, 0, 2 * k), pixels=pixels[k], RescaleSlope=rescale, RescaleIntercept=0)
            dataset.RealWorldValueMappingSequence = [one]
            pydicom.dcmwrite(folder / f"{k}.dcm", dataset, enforce_file_format=True)
    if (rescale, slopes) == (1, [1, 2]):
        [(_, error)] = find_series(folder).refused
        assert "Real World Value Mappings that differ, and no rescale" in str(error)
        return
    files = [str(path) for path in sorted(folder.iterdir())]
    theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(files[0] if is_enhanced else files))
    ours = read_series(folder)[0].voxels
    assert np.array_equal(np.sort(ours.ravel()), np.sort(theirs.ravel()))
    assert ours.max() == 59 * rescale
