"""Seconds from one point in time to the next: what files state, and 0 (NIfTI's unknown) for all else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from volumes.support.images import slice_dataset
from voxtier.volumes import Volume, VolumeCollection

MINUTES = ("120000", "120100", "120200")


def exported(volume: Volume, folder: Path) -> tuple[float, str]:
    """Return the time step and its unit as nibabel reads them from an export."""
    header = nib.load(volume.to_nifti(folder / "exported.nii")).header
    return float(header.get_zooms()[3]), header.get_xyzt_units()[1]


def series(folder: Path, points: Sequence[dict[str, Any]]) -> Path:
    """Write two slices for each point in time; the second is told 5 ms after the first."""
    folder.mkdir()
    for number, tags in enumerate(points):
        for place in range(2):
            dataset = slice_dataset((0, 0, 3 * place), number=number, **tags)
            if "AcquisitionTime" in tags:
                dataset.AcquisitionTime = f"{tags['AcquisitionTime']}.00{5 * place}"
            pydicom.dcmwrite(folder / f"{number}{place}.dcm", dataset, enforce_file_format=True)
    return folder


@pytest.mark.parametrize(
    ("points", "seconds"),
    [
        ([{"FrameReferenceTime": str(t)} for t in (30_000, 90_000, 150_000)], 60.0),
        ([{"FrameReferenceTime": str(t)} for t in (30_000, 90_000, 210_000)], 0.0),
        ([{"TriggerTime": str(t)} for t in (0, 41.5, 83)], 0.0415),
        ([{"AcquisitionDate": "20200101", "AcquisitionTime": t} for t in MINUTES], 60.0),
        ([{"AcquisitionNumber": n, "AcquisitionTime": t} for n, t in enumerate(MINUTES, 1)], 60.0),
        ([{"AcquisitionNumber": n, "AcquisitionTime": "120000"} for n in (1, 2, 3)], 0.0),
        ([{"TemporalPositionIdentifier": n} for n in (1, 2, 3)], 0.0),
        ([{"TemporalPositionIdentifier": n, "AcquisitionTime": t} for n, t in zip((3, 2, 1), MINUTES)], 0.0),  # noqa: B905
    ],
    ids=["PET", "irregular", "cine", "clock", "numbers", "one time", "positions", "backwards"],
)
def test_a_series_has_the_step_of_its_regular_times(
    tmp_path: Path, points: list[dict[str, Any]], seconds: float
) -> None:
    volume = Volume.from_dicom(tmp_path / "v", series(tmp_path / "d", points))
    assert volume.shape[3] == 3
    assert volume.spacing is not None
    assert volume.spacing[3] == pytest.approx(seconds, rel=1e-9)
    step, unit = exported(volume, tmp_path)
    assert step == pytest.approx(seconds, rel=1e-6)
    assert unit == ("sec" if seconds else "unknown")


@pytest.mark.parametrize(
    ("unit", "stated", "seconds"),
    [("sec", 2.0, 2.0), ("msec", 2.0, 0.002), ("unknown", 2.0, 2.0), ("hz", 2.0, 0.0), ("sec", 0.0, 0.0)],
)
def test_a_nifti_file_has_the_step_that_it_states_in_a_unit_of_time(
    tmp_path: Path, unit: str, stated: float, seconds: float
) -> None:
    image = nib.Nifti1Image(np.zeros((2, 3, 4, 5), np.int16), np.diag([-1, 1, 1, 1]))
    image.header.set_zooms((1, 1, 1, stated))
    image.header.set_xyzt_units("mm", unit)
    nib.save(image, tmp_path / "a.nii")
    for name, reorient in (("as it is", False), ("turned", True)):
        volume = Volume.from_nifti(tmp_path / name, tmp_path / "a.nii", reorient=reorient)
        assert volume.spacing == pytest.approx((1, 1, 1, seconds))
    assert exported(volume, tmp_path) == (pytest.approx(seconds), "sec" if seconds else "unknown")


def test_what_no_file_states_is_not_known(tmp_path: Path) -> None:
    volume = Volume.from_numpy(tmp_path / "v", np.zeros((2, 3, 4, 5), np.int16), affine=np.eye(4))
    assert volume.spacing == (1, 1, 1, 0)
    assert exported(volume, tmp_path) == (0, "unknown")


@pytest.mark.parametrize("way", ["lazy", "eager"])
@pytest.mark.parametrize(
    ("change", "seconds"),
    [
        (lambda voxels: voxels + 1, 2.0),
        (lambda voxels: voxels[::2], 2.0),
        (lambda voxels: voxels[..., ::2], 0.0),
        (lambda voxels: voxels.mean(axis=3), None),
    ],
)
def test_a_transform_keeps_the_step_with_the_points_in_time(
    tmp_path: Path, way: str, change: Callable[[NDArray[Any]], NDArray[Any]], seconds: float | None
) -> None:
    """Which points a transform took is not told, and so neither is their distance."""
    points = [{"FrameReferenceTime": str(t)} for t in (1000, 3000, 5000, 7000)]
    folder = series(tmp_path / "d", points)
    made = VolumeCollection.from_dicoms(tmp_path / "c", [(folder, "p")], name="PET")
    changed = made.lazy().map(change) if way == "lazy" else made.map(change)
    changed.write(tmp_path / "m")
    volume = VolumeCollection(tmp_path / "m").iloc[0]
    assert ("time_values" in volume.meta) == ("time_step_s" in volume.meta) == bool(seconds)
    if volume.spacing is not None and seconds is not None:
        assert volume.spacing[3] == seconds
        assert exported(volume, tmp_path) == (seconds, "sec" if seconds else "unknown")
    if seconds is None:
        assert nib.load(volume.to_nifti(tmp_path / "e.nii")).shape == (3, 4, 2)
