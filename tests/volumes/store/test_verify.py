"""What a store says of itself: `verify`, `info`, and commands that need no id where there is one volume."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from volumes.support.checks import check_identity
from volumes.support.command_line import run
from volumes.support.images import code_of, nifti, pairs
from volumes.support.kills import kill_ingest
from voxtier.volumes import Dataframe, RadiObject, Volume, VolumeCollection
from voxtier.volumes.store.commits import Change
from voxtier.volumes.tiledb.locks import only_writer
from voxtier.volumes.tiledb.session import Session


@pytest.fixture
def images(tmp_path: Path) -> list[tuple[Path, str]]:
    return pairs(tmp_path / "in", ["b", "a"])


def test_verify_lists_every_volume_and_counts(tmp_path: Path, images: list[tuple[Path, str]]) -> None:
    RadiObject.from_niftis(tmp_path / "r", images={"T1w": images, "T2w": images[:1]})
    done = run("verify", tmp_path / "r")
    assert [line.split("  ")[1:] for line in done.out.splitlines()] == [
        ["status=ok", f"obs_id={obs_id}", "shape=5x6x7", "dtype=int16"]
        for obs_id in ("a_T1w", "b_T1w", "b_T2w")
    ]
    assert done.err == "3 volumes of 2 subjects in T1w, T2w, 0 findings\n"
    assert [row["obs_id"] for row in run("verify", tmp_path / "r", "--json").rows] == [
        "a_T1w",
        "b_T1w",
        "b_T2w",
    ]
    VolumeCollection.from_niftis(tmp_path / "c", images)
    assert run("verify", tmp_path / "c").err == "2 volumes, 0 findings\n"
    Volume.from_nifti(tmp_path / "v", images[0][0])
    assert run("verify", tmp_path / "v").err == "1 volume, 0 findings\n"
    assert "no store at" in run("verify", tmp_path / "nothing", code=2).err
    assert "no store at" in run("verify", tmp_path / "in", code=2).err


def test_verify_finds_a_volume_of_another_shape_than_its_row(
    tmp_path: Path, images: list[tuple[Path, str]]
) -> None:
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": images})
    radi.obs_meta.add_column("n", int, fill=1)  # a commit that is later than the row
    rows = Dataframe(f"{radi.uri}/collections/T1w/obs", timestamp=radi._cohort.snapshot.commit)
    rows.update({"obs_subject_id": ["a"], "obs_id": ["a_T1w"], "dimensions": ["(5, 6, 8)"]})
    done = run("verify", tmp_path / "r", code=1)
    assert "its row says (5, 6, 8)" in done.out
    assert done.err.endswith("1 finding\n")


@pytest.mark.parametrize("kind", ["radi_object", "collection"])
def test_verify_says_that_an_ingest_was_cut_off_and_removes_it_on_request(
    tmp_path: Path, images: list[tuple[Path, str]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "r"
    if kind == "radi_object":
        kill_ingest(root, images, at="a")
    else:
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(Change, "discard", lambda _: None)  # as if it were killed
            patch.setattr(Change, "commit", lambda _: 1 / 0)
            VolumeCollection.from_niftis(root, images[:1])
    (row,) = run("verify", root, "--json", code=1).rows
    assert (row["status"], row["volumes"], row["uri"]) == ("cut off", 1, str(root))
    assert "repeat it" in row["detail"]
    assert "cut off before its first commit" in run("info", root, code=2).err
    with only_writer(str(root), Session.of(None)):
        assert "is being written by" in run("verify", root, code=4).err
    assert run("verify", root, "--fix", "--json").rows == [
        {"uri": str(root), "status": "removed", "volumes": 1}
    ]
    assert not root.exists()
    if kind == "radi_object":
        kill_ingest(root, images, at="a")
        check_identity(RadiObject.from_niftis(root, images={"T1w": images}).T1w)
        assert run("verify", root).err == "2 volumes of 2 subjects in T1w, 0 findings\n"


def test_verify_repair_around_a_collection_keeps_the_collection(
    tmp_path: Path, images: list[tuple[Path, str]]
) -> None:
    own = VolumeCollection.from_niftis(tmp_path / "r" / "collections" / "T2w", images)
    kill_ingest(tmp_path / "r", images, at="a")
    assert run("verify", tmp_path / "r", "--json", code=1).rows[0]["volumes"] == 1
    run("verify", tmp_path / "r", "--fix")
    assert [path.name for path in (tmp_path / "r" / "collections").iterdir()] == ["T2w"]
    check_identity(VolumeCollection(own.uri))


def test_info_lists_the_ids_of_every_collection(tmp_path: Path, images: list[tuple[Path, str]]) -> None:
    RadiObject.from_niftis(tmp_path / "r", images={"T1w": images, "T2w": images[:1]})
    lines = run("info", tmp_path / "r").out.splitlines()
    assert lines[-3:] == [
        "obs_id=a_T1w  subject=a  shape=5x6x7",
        "obs_id=b_T1w  subject=b  shape=5x6x7",
        "obs_id=b_T2w  subject=b  shape=5x6x7",
    ]
    VolumeCollection.from_niftis(tmp_path / "c", images)
    assert "obs_id=a_T1w  subject=a  shape=5x6x7" in run("info", tmp_path / "c").out


@pytest.mark.parametrize("kind", ["cohort", "collection", "volume"])
def test_the_only_volume_needs_no_id(tmp_path: Path, kind: str) -> None:
    image = nifti(tmp_path / "sub-1_T1w.nii", "sub-1", "T1w")
    store = tmp_path / "r"
    if kind == "volume":
        Volume.from_nifti(store, image)
    else:
        maker = RadiObject if kind == "cohort" else VolumeCollection
        maker.from_niftis(store, image)
    run("slice", store, tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    for name in ("out.nii.gz", "out.NII", "folder"):
        written = Path(run("export", store, tmp_path / name).out.strip())
        assert written.exists()
        found = nib.load(written)
        assert (np.asarray(found.dataobj) == code_of("sub-1", "T1w")).all()
    assert (tmp_path / "folder").is_dir() is (name == "folder")
    assert run("stats", store, "--json").rows[0]["mean"] == code_of("sub-1", "T1w")
    run("bench", store, "--repeats", 1)


def test_one_of_several_must_be_chosen_and_a_wrong_id_is_answered_with_near_ones(
    tmp_path: Path, images: list[tuple[Path, str]]
) -> None:
    RadiObject.from_niftis(tmp_path / "r", images={"T1w": images})
    for command, output in (("slice", "s.png"), ("export", "x.nii.gz"), ("bench", None)):
        arguments = [command, tmp_path / "r", *([tmp_path / output] if output else [])]
        error = run(*arguments, code=2).err
        assert "holds 2 volumes: choose one with --obs (a_T1w, b_T1w)" in error
        assert "--obs takes one of a_T1w" in run(*arguments, "--obs", "a_t1w", code=2).err
    assert not (tmp_path / "s.png").exists()
    run("export", tmp_path / "r", tmp_path / "named", "--obs", "a_T1w")
    assert (tmp_path / "named.nii.gz").exists()
    run("export", tmp_path / "r", tmp_path / "dotted.v2")
    assert sorted(path.name for path in (tmp_path / "dotted.v2").iterdir()) == [
        "a_T1w.nii.gz",
        "b_T1w.nii.gz",
    ]


def test_volumes_whose_file_names_would_be_one_are_not_exported_over_each_other(tmp_path: Path) -> None:
    RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["a/b", "a-b"])})
    assert "one file name" in run("export", tmp_path / "r", tmp_path / "out", code=2).err
    assert not (tmp_path / "out").exists()


def test_an_ingest_whose_output_is_piped_shows_no_progress(
    tmp_path: Path, images: list[tuple[Path, str]]
) -> None:
    done = run("ingest", tmp_path / "r", tmp_path / "in")
    assert done.err == ""
    assert done.out.startswith("store=")
