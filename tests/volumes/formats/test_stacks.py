"""Which slices make a volume: each is found once, at its place in mm, or the series is refused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from support.depth import depth
from volumes.support.images import slice_dataset
from voxtier.errors import FormatError
from voxtier.volumes.formats.dicom import OnGap, read_series
from voxtier.volumes.formats.dicom.stacks import cluster
from voxtier.volumes.formats.image import Image

AXIAL = np.eye(3)
_marks = itertools.count(1)


def basis_of(seed: int) -> NDArray[np.float64]:
    """Return directions along a row, along a column and across, LPS."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return np.column_stack([basis[:, 0], basis[:, 1], np.cross(basis[:, 0], basis[:, 1])])


def slices(
    places: Sequence[Sequence[float]], basis: NDArray[np.float64] = AXIAL, size: int = 4, **tags: Any
) -> list[Dataset]:
    """Return slices at places along row, column and normal; each has pixels that no other slice has."""
    made = []
    for place in places:
        pixels = np.full((size, size), next(_marks) % 30_000, np.int16)
        position = [f"{value:.10g}" for value in basis @ np.asarray(place, float)]
        cosines = [f"{value:.10g}" for value in (*basis[:, 0], *basis[:, 1])]
        made.append(slice_dataset(position, cosines, (1.5, 0.75), pixels=pixels, Modality="MR", **tags))
    return made


def stack(count: int, step: float = 2, at: Sequence[float] = (0, 0, 0), **options: Any) -> list[Dataset]:
    """Return slices one above the other."""
    return slices([(at[0], at[1], at[2] + number * step) for number in range(count)], **options)


