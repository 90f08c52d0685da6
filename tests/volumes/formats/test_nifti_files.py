"""NIfTI files as people have them: any suffix, pairs, padding, signs with two readings; dry runs."""

from __future__ import annotations

import gzip
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from click.testing import CliRunner, Result

from voxtier.cli.commands import cli
from voxtier.errors import FormatError, IngestError, SourceError
from voxtier.volumes import RadiObject, Volume
from voxtier.volumes.formats.nifti import read_header, read_nifti

AFFINE = np.array([[2.0, 0, 0, 5], [0, 3, 0, -6], [0, 0, 4, 7], [0, 0, 0, 1]])
VOXELS = np.arange(120, dtype=np.int16).reshape(4, 5, 6)


def image(kind: Any = nib.Nifti1Image) -> Any:
    return kind(VOXELS, AFFINE)


def check(path: Path, store: Path) -> None:
    """The file gives the voxels and the affine of nibabel, and an export gives them again."""
    found = read_nifti(path)
    assert np.array_equal(found.voxels, VOXELS)
    assert np.array_equal(found.orientation.affine, AFFINE)
    volume = Volume.from_nifti(store, path)
    back = nib.load(volume.to_nifti(store.with_name(f"{store.name}-back.nii.gz")))
    assert np.array_equal(np.asanyarray(back.dataobj), VOXELS)
    assert np.array_equal(back.affine, AFFINE)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(
    "name",
    ["a.nii", "a.nii.gz", "A.NII", "A.NII.GZ", "a.Nii.Gz", "a.gz", "a", "a.NII.gz", "a.img.nii", "ü.nii"],
)
def test_the_content_says_whether_a_file_is_packed(tmp_path: Path, name: str, is_packed: bool) -> None:
    content = image().to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if is_packed else content)
    check(tmp_path / name, tmp_path / "v")


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("named", ["hdr", "img"])
@pytest.mark.parametrize("suffixes", ["hdr img", "HDR IMG", "hdr.gz img.gz", "hdr img.gz", "HDR.GZ img"])
def test_a_pair_is_one_image_under_either_name(tmp_path: Path, kind: Any, named: str, suffixes: str) -> None:
    nib.save(image(kind), tmp_path / "made.hdr")
    for plain, suffix in zip(("made.hdr", "made.img"), suffixes.split(), strict=True):
        content = (tmp_path / plain).read_bytes()
        packed = gzip.compress(content) if suffix.lower().endswith("gz") else content
        (tmp_path / f"a.{suffix}").write_bytes(packed)
        (tmp_path / plain).unlink()
    path = tmp_path / f"a.{suffixes.split()[named == 'img']}"
    check(path, tmp_path / "v")
    oracle = nib.load(path) if suffixes in ("hdr img", "hdr.gz img.gz") else None
    assert oracle is None or np.array_equal(oracle.get_fdata(), VOXELS)


def test_voxels_of_a_pair_may_begin_anywhere(tmp_path: Path) -> None:
    nib.save(image(nib.Nifti1Pair), tmp_path / "a.hdr")
    header = bytearray((tmp_path / "a.hdr").read_bytes())
    header[108:112] = np.float32(32).tobytes()
    (tmp_path / "a.hdr").write_bytes(header)
    (tmp_path / "a.img").write_bytes(bytes(32) + (tmp_path / "a.img").read_bytes())
    check(tmp_path / "a.img", tmp_path / "v")
    (tmp_path / "a.img").write_bytes((tmp_path / "a.img").read_bytes()[:-1])
    with pytest.raises(FormatError, match="the file ends at"):
        read_nifti(tmp_path / "a.hdr")


def test_half_a_pair_and_other_headers_are_refused_by_name(tmp_path: Path) -> None:
    nib.save(image(nib.Nifti1Pair), tmp_path / "a.hdr")
    shutil.copy(tmp_path / "a.hdr", tmp_path / "b.hdr")
    shutil.copy(tmp_path / "a.img", tmp_path / "c.img")
    nib.save(nib.AnalyzeImage(VOXELS, None), tmp_path / "d.hdr")
    for name, message in (
        ("b.hdr", "without the .img file"),
        ("c.img", "without the .hdr file"),
        ("d.hdr", "Analyze"),
        ("d.img", "Analyze"),
    ):
        with pytest.raises(FormatError, match=message):
            read_nifti(tmp_path / name)
    with pytest.raises(SourceError, match="no file"):
        read_header(tmp_path / "e.hdr")


