"""NIfTI geometry and numbers: goldens of the standard, nibabel as the oracle, headers that lie."""

from __future__ import annotations

import gzip
import shutil
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.quaternions import quat2mat

from volumes.support.checks import names_oblique_axes
from voxtier import _core
from voxtier.errors import FormatError, SourceError
from voxtier.volumes import OrientationConfig, Volume, configure
from voxtier.volumes.formats.nifti import read_header, read_nifti, write_nifti
from voxtier.volumes.geometry import axcodes


def header_image(shape: tuple[int, ...] = (4, 5, 6), **fields: Any) -> nib.Nifti1Image:
    image = nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), None)
    for name, value in fields.items():
        image.header[name] = value
    return image


def save(image: nib.Nifti1Image, path: Path) -> Path:
    """Write header and voxels as they are (nib.save would make the affine anew)."""
    header = image.header.copy()
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    path.write_bytes(header.binaryblock.ljust(352, b"\0") + np.asarray(image.dataobj).tobytes(order="F"))
    return path


GOLDENS = {
    "quaternion_qfac_negative": (
        {
            "pixdim": [-1, 2, 3, 4, 1, 1, 1, 1],
            "quatern_b": 0,
            "quatern_c": 1,
            "quatern_d": 0,
            "qform_code": 1,
            "qoffset_x": 90,
            "qoffset_y": -126,
            "qoffset_z": -72,
        },
        [[-2, 0, 0, 90], [0, 3, 0, -126], [0, 0, 4, -72]],
        "LAS",
        "header",
    ),
    "quaternion_cyclic": (
        {
            "pixdim": [1, 2, 3, 4, 1, 1, 1, 1],
            "quatern_b": 0.5,
            "quatern_c": 0.5,
            "quatern_d": 0.5,
            "qform_code": 1,
        },
        [[0, 0, 4, 0], [2, 0, 0, 0], [0, 3, 0, 0]],
        "ASR",
        "header",
    ),
    "no_codes": (
        {"pixdim": [1, 2, 3, 4, 1, 1, 1, 1]},
        [[-2, 0, 0, 3], [0, 3, 0, -6], [0, 0, 4, -10]],
        "LAS",
        "unknown",
    ),
    "qfac_zero_means_one": (
        {
            "pixdim": [0, 2, 3, 4, 1, 1, 1, 1],
            "quatern_b": 0.5,
            "quatern_c": 0.5,
            "quatern_d": 0.5,
            "qform_code": 1,
        },
        [[0, 0, 4, 0], [2, 0, 0, 0], [0, 3, 0, 0]],
        "ASR",
        "header",
    ),
}


@pytest.mark.parametrize("case", GOLDENS)
def test_goldens(tmp_path: Path, case: str) -> None:
    fields, affine, codes, confidence = GOLDENS[case]
    found = read_header(save(header_image(**fields), tmp_path / "a.nii")).orientation
    np.testing.assert_allclose(found.affine[:3], affine, atol=1e-6)
    assert (found.axcodes, found.confidence) == (codes, confidence)


def random_fields(rng: np.random.Generator) -> dict:
    quaternion = rng.normal(size=4)
    quaternion /= np.linalg.norm(quaternion)
    quaternion *= np.sign(quaternion[0])
    sform = quat2mat(quaternion) @ np.diag(rng.uniform(0.3, 5, 3) * rng.choice([-1, 1], 3))
    if rng.random() < 0.3:
        sform += rng.normal(0, 0.05, (3, 3))
    sform = np.column_stack([sform, rng.uniform(-200, 200, 3)])
    return {
        "pixdim": [rng.choice([-1, 0, 1]), *rng.uniform(0.3, 5, 3), 1.5, 1, 1, 1],
        "quatern_b": quaternion[1],
        "quatern_c": quaternion[2],
        "quatern_d": quaternion[3],
        "qoffset_x": rng.uniform(-200, 200),
        "qoffset_y": rng.uniform(-200, 200),
        "qoffset_z": rng.uniform(-200, 200),
        "qform_code": rng.choice([0, 1, 2]),
        "sform_code": rng.choice([0, 0, 1, 3]),
        "srow_x": sform[0],
        "srow_y": sform[1],
        "srow_z": sform[2],
    }