def write(folder: Path, datasets: Sequence[Dataset], seed: int = 0) -> Path:
    """Write data sets under names in any order, with Instance Numbers that lie."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(datasets))
    for name, dataset in zip(order, datasets, strict=True):
        dataset.InstanceNumber = int(order[name])
        pydicom.dcmwrite(folder / f"{name:04d}.dcm", dataset, enforce_file_format=True)
    return folder


def corners(dataset: Dataset) -> NDArray[np.float64]:
    """Return the corners of a slice in LPS, by PS3.3 C.7.6.2.1.1."""
    position = np.array(dataset.ImagePositionPatient, float)
    cosines = np.array(dataset.ImageOrientationPatient, float)
    row, column = (float(value) for value in dataset.PixelSpacing)
    ends = [(0, 0), (dataset.Columns - 1, 0), (0, dataset.Rows - 1), (dataset.Columns - 1, dataset.Rows - 1)]
    return np.array([position + cosines[:3] * column * i + cosines[3:] * row * j for i, j in ends])


def check_found_once(images: Sequence[Image], datasets: Sequence[Dataset], off: float = 0.1) -> None:
    """Every slice is a plane of one volume, its corners within ``off`` mm; there are no other planes."""
    planes = []
    for image in images:
        voxels = image.voxels if image.voxels.ndim == 4 else image.voxels[..., None]
        for k, t in np.ndindex(voxels.shape[2:]):
            planes.append((voxels[:, :, k, t], image.orientation.affine, k))
    assert len(planes) == len(datasets)
    for dataset in datasets:
        found = [plane for plane in planes if np.array_equal(plane[0].T, dataset.pixel_array)]
        assert len(found) == 1
        _, affine, k = found[0]
        ends = [(i, j, k, 1) for j in (0, dataset.Rows - 1) for i in (0, dataset.Columns - 1)]
        ours = (affine @ np.array(ends, float).T).T[:, :3] * [-1, -1, 1]
        assert np.linalg.norm(ours - corners(dataset), axis=1).max() <= off * 1.5 + 1e-6


def shapes(images: Sequence[Image]) -> list[tuple[int, ...]]:
    return sorted(image.voxels.shape[2:] for image in images)


STACKS = {  # tag -> values of the first and the second stack
    "EchoTime": ("15.0", "90.0"),
    "EchoNumbers": (1, 2),
    "TemporalPositionIdentifier": (1, 2),
    "TemporalPositionIndex": (1, 2),
    "DiffusionBValue": (0.0, 1000.0),
    "DiffusionGradientOrientation": ([0.0, 1, 0], [1.0, 0, 0]),
    "AcquisitionNumber": (1, 2),
    "AcquisitionTime": ("101112.5", "101113"),
    "AcquisitionDateTime": ("20200101101112.5", "20200101101113"),
    "TriggerTime": ("0", "41.5"),
    "NominalPercentageOfCardiacPhase": (0.0, 50.0),
    "FrameReferenceTime": ("500", "1500"),
    "InversionTime": ("200", "800"),
    "FlipAngle": ("5", "26"),
    "RepetitionTime": ("500", "3000"),
}
CONTRASTS = ("EchoTime", "EchoNumbers", "InversionTime", "FlipAngle", "RepetitionTime")
ALWAYS = ("EchoTime", "EchoNumbers", "TemporalPositionIdentifier", "TemporalPositionIndex", "DiffusionBValue")


@pytest.mark.parametrize("tag", STACKS)
def test_each_tag_that_explains_slices_at_one_place_splits_them(tmp_path: Path, tag: str) -> None:
    first, second = (stack(3, basis=basis_of(1), **{tag: value}) for value in STACKS[tag])
    images = read_series(write(tmp_path, first + second))
    check_found_once(images, first + second)
    if tag in CONTRASTS:
        assert shapes(images) == [(3,), (3,)]
        return
    assert shapes(images) == [(3, 2)]
    assert images[0].meta["time_tag"] == tag
    assert [int(images[0].voxels[0, 0, 0, t]) for t in (0, 1)] == [
        int(d[0].pixel_array[0, 0]) for d in (first, second)
    ]


@pytest.mark.parametrize(
    "shift", [(20, 0, 0), (0, -0.3, 0), (0, 0, 0.7), (0, 0, 1), (0, 0, 2), (0.2, 0.2, 0.2), (3, 1, 50)]
)
@pytest.mark.parametrize("tag", ALWAYS)
def test_stacks_that_lie_elsewhere_never_share_an_affine(
    tmp_path: Path, tag: str, shift: tuple[float, ...]
) -> None:
    first, second = STACKS[tag]
    datasets = stack(3, basis=basis_of(2), **{tag: first}) + stack(
        3, at=shift, basis=basis_of(2), **{tag: second}
    )
    images = read_series(write(tmp_path, datasets))
    assert shapes(images) == [(3,), (3,)]
    check_found_once(images, datasets, off=1e-3)


@pytest.mark.parametrize("degrees", [0.02, 0.2, 3, 90])
def test_stacks_that_are_turned_never_share_an_affine(tmp_path: Path, degrees: float) -> None:
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    datasets = stack(3, size=400, TemporalPositionIdentifier=1)
    datasets += stack(
        3, size=400, basis=basis_of(3) @ turn if degrees == 90 else turn, TemporalPositionIdentifier=2
    )
    images = read_series(write(tmp_path, datasets))
    assert shapes(images) == [(3,), (3,)]
    check_found_once(images, datasets, off=1e-3)


@pytest.mark.parametrize("shift", [(0.05, 0, 0), (0, 0, 0.05), (0, 1e-4, 0)])
def test_time_points_within_the_tolerance_are_one_volume(tmp_path: Path, shift: tuple[float, ...]) -> None:
    datasets = stack(3, TemporalPositionIdentifier=1) + stack(3, at=shift, TemporalPositionIdentifier=2)
    images = read_series(write(tmp_path, datasets))
    assert shapes(images) == [(3, 2)]
    check_found_once(images, datasets)


def test_a_chain_of_small_moves_does_not_add_up_in_one_volume(tmp_path: Path) -> None:
    datasets = [
        dataset
        for time in range(12)
        for dataset in stack(2, at=(0.06 * time, 0, 0), TemporalPositionIdentifier=time + 1)
    ]
    images = read_series(write(tmp_path, datasets))
    assert len(images) > 5
    check_found_once(images, datasets)


def test_acquisitions_that_lie_between_each_other_are_apart(tmp_path: Path) -> None:
    datasets = stack(4, AcquisitionNumber=1) + stack(4, at=(0, 0, 1), AcquisitionNumber=2)
    images = read_series(write(tmp_path, datasets))
    assert shapes(images) == [(4,), (4,)]
    check_found_once(images, datasets, off=1e-3)


def test_acquisitions_that_follow_each_other_are_one_stack(tmp_path: Path) -> None:
    shots = [dataset for n in range(5) for dataset in stack(1, at=(0, 0, 2 * n), AcquisitionNumber=n + 1)]
    stations = stack(4, AcquisitionNumber=1) + stack(4, at=(0, 0, 8), AcquisitionNumber=2)
    for name, datasets in (("shots", shots), ("stations", stations)):
        images = read_series(write(tmp_path / name, datasets))
        assert len(images) == 1
        check_found_once(images, datasets, off=1e-3)


def test_acquisitions_that_overlap_are_two_volumes(tmp_path: Path) -> None:
    datasets = stack(5, AcquisitionNumber=1) + stack(6, at=(0, 0, 6), AcquisitionNumber=2)
    images = read_series(write(tmp_path, datasets))
    assert shapes(images) == [(5,), (6,)]
    check_found_once(images, datasets, off=1e-3)


@pytest.mark.parametrize("on_gap", ["error", "fill"])
def test_acquisitions_on_two_grids_are_two_volumes_and_lost_slices_are_none(
    tmp_path: Path, on_gap: OnGap
) -> None:
    datasets = stack(3, AcquisitionNumber=1) + stack(3, at=(0, 0, 5), AcquisitionNumber=2)
    images = read_series(write(tmp_path / "two", datasets), on_gap=on_gap)
    assert shapes(images) == [(3,), (3,)]
    check_found_once(images, datasets, off=1e-3)
    lost = stack(3, AcquisitionNumber=1) + stack(3, at=(0, 0, 8), AcquisitionNumber=2)
    if on_gap == "fill":
        assert shapes(read_series(write(tmp_path / "lost", lost), on_gap=on_gap)) == [(7,)]
    else:
        with pytest.raises(FormatError, match=r"missing slices \(1 after slice 3, spacing 2 mm\)"):
            read_series(write(tmp_path / "lost", lost))


def test_why_slices_are_no_stack_does_not_depend_on_the_names_of_files(tmp_path: Path) -> None:
    """Of two acquisitions at one place one is irregular: the reason, with the series named once."""
    datasets = stack(3, AcquisitionNumber=1) + slices(
        [(0, 0, 0), (0, 0, 2), (0, 0, 5.1)], AcquisitionNumber=2
    )
    folder = write(tmp_path, datasets)
    for file in list(folder.iterdir()):
        file.rename(folder / f"both at one place, missing slices {file.name}")
    with pytest.raises(FormatError, match=r"apart by AcquisitionNumber: irregular spacing: 2 mm") as refused:
        read_series(folder)
    assert refused.value.detail.count("series ") == 1


def test_echoes_of_several_times_are_a_volume_of_times_for_each_echo(tmp_path: Path) -> None:
    datasets = [
        dataset
        for echo, time in itertools.product((12.5, 30.0, 47.5), (1, 2))
        for dataset in stack(3, EchoTime=str(echo), TemporalPositionIdentifier=time)
    ]
    images = read_series(write(tmp_path, datasets))
    assert shapes(images) == [(3, 2)] * 3
    assert [image.row["echo_time"] for image in images] == [12.5, 30.0, 47.5]
    check_found_once(images, datasets, off=1e-3)


def test_directions_of_each_b_value_are_volumes_in_time(tmp_path: Path) -> None:
    """The b=0 images have no direction, and are told apart by when they were taken."""
    plain = [stack(2, DiffusionBValue=0.0, AcquisitionTime=f"10000{n}") for n in range(2)]
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0].tolist()
    shells = [
        stack(2, DiffusionBValue=b, DiffusionGradientOrientation=d)
        for b in (500.0, 1000.0)
        for d in directions
    ]
    datasets = [dataset for part in plain + shells for dataset in part]
    images = read_series(write(tmp_path, datasets))
    assert shapes(images) == [(2, 8)]
    check_found_once(images, datasets, off=1e-3)


def test_a_cine_of_slices_with_trigger_times_of_their_own_is_one_volume(tmp_path: Path) -> None:
    datasets = [
        dataset
        for place, beat in enumerate((1000, 910, 1040))
        for phase in range(5)
        for dataset in stack(1, at=(0, 0, 8 * place), TriggerTime=f"{beat * phase / 5:.1f}")
    ]
    images = read_series(write(tmp_path, datasets))
    assert shapes(images) == [(3, 5)]
    assert [int(v) for v in images[0].voxels[0, 0, 1]] == [int(d.pixel_array[0, 0]) for d in datasets[5:10]]
    check_found_once(images, datasets, off=1e-3)


def test_slices_with_clock_times_of_their_own_are_apart_where_a_pass_ends_before_the_next(
    tmp_path: Path,
) -> None:
    def passes(seconds: Sequence[float], name: str) -> Path:
        made = [
            dataset
            for place, offset in enumerate((0.0, 0.1, 0.2))
            for second in seconds
            for dataset in stack(
                1,
                at=(0, 0, 3 * place),
                AcquisitionDate="20200101",
                AcquisitionTime=f"1200{second + offset:07.4f}",
            )
        ]
        return write(tmp_path / name, made)

    assert shapes(read_series(passes((0, 2, 4), "apart"))) == [(3, 3)]
    with pytest.raises(FormatError, match="tells them apart"):
        read_series(passes((0, 0.15, 0.3), "mixed"))


def test_a_series_over_midnight_keeps_its_order(tmp_path: Path) -> None:
    late = stack(2, AcquisitionDate="20191231", AcquisitionTime="235959.9")
    early = stack(2, AcquisitionDate="20200101", AcquisitionTime="000000.4")
    (image,) = read_series(write(tmp_path, early + late))
    assert int(image.voxels[0, 0, 0, 0]) == int(late[0].pixel_array[0, 0])


@pytest.mark.parametrize("tag", ALWAYS)
def test_slices_that_lack_a_tag_of_the_others_are_no_volume_of_their_own(tmp_path: Path, tag: str) -> None:
    """But for b-values, which images of b = 0 are written without."""
    datasets = stack(3, **{tag: STACKS[tag][1]}) + stack(2, at=(0, 0, 6))
    folder = write(tmp_path, datasets)
    if tag == "DiffusionBValue":
        check_found_once(read_series(folder), datasets, off=1e-3)
    else:
        with pytest.raises(FormatError, match=f"2 slices without {tag} .* beside 3 with it"):
            read_series(folder)


def test_a_tag_that_only_one_echo_has_is_no_reason_to_refuse(tmp_path: Path) -> None:
    datasets = stack(3, EchoTime="15") + stack(3, EchoTime="90", EchoNumbers=2)
    images = read_series(write(tmp_path, datasets))
    assert shapes(images) == [(3,), (3,)]
    check_found_once(images, datasets, off=1e-3)


def test_slices_with_frames_of_reference_of_their_own_are_refused(tmp_path: Path) -> None:
    datasets = stack(4)
    for number, dataset in enumerate(datasets):
        dataset.FrameOfReferenceUID = f"1.2.{number}"
    with pytest.raises(FormatError, match="4 slices with a Frame of Reference UID of their own"):
        read_series(write(tmp_path, datasets))
    two = [*stack(3), *stack(3, at=(0, 0, 1))]
    for number, dataset in enumerate(two):
        dataset.FrameOfReferenceUID = f"1.2.{number // 3}"
    assert shapes(read_series(write(tmp_path / "two", two))) == [(3,), (3,)]


def test_noise_in_echo_times_is_no_second_echo(tmp_path: Path) -> None:
    datasets = [d for n in range(4) for d in stack(1, at=(0, 0, 2 * n), EchoTime=str(90 + n * 1e-3))]
    assert shapes(read_series(write(tmp_path, datasets))) == [(4,)]
    short = stack(3, EchoTime="0.03") + stack(3, EchoTime="0.08") + stack(3, EchoTime="90")
    assert shapes(read_series(write(tmp_path / "ultrashort", short))) == [(3,)] * 3


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([(0, 0, 0), (0, 0, 2), (0, 0, 4), (0, 0, 2)], "tells them apart"),
        ([(0, 0, 0), (0, 0, 2), (0, 0, 5.1)], "irregular spacing"),
        ([(0, 0, 2 * n + 0.019 * min(n, 40 - n)) for n in range(41)], "along the normal"),
        ([(0, 0, 0), (0.3, 0, 2), (0, 0, 4)], "beside the line"),
        ([(0, 0, 0), (20, 0, 2), (40, 0, 4)], "degrees off their normal"),
        ([(0, 0, 0), (20, 0, 2)], "degrees off their normal"),
        ([(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 1e6)], "irregular spacing"),
        ([(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 1e7 - 1)], "irregular spacing"),
        ([(0, 0, 0), (0, 0, 1e-4)], "lie at one place|tells them apart"),
    ],
)
def test_a_stack_off_its_grid_is_refused(
    tmp_path: Path, positions: list[tuple[float, ...]], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        read_series(write(tmp_path, slices(positions)))


def test_a_slice_that_is_turned_is_refused_by_its_corners(tmp_path: Path) -> None:
    """A thousandth of a radian is 0.3 mm at the far corner of 300 mm."""
    turn = np.array([[1, -1e-3, 0], [1e-3, 1, 0], [0, 0, 1.0]])
    datasets = stack(3, size=400) + stack(1, at=(0, 0, 6), basis=turn, size=400)
    with pytest.raises(FormatError, match=r"slice 4 \(.*turned against them"):
        read_series(write(tmp_path, datasets))


@pytest.mark.parametrize("scale", [1e-3, 1, 50])
def test_tolerances_follow_the_size_of_voxels(tmp_path: Path, scale: float) -> None:
    """Micrometres of a microscope, centimetres of a body: 0.4 of the spacing off the place is refused."""
    for name, third in (("good", 2.0), ("bad", 2.4)):
        datasets = slices([(0, 0, scale * z) for z in (0, 1, third, 3)])
        for dataset in datasets:
            dataset.PixelSpacing = [scale, scale]
        folder = write(tmp_path / name, datasets)
        if name == "good":
            check_found_once(read_series(folder), datasets, off=0.1 * min(scale, 1))
        else:
            with pytest.raises(FormatError, match="irregular spacing"):
                read_series(folder)


def test_noise_in_orientation_and_position_is_one_series_as_in_simpleitk(tmp_path: Path) -> None:
    """Values on both sides of any bucket's edge; SimpleITK stacks a series by its UID."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        datasets = stack(6, basis=basis_of(seed))
        for dataset in datasets:
            for name, noise in (
                ("ImageOrientationPatient", 2e-6),
                ("ImagePositionPatient", 2e-3),
                ("PixelSpacing", 1e-6),
            ):
                values = np.array(getattr(dataset, name), float)
                setattr(
                    dataset, name, [f"{v:.9f}" for v in values + rng.uniform(-noise, noise, values.shape)]
                )
        folder = write(tmp_path / str(seed), datasets)
        (image,) = read_series(folder)
        check_found_once([image], datasets, off=0.02)
        reader = SimpleITK.ImageSeriesReader()
        names = reader.GetGDCMSeriesFileNames(str(folder))
        reader.SetFileNames(names)
        assert reader.Execute().GetSize() == image.voxels.shape