def test_a_folder_gives_each_pair_once_and_no_analyze_image(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    nib.save(image(nib.Nifti1Pair), folder / "p1_T1w.hdr")
    (folder / "P2_T1w.NII.GZ").write_bytes(gzip.compress(image().to_bytes()))
    nib.save(nib.AnalyzeImage(VOXELS, None), folder / "old_T1w.hdr")
    (folder / "p1_T1w.json").write_text("{}")
    for number, source in enumerate((folder, f"{folder}/p1*")):
        radi = RadiObject.from_niftis(tmp_path / str(number), niftis=source)
        assert radi.all_obs_ids == (["P2_T1w", "p1_T1w"] if number == 0 else ["p1_T1w"])
    done = ingest(tmp_path / "cli", folder / "p1_T1w.hdr", folder / "p1_T1w.img", folder / "P2_T1w.NII.GZ")
    assert done.return_value == 0
    assert RadiObject(tmp_path / "cli").all_obs_ids == ["P2_T1w", "p1_T1w"]


@pytest.mark.parametrize("padding", [1, 512, 300_000])
def test_zeros_after_and_between_gzip_members_are_padding(tmp_path: Path, padding: int) -> None:
    """As in Python's gzip (and gzip(1), for tapes); anything else behind the last member is damage."""
    content = image().to_bytes()
    one = gzip.compress(content)
    two = gzip.compress(content[:400]) + bytes(padding) + gzip.compress(content[400:])
    for name, packed in (("one", one), ("two", two)):
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(packed + bytes(padding))
        assert gzip.decompress(path.read_bytes()) == content
        check(path, tmp_path / name)
        for behind in (
            b"x",
            b"\x1f\x8b",
            bytes(padding) + b"\x1f",
            bytes(padding) + packed[:-3],
        ):
            path.write_bytes(packed + behind)
            with pytest.raises(FormatError):
                read_nifti(path)


def fields(**values: Any) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        header = nib.Nifti1Header()
        header.set_data_shape(VOXELS.shape)
        header.set_data_dtype(np.int16)
        for name, value in values.items():
            header[name] = value
        header["vox_offset"], header["magic"] = 352, b"n+1"
        path.write_bytes(header.binaryblock.ljust(352, b"\0") + VOXELS.tobytes(order="F"))
        return path

    return write


QFORM, SFORM = {"qform_code": 1, "sform_code": 0}, {"qform_code": 0, "sform_code": 1}
ROWS = {"srow_x": [2, 0, 0, 0], "srow_y": [0, 3, 0, 0], "srow_z": [0, 0, 4, 0]}
AMBIGUOUS = {
    "qform, x": (fields(pixdim=[1, -2, 3, 4, 0, 0, 0, 0], **QFORM), "itk"),
    "qform, y and z": (fields(pixdim=[1, 2, -3, -4, 0, 0, 0, 0], **QFORM), "itk"),
    "qform, x, turned": (
        fields(pixdim=[-1, -2, 3, 4, 0, 0, 0, 0], quatern_b=0.5, quatern_c=0.5, quatern_d=0.5, **QFORM),
        "itk",
    ),
    "qfac of -0.5": (fields(pixdim=[-0.5, 2, 3, 4, 0, 0, 0, 0], **QFORM), "itk"),
    "sform": (fields(pixdim=[1, -2, 3, 4, 0, 0, 0, 0], **SFORM, **ROWS), "nibabel"),
    "both": (fields(pixdim=[1, -2, 3, 4, 0, 0, 0, 0], qform_code=1, sform_code=1, **ROWS), "nibabel"),
    "neither": (fields(pixdim=[1, -2, 3, 4, 0, 0, 0, 0], qform_code=0, sform_code=0), "nibabel"),
}


def affine_of_itk(path: Path) -> np.ndarray:
    read = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(read.GetDirection()).reshape(3, 3) * read.GetSpacing()
    affine[:3, 3] = read.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_signs_that_programs_read_differently_are_warned_of(tmp_path: Path, case: str) -> None:
    write, taken = AMBIGUOUS[case]
    path = write(tmp_path / "a.nii")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_header(path).orientation.affine
    told = [str(warning.message) for warning in caught]
    assert [("ambiguous" in text, "left and right" in text) for text in told[:1]] == [(True, True)]
    assert len(told) == (2 if case == "both" else 1)  # there the qform mirrors the sform, which is told too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, itk = nib.load(path).affine, affine_of_itk(path)
    if case != "both":  # there it depends on which of the two a version of ITK prefers
        assert not np.allclose(theirs[:3, :3], itk[:3, :3])  # else there were nothing to warn of
    np.testing.assert_allclose(found[:3, :3], (itk if taken == "itk" else theirs)[:3, :3], atol=1e-5)


@pytest.mark.parametrize("pixdim", [[1, 2, 3, 4], [-1, 2, 3, 4], [0, 2, 3, 4]])
@pytest.mark.parametrize("codes", [QFORM, SFORM | ROWS])
def test_signs_that_all_read_alike_are_not_warned_of(
    tmp_path: Path, pixdim: list[int], codes: dict[str, Any]
) -> None:
    path = fields(pixdim=[*pixdim, 0, 0, 0, 0], **codes)(tmp_path / "a.nii")
    found = read_header(path).orientation.affine
    np.testing.assert_allclose(found, nib.load(path).affine, atol=1e-5)


def test_a_qform_that_mirrors_the_sform_is_named_as_a_mirror(tmp_path: Path) -> None:
    path = fields(
        pixdim=[1, 2, 3, 4, 0, 0, 0, 0], qform_code=1, sform_code=1, **ROWS | {"srow_x": [-2, 0, 0, 6]}
    )(tmp_path / "a.nii")
    with pytest.warns(UserWarning, match="one mirrors the other"):
        read_header(path)


def ingest(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["volume", "ingest", *map(str, arguments)], standalone_mode=False)


def damaged(path: Path) -> Path:
    path.write_bytes(gzip.compress(image().to_bytes())[:-9])
    return path


def good(path: Path) -> Path:
    path.write_bytes(image().to_bytes())
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {
    "good": lambda d: good(d / "p1_T1w.nii"),
    "cut gzip": lambda d: damaged(d / "p1_T1w.nii.gz"),
    "good and cut": lambda d: (good(d / "p1_T1w.nii"), damaged(d / "p2_T1w.nii.gz"))[0].parent,
    "upper case": lambda d: good(d / "P1_T1W.NII"),
    "padded": lambda d: _padded(d / "p1_T1w.nii.gz"),
    "mirrored": lambda d: AMBIGUOUS["qform, x"][0](d / "p1_T1w.nii"),
    "nothing": lambda d: d / "missing_T1w.nii",
    "empty": lambda d: _empty(d / "p1_T1w.nii"),
}


def _padded(path: Path) -> Path:
    path.write_bytes(gzip.compress(image().to_bytes()) + bytes(512))
    return path


def _empty(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("case", SOURCES)
def test_a_dry_run_says_what_the_run_says(tmp_path: Path, case: str, skip: bool) -> None:
    """The same refusals, warnings and exit code, the same observations; nothing is written."""
    folder = tmp_path / "in"
    folder.mkdir()
    source = SOURCES[case](folder)
    options = ["--json", *(["--skip-errors"] if skip else [])]
    dry = ingest(tmp_path / "r", source, "--dry-run", *options)
    assert not (tmp_path / "r").exists()
    run = ingest(tmp_path / "r", source, *options)
    assert dry.return_value == run.return_value
    assert (type(dry.exception), str(dry.exception)) == (type(run.exception), str(run.exception))
    said, done = ([json.loads(line) for line in each.stdout.splitlines()] for each in (dry, run))
    would = [row["obs_id"] for row in said if row["status"] == "would ingest"]
    told = [row for row in said if row["status"] != "would ingest"]
    assert told == [row for row in done if "status" in row]
    if run.exception is None:
        assert would == RadiObject(tmp_path / "r").all_obs_ids
        assert run.return_value == (3 if "cut" in case else 0)
        again = ingest(tmp_path / "r", source, "--dry-run", *options)
        assert "already exists" in str(again.exception)
        assert "--overwrite" in str(again.exception)
        for more in ([], ["--dry-run"]):
            appended = ingest(tmp_path / "r", source, "--append", *more, *options)
            assert "already in the store" in str(appended.exception)
    else:
        assert isinstance(run.exception, IngestError | SourceError | LookupError)


def test_a_refused_image_is_named_where_others_are_stored(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    SOURCES["good and cut"](source)
    done = ingest(tmp_path / "r", source, "--skip-errors", "--json")
    assert done.return_value == 3
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(row["path"]).name for row in rows if row.get("status") == "left out"] == ["p2_T1w.nii.gz"]
    assert rows[-1]["volumes"] == 1