@names_oblique_axes
@pytest.mark.filterwarnings("ignore:.*sform and qform disagree")
def test_five_hundred_headers_give_the_affine_and_voxels_of_nibabel(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path = tmp_path / "a.nii"
    for _ in range(500):
        shape = tuple(int(n) for n in rng.integers(1, 6, 3))
        save(header_image(shape, **random_fields(rng)), path)
        oracle = nib.load(path)
        ours = read_nifti(path)
        np.testing.assert_allclose(ours.orientation.affine, oracle.affine, rtol=1e-6, atol=1e-4 * 0.01)
        assert ours.orientation.axcodes == "".join(nib.aff2axcodes(oracle.affine))
        assert np.array_equal(ours.voxels, np.asanyarray(oracle.dataobj))


@names_oblique_axes
@pytest.mark.filterwarnings("ignore:.*sform and qform disagree")
def test_reorient_is_as_closest_canonical(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for number in range(40):
        keeps = number % 2 == 0
        configure(orientation=OrientationConfig(store_original_affine=keeps))
        shape = (4, 4, 4) if number % 3 == 0 else (3, 4, 5)  # a cube keeps its shape when axes are permuted
        path = save(header_image(shape, **random_fields(rng)), tmp_path / f"{number}.nii")
        oracle = nib.as_closest_canonical(nib.load(path))
        volume = Volume.from_nifti(tmp_path / f"v{number}", path, reorient=True)
        assert np.array_equal(volume.to_numpy(raw=True), np.asanyarray(oracle.dataobj))
        np.testing.assert_allclose(volume.affine, oracle.affine, atol=1e-5)
        if axcodes(nib.load(path).affine) != "RAS":
            assert ("original_affine" in volume.meta) == keeps
        back = nib.load(volume.to_nifti(tmp_path / f"back{number}.nii", compression=False))
        assert np.array_equal(np.asanyarray(back.dataobj), np.asanyarray(oracle.dataobj))
        np.testing.assert_allclose(back.affine, oracle.affine, atol=1e-3)


def test_disagreement_is_told_in_millimetres(tmp_path: Path) -> None:
    fields = {
        "qform_code": 1,
        "sform_code": 1,
        "srow_x": [1, 0, 0, 7],
        "srow_y": [0, 1, 0, 0],
        "srow_z": [0, 0, 1, 0],
    }
    path = save(header_image(**fields), tmp_path / "a.nii")
    with pytest.warns(UserWarning, match="disagree by up to 7 mm"):
        found = read_header(path).orientation
    assert found.affine[0, 3] == 7


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "c8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_round_trip_of_every_dtype_and_both_endians(
    tmp_path: Path, dtype: str, order: str, suffix: str
) -> None:
    rng = np.random.default_rng(5)
    voxels = (
        (rng.normal(size=(3, 4, 5)) * 50).astype(np.dtype(dtype))
        if dtype != "c8"
        else rng.normal(size=(3, 4, 5)).astype("c8")
    )
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype))
    image = nib.Nifti1Image(voxels, np.diag([2.0, 3, 4, 1]), header, dtype=np.dtype(dtype))
    nib.save(image, tmp_path / f"a{suffix}")
    volume = Volume.from_nifti(tmp_path / "v", tmp_path / f"a{suffix}")
    assert np.array_equal(volume.to_numpy(), voxels)
    assert volume.dtype == np.dtype(dtype)
    back = nib.load(volume.to_nifti(tmp_path / "b"))
    assert np.array_equal(np.asanyarray(back.dataobj), voxels)
    assert np.array_equal(back.affine, nib.load(tmp_path / f"a{suffix}").affine)
    assert (back.header["sform_code"], back.header["qform_code"]) == (
        image.header["sform_code"],
        image.header["qform_code"],
    )


