"""The command line: what it prints, writes and exits with."""

from __future__ import annotations

import base64
import errno
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from support.small_disk import without_bytecode
from volumes.support.command_line import run
from volumes.support.images import code_of, pairs, series
from voxtier.errors import SourceError
from voxtier.volumes import RadiObject, StreamingWriter, Volume
from voxtier.volumes.reading.pictures import encode_png, to_grey
from voxtier.volumes.tiledb import arrays


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "in").mkdir()
    for path, subject in pairs(folder / "raw", ["b", "a"], shape=(20, 24, 28)):
        path.rename(folder / "in" / f"{subject}_T1w.nii")
    run("ingest", folder / "r", folder / "in")
    return folder


def test_ingest_info_and_stats_name_every_volume(store: Path) -> None:
    assert "2 subjects, 1 collection: [T1w]" in run("info", store / "r").out
    rows = [json.loads(line) for line in run("info", store / "r", "--json").out.splitlines()]
    assert [row["obs_id"] for row in rows] == ["a_T1w", "b_T1w"]
    assert rows[0]["shape"] == "20x24x28"
    drawn = run("info", store / "r", "--obs", "a_T1w").out
    assert "1 of 28 tiles" in drawn
    assert "28 of 28 tiles" in drawn
    assert "+--" in drawn
    found = json.loads(run("stats", store / "r", "--obs", "b_T1w", "--json").out)
    assert found["mean"] == code_of("b", "T1w")