def test_values_at_a_bucket_edge_are_one(tmp_path: Path) -> None:
    for name, values in (
        ("PixelSpacing", ([0.50005, 0.50005], [0.500049, 0.500049])),
        ("ImageOrientationPatient", ([1, 0.000499, 0, -0.000499, 1, 0], [1, 0.000501, 0, -0.000501, 1, 0])),
    ):
        datasets = stack(6)
        for number, dataset in enumerate(datasets):
            setattr(dataset, name, list(values[number // 3]))
        assert shapes(read_series(write(tmp_path / name, datasets))) == [(6,)]


@pytest.mark.parametrize("seed", range(5))
def test_clusters_are_those_of_a_naive_search_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 12, (60, 2)).round(1)
    near = np.abs(points[:, None] - points[None]).max(axis=2) <= 1
    for _ in range(60):
        near = near @ near
    labels = cluster(points)
    assert np.array_equal(near, labels[:, None] == labels[None])
    order = rng.permutation(60)
    assert np.array_equal(cluster(points[order]), labels[order])
    assert len(cluster(np.zeros((0, 2)))) == 0


def enhanced(
    path: Path, frames: Sequence[tuple[Sequence[float], dict[str, dict[str, Any]]]]
) -> list[Dataset]:
    """Write one multi-frame object; return for each frame a data set that says where it lies."""
    singles = slices([place for place, _ in frames])
    whole = slice_dataset((0, 0, 0), pixels=np.zeros((4, 4), np.int16))
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(whole, name)
    whole.NumberOfFrames = len(frames)
    whole.PixelData = b"".join(single.PixelData for single in singles)

    def item(values: dict[str, Any]) -> Items:
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, item(value) if isinstance(value, dict) else value)
        return Items([made])

    shared = item(
        {
            "PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            "PixelMeasuresSequence": {"PixelSpacing": [1.5, 0.75]},
        }
    )
    whole.SharedFunctionalGroupsSequence = shared
    groups = [
        item({"PlanePositionSequence": {"ImagePositionPatient": list(place)}, **more})[0]
        for place, more in frames
    ]
    whole.PerFrameFunctionalGroupsSequence = Items(groups)
    pydicom.dcmwrite(path, whole, enforce_file_format=True)
    return singles


def _groups(sequence: str, name: str, *values: Any) -> list[dict[str, dict[str, Any]]]:
    return [{sequence: {name: value}} for value in values]


GROUPS = {
    "EffectiveEchoTime": _groups("MREchoSequence", "EffectiveEchoTime", 12.5, 30.0),
    "TemporalPositionIndex": _groups("FrameContentSequence", "TemporalPositionIndex", 1, 2),
    "DiffusionBValue": _groups("MRDiffusionSequence", "DiffusionBValue", 0.0, 800.0),
    "FrameAcquisitionNumber": _groups("FrameContentSequence", "FrameAcquisitionNumber", 1, 2),
    "NominalCardiacTriggerDelayTime": _groups(
        "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", 0.0, 40.0
    ),
    "FrameType": _groups("MRImageFrameTypeSequence", "FrameType", ["ORIGINAL", "M"], ["ORIGINAL", "P"]),
    "DiffusionGradientOrientation": _groups(
        "MRDiffusionSequence",
        "DiffusionGradientDirectionSequence",
        {"DiffusionGradientOrientation": [0.0, 1, 0]},
        {"DiffusionGradientOrientation": [1.0, 0, 0]},
    ),
}


@pytest.mark.parametrize("tag", GROUPS)
def test_functional_groups_split_frames_as_headers_split_slices(tmp_path: Path, tag: str) -> None:
    frames = [((0, 0, 3 * k), group) for group in GROUPS[tag] for k in (2, 0, 1)]
    singles = enhanced(tmp_path / "e.dcm", frames)
    images = read_series(tmp_path / "e.dcm")
    check_found_once(images, singles, off=1e-3)
    is_apart = tag in ("EffectiveEchoTime", "FrameType")
    assert shapes(images) == ([(3,), (3,)] if is_apart else [(3, 2)])
    if tag == "EffectiveEchoTime":
        assert [image.row["echo_time"] for image in images] == [12.5, 30.0]
    moved = [
        ((0, 20 if group is GROUPS[tag][1] else 0, 3 * k), group) for group in GROUPS[tag] for k in range(3)
    ]
    singles = enhanced(tmp_path / "m.dcm", moved)
    try:
        check_found_once(read_series(tmp_path / "m.dcm"), singles, off=1e-3)
    except FormatError as error:
        assert "tells them apart" in str(error) or "beside the line" in str(error)


@st.composite
def scans(draw: st.DrawFn) -> tuple[list[Dataset], bool]:
    """Draw the slices of a series, and whether it has to be stored."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    basis, step, count = (
        basis_of(draw(st.integers(0, 99))),
        float(rng.uniform(0.6, 6)),
        draw(st.integers(2, 6)),
    )
    origin = rng.uniform(-300, 300, 3)
    tags = draw(st.sets(st.sampled_from(list(STACKS)), max_size=2))
    series: list[list[Dataset]] = []
    can_fail = False
    for choice in itertools.product((0, 1), repeat=len(tags)):
        shift = rng.uniform(-30, 30, 3) if draw(st.integers(0, 3)) == 0 else np.zeros(3)
        values = {tag: STACKS[tag][place] for tag, place in zip(sorted(tags), choice, strict=True)}
        series.append(stack(count, step, origin + shift, basis=basis, **values))
        can_fail |= bool(shift.any())  # stacks that only a soft tag tells apart may make an irregular grid
    can_fail |= len(tags) == 2 and not all(tag in ALWAYS for tag in tags)
    datasets = [dataset for part in series for dataset in part]
    damage = draw(st.sampled_from(["none", "none", "missing", "copy", "moved", "twin"]))
    victim = datasets[draw(st.integers(0, len(datasets) - 1))]
    if damage == "missing" and len(datasets) > 2:
        datasets.remove(victim)
    elif damage == "moved":
        place = np.array(victim.ImagePositionPatient, float) + rng.uniform(-3, 3, 3)
        victim.ImagePositionPatient = [f"{value:.10g}" for value in place]
    elif damage == "twin":  # another image at the same place
        place = np.linalg.solve(basis, np.array(victim.ImagePositionPatient, float))
        datasets += slices([place], basis=basis)
    return datasets, damage in ("none", "copy") and not can_fail


@pytest.mark.deep
@settings(
    max_examples=depth(60, 500), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(scan=scans(), seed=st.integers(0, 999))
def test_any_series_is_stored_at_its_place_or_refused(
    tmp_path_factory: pytest.TempPathFactory, scan: tuple[list[Dataset], bool], seed: int
) -> None:
    datasets, is_whole = scan
    folder = write(tmp_path_factory.mktemp("s"), datasets, seed)
    try:
        images = read_series(folder)
    except FormatError as error:
        assert error.kind == "bad_geometry"
        assert not is_whole, error
        return
    check_found_once(images, datasets)
    others = read_series(write(tmp_path_factory.mktemp("o"), datasets, seed + 1))
    for image, other in zip(images, others, strict=True):  # whatever the files are called
        assert np.array_equal(image.voxels, other.voxels)
        assert np.array_equal(image.orientation.affine, other.orientation.affine)
        assert image.meta == other.meta