def store_scaled(
    tmp_path: Path, slope: float, inter: float, stored: tuple[int, ...] = (0, 1, 2, 1000)
) -> Volume:
    image = header_image((2, 2, 1))
    image.dataobj[...] = np.array(stored, np.int16).reshape(2, 2, 1)
    image.header["scl_slope"], image.header["scl_inter"] = slope, inter
    path = save(image, tmp_path / "s.nii")
    shutil.rmtree(tmp_path / "s", ignore_errors=True)
    return Volume.from_nifti(tmp_path / "s", path)


def test_scaled_reads_stay_integers_where_they_fit(tmp_path: Path) -> None:
    ct = store_scaled(tmp_path, 1, -1024, (0, 1, 2, 3000))
    assert (ct.stored_dtype, ct.dtype) == (np.int16, np.int16)
    assert ct[1, 0, 0] == 2 - 1024 or ct[0, 1, 0] == 1 - 1024
    assert set(ct.to_numpy().ravel()) == {-1024, -1023, -1022, 1976}
    assert set(ct.to_numpy(raw=True).ravel()) == {0, 1, 2, 3000}
    back = nib.load(ct.to_nifti(tmp_path / "ct.nii", compression=False))
    assert (back.header["scl_slope"].item(), back.dataobj.slope, back.dataobj.inter) != (0, 0, 0)
    assert (back.dataobj.slope, back.dataobj.inter) == (1, -1024)
    assert store_scaled(tmp_path, 0.5, 0).dtype == np.float32
    assert store_scaled(tmp_path, 100, 0, (0, 1, 2, 1000)).dtype == np.int32
    for slope, inter in ((0, 5), (np.nan, 5), (1, 0)):
        plain = store_scaled(tmp_path, slope, inter)
        assert plain.dtype == np.int16
        assert set(plain.to_numpy().ravel()) == {0, 1, 2, 1000}
    with pytest.raises(FormatError, match="scl_inter"):
        store_scaled(tmp_path, 2, np.inf)


def test_an_update_widens_the_range_that_scaled_reads_fit(tmp_path: Path) -> None:
    ct = store_scaled(tmp_path, 1, -1024)
    ct.update((0, 0, 0), np.array([[[-32768]]], np.int16))
    assert ct.dtype == np.int32
    assert ct[0, 0, 0] == -32768 - 1024


@pytest.mark.parametrize(("slope", "inter"), [(2.0, 1.0), (1.0, -5.0), (0.5, 0.0)])
def test_scaled_integers_beyond_those_of_64_signed_bits_are_stored(
    tmp_path: Path, slope: float, inter: float
) -> None:
    stored = [0, 7, 2**63, 2**64 - 1]
    image = nib.Nifti1Image(np.array(stored, np.uint64).reshape(2, 2, 1), np.eye(4), dtype=np.uint64)
    path = save(image, tmp_path / "s.nii")
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<ff", slope, inter)
    path.write_bytes(content)
    volume = Volume.from_nifti(tmp_path / "v", path)
    wanted = [slope * number + inter for number in stored]  # in Python's numbers
    assert volume.to_numpy().ravel().tolist() == pytest.approx(wanted, rel=1e-15)
    assert volume.to_numpy(raw=True).ravel().tolist() == stored
    volume.update((0, 0, 0), np.array([[[2**64 - 2]]], np.uint64))
    assert volume.to_numpy(raw=True).ravel().tolist() == [2**64 - 2, *stored[1:]]
    assert volume.meta["stored_max"] == 2**64 - 1


