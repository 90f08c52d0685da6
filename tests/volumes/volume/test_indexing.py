"""10,000 random index expressions give what numpy gives, errors too, over all types and in 4-D."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from voxtier.errors import ConfigError, FormatError
from voxtier.volumes import TileConfig, Volume, configure
from voxtier.volumes.reading.pictures import to_grey

DTYPES = ["u1", "i2", "u2", "i4", "f4", "f8", "f2", "bool", "i8", "c8", ">i2", ">f4"]


def random_key(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    items = []
    for size in shape[: rng.integers(0, len(shape) + 1)]:
        kind = rng.random()
        if kind < 0.3:
            items.append(rng.choice([int, np.int16, np.int64])(rng.integers(-size, size)))
        elif kind < 0.4:
            items.append(slice(None))
        else:
            ends = [None if rng.random() < 0.2 else int(rng.integers(-size - 3, size + 3)) for _ in range(2)]
            items.append(slice(*ends, rng.choice([None, 1, 2, 3, 7, -1, -2, -5])))
    if rng.random() < 0.3:
        items.insert(int(rng.integers(0, len(items) + 1)), Ellipsis)
    if rng.random() < 0.1:
        items.insert(int(rng.integers(0, len(items) + 1)), None)
    return tuple(items) if len(items) != 1 or rng.random() < 0.5 else items[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_index_expressions_give_what_numpy_gives(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(DTYPES.index(dtype))
    for number, shape in enumerate([(13, 9, 11), (7, 5, 6, 4), (1, 8, 9)]):
        configure(
            tile=TileConfig(
                rng.choice(["axial", "sagittal", "coronal", "isotropic"]), x=rng.choice([None, 4])
            )
        )
        data = (rng.normal(size=shape) * 100).astype(dtype)
        volume = Volume.from_numpy(tmp_path / str(number), data)
        assert volume.dtype == data.dtype.newbyteorder("=")
        assert np.array_equal(np.asarray(volume), data)
        for _ in range(280):
            key = random_key(rng, shape)
            try:
                wanted = data[key]
            except IndexError:  # an ellipsis before it shifted an index to a shorter axis
                with pytest.raises(IndexError):
                    volume[key]
                continue
            got = volume[key]
            assert got.shape == wanted.shape, key
            assert np.array_equal(got, wanted), key
            assert all(stride >= 0 for stride in np.asarray(got).strides)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume.from_numpy(tmp_path / "v", np.arange(24, dtype=np.int16).reshape(2, 3, 4))


@pytest.mark.parametrize("key", [2, -3, (0, 3), (0, 0, 0, 0), (..., 4), (..., 0, ...)])
def test_indices_outside_the_shape_raise_index_error(volume: Volume, key: Any) -> None:
    with pytest.raises(IndexError):
        volume[key]


@pytest.mark.parametrize("key", [[0, 1], np.array([0, 1]), "x", 1.0, True, (0, None, [1])])
def test_keys_beyond_basic_indexing_raise_type_error(volume: Volume, key: Any) -> None:
    with pytest.raises(TypeError):
        volume[key]


def test_the_message_names_the_axis(volume: Volume) -> None:
    with pytest.raises(IndexError, match=r"index 9 is outside axis 1 \('y'\) of 3 voxels"):
        volume[0, 9]


def test_planes_drop_exactly_one_axis(tmp_path: Path) -> None:
    data = np.arange(20, dtype=np.int16).reshape(1, 4, 5)
    volume = Volume.from_numpy(tmp_path / "thin", data)
    assert volume.axial(0).shape == (1, 4)
    assert volume.sagittal(0).shape == (4, 5)
    assert volume.coronal(-1).tolist() == data[:, -1].tolist()
    with pytest.raises(IndexError, match="4-D"):
        volume.axial(0, t=0)
    four = Volume.from_numpy(tmp_path / "four", np.arange(120, dtype=np.int16).reshape(2, 3, 4, 5))
    assert four.axial(1).shape == (2, 3, 5)
    assert four.axial(1, t=2).shape == (2, 3)
    assert four.slice(slice(0, 1), slice(None), slice(2), slice(1, 3)).shape == (1, 3, 2, 2)


def test_anatomical_planes_follow_the_affine(tmp_path: Path) -> None:
    data = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    affine = np.array([[0, 0, 2.0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])  # axes: A, S, R
    volume = Volume.from_numpy(tmp_path / "v", data, affine=affine)
    assert "axes=ASR" in repr(volume)
    assert np.array_equal(volume.plane("axial", 2), data[:, 2])
    assert np.array_equal(volume.plane("sagittal", 1), data[:, :, 1])
    assert np.array_equal(volume.plane("coronal", 0), data[0])
    with pytest.raises(ConfigError):
        volume.plane("oblique", 0)


def test_a_crop_in_millimetres_gives_voxels_and_their_affine(tmp_path: Path) -> None:
    data = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-9, -9, -9]
    volume = Volume.from_numpy(tmp_path / "v", data, affine=affine)
    voxels, placed = volume.crop((0, 0, 0), (6, 4, 2))
    assert np.array_equal(voxels, data[3:7, 4:6, 4:6])
    assert placed[:3, 3].tolist() == [-3, -1, -1]
    with pytest.raises(IndexError, match="misses"):
        volume.crop((500, 0, 0), (2, 2, 2))


def test_patches_outside_the_volume_are_filled(tmp_path: Path) -> None:
    data = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    volume = Volume.from_numpy(tmp_path / "v", data)
    padded = np.pad(data, 6, constant_values=-7)
    starts = np.array([[-2, 0, 3], [0, 0, 0], [2, 3, 4], [-6, -6, -6], [9, 9, 9]])
    for patch, start in zip(volume.read_patches(starts, (4, 3, 5), fill=-7), starts, strict=True):
        wanted = padded[
            tuple(slice(max(s + 6, 0), max(s + 6, 0) + n) for s, n in zip(start, (4, 3, 5), strict=True))
        ]
        full = np.full((4, 3, 5), -7)
        full[tuple(slice(0, n) for n in wanted.shape)] = wanted
        assert np.array_equal(patch, full)
    for starts, size in (
        ([[0, 0]], (1, 1, 1)),
        ([[0, 0, 0]], (1, 1)),
        ([[0.5, 0, 0]], (1, 1, 1)),
        ([[0, 0, 0]], (0, 1, 1)),
    ):
        with pytest.raises(ConfigError):
            volume.read_patches(starts, size)


def padded_box(data: NDArray[Any], start: Any, size: Any, fill: Any) -> NDArray[Any]:
    box = np.full(size, fill, data.dtype)
    for place in np.ndindex(*size):
        voxel = tuple(int(s) + p for s, p in zip(start, place, strict=True))
        if all(0 <= v < n for v, n in zip(voxel, data.shape, strict=True)):
            box[place] = data[voxel]
    return box


def scaled_volume(folder: Path, data: NDArray[Any], slope: float, inter: float) -> Volume:
    """Store an image whose header states a scaling over these stored numbers."""
    nib.save(nib.Nifti1Image(data, np.eye(4)), folder / "image.nii")
    content = bytearray((folder / "image.nii").read_bytes())
    content[112:120] = np.array([slope, inter], "<f4").tobytes()
    (folder / "image.nii").write_bytes(content)
    return Volume.from_nifti(folder / "v", folder / "image.nii")


@pytest.mark.parametrize("case", range(60))
def test_every_way_to_read_a_box_pads_alike(tmp_path: Path, case: int) -> None:
    """Axes of one voxel, boxes that miss the volume, scalings that need another type than is stored."""
    rng = np.random.default_rng(case)
    shape = tuple(int(n) for n in rng.choice([1, 2, 5, 9], 3 + case % 4 // 3))
    size = tuple(int(n) for n in rng.choice([1, 1, 2, 4, 11], len(shape)))
    configure(
        tile=TileConfig(rng.choice(["axial", "sagittal", "coronal", "isotropic"]), x=rng.choice([None, 2]))
    )
    stored = np.dtype(str(rng.choice(["u1", "i2", "u2"])))
    low = int(rng.choice([0, 100]))
    data = rng.integers(low, low + 50, shape).astype(stored)
    slope, inter = [(1, 0), (1, -1024), (3, 7), (-2, 5)][case // 4 % 4]
    volume = scaled_volume(tmp_path, data, slope, inter)
    fill = int(rng.choice([0, 0, 1, 200]))
    starts = rng.integers(-6, 10, (5, len(shape)))
    cells = np.stack([padded_box(data, start, size, fill) for start in starts])
    wanted = cells.astype(np.int64) * slope + inter

    def check() -> None:
        assert np.array_equal(volume.read_patches(starts, size, fill=fill, raw=True), cells)
        numbers = volume.read_patches(starts, size, fill=fill)
        assert np.array_equal(numbers, wanted)
        assert numbers.dtype == volume.dtype or fill != 0
        for dtype in ("f4", "f8", "i4", volume.dtype.str):
            into = np.full(wanted.shape, 77, dtype)
            if volume.dtype.str != dtype or fill == 0:
                volume.read_patches_into(starts, into, fill=fill)
                assert np.array_equal(into, wanted), dtype

    check()
    volume.update((0,) * len(shape), data[(slice(0, 1),) * len(shape)])
    check()
    volume.consolidate()
    check()


def test_no_patch_is_read_into_no_room(tmp_path: Path) -> None:
    volume = Volume.from_numpy(tmp_path / "v", np.ones((8, 8, 8), np.int16))
    nowhere = np.zeros((0, 3), np.int64)
    volume.read_patches_into(nowhere, np.empty((0, 4, 4, 4), np.float32))
    assert volume.read_patches(nowhere, (4, 4, 4)).shape == (0, 4, 4, 4)
    with pytest.raises(ConfigError):
        volume.read_patches_into(nowhere, np.empty((1, 4, 4, 4), np.float32))


def test_an_output_whose_axis_of_one_voxel_has_an_odd_stride_is_filled(tmp_path: Path) -> None:
    volume = Volume.from_numpy(tmp_path / "v", np.ones((8, 8, 8), np.int16))
    for lead in (slice(0, 1), slice(1, 2)):
        room = np.full((1, 8, 8, 8), -7, np.float32)
        out = room[:, ::3][:, lead]  # contiguous, as numpy sees it
        assert out.flags.c_contiguous
        volume.read_patches_into([[-1, 0, 0]], out, fill=5)
        assert (out == 5).all()
        assert (room == -7).sum() == 7 * 64


def test_statistics_are_those_of_numpy_and_nan_has_a_policy(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    volume = Volume.from_numpy(tmp_path / "v", data)
    found = volume.get_statistics([5, 99.5, 99.9])
    assert found["p99.5"] == pytest.approx(np.percentile(data, 99.5))
    assert found["p99.9"] == pytest.approx(np.percentile(data, 99.9))
    assert (found["mean"], found["std"]) == pytest.approx((data.mean(), data.std()), rel=1e-4)
    data[0, 0, 0] = np.nan
    poisoned = Volume.from_numpy(tmp_path / "n", data)
    assert poisoned.get_statistics()["nan_count"] == 1
    assert np.isfinite(poisoned.get_statistics()["mean"])
    with pytest.raises(ValueError, match="1 voxels are NaN"):
        poisoned.get_statistics(nan_policy="raise")
    counts, edges = poisoned.compute_histogram(bins=10)
    assert (counts.sum(), len(edges)) == (9**3 - 1, 11)


def test_each_percentile_has_its_key_and_any_sequence_is_taken(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(9, 9, 9))
    volume = Volume.from_numpy(tmp_path / "v", data)
    found = volume.get_statistics([99.99999, 100, 100 / 3, 1e-7])
    assert found["p99.99999"] == np.percentile(data, 99.99999) < found["p100"] == data.max()
    assert found["p33.333333333333336"] == np.percentile(data, 100 / 3)
    assert found["p1e-07"] < np.percentile(data, 0.1)
    wanted = volume.get_statistics([5, 99.9])
    for given in (np.array([5, 99.9]), np.float32([5, 99.9]), pd.Series([5, 99.9]), (p for p in (5, 99.9))):
        assert volume.get_statistics(given) == wanted
    assert volume.get_statistics(np.array([])) == volume.get_statistics()
    for wrong in ("95", 95, ["x"], [None], np.float64(5)):
        with pytest.raises(ConfigError, match="percentiles are numbers from 0 to 100"):
            volume.get_statistics(wrong)


FAR_APART = [  # type, the two values of an image: their distance does not fit the type
    ("bool", (0, 1)),
    ("i1", (-128, 127)),
    ("i2", (-32_768, 32_767)),
    ("i4", (-(2**31), 2**31 - 1)),
    ("i8", (-(2**62), 2**62)),
    ("u8", (0, 2**63)),
    ("f2", (-60_000, 60_000)),
    ("f4", (-(2.0**127), 2.0**127)),
]


@pytest.mark.parametrize(("dtype", "ends"), FAR_APART)
def test_statistics_histograms_and_pictures_do_not_depend_on_the_width_of_the_type(
    tmp_path: Path, dtype: str, ends: tuple[float, float]
) -> None:
    low, high = ends
    voxels = np.array([low] * 4 + [high] * 4).astype(dtype).reshape(2, 2, 2)
    volume = Volume.from_numpy(tmp_path / "v", voxels)
    found = volume.get_statistics([25, 50, 100])
    middle = (low + high) / 2  # in Python's numbers
    wanted = {"mean": middle, "std": (high - low) / 2, "min": low, "max": high, "median": middle}
    assert found == pytest.approx(wanted | {"p25": low, "p50": middle, "p100": high})
    counts, edges = volume.compute_histogram(bins=2)
    assert counts.tolist() == [4, 4]
    assert edges.tolist() == pytest.approx([low, middle, high])
    assert to_grey(volume[0]).tolist() == [[0, 0], [0, 0]]
    assert to_grey(volume.coronal(1)).tolist() == [[0, 255], [0, 255]]
    assert "data:image/png" in volume._repr_html_()


def test_infinite_voxels_are_described_and_drawn(tmp_path: Path) -> None:
    voxels = np.array([-np.inf, 1, 1, 1, 1, 1, 1, np.inf], np.float32).reshape(2, 2, 2)
    volume = Volume.from_numpy(tmp_path / "v", voxels)
    found = volume.get_statistics()
    assert (found["min"], found["max"], found["median"]) == (-np.inf, np.inf, 1)
    assert to_grey(np.array([[-np.inf, 0.0], [np.nan, np.inf]])).tolist() == [[0, 255], [0, 0]]


def test_what_has_no_order_has_no_statistics_and_no_picture(tmp_path: Path) -> None:
    volume = Volume.from_numpy(tmp_path / "v", np.full((2, 2, 2), 1j, np.complex64))
    for describe in (volume.get_statistics, volume.compute_histogram):
        with pytest.raises(FormatError, match="real numbers"):
            describe()
    with pytest.raises(ConfigError, match="complex"):
        to_grey(volume[0])
    html = volume._repr_html_()
    assert "complex64" in html
    assert "image/png" not in html
    real = Volume.from_numpy(tmp_path / "r", np.ones((2, 2, 2), np.int16))
    for options in ({"percentiles": [101]}, {"percentiles": [float("nan")]}, {"nan_policy": "keep"}):
        with pytest.raises(ConfigError):
            real.get_statistics(**options)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5, 6, 7), (0, 3, 3)])
def test_shapes_that_are_no_volume(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        Volume.from_numpy(tmp_path / "v", np.zeros(shape, np.int16))
    with pytest.raises(ConfigError, match="cannot be stored"):
        Volume.from_numpy(tmp_path / "w", np.zeros((2, 2, 2), np.complex128))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_volume_is_not_overwritten(volume: Volume) -> None:
    with pytest.raises(ConfigError, match="already exists"):
        Volume.from_numpy(volume.uri, np.zeros((2, 2, 2)))
    assert volume[1, 2, 3] == 23
