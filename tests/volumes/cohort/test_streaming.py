"""Writers of volumes that come one by one: what is listed, when it is visible, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volumes.support.checks import check_identity
from volumes.support.images import code_of
from voxtier.errors import ConfigError, NotFoundError
from voxtier.volumes import RadiObject, RadiObjectWriter, StreamingWriter, VolumeCollection
from voxtier.volumes.cohort import streaming

SUBJECTS = ["s2", "s1", "s3"]
META = {"obs_subject_id": [*SUBJECTS, "idle"], "age": [2, 1, 3, 9]}


def voxels_of(subject: str, series: str) -> Any:
    return np.full((4, 5, 6), code_of(subject, series), np.int16)


def write_series(writer: Any, series: str, subjects: list[str] = SUBJECTS) -> None:
    for subject in subjects:
        writer.write_volume(
            data=voxels_of(subject, series),
            obs_id=f"{subject}_{series}",
            obs_subject_id=subject,
            voxel_spacing=(1.0, 1.0, 2.5),
        )


def test_collections_become_visible_together(tmp_path: Path) -> None:
    with RadiObjectWriter(str(tmp_path / "r")) as writer:
        writer.write_obs_meta(META)
        for series in ("T1w", "FLAIR"):
            with writer.add_collection(series) as part:
                write_series(part, series)
                assert part.n_written == 3
            with pytest.raises(NotFoundError):
                RadiObject(tmp_path / "r")
        assert writer.collection_names == ["T1w", "FLAIR"]
    for radi in (RadiObject(tmp_path / "r"), writer.finalize()):
        assert radi.collection_names == ("T1w", "FLAIR")
        assert [row["age"] for row in radi.obs_meta.read().rows()] == [9, 1, 2, 3]
        check_identity(radi.T1w)
        check_identity(radi.FLAIR, "FLAIR")
        assert {row["voxel_spacing"] for row in radi.T1w.obs.read().rows()} == {"(1.0, 1.0, 2.5)"}
        radi.validate()
        assert radi.repair(dry_run=True) == []


def test_finalize_ends_the_block(tmp_path: Path) -> None:
    with RadiObjectWriter(tmp_path / "r") as writer:
        with writer.add_collection("T1w") as part:
            write_series(part, "T1w")
        radi = writer.finalize()
        check_identity(radi.T1w)
        with pytest.raises(ConfigError, match="inside"):
            writer.add_collection("more")
    assert RadiObject(tmp_path / "r").obs_subject_ids == sorted(SUBJECTS)


def test_an_error_leaves_no_store_and_the_same_work_can_be_repeated(tmp_path: Path) -> None:
    for error in (RuntimeError("stop"), KeyboardInterrupt()):
        with pytest.raises(type(error)), RadiObjectWriter(tmp_path / "r") as writer:
            with writer.add_collection("T1w") as part:
                write_series(part, "T1w")
            raise error
        with pytest.raises(NotFoundError):
            RadiObject(tmp_path / "r")
    with RadiObjectWriter(tmp_path / "r") as writer:
        with pytest.raises(RuntimeError), writer.add_collection("T1w") as part:
            write_series(part, "T1w", ["s1"])
            raise RuntimeError("this part only")
        assert writer.collection_names == []
        with writer.add_collection("T1w") as part:
            write_series(part, "T1w")
    check_identity(RadiObject(tmp_path / "r").T1w)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda w, part: write_series(part, "T1w", ["s1"]),  # written already
        lambda w, part: part.write_volume(voxels_of("s1", "x"), "s1_x", "stranger"),
        lambda w, part: part.write_volume(np.zeros((4, 5, 7)), "s1_x", "s1"),
        lambda w, part: w.add_collection("T1w"),
        lambda w, part: w.add_collection("a/b"),
        lambda w, part: w.write_obs_meta({"age": [1]}),
        lambda w, part: w.write_obs_meta({"obs_subject_id": [None], "age": [1]}),
        lambda w, part: w.write_obs_meta({"obs_subject_id": ["s1"], "voxtier_age": [1]}),
        lambda w, part: part.write_volume(voxels_of("s1", "x"), "s1_x", "s1", voxtier_model="v3"),
        lambda w, part: part.write_volume(voxels_of("s1", "x"), None, "s1"),
        lambda w, part: part.write_volume(voxels_of("s1", "x"), "s1_x", None),
        lambda w, part: part.write_volume(voxels_of("s1", "x"), "s1_x", "s1", score=np.array([1, 2])),
        lambda w, part: w.__enter__(),
        lambda w, part: w.add_collection("not entered").write_volume(voxels_of("s1", "x"), "s1_x", "s1"),
    ],
)
def test_what_cannot_be_stored_is_refused_at_once_and_the_rest_stays(tmp_path: Path, wrong: Any) -> None:
    with RadiObjectWriter(tmp_path / "r") as writer:
        writer.write_obs_meta(META)
        with writer.add_collection("T1w", shape=(4, 5, 6)) as part:
            write_series(part, "T1w")
            with pytest.raises(ConfigError):
                wrong(writer, part)
    radi = RadiObject(tmp_path / "r")
    assert radi.collection_names == ("T1w",)
    check_identity(radi.T1w)


def test_a_store_without_volumes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no volume"), RadiObjectWriter(tmp_path / "r") as writer:
        writer.write_obs_meta(META)
    with pytest.raises(NotFoundError):
        RadiObject(tmp_path / "r")


def test_an_error_of_one_collection_leaves_none_be_it_in_the_block_or_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for where in ("block", "end"):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            if where == "end":
                patch.setattr(streaming, "add_volumes", lambda *_: 1 / 0)
            with StreamingWriter(tmp_path / "c") as writer:
                write_series(writer, "T1w")
                assert (tmp_path / "c" / "volumes").is_dir()
                if where == "block":
                    raise ZeroDivisionError
        assert not (tmp_path / "c").exists()
        with pytest.raises(ConfigError, match="inside"):
            write_series(writer, "T2w")
    with StreamingWriter(tmp_path / "c") as writer:
        write_series(writer, "T1w")
        with pytest.raises(ConfigError, match="open already"):
            writer.__enter__()
    check_identity(writer.close())


def test_one_collection_takes_4d_volumes_of_its_grid(tmp_path: Path) -> None:
    with StreamingWriter(tmp_path / "c", shape=(4, 5, 6), name="bold") as writer:
        writer.write_batch(
            [(np.zeros((4, 5, 6, n), np.float32), f"s{n}_bold", f"s{n}", {"site": "x"}) for n in (2, 3)]
        )
        with pytest.raises(ConfigError, match="shape"):
            writer.write_volume(np.zeros((4, 5, 5)), "s9_bold", "s9")
        assert writer.n_written == 2
    found = VolumeCollection(tmp_path / "c")
    assert [volume.shape for volume in found] == [(4, 5, 6, 2), (4, 5, 6, 3)]
    with pytest.raises(ConfigError, match="inside"):
        writer.write_volume(np.zeros((4, 5, 6)), "s9_bold", "s9")