def test_four_dimensions_keep_the_time_step(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(2, 3, 4, 5), np.eye(4))
    image.header.set_zooms((1, 1, 1, 1.5))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "a.nii")
    volume = Volume.from_nifti(tmp_path / "v", tmp_path / "a.nii")
    assert volume.spacing == (1, 1, 1, 1.5)
    assert np.array_equal(volume.axial(2), image.dataobj[:, :, 2])
    assert np.array_equal(volume.axial(2, t=3), image.dataobj[:, :, 2, 3])
    assert nib.load(volume.to_nifti(tmp_path / "b")).header.get_zooms()[3] == 1.5
    image.header.set_xyzt_units("mm", "msec")
    nib.save(image, tmp_path / "ms.nii")
    assert Volume.from_nifti(tmp_path / "ms", tmp_path / "ms.nii").spacing[3] == pytest.approx(0.0015)


def test_nifti2_two_dimensions_and_trailing_ones_are_read(tmp_path: Path) -> None:
    voxels = np.arange(12, dtype=np.float32).reshape(3, 4)
    nib.save(nib.Nifti2Image(voxels, np.diag([1.0, 2, 3, 1])), tmp_path / "a.nii")
    volume = Volume.from_nifti(tmp_path / "v", tmp_path / "a.nii")
    assert volume.shape == (3, 4, 1)
    assert np.array_equal(volume.axial(0), voxels)
    nib.save(nib.Nifti1Image(voxels.reshape(3, 4, 1, 1, 1), np.eye(4)), tmp_path / "b.nii")
    assert Volume.from_nifti(tmp_path / "w", tmp_path / "b.nii").shape == (3, 4, 1)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 2, 2), np.int16), np.eye(4)), tmp_path / "c.nii")
    with pytest.raises(FormatError, match="5 dimensions"):
        Volume.from_nifti(tmp_path / "x", tmp_path / "c.nii")


