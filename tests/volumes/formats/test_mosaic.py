"""Siemens mosaics: every voxel at its place, by the test's own volume, nibabel.nicom and dicom2nifti."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from volumes.formats.mosaics import Scan, csa_elements, csa_header, mosaic, protocol, random_scan, write
from volumes.support.checks import names_oblique_axes
from voxtier.errors import FormatError
from voxtier.volumes import Volume
from voxtier.volumes.formats.dicom import find_series, read_series
from voxtier.volumes.formats.image import Image

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it calls itself experimental
    from nibabel.nicom.dicomwrappers import wrapper_from_data, wrapper_from_file

CSA = Path(nib.__file__).parent / "nicom" / "tests" / "data"


def check_places(image: Image, scan: Scan) -> None:
    """Every voxel of the scan is found where the scan says, and there is no other."""
    rows, columns, slices = scan.voxels.shape
    assert image.voxels.shape[:3] == (columns, rows, slices)
    back = np.linalg.inv(image.orientation.affine)
    for row in range(rows):
        for column in range(columns):
            for number in range(slices):
                world = [*(scan.place(row, column, number) * [-1, -1, 1]), 1]
                index = (back @ world)[:3]
                at = tuple(np.rint(index).astype(int))
                assert np.abs(index - at).max() < 1e-3
                assert image.voxels[at] == scan.voxels[row, column, number]


def refused(tmp_path: Path, scan: Scan, **options: Any) -> FormatError:
    folder = write(tmp_path / "refused", [mosaic(scan, **options)])
    with pytest.raises(FormatError) as caught:
        read_series(folder)
    return caught.value


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("slices", [1, 2, 4, 5, 9, 10, 12])
def test_every_tile_lies_where_its_slice_was(tmp_path: Path, slices: int, is_reversed: bool) -> None:
    scan = random_scan(np.random.default_rng(slices), slices, is_reversed=is_reversed)
    (image,) = read_series(write(tmp_path, [mosaic(scan)]))
    check_places(image, scan)
    assert image.orientation.confidence == "header"


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("from_other_end", [False, True])
@pytest.mark.parametrize("spacing", ["stated", "absent"])
def test_the_protocol_tells_the_side_where_the_csa_header_is_gone(
    tmp_path: Path, is_reversed: bool, from_other_end: bool, spacing: str
) -> None:
    scan = random_scan(np.random.default_rng(3), 7, is_reversed=is_reversed)
    centres = [scan.centre(number) for number in range(7)]
    text = protocol(centres[::-1] if from_other_end else centres)
    options = {} if spacing == "stated" else {"SpacingBetweenSlices": None}
    (image,) = read_series(write(tmp_path, [mosaic(scan, csa=None, text=text, **options)]))
    check_places(image, scan)


def test_a_csa_header_of_the_first_type_is_read(tmp_path: Path) -> None:
    scan = random_scan(np.random.default_rng(4), 6, is_reversed=True)
    elements = {
        "EchoLinePosition": [64],
        "NumberOfImagesInMosaic": [6],
        "SliceNormalVector": list(scan.normal),
    }
    raw = csa_header(elements, is_first_type=True)
    (image,) = read_series(write(tmp_path, [mosaic(scan, csa=raw)]))
    check_places(image, scan)


def test_mosaics_are_time_points_and_moved_ones_are_volumes_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    scan = random_scan(rng, 6)
    later = [
        Scan(rng.permutation(scan.voxels), scan.origin, scan.right, scan.down, scan.step) for _ in range(2)
    ]
    moved = Scan(scan.voxels, scan.origin + 0.4 * scan.right, scan.right, scan.down, scan.step)
    scans = [scan, *later, moved]
    folder = write(tmp_path, [mosaic(each, number + 1) for number, each in enumerate(scans)])
    four, three = sorted(read_series(folder), key=lambda image: -image.voxels.ndim)
    assert four.voxels.shape[2:] == (6, 3)
    assert four.meta["time_tag"] == "AcquisitionNumber"
    for time, each in enumerate(scans[:3]):
        check_places(Image(four.voxels[..., time], four.orientation, {}, {}), each)
    check_places(three, moved)


def test_a_stripped_mosaic_is_refused_by_name(tmp_path: Path) -> None:
    scan = random_scan(np.random.default_rng(6), 5)
    count = {"NumberOfImagesInMosaic": [5]}
    for options, message in (
        ({"csa": None}, "Image Type MOSAIC, and no private element says of how many tiles"),
        ({"csa": count}, "Image Type MOSAIC, and no private element states the slice normal"),
        ({"SpacingBetweenSlices": None}, "Image Type MOSAIC, and no private element states the spacing"),
    ):
        error = refused(tmp_path, scan, **options)
        assert error.kind == "unsupported_image"
        assert message in str(error)


def test_private_elements_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    scan = random_scan(np.random.default_rng(7), 5)
    centres = [scan.centre(number) for number in range(5)]
    other_way = [2 * scan.centre(0) - centre for centre in centres]
    wide = [scan.centre(0) + number * scan.step * 1.1 for number in range(5)]
    bent = [*centres[:4], centres[4] + scan.right]
    elements = csa_elements(scan)
    for options, message in (
        ({"text": protocol(other_way)}, "contradict each other"),
        ({"text": protocol(wide)}, "Spacing Between Slices"),
        ({"text": protocol(bent)}, "no regular grid"),
        ({"csa": elements | {"SliceNormalVector": list(scan.right)}}, "is not that of its rows"),
        ({"csa": elements | {"NumberOfImagesInMosaic": [99]}}, "does not divide"),
    ):  # fmt: skip
        error = refused(tmp_path, scan, **options)
        assert message in str(error)
    wide_scan = random_scan(np.random.default_rng(7), 12)
    error = refused(tmp_path, wide_scan, csa=csa_elements(wide_scan) | {"NumberOfImagesInMosaic": [10]})
    assert "a mosaic of 10 tiles has an image in tile 11" in str(error)


def test_a_damaged_csa_header_is_refused_at_every_length(tmp_path: Path) -> None:
    scan = random_scan(np.random.default_rng(8), 5)
    whole = csa_header({"NumberOfImagesInMosaic": [5], "SliceNormalVector": list(scan.normal)})
    for length in range(4, len(whole) - 120, 24):  # the last items are empty
        assert refused(tmp_path, scan, csa=whole[:length]).kind in ("bad_header", "unsupported_image")
    for at in (8, 9, 16 + 64, 16 + 76):  # counts of elements, of values, of items
        damaged = bytearray(whole)
        damaged[at + 3] = 0x7F
        folder = write(tmp_path / str(at), [mosaic(scan, csa=bytes(damaged))])
        try:
            check_places(read_series(folder)[0], scan)  # a number that nobody needs
        except FormatError as error:
            assert error.kind in ("bad_header", "unsupported_image")


def test_a_mosaic_without_its_image_type_is_known_by_its_private_number(tmp_path: Path) -> None:
    scan = random_scan(np.random.default_rng(9), 5)
    dataset = mosaic(scan, ImageType=["DERIVED", "SECONDARY"])
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 5)
    (image,) = read_series(write(tmp_path, [dataset]))
    check_places(image, scan)
    dataset.private_block(0x0019, "SIEMENS MR HEADER")[0x0A].value = 6
    with pytest.raises(FormatError, match=r"its headers state \[5, 6\] tiles"):
        read_series(write(tmp_path, [dataset]))


def test_tiles_of_another_maker_are_refused_by_name(tmp_path: Path) -> None:
    scan = random_scan(np.random.default_rng(9), 4)
    error = refused(tmp_path, scan, ImageType=["ORIGINAL", "PRIMARY", "VFRAME"])
    assert "Image Type VFRAME" in str(error)


@pytest.mark.parametrize("name", ["siemens_dwi_0", "siemens_dwi_1000"])
def test_a_real_mosaic_has_the_voxels_and_the_affine_of_nibabel(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.dcm"
    path.write_bytes(gzip.decompress((CSA / f"{name}.dcm.gz").read_bytes()))
    oracle = wrapper_from_file(path)
    volume = Volume.from_dicom(tmp_path / "v", path)
    assert np.array_equal(volume.to_numpy(), oracle.get_data().transpose(1, 0, 2))
    theirs = np.diag([-1, -1, 1, 1]) @ oracle.affine[:, [1, 0, 2, 3]]
    np.testing.assert_allclose(volume.affine, theirs, atol=1e-3)  # its direction cosines are not unit vectors


@names_oblique_axes
@pytest.mark.parametrize("seed", range(6))
def test_made_mosaics_have_the_voxels_and_the_affine_of_nibabel(tmp_path: Path, seed: int) -> None:
    scan = random_scan(np.random.default_rng(seed), 5 + seed, is_reversed=bool(seed % 2))
    dataset = mosaic(scan)
    oracle = wrapper_from_data(dataset)
    (image,) = read_series(write(tmp_path, [dataset]))
    ours = nib.as_closest_canonical(nib.Nifti1Image(image.voxels, image.orientation.affine))
    theirs = np.diag([-1, -1, 1, 1]) @ oracle.affine
    other = nib.as_closest_canonical(nib.Nifti1Image(oracle.get_unscaled_data(), theirs))
    np.testing.assert_allclose(ours.affine, other.affine, atol=1e-4)
    assert np.array_equal(ours.dataobj, other.dataobj)


def test_dicom2nifti_puts_an_ascending_axial_mosaic_at_the_same_place(tmp_path: Path) -> None:
    """Its rule for descending ones turns the tiles and keeps the origin; it is no oracle for those."""
    from dicom2nifti.convert_siemens import _mosaic_4d_to_nifti

    rng = np.random.default_rng(11)
    voxels = rng.integers(1, 4000, (6, 6, 7)).astype(np.uint16)
    scan = Scan(
        voxels,
        np.array([-20.0, -30, -40]),
        np.array([2.0, 0, 0]),
        np.array([0, 2.0, 0]),
        np.array([0, 0, 3.5]),
    )
    dataset = mosaic(scan, text=protocol([scan.centre(number) for number in range(7)]))
    dataset.RepetitionTime, dataset.EchoTime, dataset.AcquisitionMatrix = 2000, 30, [6, 0, 0, 6]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = _mosaic_4d_to_nifti([dataset], None)["NII"]
    (image,) = read_series(write(tmp_path, [dataset]))
    assert np.array_equal(image.voxels, np.asarray(oracle.dataobj))
    np.testing.assert_allclose(image.orientation.affine, oracle.affine, atol=1e-4)


def test_headers_alone_find_the_tiles(tmp_path: Path) -> None:
    scan = random_scan(np.random.default_rng(10), 5)
    found = find_series(write(tmp_path, [mosaic(scan)]))
    ((stack,),) = found.volumes
    assert len(stack.slices) == 5
    assert stack.slices[0].size == scan.voxels.shape[:2]
