"""Every edge case of files, shapes and affines: the bits of stock MONAI, or its error."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import logging
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("monai")

from monai.transforms import Compose

from tensors.engine import fuzz
from tensors.making.project import Project
from voxtier.errors import ConfigError, EngineLimitError
from voxtier.tensors import preprocess
from voxtier.tensors.dataset import HealingPersistentDataset
from voxtier.tensors.engine import source
from voxtier.tensors.engine.engine import Engine
from voxtier.tensors.engine.pipelines import configured_pipeline
from voxtier.tensors.engine.source import find_damage
from voxtier.tensors.identity.config import ImageProcessing
from voxtier.tensors.identity.pipeline import build_head, build_transforms

PROCESSING = ImageProcessing((1.5, 1.5, 3.0), (9, 8, 7), -1000, 1000, "LPS", -1.0, 1.0, "float32")
STRAIGHT = np.diag([-1.4, -1.4, 2.8, 1.0])


@pytest.fixture(autouse=True)
def quiet(one_thread: None) -> Any:
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("nibabel.global").setLevel(logging.WARNING)


def voxels(shape: tuple[int, ...] = (12, 11, 6), kind: Any = np.int16) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(-1200, 1200, shape).astype(kind)


def nifti(values: Any = None, affine: Any = STRAIGHT, **fields: Any) -> bytes:
    """The bytes of a file, with fields of the header as they are given."""
    values = voxels() if values is None else values
    image = nibabel.Nifti1Image(values, affine, dtype=values.dtype)
    content = bytearray(image.to_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    return bytes(content)


def judge(path: Path, processing: ImageProcessing = PROCESSING) -> str:
    """Make a tensor both ways: ``fused``, ``stock: reason`` or the error of both; anything else fails."""
    transforms = build_transforms(processing)
    item = {"image": path}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            expected: Any = fuzz.bits(transforms(item)["image"])
        except Exception as error:
            expected = type(error)
        engine = Engine(configured_pipeline(transforms, processing))
        reason = ""
        try:
            engine.fuse(item)
        except EngineLimitError as limit:
            reason = limit.reason
        except Exception as error:
            reason = type(error).__name__
        try:
            made, outcome = engine.make(item, lambda: dict(transforms(item)))
            found: Any = fuzz.bits(made["image"])
        except Exception as error:
            found = type(error)
    if isinstance(expected, type):
        assert found is expected, (path.name, found)
        assert reason, path.name
        return f"error: {expected.__name__}"
    assert found.shape == expected.shape, path.name
    assert np.array_equal(found, expected), path.name
    assert outcome.engine == ("stock" if reason else "fused")
    return f"stock: {reason}" if reason else "fused"


def test_all_48_orientations(tmp_path: Path) -> None:
    values = voxels((7, 6, 5))
    for number, (axes, signs) in enumerate(
        itertools.product(itertools.permutations(range(3)), itertools.product([-1, 1], repeat=3))
    ):
        affine = np.zeros((4, 4))
        affine[3] = 0, 0, 0, 1
        for axis, (world, sign) in enumerate(zip(axes, signs, strict=True)):
            affine[world, axis] = sign * (1.0, 1.7, 2.3)[axis]
        path = tmp_path / f"{number}.nii"
        path.write_bytes(nifti(values, affine))
        assert judge(path) == "fused", (axes, signs)


def turned(angle: float, kind: Any = np.float64) -> Any:
    affine = STRAIGHT.copy()
    affine[:2, :2] = (
        np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ affine[:2, :2]
    )
    return affine.astype(kind).astype(np.float64)


def changed(row: int, column: int, by: float) -> Any:
    affine = STRAIGHT.copy()
    affine[row, column] += by
    return affine


def qform(affine: Any) -> bytes:
    image = nibabel.Nifti1Image(voxels(), affine)
    image.set_sform(None, 0)
    image.set_qform(affine, 1)
    return bytes(image.to_bytes())


def rgb() -> bytes:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    return nifti(np.zeros((5, 4, 3), kind))


def with_extension() -> bytes:
    image = nibabel.Nifti1Image(voxels(), STRAIGHT)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 1000))
    return bytes(image.to_bytes())


def floats(*special: float) -> bytes:
    values = voxels(kind=np.float32) / 7
    values.reshape(-1)[: len(special) * 40 : 40] = special
    return nifti(values)


def swapped() -> bytes:
    image = nibabel.Nifti1Image(voxels(), STRAIGHT, nibabel.Nifti1Header(endianness=">"))
    return bytes(image.to_bytes())


def sized(*shape: int) -> bytes:
    return nifti(voxels(shape))


PLAIN = nifti()
WHOLE = gzip.compress(PLAIN, 1)
COPY = dataclasses.replace(PROCESSING, target_spacing=(1.4, 1.4, 2.8))
CASES: dict[str, tuple[bytes, str] | tuple[bytes, str, ImageProcessing]] = {
    # affines
    "turned": (nifti(affine=turned(0.3)), "fused"),
    "turned-single": (nifti(affine=turned(0.3, np.float32)), "fused"),
    "sheared": (nifti(affine=changed(1, 2, 0.7)), "fused"),
    "off-diagonal-1e-17": (nifti(affine=changed(0, 1, 1e-17)), "fused"),
    "off-diagonal-1e-6": (nifti(affine=changed(0, 1, 1e-6)), "fused"),
    "qform": (qform(STRAIGHT), "fused"),
    "qform-turned": (qform(turned(0.2)), "fused"),
    "no-affine": (nifti(sform_code=0, qform_code=0), "fused"),
    "singular": (nifti(srow_x=[0, 0, 0, 1]), ""),
    "nan-affine": (nifti(srow_x=[np.nan, 0, 0, 1]), ""),
    "huge-affine": (nifti(srow_x=[1e30, 0, 0, 1]), ""),
    # shapes
    "singleton": (sized(9, 8, 1), "fused"),
    "sizes-1-and-2": (sized(1, 2, 1), "fused"),
    "target-1": (sized(9, 8, 5), "fused", dataclasses.replace(PROCESSING, target_shape_dhw=(1, 1, 1))),
    "unchanged": (PLAIN, "fused", COPY),
    "within-tolerance": (
        nifti(affine=np.diag([-1.4005, -1.3995, 2.8, 1])),
        "fused",
        COPY,
    ),
    "beyond-tolerance": (nifti(affine=np.diag([-1.42, -1.4, 2.8, 1])), "fused", COPY),
    "equal-shape": (PLAIN, "fused", dataclasses.replace(COPY, target_shape_dhw=(12, 11, 6))),
    "one-axis-shrinks": (PLAIN, "fused", dataclasses.replace(COPY, target_shape_dhw=(12, 11, 3))),
    "half-to-even-up": (  # (4 - 1) * 1.5 / 1 + 1 = 5.5
        nifti(voxels((4, 6, 8)), np.diag([-1.5, -1.5, 1.5, 1])),
        "fused",
        dataclasses.replace(PROCESSING, target_spacing=(1.0, 1.0, 1.0)),
    ),
    # numbers
    "zeros": (floats(0.0, -0.0, -0.0), "fused", dataclasses.replace(COPY, clip_hu_min=0.0)),
    "nan": (floats(np.nan), "stock: NaN or infinite"),
    "infinite": (floats(np.inf, -np.inf), "stock: NaN or infinite"),
    "largest": (floats(3e38, -3e38), ""),
    "subnormal": (floats(1e-45, -1e-42), "fused"),
    "constant": (nifti(np.full((5, 4, 3), 7, np.int16)), "stock: constant"),
    "slope-0": (nifti(scl_slope=0.0, scl_inter=5.0), "fused"),
    "slope-nan": (nifti(scl_slope=np.nan, scl_inter=5.0), "fused"),
    "intercept": (nifti(scl_slope=1.0, scl_inter=-1024.0), "fused"),
    "slope": (nifti(scl_slope=0.1, scl_inter=-7.3), "fused"),
    "slope-infinite": (nifti(scl_slope=np.inf, scl_inter=0.0), ""),
    "slope-huge": (nifti(scl_slope=1e38, scl_inter=0.0), ""),
    "equal-limits": (
        PLAIN,
        "stock: clip_hu_min equals clip_hu_max",
        dataclasses.replace(PROCESSING, clip_hu_max=-1000),
    ),
    # files
    "big-endian": (swapped(), "fused"),
    "uint8": (nifti(voxels(kind=np.uint8)), "fused"),
    "uint32": (nifti(voxels(kind=np.uint32)), "fused"),
    "float64": (nifti(voxels(kind=np.float64) / 3), "fused"),
    "int64": (nifti(voxels(kind=np.int64)), "stock: voxels of type int64"),
    "rgb": (rgb(), ""),
    "2-d": (sized(9, 8), "stock: 2 axes"),
    "4-d": (sized(9, 8, 4, 2), "stock: 4 axes"),
    "4-d-of-one": (sized(9, 8, 4, 1), "stock: 4 axes"),
    "extension": (with_extension(), "fused"),
    "offset-odd": (nifti(vox_offset=353), ""),
    "offset-behind-the-end": (nifti(vox_offset=1e9), ""),
    "offset-fraction": (nifti(vox_offset=352.5), ""),
    "offset-nan": (nifti(vox_offset=np.nan), ""),
    "sizes-overflow": (
        nifti(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
        "error: RuntimeError",
    ),
    "long-axis": (
        sized(2500, 2, 3),
        "fused",
        dataclasses.replace(PROCESSING, target_shape_dhw=(1900, 2, 3)),
    ),
    "seven-axes": (nifti(dim=[7, *[32767] * 7]), ""),
    "no-axes": (nifti(dim=[0, 1, 1, 1, 1, 1, 1, 1]), ""),
    "negative-size": (nifti(dim=[3, -12, 11, 6, 1, 1, 1, 1]), ""),
    "zero-size": (nifti(dim=[3, 0, 11, 6, 1, 1, 1, 1]), ""),
    "magic": (nifti(magic=b"no!"), ""),
    "bits": (nifti(bitpix=8), ""),
    "type": (nifti(datatype=9999), ""),
    "short": (PLAIN[:-1], ""),
    "longer": (PLAIN + bytes(7), "fused"),
}
IN_BOTH = list(CASES)[list(CASES).index("big-endian") :]
"""What lies about a file differs by the way in which it is read."""
ZIPPED = {
    "cut": WHOLE[: len(WHOLE) // 2],
    "cut-in-the-trailer": WHOLE[:-3],
    "wrong-crc": WHOLE[:-8] + bytes(4) + WHOLE[-4:],
    "wrong-size": WHOLE[:-4] + b"\1\2\3\4",
    "flipped": WHOLE[:900] + bytes([WHOLE[900] ^ 4]) + WHOLE[901:],
    "two-members": gzip.compress(PLAIN[:700]) + gzip.compress(PLAIN[700:]),
    "member-of-nothing": WHOLE + gzip.compress(b""),
    "damaged-second-member": WHOLE + gzip.compress(b"abc")[:-6],
    "garbage": WHOLE + b"garbage",
    "zeros": WHOLE + bytes(100),
    "longer": gzip.compress(PLAIN + bytes(1000)),
    "short": gzip.compress(PLAIN[:-1]),
    "not-gzip": PLAIN,
    "empty": b"",
}


def test_affines_shapes_numbers_and_headers(tmp_path: Path) -> None:
    found = {}
    for name, (content, expected, *processing) in CASES.items():
        path = tmp_path / f"{name}.nii"
        path.write_bytes(content)
        outcome = judge(path, *processing)
        if expected and outcome != expected:
            found[name] = outcome
        if name in IN_BOTH:
            zipped = tmp_path / f"{name}.nii.gz"
            zipped.write_bytes(gzip.compress(content, 1))
            assert judge(zipped, *processing) == outcome, name
    assert not found


def test_damaged_gzip_files_give_what_monai_gives(tmp_path: Path) -> None:
    outcomes = {}
    for name, content in ZIPPED.items():
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(content)
        outcomes[name] = judge(path)
    assert outcomes["cut"].startswith("error")
    assert outcomes["two-members"] == "fused"


@pytest.mark.parametrize("shear", [3e-6, 9e-7, 3e-7, 1e-7, 1e-12])
def test_a_nearly_singular_affine_is_refused_by_every_engine(tmp_path: Path, shear: float) -> None:
    affine = np.eye(4)
    affine[:2, 1] = 1, shear
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(affine=affine))
    config = dataclasses.replace(Project(tmp_path / "p", []).config, processing=PROCESSING)
    found = []
    for engine in ("stock", "fused"):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for _ in range(4):  # the first two are made by both
                try:
                    found.append(fuzz.bits(preprocess(path, dataclasses.replace(config, engine=engine))))
                except ConfigError as error:
                    found.append(str(error))
    assert all(np.array_equal(each, found[0]) for each in found)
    assert shear > 1e-6 or "the affine of the volume is singular" in found[0]


DAMAGED = {"wrong-crc", "wrong-size", "damaged-second-member"}
"""Of `ZIPPED`, what MONAI makes and the checksums contradict."""


@pytest.mark.parametrize("name", ZIPPED)
def test_a_damaged_gzip_stream_is_refused_by_every_engine(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(ZIPPED[name])
    config = dataclasses.replace(Project(tmp_path / "p", []).config, processing=PROCESSING)
    try:
        expected: Any = build_transforms(PROCESSING)({"image": path})["image"]
    except Exception as error:
        expected = type(error)
    assert name not in DAMAGED or not isinstance(expected, type)
    for engine in ("stock", "fused", "check"):
        asked = dataclasses.replace(config, engine=engine)
        if isinstance(expected, type):
            with pytest.raises(expected):
                preprocess(path, asked, accept="damaged")
        else:
            assert np.array_equal(fuzz.bits(preprocess(path, asked, accept="damaged")), fuzz.bits(expected))
        if name in DAMAGED:
            with pytest.raises(ConfigError, match=r"the gzip stream is .*accept=\('damaged',\) makes it"):
                preprocess(path, asked)


def test_flipped_bits_that_inflate_are_damage(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.nii.gz", tmp_path / "a.nii"
    plain.write_bytes(PLAIN)
    path.write_bytes(WHOLE)
    assert [find_damage(each) for each in (plain, path)] == ["", ""]
    for place in range(600, len(WHOLE), 7):
        path.write_bytes(WHOLE[:place] + bytes([WHOLE[place] ^ 8]) + WHOLE[place + 1 :])
        assert find_damage(path), place
    for name in ("two-members", "member-of-nothing", "garbage", "zeros", "longer"):
        path.write_bytes(ZIPPED[name])
        assert find_damage(path) == "", name


def test_padding_and_members_may_end_anywhere_in_a_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(WHOLE + bytes(5) + WHOLE + bytes(4) + WHOLE[:-2])
    for piece in (1, 2, 3, 7, 64):
        monkeypatch.setattr(source, "_PIECE", piece)
        assert find_damage(path) == "the gzip stream is cut off"
    path.write_bytes(WHOLE + bytes(5) + WHOLE + bytes(4) + WHOLE)
    for piece in (1, 2, 3, 7, 64):
        monkeypatch.setattr(source, "_PIECE", piece)
        assert find_damage(path) == ""


def test_a_dataset_warns_of_what_monai_makes_of_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(ZIPPED["wrong-crc"])
    steps = Compose(build_head(PROCESSING, image_only=True))
    dataset = HealingPersistentDataset([{"image": str(path)}], steps, tmp_path / "cache")
    with pytest.warns(UserWarning, match=r"a\.nii\.gz: the gzip stream is damaged .*MONAI"):
        made = dataset[0]["image"]
    assert np.array_equal(fuzz.bits(made), fuzz.bits(steps({"image": str(path)})["image"]))


def test_pairs_of_files_and_nifti_2(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(voxels(), STRAIGHT), tmp_path / "pair.hdr")
    nibabel.save(nibabel.AnalyzeImage(voxels(), STRAIGHT), tmp_path / "analyze.hdr")
    nibabel.save(nibabel.Nifti2Image(voxels(), STRAIGHT), tmp_path / "second.nii.gz")
    assert judge(tmp_path / "pair.hdr") == "stock: the file is a Nifti1Pair"
    assert not judge(tmp_path / "analyze.img").startswith("fused")
    assert judge(tmp_path / "second.nii.gz") == "fused"
