"""Series against dicom2nifti and highdicom: the same numbers at the same millimetres, on real files too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from volumes.support.images import slice_dataset
from voxtier.volumes import Volume

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
