"""Frames as a zarr array by reference: opened by zarr, compared with pydicom, and what is refused."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import fsspec
import imagecodecs.numcodecs
import numpy as np
import pytest
import zarr
from fsspec.implementations.reference import LazyReferenceMapper
from jpeg_ls import encode_buffer
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.data import get_testdata_file

from support.builders import (
    JPEG,
    PIXEL_DATA,
    RLE,
    Element,
    Fragments,
    Syntax,
    dicom,
    element,
    image,
    jpeg,
    pattern,
)
from voxtier.errors import ConfigError, FormatError, SourceError
from voxtier.frames import read_frame, read_table, write_zarr_references, zarr_references

JPEG_LS, JPEG_2000 = Syntax("1.2.840.10008.1.2.4.80"), Syntax("1.2.840.10008.1.2.4.90")


def opened(references: dict[str, Any] | str, **options: Any) -> zarr.Array[Any]:
    mapper = fsspec.get_mapper("reference://", fo=references, remote_protocol="file", **options)
    store = zarr.storage.FsspecStore.from_mapper(mapper)
    return zarr.open_group(store, mode="r", zarr_format=2)["frames"]


def write(path: Path, seed: int = 0, **attributes: Any) -> Path:
    """A native image of two frames of 6 x 4 pixels."""
    elements = image(rows=6, columns=4, frames=2, **attributes)
    size = 24 * attributes.get("samples", 1) * attributes.get("bits", 8) // 8
    path.write_bytes(dicom([*elements, element("PixelData", pattern(2 * size, seed))]).content)
    return path


def test_a_series_becomes_one_array_that_zarr_opens(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"a {number} %41#.dcm", number, bits=16) for number in range(3)]
    references = zarr_references(paths)
    array = opened(references)
    expected = np.concatenate([dcmread(path).pixel_array for path in paths])
    assert (array.shape, array.dtype, array.chunks) == ((6, 6, 4), expected.dtype, (1, 6, 4))
    assert np.array_equal(array[:], expected)
    assert np.array_equal(array[4, 2:4], expected[4, 2:4])
    assert array.attrs["_ARRAY_DIMENSIONS"] == ["frame", "row", "column"]
    backwards = opened(zarr_references(reversed(paths)))
    assert np.array_equal(backwards[:2], expected[4:])


@pytest.mark.parametrize("form", ["json", "parq"])
def test_references_written_to_a_file_are_read_again(tmp_path: Path, form: str) -> None:
    paths = [write(tmp_path / f"{number}.dcm", number) for number in range(2)]
    references = zarr_references(paths)
    output = tmp_path / f"refs.{form}"
    write_zarr_references(references, output)
    if form == "json":
        array = opened(str(output))
    else:  # by the reader that fsspec chooses for such a folder, there with fastparquet
        found = LazyReferenceMapper(str(output), fsspec.filesystem("file"), engine="pyarrow")
        assert set(found) - {".zmetadata"} == set(references["refs"])
        again = {key: found[key] for key in references["refs"]}
        texts = {key: value.decode() for key, value in again.items() if isinstance(value, bytes)}
        chunks = {key: list(value) for key, value in again.items() if key not in texts}
        assert chunks == {key: references["refs"][key] for key in chunks}
        array = opened({"version": 1, "refs": texts | {key: references["refs"][key] for key in chunks}})
    assert np.array_equal(array[:], np.concatenate([dcmread(path).pixel_array for path in paths]))
    if form == "json":
        assert json.loads(output.read_text()) == references
    else:
        with pytest.raises(ConfigError, match="is there"):
            write_zarr_references(references, output)


def test_a_full_disk_leaves_no_references_and_the_next_run_heals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references = zarr_references([write(tmp_path / "a.dcm", 0)])
    before = set(tmp_path.iterdir())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.write_table", full)
        with pytest.raises(OSError, match="No space"):
            write_zarr_references(references, tmp_path / "refs.parq")
    assert set(tmp_path.iterdir()) == before
    write_zarr_references(references, tmp_path / "refs.parq")
    assert (tmp_path / "refs.parq" / ".zmetadata").is_file()


@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "SC_rgb_small_odd.dcm"],
)
def test_real_files_are_what_pydicom_reads(name: str) -> None:
    path = get_testdata_file(name)
    dataset = dcmread(path)
    array = opened(zarr_references([path]))
    assert np.array_equal(array[0], dataset.pixel_array)
    assert array.dtype.kind == dataset.pixel_array.dtype.kind


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"])
def test_compressed_frames_are_decoded_by_imagecodecs(name: str) -> None:
    imagecodecs.numcodecs.register_codecs()
    path = get_testdata_file(name)
    expected = dcmread(path).pixel_array
    array = opened(zarr_references([path]))
    assert np.array_equal(array[:].squeeze(), expected)


def test_planes_that_are_apart_are_an_axis_before_the_rows(tmp_path: Path) -> None:
    attributes = {"samples": 3, "photometric": "RGB"}
    apart = write(tmp_path / "apart.dcm", planar=1, **attributes)
    array = opened(zarr_references([apart]))
    assert array.attrs["_ARRAY_DIMENSIONS"] == ["frame", "sample", "row", "column"]
    assert np.array_equal(np.moveaxis(array[:], 1, -1), dcmread(apart).pixel_array)


def test_what_is_no_chunk_is_refused(tmp_path: Path) -> None:
    fragments = Fragments([jpeg(20, 0), jpeg(26, 1)])
    contents = {
        "jpeg": dicom([*image(frames=2), Element(PIXEL_DATA, "OB", fragments)], JPEG).content,
        "rle": dicom([*image(frames=2), Element(PIXEL_DATA, "OB", fragments)], RLE).content,
        "bits": dicom([*image(bits=1, rows=3, columns=3), element("PixelData", b"\1\2")]).content,
        "cut": write(tmp_path / "whole.dcm").read_bytes()[:-30],
        "none": dicom([element("Modality", "SR")]).content,
        "no_image": b"no image at all" * 20,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        why = "only for uncompressed frames, JPEG-LS" if name in ("jpeg", "rle") else None
        with pytest.raises(FormatError, match=why):
            zarr_references([tmp_path / name])
    with pytest.raises(SourceError):
        zarr_references([tmp_path / "absent"])
    with pytest.raises(ConfigError, match="no frame"):
        zarr_references([])
    for wrong in ("", "a/b", "../x", ".zgroup", "é"):
        with pytest.raises(ConfigError, match="no name"):
            zarr_references([tmp_path / "whole.dcm"], name=wrong)


@pytest.mark.parametrize("change", [{"bits": 16}, {"samples": 3, "photometric": "RGB"}, {"signed": 1}])
def test_files_of_another_form_are_refused_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    one = write(tmp_path / "one.dcm")
    if "signed" in change:
        elements = [each for each in image(rows=6, columns=4, frames=2) if each.tag != 0x00280103]
        signed = [*elements, element("PixelRepresentation", 1)]
        other = tmp_path / "other.dcm"
        ordered = sorted(signed, key=lambda each: each.tag)
        other.write_bytes(dicom([*ordered, element("PixelData", pattern(48))]).content)
    else:
        other = write(tmp_path / "other.dcm", **change)
    with pytest.raises(ConfigError, match=r"other\.dcm differs from .*one\.dcm in"):
        zarr_references([one, other])


SIZE = 8


def described(bits: int, stored: int, is_signed: bool, frames: int = 1) -> list[Element]:
    """The attributes of an image of 8 x 8 samples whose number of bits is told apart."""
    replaced = {0x00280101: stored, 0x00280102: stored - 1, 0x00280103: int(is_signed)}
    kept = [
        each for each in image(rows=SIZE, columns=SIZE, bits=bits, frames=frames) if each.tag not in replaced
    ]
    return sorted(
        [*kept, *(Element(tag, "US", value) for tag, value in replaced.items())], key=lambda each: each.tag
    )


def write_stream(path: Path, streams: list[bytes], syntax: Syntax, *form: Any) -> Path:
    pixels = Element(PIXEL_DATA, "OB", Fragments([each + bytes(len(each) % 2) for each in streams]))
    path.write_bytes(dicom([*described(*form, frames=len(streams)), pixels], syntax).content)
    return path


def ramp(bits: int, *, is_signed: bool = False) -> NDArray[Any]:
    """Numbers over the whole range of a number of bits."""
    low = -(1 << (bits - 1)) if is_signed else 0
    values = low + np.arange(SIZE * SIZE) * ((1 << bits) - 1) // (SIZE * SIZE - 1)
    size = 8 if bits <= 8 else 16 if bits <= 16 else 32
    return values.reshape(SIZE, SIZE).astype(f"{'i' if is_signed else 'u'}{size // 8}")


def compare(path: Path) -> str:
    """Return whether the references are refused; where they are not, zarr reads what pydicom does."""
    imagecodecs.numcodecs.register_codecs()
    try:
        references = zarr_references([path])
    except FormatError as error:
        assert error.kind == "unsupported_image"
        assert "read_frame(..., decode=True)" in error.detail
        assert read_frame(path, read_table(path), 0, decode=True).size == SIZE * SIZE  # the remedy
        return "refused"
    expected = dcmread(path).pixel_array.reshape(-1, SIZE, SIZE)
    assert np.array_equal(opened(references)[:], expected)
    return "equal"


@pytest.mark.parametrize(
    ("bits", "precision"),
    [(bits, each) for bits in (8, 16, 32) for each in (6, 8, 12, 16, 24) if each <= bits],
)
@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("says_signed", [False, True])
def test_jpeg_2000_gives_the_pixels_of_pydicom_or_is_refused(
    tmp_path: Path, bits: int, precision: int, is_signed: bool, says_signed: bool
) -> None:
    stream = imagecodecs.jpeg2k_encode(
        ramp(precision, is_signed=is_signed),
        bitspersample=precision,
        codecformat="j2k",
        reversible=True,
        level=0,
    )
    path = write_stream(tmp_path / "j2k.dcm", [stream], JPEG_2000, bits, precision, says_signed)
    fills = (precision + 7) // 8 * 8 == bits or (precision, bits) == (24, 32)
    agrees = is_signed == says_signed or precision == bits
    assert compare(path) == ("equal" if fills and agrees else "refused")


@pytest.mark.parametrize(("bits", "precision"), [(8, 6), (8, 8), (16, 6), (16, 8), (16, 12), (16, 16)])
@pytest.mark.parametrize("says_signed", [False, True])
def test_jpeg_ls_gives_the_pixels_of_pydicom_or_is_refused(
    tmp_path: Path, bits: int, precision: int, says_signed: bool
) -> None:
    """Its samples have no sign: pydicom makes them signed by Bits Stored."""
    stream = bytes(encode_buffer(ramp(precision).tobytes(), SIZE, SIZE, 1, precision))
    path = write_stream(tmp_path / "jls.dcm", [stream], JPEG_LS, bits, precision, says_signed)
    fills = (precision + 7) // 8 * 8 == bits
    assert compare(path) == ("equal" if fills and (not says_signed or precision == bits) else "refused")


def test_the_header_of_each_frame_is_read_behind_segments_and_boxes(tmp_path: Path) -> None:
    one, other = (
        bytes(encode_buffer(ramp(precision).tobytes(), SIZE, SIZE, 1, precision)) for precision in (12, 8)
    )
    comment = one[:2] + b"\xff\xfe\x00\x06abcd\xff" + one[2:]
    assert compare(write_stream(tmp_path / "a", [one, comment], JPEG_LS, 16, 12, False)) == "equal"
    path = write_stream(tmp_path / "b", [one, comment, other], JPEG_LS, 16, 12, False)
    with pytest.raises(FormatError, match=r"frame 2 \(from 0\) has samples of 8 bits"):
        zarr_references([path])
    flat = bytes(encode_buffer(ramp(12).tobytes(), SIZE * 2, SIZE // 2, 1, 12))
    for wrong in (flat, one[:9], b"\xff\xd8" + bytes(60), b""):
        with pytest.raises(FormatError, match=r"frame 0 \(from 0\)|frames"):
            zarr_references([write_stream(tmp_path / "c", [wrong], JPEG_LS, 16, 12, False)])
    boxed = imagecodecs.jpeg2k_encode(ramp(12), bitspersample=12, codecformat="jp2", reversible=True, level=0)
    assert compare(write_stream(tmp_path / "d", [boxed], JPEG_2000, 16, 12, False)) == "equal"


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("says_signed", [False, True])
@pytest.mark.parametrize("above", ["sign", "zero", "set"])
def test_native_bits_above_bits_stored_are_those_of_pydicom_or_refused(
    tmp_path: Path, bits: int, says_signed: bool, above: str
) -> None:
    stored = bits - 3
    values = ramp(stored, is_signed=says_signed).astype(np.int64) & ((1 << bits) - 1)
    if above != "sign":
        values &= (1 << stored) - 1
    if above == "set":
        values[-1, -1] |= 1 << (bits - 1)
        values[-1, -1] &= ~(1 << (stored - 1))
    pixels = Element(PIXEL_DATA, "OW", values.astype(f"<u{bits // 8}").tobytes())
    path = tmp_path / "native.dcm"
    path.write_bytes(dicom([*described(bits, stored, says_signed), pixels]).content)
    is_right = above == "sign" or (above == "zero" and not says_signed)
    assert compare(path) == ("equal" if is_right else "refused")