def test_a_slice_is_a_png_of_the_plane(store: Path) -> None:
    output = store / "s.png"
    run("slice", store / "r", output, "--obs", "a_T1w", "--plane", "coronal", "--index", 3)
    content = output.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(content[16:20], "big") == 20
    assert int.from_bytes(content[20:24], "big") == 28
    run("slice", store / "r", output, "--obs", "a_T1w", "--plane", "coronal", "--mm")
    content = output.read_bytes()  # voxels of 1 by 3 mm
    assert (int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")) == (20, 84)
    assert "outside" in run("slice", store / "r", output, "--obs", "a_T1w", "--index", 99, code=2).err
    # A full disk leaves the picture that is there, and nothing beside it.
    names = set(store.iterdir())
    result = subprocess.run(
        [sys.executable, "-m", "voxtier", "volumes", "slice", store / "r", output, "--obs", "a_T1w"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)),
        env=without_bytecode(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert (output.read_bytes(), set(store.iterdir())) == (content, names)


@pytest.mark.parametrize("knows", [True, False])
def test_a_slice_follows_the_patient_where_the_volume_knows_how_it_lies(tmp_path: Path, knows: bool) -> None:
    affine = np.array([[0, 0, 2.0, 0], [1, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])  # grows to A, S, R
    voxels = np.arange(8 * 6 * 4, dtype=np.int16).reshape(8, 6, 4)
    volume = Volume.from_numpy(tmp_path / "v", voxels, affine=affine if knows else None)
    planes = {"axial": voxels[:, 2], "sagittal": voxels[..., 2], "coronal": voxels[2]}
    if not knows:
        planes = {"axial": voxels[..., 2], "sagittal": voxels[2], "coronal": voxels[:, 2]}
    for name, plane in planes.items():
        done = run("slice", tmp_path / "v", tmp_path / "p.png", "--plane", name, "--index", 2)
        assert (tmp_path / "p.png").read_bytes() == encode_png(to_grey(plane)), name
        assert f"the {'patient' if knows else 'array'}'s {name} plane, 2 along" in done.err
    run("slice", tmp_path / "v", tmp_path / "p.png")  # the middle
    middle = voxels[:, 3] if knows else voxels[..., 2]
    assert (tmp_path / "p.png").read_bytes() == encode_png(to_grey(middle))
    assert base64.b64encode(encode_png(to_grey(middle))).decode() in volume._repr_html_()
    if knows:
        run("slice", tmp_path / "v", tmp_path / "p.png", "--mm", "--plane", "sagittal")
        content = (tmp_path / "p.png").read_bytes()  # voxels of 1 by 3 mm
        assert (int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")) == (8, 18)


def make_mixed(folder: Path) -> Path:
    """Write a collection of which NIfTI lacks the types of two volumes, and one has no numbers."""
    with StreamingWriter(folder / "mixed") as writer:
        for name, voxels in {
            "a": np.full((3, 3, 3), np.nan, np.float32),
            "b": np.ones((3, 3, 3), bool),
            "c/d": np.ones((3, 3, 3), np.float16),
            "e/f": np.full((3, 3, 3), 5, np.int16),
        }.items():
            writer.write_volume(voxels, name, "s")
    return folder / "mixed"


def test_one_volume_of_several_that_fails_is_told_and_the_others_are_done(tmp_path: Path) -> None:
    store = make_mixed(tmp_path)
    done = run("export", store, tmp_path / "out", code=3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nii.gz", "e-f.nii.gz"]
    assert "voxtier: b: " in done.err and "bool" in done.err and "2 of 4 volumes failed" in done.err
    rows = run("export", store, tmp_path / "out", "--json", code=3).rows
    assert [row.get("status") for row in rows] == [None, "failed", "failed", None]
    assert rows[1]["obs_id"] == "b" and "bool" in rows[1]["detail"]
    rows = run("stats", store, "--json", code=3).rows
    assert [row.get("status") for row in rows] == ["failed", None, None, None]
    assert rows[3]["mean"] == 5
    run("export", store, tmp_path / "b.nii.gz", "--obs", "b", code=1)

    damaged = next(store.rglob("e*f*/__schema"))
    shutil.rmtree(damaged)
    arrays.forget(str(damaged.parent))  # as in a new process
    for command in ("info", "stats", "consolidate", "vacuum"):
        rows = run(command, store, "--json", code=3).rows
        assert [row["obs_id"] for row in rows[:3]] == ["a", "b", "c/d"]
        assert rows[3]["status"] == "failed" and rows[3]["uri"] == str(damaged.parent), command
        assert rows[3]["obs_id"] == damaged.parent.name, command


def test_where_each_volume_fails_the_exit_code_says_so(tmp_path: Path) -> None:
    with StreamingWriter(tmp_path / "masks") as writer:
        for name in "ab":
            writer.write_volume(np.ones((3, 3, 3), bool), name, name)
    assert "2 of 2 volumes failed" in run("export", tmp_path / "masks", tmp_path / "out", code=1).err


def test_statistics_of_small_and_of_large_numbers_keep_their_digits(tmp_path: Path) -> None:
    small = np.linspace(7.5e-4, 9.1e-4, 64).astype(np.float32).reshape(4, 4, 4)
    for name, voxels in {"small": small, "large": np.full((4, 4, 4), 12_345_678, np.int32)}.items():
        volume = Volume.from_numpy(tmp_path / name, voxels)
        wanted = volume.get_statistics([1, 25, 75, 99])
        found = json.loads(run("stats", tmp_path / name, "--json").out)
        assert {key: found[key] for key in wanted} == wanted
        shown = dict(part.split("=") for part in run("stats", tmp_path / name).out.split())
        assert {key: float(shown[key]) for key in wanted} == pytest.approx(wanted, rel=1e-6)
    assert (shown["max"], shown["std"]) == ("12345678", "0")


def test_volumes_of_every_type_are_described_and_drawn_or_refused(tmp_path: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    for name, voxels in {
        "mask": np.ones((4, 4, 4), bool),
        "holes": np.array([np.nan, -np.inf, 1, np.inf] * 16, np.float32).reshape(4, 4, 4),
    }.items():
        Volume.from_numpy(tmp_path / name, voxels)
        found = json.loads(run("stats", tmp_path / name, "--json").out, parse_constant=refuse)
        assert found["median"] == 1
        run("slice", tmp_path / name, tmp_path / "x.png")
    assert (found["max"], found["mean"], found["nan_count"]) == (None, None, 16)
    Volume.from_numpy(tmp_path / "waves", np.full((4, 4, 4), 1j, np.complex64))
    assert "complex" in run("slice", tmp_path / "waves", tmp_path / "x.png", code=2).err
    assert "complex" in run("stats", tmp_path / "waves", code=1).err
    run("bench", tmp_path / "mask", "--repeats", 0, code=2)


def test_exit_codes(store: Path, tmp_path: Path) -> None:
    run("info", tmp_path / "none", code=2)
    run("slice", store / "r", tmp_path / "x.png", code=2)
    run("info", store / "r", "--obs", "zzz", code=2)
    run("ingest", store / "r", store / "in", code=2)
    run("frobnicate", code=2)
    run("verify", store / "r")
    (tmp_path / "bad_T1w.nii").write_bytes(b"no")
    (tmp_path / "good_T1w.nii").write_bytes((store / "in/a_T1w.nii").read_bytes())
    run("ingest", tmp_path / "n", tmp_path / "bad_T1w.nii", tmp_path / "good_T1w.nii", code=1)
    assert "would ingest" in run("ingest", tmp_path / "m", tmp_path / "good_T1w.nii", "--dry-run").out
    assert not (tmp_path / "m").exists()
    command = [sys.executable, "-m", "voxtier", "volumes", "ingest", "--skip-errors"]
    files = [tmp_path / "bad_T1w.nii", tmp_path / "good_T1w.nii"]
    done = subprocess.run([*command, tmp_path / "m", *files], capture_output=True, text=True)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_verify_finds_a_damaged_volume(store: Path, tmp_path: Path) -> None:
    run("ingest", tmp_path / "r", store / "in")
    victim = next(Path(tmp_path / "r").rglob("a0.tdb"))
    victim = next(p for p in Path(tmp_path / "r").glob("collections/T1w/volumes/a_*/__fragments/*/a0.tdb"))
    content = bytearray(victim.read_bytes())
    content[40:60] = b"\xff" * 20
    victim.write_bytes(content)
    found = run("verify", tmp_path / "r", "--json", code=1)
    assert [json.loads(line)["status"] for line in found.out.splitlines()].count("bad") == 1


def test_what_verify_cannot_read_is_no_finding(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("ingest", tmp_path / "r", store / "in")
    failures = [SourceError("io_error", None, "there is not enough memory", errno.ENOMEM)]
    read = Volume.to_numpy

    def read_or_fail(volume: Volume, **how: Any) -> Any:
        if failures:
            raise failures.pop()
        return read(volume, **how)

    monkeypatch.setattr(Volume, "to_numpy", read_or_fail)
    done = run("verify", tmp_path / "r", "--json", code=3)
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["status"] for row in rows].count("unread") == 1


def test_replicas_are_shown_verified_and_renewed(store: Path, tmp_path: Path) -> None:
    run("ingest", tmp_path / "r", store / "in", "--replica", "sagittal", "--replica", "coronal")
    rows = [json.loads(line) for line in run("info", tmp_path / "r", "--json").out.splitlines()]
    assert rows[0]["replicas"] == "sagittal, coronal"
    drawn = run("info", tmp_path / "r", "--obs", "a_T1w").out
    assert "1 of 20 tiles, 1 plane thick (1.0 cells" in drawn
    assert "of the replica coronal" in drawn
    Volume(rows[0]["uri"] + "/replica-sagittal").update((0, 0, 0), np.ones((2, 2, 2), np.int16))
    found = run("verify", tmp_path / "r", code=1)
    assert "replica sagittal is stale" in found.out
    run("verify", tmp_path / "r", "--fix")
    run("verify", tmp_path / "r")


def test_export_consolidate_and_dicom_ingest_give_files_fragments_and_volumes(
    store: Path, tmp_path: Path
) -> None:
    run("export", store / "r", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_T1w.nii.gz", "b_T1w.nii.gz"]
    image = nib.load(tmp_path / "out/a_T1w.nii.gz")
    assert (np.asarray(image.dataobj) == code_of("a", "T1w")).all()
    assert "merged=False" in run("consolidate", store / "r").out
    run("vacuum", store / "r")
    series(tmp_path / "p7", [(0, 0, k) for k in range(3)])
    run("ingest", tmp_path / "d", tmp_path / "p7")
    assert "p7_CT" in run("info", tmp_path / "d", "--json").out
    assert (
        json.loads(run("bench", tmp_path / "d", "--obs", "p7_CT", "--repeats", 2, "--json").out)["axial"] > 0
    )


def test_series_of_many_patients_in_folders_of_one_name_are_refused_with_the_way_to_name_subjects(
    tmp_path: Path,
) -> None:
    """The layout of an export: patient, study, series."""
    for patient in ("patient-7", "patient-8"):
        series(tmp_path / patient / "study-1" / "CT-2", [(0, 0, k) for k in range(3)], PatientID="secret")
    first, second = (tmp_path / f"patient-{n}" / "study-1" / "CT-2" for n in (7, 8))
    above = run("ingest", tmp_path / "d", tmp_path / "patient-7", code=1).err
    assert f"subfolders are not read): name the folder that holds the files, as {first}; " in above
    both = run("ingest", tmp_path / "d", first, second, code=2).err
    run("ingest", tmp_path / "d", first)
    again = run("ingest", tmp_path / "d", "--append", second, code=2).err
    assert f"CT-2_CT ({first}, {second}); " in both
    assert f"CT-2_CT ({second}); " in again
    for told in (above, both, again):
        assert "--subject" in told
        assert "secret" not in told
    run("ingest", tmp_path / "d", "--append", second, "--subject", "patient-8")
    assert set(RadiObject(str(tmp_path / "d")).all_obs_ids) == {"CT-2_CT", "patient-8_CT"}


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_name_that_does_not_tell_who_or_what_is_left_out_where_errors_are_skipped(
    tmp_path: Path, dry: tuple[str, ...]
) -> None:
    for number, (path, _) in enumerate(pairs(tmp_path / "raw", ["a", "b", "c", "d"])):
        path.rename(tmp_path / "raw" / ["a_T1w.nii", "a_seg.nii", "image7.nii", "T1w.nii"][number])
    (tmp_path / "raw/T1w.nii").rename(tmp_path / "raw/_T1w.nii")
    for name, what in (("image7", "states no series"), ("_T1w", "does not tell the subject")):
        only = run("ingest", tmp_path / "r", tmp_path / f"raw/{name}.nii", "--skip-errors", *dry, code=2).err
        assert f"{name}.nii: the name {what}" in only
    run("ingest", tmp_path / "r", tmp_path / "raw", *dry, code=2)
    assert not (tmp_path / "r").exists()
    done = run("ingest", tmp_path / "r", tmp_path / "raw", "--skip-errors", "--json", *dry, code=3)
    left_out = {Path(row["path"]).name: row["reason"] for row in done.rows if row.get("status") == "left out"}
    assert set(left_out) == {"image7.nii", "_T1w.nii"}
    assert left_out["image7.nii"] == "the name states no series"
    if not dry:
        assert set(RadiObject(str(tmp_path / "r")).all_obs_ids) == {"a_T1w", "a_seg"}


def test_stores_show_themselves_in_notebooks(store: Path) -> None:
    radi = RadiObject(str(store / "r"))
    assert "<td>T1w</td><td>2</td><td>20x24x28</td>" in radi._repr_html_()
    assert radi.T1w._repr_html_().count("<tr>") == 3
    volume = radi.T1w.loc["a_T1w"]._repr_html_()
    assert "<b>a_T1w</b>" in volume
    assert "data:image/png;base64,iVBO" in volume


def test_names_of_folders_and_files_print_on_one_line(tmp_path: Path) -> None:
    """A line break in a name would make a row of its own, an escape code a colour of the terminal."""
    name = "in\nsub-9  path=etc  status=stored\x1b[31m"
    (tmp_path / name).mkdir()
    for path, subject in pairs(tmp_path / "raw", ["b"]):
        path.rename(tmp_path / name / f"{subject}_T1w.nii")
    for done in (
        run("ingest", tmp_path / "store", tmp_path / name),
        run("info", tmp_path / name, code=2),
        run("verify", tmp_path / name, code=2),
    ):
        printed = (done.out + done.err).split("\n")
        assert not any("\x1b" in line or line.startswith("sub-9") for line in printed), printed
