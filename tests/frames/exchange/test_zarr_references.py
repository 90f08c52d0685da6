"""Frames as a zarr array by reference: opened by zarr, compared with pydicom, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import imagecodecs.numcodecs
import numpy as np
import pytest
import zarr
from fsspec.implementations.reference import LazyReferenceMapper
from pydicom import dcmread
from pydicom.data import get_testdata_file

from support.builders import JPEG, PIXEL_DATA, RLE, Element, Fragments, dicom, element, image, jpeg, pattern
from voxtier.errors import ConfigError, FormatError, SourceError
from voxtier.frames import write_zarr_references, zarr_references


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
        with pytest.raises(FormatError):
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