LIES = {
    "dim0": (40, struct.pack("<h", 9), "bad_header"),
    "negative_size": (42, struct.pack("<h", -4), "bad_header"),
    "huge": (42, struct.pack("<hhh", 32767, 32767, 32767), "value_past_end"),
    "datatype": (70, struct.pack("<h", 128), "unsupported_image"),
    "offset_past_end": (108, struct.pack("<f", 1e9), "value_past_end"),
    "offset_nan": (108, struct.pack("<f", np.nan), "value_past_end"),
    "magic": (344, b"abcd", "bad_header"),
    "pair": (344, b"ni1\0", "unsupported_image"),
    "quaternion_too_long": (252, struct.pack("<hhfff", 1, 0, 1.0, 1.0, 0.0), "bad_geometry"),
    "sform_singular": (252, struct.pack("<hh6f", 0, 1, 0, 0, 0, 0, 0, 0) + bytes(48), "bad_geometry"),
    "sform_nan": (252, struct.pack("<hh6f12f", 0, 1, *[0] * 6, *[np.nan] * 12), "bad_geometry"),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("lie", LIES)
def test_lying_headers_are_refused_before_allocation(tmp_path: Path, lie: str, suffix: str) -> None:
    at, replacement, kind = LIES[lie]
    raw = bytearray(save(header_image(), tmp_path / "good.nii").read_bytes())
    raw[at : at + len(replacement)] = replacement
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix == ".nii.gz" else raw)
    with pytest.raises(FormatError) as caught:
        Volume.from_nifti(tmp_path / "v", path)
    assert caught.value.kind == kind
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("keep", [0, 100, 347, 400])
def test_truncated_files_are_refused(tmp_path: Path, keep: int) -> None:
    whole = save(header_image(), tmp_path / "good.nii").read_bytes()
    for path, content in (
        (tmp_path / "a.nii", whole[:keep]),
        (tmp_path / "b.nii.gz", gzip.compress(whole[:keep])),
        (tmp_path / "c.nii.gz", gzip.compress(whole)[: keep // 4]),
    ):
        path.write_bytes(content)
        with pytest.raises(FormatError):
            read_nifti(path)
    with pytest.raises(SourceError, match="no file"):
        read_nifti(tmp_path / "missing.nii")


@pytest.mark.parametrize("offset", [0, 16, 352, 353, 999])
def test_inflated_ranges_are_those_of_gzip(tmp_path: Path, offset: int) -> None:
    """One member, several, more or fewer bytes than are asked for: whichever decoder it takes."""
    whole = np.random.default_rng(0).integers(0, 9, 50_000).astype(np.uint8).tobytes()
    streams = {
        "one": gzip.compress(whole),
        "two": gzip.compress(whole[:20_000]) + gzip.compress(whole[20_000:]),
        "empty member": gzip.compress(whole) + gzip.compress(b""),
    }
    for name, packed in streams.items():
        path = tmp_path / f"{name}.gz"
        path.write_bytes(packed)
        for count in (0, 1, len(whole) - offset, len(whole) - offset - 7, len(whole), 2**40):
            found = _core.gunzip_range(path, offset, count)
            assert found.tobytes() == whole[offset : offset + count], (name, count)
            assert found.flags.aligned
    damaged = bytearray(streams["one"])
    damaged[-6] ^= 1  # in the checksum: the bytes before it are all right
    for packed in (bytes(damaged), streams["one"] + b"garbage", streams["one"][:-1], b"", b"\x1f\x8b"):
        path.write_bytes(packed)
        with pytest.raises(FormatError, match="damaged or cut off"):
            _core.gunzip_range(path, offset, len(whole) - offset)


def test_a_bit_flip_in_the_gzip_stream_is_found(tmp_path: Path) -> None:
    whole = save(header_image((30, 30, 30)), tmp_path / "good.nii").read_bytes()
    packed = bytearray(gzip.compress(whole))
    packed[len(packed) // 2] ^= 0x10
    (tmp_path / "bad.nii.gz").write_bytes(packed)
    with pytest.raises(FormatError):
        read_nifti(tmp_path / "bad.nii.gz")


def test_real_files_give_the_affine_and_voxels_of_nibabel(tmp_path: Path) -> None:
    folder = Path(nib.__file__).parent / "tests" / "data"
    checked = 0
    for path in sorted([*folder.glob("*.nii"), *folder.glob("*.nii.gz")]):
        oracle = nib.load(path)
        if (
            isinstance(oracle, nib.Cifti2Image)
            or len([n for n in oracle.shape if n > 1]) > 4
            or oracle.get_data_dtype().fields
        ):
            continue
        ours = read_nifti(path)
        np.testing.assert_allclose(ours.orientation.affine, oracle.affine, atol=1e-5)
        volume = Volume.from_nifti(tmp_path / str(checked), path)
        np.testing.assert_allclose(volume.to_numpy().reshape(oracle.shape), oracle.get_fdata(), rtol=1e-6)
        checked += 1
    assert checked >= 3


def test_oblique_affine_survives_a_fresh_header(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    for number in range(30):
        quaternion = rng.normal(size=4)
        affine = np.eye(4)
        affine[:3, :3] = (
            quat2mat(quaternion / np.linalg.norm(quaternion))
            * rng.uniform(0.5, 4, 3)
            * rng.choice([-1, 1], 3)
        )
        affine[:3, 3] = rng.uniform(-100, 100, 3)
        volume = Volume.from_numpy(tmp_path / f"v{number}", np.zeros((3, 4, 5), np.int16), affine=affine)
        back = nib.load(volume.to_nifti(tmp_path / f"{number}.nii", compression=False))
        np.testing.assert_allclose(back.get_sform(), affine, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(back.get_qform(), affine, rtol=1e-4, atol=1e-3)


def test_write_leaves_no_half_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        write_nifti(tmp_path / "no" / "x.nii", np.zeros((2, 2, 2)), None, {})
    with pytest.raises(FormatError, match="NIfTI has no voxels"):
        write_nifti(tmp_path / "x.nii", np.zeros((2, 2, 2), np.float16), None, {})
    assert list(tmp_path.iterdir()) == []
