"""Rescaled pixels: exact where they are integers, apart where they are not."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from support.depth import depth
from volumes.support.images import slice_dataset
from voxtier.errors import FormatError
from voxtier.volumes import Volume
from voxtier.volumes.formats.dicom import read_series
from voxtier.volumes.formats.dicom.pixels import rescaled_dtype


def wide(pixels: NDArray[Any], z: float = 0, **tags: Any) -> Dataset:
    """Return a slice whose pixels have any integer type."""
    dataset = slice_dataset((0, 0, z), pixels=pixels, **tags)
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset["PixelData"].VR = "OW"
    return dataset


def voxels_of(folder: Path, *datasets: Dataset) -> NDArray[Any]:
    folder.mkdir(exist_ok=True)
    for number, dataset in enumerate(datasets):
        pydicom.dcmwrite(folder / f"{number}.dcm", dataset, enforce_file_format=True)
    return read_series(folder)[0].voxels


@pytest.mark.parametrize(
    ("values", "dtype", "slope", "intercept", "wanted"),
    [
        ([2**30 + 1, -(2**30) - 3, 7], "i4", "4", "0", "i8"),
        ([2**31 - 1, -(2**31), 0], "i4", "1", "1", "i8"),
        ([2**32 - 1, 0, 1], "u4", "1", "-1", "i8"),
        ([2**32 - 1, 0, 1], "u4", "1", "0", "u4"),
        ([2**32 - 1, 1, 2], "u4", "-3", "5", "i8"),
        ([2**31 - 1, 1, 2], "i4", "1099511627776", "0", "f8"),
        ([65535, 0, 9], "u2", "1", "-1024", "i4"),
        ([4095, 0, 9], "u2", "1", "-1024", "i2"),
        ([2**31 - 1, 2**31 - 2, 0], "i4", "0.5", "0", "f8"),
        ([2**15, 2**15 - 1, 0], "u2", "0.5", "0", "f4"),
        ([2**15, 2**15 - 1, 0], "u2", "0.5", "100000000", "f8"),
        ([1, 2, 3], "u2", "2E38", "0", "f8"),
        ([0, 0, 0], "u2", "1E20", "0", "f4"),
    ],
)
def test_each_pixel_is_slope_times_stored_plus_intercept(
    tmp_path: Path, values: list[int], dtype: str, slope: str, intercept: str, wanted: str
) -> None:
    pixels = np.array([values], dtype)
    datasets = [wide(pixels, z, RescaleSlope=slope, RescaleIntercept=intercept) for z in (0, 1)]
    voxels = voxels_of(tmp_path / "in", *datasets)
    assert voxels.dtype == np.dtype(wanted)
    exact = [Fraction(slope) * value + Fraction(intercept) for value in values]
    found = [Fraction(voxel.item()) for voxel in voxels[:, 0, 1]]
    if voxels.dtype.kind in "iu":
        assert found == exact
    else:
        assert all(abs(a - b) <= abs(b) * Fraction(1, 2**23) for a, b in zip(found, exact, strict=True))
        assert len(set(found)) == len(set(exact))
    volume = Volume.from_dicom(tmp_path / "v", tmp_path / "in")
    assert volume.dtype == voxels.dtype
    assert np.array_equal(volume.to_numpy(), voxels)


def test_slopes_that_differ_by_slice_keep_integers_where_they_are_integral(tmp_path: Path) -> None:
    pixels = np.array([[70_000, 1, 2]], np.int32)
    datasets = [wide(pixels, z, RescaleSlope=str(10**z), RescaleIntercept="0") for z in range(6)]
    voxels = voxels_of(tmp_path / "in", *datasets)
    assert voxels.dtype == np.int64
    assert [int(voxel) for voxel in voxels[0, 0]] == [70_000 * 10**z for z in range(6)]


def test_slices_of_different_types_are_one_volume(tmp_path: Path) -> None:
    first = wide(np.array([[1, 2, 255]], np.uint8))
    second = wide(np.array([[-1, 2, 300]], np.int16), z=1)
    voxels = voxels_of(tmp_path / "in", first, second)
    assert voxels.dtype == np.int16
    assert voxels[:, 0].T.tolist() == [[1, 2, 255], [-1, 2, 300]]


@pytest.mark.parametrize(("name", "dtype"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
def test_float_pixels_keep_their_precision(tmp_path: Path, name: str, dtype: str) -> None:
    """PS3.3 C.7.6.24 and C.7.6.25."""
    values = np.array([[1 / 3, 1e30, -7.25]], dtype)
    datasets = []
    for z in (0, 1):
        dataset = slice_dataset((0, 0, z), pixels=np.zeros((1, 3), np.int16))
        del dataset.PixelData, dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit
        dataset.BitsAllocated = values.itemsize * 8
        setattr(dataset, name, values.tobytes())
        datasets.append(dataset)
    voxels = voxels_of(tmp_path / "in", *datasets)
    assert voxels.dtype == values.dtype
    assert np.array_equal(voxels[:, 0, 0], values[0])


def test_values_beyond_float64_are_refused(tmp_path: Path) -> None:
    dataset = wide(np.array([[3, 4, 5]], np.uint16), RescaleSlope="1E308")
    with pytest.raises(FormatError, match="beyond the range") as caught:
        voxels_of(tmp_path / "in", dataset)
    assert caught.value.kind == "bad_values"


NUMBERS = st.one_of(st.integers(-(2**40), 2**40), st.floats(-1e6, 1e6))


@pytest.mark.deep
@settings(max_examples=depth(120, 1000), deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=4),
    st.one_of(
        st.integers(-(2**40), 2**40).filter(bool), st.floats(-1e6, 1e6).filter(lambda v: abs(v) > 1e-6)
    ),
    st.one_of(st.integers(-(2**40), 2**40), st.floats(-1e6, 1e6)),
)
def test_the_chosen_type_keeps_pixel_values_apart(values: list[int], slope: float, intercept: float) -> None:
    """Neighbours of the extreme pixels stay apart wherever float64 keeps them apart."""

    class Scaled:
        def __init__(self) -> None:
            self.slope, self.intercept = float(slope), float(intercept)

    raw = np.array([values], np.int32)
    dtype = rescaled_dtype([Scaled()], [raw])  # type: ignore[list-item]
    ends = [int(raw.min()), int(raw.max())]
    physical = [float(slope) * value + float(intercept) for value in (*ends, *(end + 1 for end in ends))]
    if dtype.kind == "f":
        kept = np.array(physical).astype(dtype)
        for place in (0, 1):
            if physical[place] != physical[place + 2]:
                assert kept[place] != kept[place + 2]
    else:
        assert all(np.iinfo(dtype).min <= value <= np.iinfo(dtype).max for value in physical[:2])


def test_simpleitk_reads_the_same_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for case, (dtype, slope, intercept) in enumerate(
        (("u2", "1", "-1024"), ("i2", "2", "7"), ("u2", "0.25", "3"), ("i4", "4", "0"))
    ):
        info = np.iinfo(dtype)
        pixels = [rng.integers(info.min, info.max, (4, 5), dtype) for _ in range(3)]
        datasets = [
            wide(each, z, RescaleSlope=slope, RescaleIntercept=intercept) for z, each in enumerate(pixels)
        ]
        voxels = voxels_of(tmp_path / str(case), *datasets)
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames([str(tmp_path / str(case) / f"{z}.dcm") for z in range(3)])
        reader.SetOutputPixelType(SimpleITK.sitkFloat64)
        theirs = SimpleITK.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
        assert np.array_equal(voxels.astype(np.float64), theirs)


@pytest.mark.parametrize(
    ("values", "dtype", "slope", "inter", "wanted"),
    [
        ([2**30 + 1, -(2**30) - 3, 7], "i4", 4, 0, "i8"),
        ([2**32 - 1, 1, 0], "u4", 1, -1, "i8"),
        ([2**31 - 1, 2**31 - 2, 0], "i4", 0.5, 0, "f8"),
        ([2**62, 2**62 - 1024, 0], "i8", 16, 0, "f8"),
        ([2**15 - 1, 0, 1], "i2", 0.5, 0, "f4"),
        ([1, 2, 3], "i2", 0.5, 1e8, "f8"),
    ],
)
def test_nifti_integers_are_as_exact(
    tmp_path: Path, values: list[int], dtype: str, slope: float, inter: float, wanted: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = nib.Nifti1Image(np.array(values, dtype).reshape(3, 1, 1), np.eye(4), dtype=dtype)
    image.header.set_slope_inter(slope, inter)
    raw = image.header.copy()
    raw["vox_offset"], raw["magic"] = 352, b"n+1"
    (tmp_path / "a.nii").write_bytes(raw.binaryblock.ljust(352, b"\0") + np.array(values, dtype).tobytes())
    volume = Volume.from_nifti(tmp_path / "v", tmp_path / "a.nii")
    assert volume.dtype == np.dtype(wanted)
    found = [Fraction(voxel.item()) for voxel in volume.to_numpy().ravel()]
    exact = [Fraction(slope) * value + Fraction(inter) for value in values]
    assert found == exact if volume.dtype.kind in "iu" else len(set(found)) == len(set(exact))


def test_complex_nifti_voxels_are_not_scaled_to_real_ones(tmp_path: Path) -> None:
    voxels = np.array([1 + 2j, 3 - 4j, 0]).astype(np.complex64).reshape(3, 1, 1)
    image = nib.Nifti1Image(voxels, np.eye(4))
    image.header.set_slope_inter(2, 1)
    raw = image.header.copy()
    raw["vox_offset"], raw["magic"] = 352, b"n+1"
    (tmp_path / "a.nii").write_bytes(raw.binaryblock.ljust(352, b"\0") + voxels.tobytes())
    volume = Volume.from_nifti(tmp_path / "v", tmp_path / "a.nii")
    assert np.array_equal(volume.to_numpy(), voxels * 2 + 1)
