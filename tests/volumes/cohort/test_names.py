"""What names tell: the same observations through every door, or a question that names the option."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.depth import depth
from volumes.support.checks import first_voxel
from volumes.support.command_line import run
from volumes.support.images import code_of, nifti, series
from voxtier.cli.commands import cli
from voxtier.errors import ConfigError, IngestError, LeftOutWarning, NotFoundError, VoxtierError
from voxtier.volumes import RadiObject, StreamingWriter, Volume, VolumeCollection
from voxtier.volumes.formats.identity import identify
from voxtier.volumes.formats.sources import Images
from voxtier.volumes.store.jobs import cohort_jobs

Told = dict[str, tuple[str, str]]
"""Observation -> subject and collection."""

SMALLEST = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4)).to_bytes()
"""An image that a dry run can read."""

SERIES = {"T1w": "T1w", "FLAIR": "flair", "T2w": "T2w", "T1gd": "t1ce", "seg": "seg", "dwi": "dwi"}


@dataclass(frozen=True)
class Image:
    """An image whose identity the test knows before it has a name."""

    subject: str
    series: str
    session: str | None
    run: str | None
    is_bids: bool

    @property
    def parts(self) -> list[str]:
        named = {"ses": self.session, "run": self.run}
        return [f"{key}-{value}" for key, value in named.items() if value is not None]

    @property
    def path(self) -> str:
        word = self.series if self.is_bids else SERIES[self.series]
        name = "_".join((self.subject, *self.parts, word)) + ".nii.gz"
        folders = [self.subject, *self.parts[: self.session is not None], "anat"] if self.is_bids else []
        return "/".join([*folders, name])

    @property
    def obs_id(self) -> str:
        return "_".join((self.subject, *self.parts, self.series))


LABELS = st.text("abcXYZ0123456789", min_size=1, max_size=5)
PLAIN = st.from_regex(r"(BraTS|p|case)[0-9]{1,3}([-_.][0-9A-C]{1,3}){0,2}", fullmatch=True)


def is_spelled_once(images: list[Image]) -> bool:
    subjects = {image.subject for image in images}
    return len({subject.casefold() for subject in subjects}) == len(subjects)


@st.composite
def trees(draw: st.DrawFn) -> list[Image]:
    """Draw images of a BIDS tree or of a flat folder of other names."""
    is_bids = draw(st.booleans())
    subjects = LABELS.map(lambda label: f"sub-{label}") if is_bids else PLAIN
    value = st.one_of(st.none(), st.text("ab012", min_size=1, max_size=2))
    image = st.builds(Image, subjects, st.sampled_from(list(SERIES)), value, value, st.just(is_bids))
    return draw(
        st.lists(image, min_size=1, max_size=8, unique_by=lambda image: image.path.lower()).filter(
            is_spelled_once
        )
    )


def lay_out(root: Path, images: list[Image]) -> None:
    for image in images:
        path = root / image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SMALLEST)


def told_by(niftis: Images | None = None, images: dict[str, Images] | None = None) -> Told:
    jobs = cohort_jobs(niftis, None, images, None, None)
    return {job.obs_id: (job.subject, name) for name, group in jobs.items() for job in group}


def ingest_by_cli(store: object, *arguments: object) -> str:
    done = CliRunner().invoke(
        cli, ["volume", "ingest", *map(str, (store, *arguments))], standalone_mode=False
    )
    if done.exception is not None:
        raise done.exception
    assert done.return_value == 0
    return done.stdout


def told_by_cli(*sources: object) -> Told:
    rows = [json.loads(line) for line in ingest_by_cli("none", *sources, "--dry-run", "--json").splitlines()]
    return {row["obs_id"]: (row["subject"], row["collection"]) for row in rows}


def doors(root: Path, images: list[Image]) -> Iterator[tuple[str, Told]]:
    """Yield what each way to name the same files tells."""
    words = {image.series: (image.series if image.is_bids else SERIES[image.series]) for image in images}
    globs: dict[str, Images] = {name: f"{root}/**/*_{word}.nii.gz" for name, word in words.items()}
    files = sorted(root.rglob("*.nii.gz"))
    yield "images", told_by(images=globs)
    yield (
        "images of lists",
        told_by(images={n: sorted(root.rglob(f"*_{w}.nii.gz")) for n, w in words.items()}),
    )
    yield "folder", told_by(root)
    yield "glob", told_by(f"{root}/**/*.nii.gz")
    yield "list", told_by(files)
    yield "command line, folder", told_by_cli(root)
    yield "command line, glob", told_by_cli(f"{root}/**/*.nii.gz")
    yield "command line, files", told_by_cli(*files)
    yield "command line, what the shell makes of a star", told_by_cli(*sorted(root.iterdir()))


@pytest.mark.deep
@settings(max_examples=depth(25, 200), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(images=trees())
def test_every_door_tells_the_subjects_and_ids_that_the_names_were_made_of(
    tmp_path_factory: pytest.TempPathFactory, images: list[Image]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    lay_out(root, images)
    wanted = {image.obs_id: (image.subject, image.series) for image in images}
    for door, told in doors(root, images):
        assert told == wanted, door
    shutil.rmtree(root)


def test_every_door_stores_the_same_cohort(tmp_path: Path) -> None:
    """The same through written stores, with voxels that tell the image, and with the origin's folder form."""
    root = tmp_path / "in"
    root.mkdir()
    images = [Image(f"sub-{n}", series, None, None, False) for n in (1, 0) for series in ("T1w", "FLAIR")]
    for image in images:
        nifti(root / f"{image.subject}_{image.series}.nii.gz", image.subject, image.series)
    ingest_by_cli(tmp_path / "cli", f"{root}/*_T1w.nii.gz")
    ingest_by_cli(tmp_path / "cli", "--append", f"{root}/*_FLAIR.nii.gz")
    stores = [
        RadiObject.from_niftis(
            tmp_path / "images", images={n: f"{root}/*_{n}.nii.gz" for n in ("T1w", "FLAIR")}
        ),
        RadiObject.from_niftis(tmp_path / "folder", image_dir=root),
        RadiObject.from_niftis(tmp_path / "glob", niftis=f"{root}/*.nii.gz"),
        RadiObject(tmp_path / "cli"),
    ]
    for radi in stores:
        assert list(radi) == ["sub-0", "sub-1"]
        assert sorted(radi.all_obs_ids) == sorted(image.obs_id for image in images)
        for image in images:
            found = radi.collection(image.series).loc[image.obs_id]
            assert first_voxel(found) == code_of(image.subject, image.series)
    alone = VolumeCollection.from_niftis(tmp_path / "alone", f"{root}/sub-1*.nii.gz")
    assert alone.obs_ids == ["sub-1_FLAIR", "sub-1_T1w"]
    alone.append(niftis=root / "sub-0_T1w.nii.gz")
    assert alone.obs_ids == ["sub-0_T1w", "sub-1_FLAIR", "sub-1_T1w"]


@pytest.mark.parametrize(
    ("path", "collection", "subject", "parts", "series"),
    [
        ("sub-0_T1w.nii.gz", "T1w", "sub-0", (), "T1w"),
        ("sub-0_t1w.NII.GZ", None, "sub-0", (), "T1w"),
        ("sub-01_ses-2_run-1_T1w.nii.gz", None, "sub-01", ("ses-2", "run-1"), "T1w"),
        ("sub-01_task-rest_dir-AP_bold.nii.gz", None, "sub-01", ("task-rest", "dir-AP"), "bold"),
        ("sub-01_space-T1w_desc-brain_mask.nii.gz", None, "sub-01", ("space-T1w", "desc-brain"), "seg"),
        ("sub-01_T1w_brain.nii.gz", None, "sub-01", ("brain",), "T1w"),
        ("sub-01_swi.nii.gz", None, "sub-01", (), "swi"),
        ("sub-01_T1w.nii.gz", "anat", "sub-01", ("T1w",), "T1w"),
        ("sub-01/anat/T1w.nii.gz", None, "sub-01", (), "T1w"),
        ("sub-01/T1w.nii.gz", None, "sub-01", (), "T1w"),
        ("sub-01/anat/brain_T1w.nii.gz", None, "sub-01", ("brain",), "T1w"),
        ("sub-01/ses-2/anat/sub-01_T1w.nii.gz", None, "sub-01", ("ses-2",), "T1w"),
        ("sub-01/ses-2/T1w.nii.gz", None, "sub-01", ("ses-2",), "T1w"),
        ("sub-study/sub-01_T1w.nii.gz", None, "sub-01", (), "T1w"),
        ("sub-01-T1w.nii", None, "sub-01", (), "T1w"),
        ("sub-NDAR-12_ses-1_T1w.nii", None, "sub-NDAR-12", ("ses-1",), "T1w"),
        ("OAS30001_ses-d0129_run-01_T1w.nii.gz", None, "OAS30001", ("ses-d0129", "run-01"), "T1w"),
        ("BraTS20_Training_001_t1ce.nii.gz", None, "BraTS20_Training_001", (), "T1gd"),
        ("BraTS-GLI-00000-000-t2f.nii.gz", None, "BraTS-GLI-00000-000", (), "FLAIR"),
        ("IXI002-Guys-0828-T1.nii.gz", None, "IXI002-Guys-0828", (), "T1w"),
        ("CHUM-001__CT.nii.gz", None, "CHUM-001", (), "CT"),
        ("p1_t1_ce.nii", None, "p1", (), "T1gd"),
        ("p1_T2_FLAIR.nii", None, "p1", (), "FLAIR"),
        ("p1_t1_seg.nii", None, "p1", ("t1",), "seg"),
        ("T1w_001.nii", None, "001", (), "T1w"),
        ("p1_DSC.nii", "DSC", "p1", (), None),
        ("p1_swi_mag.nii", "swi-mag", "p1", (), None),
        ("lung_001.nii.gz", "CT", "lung_001", (), None),
        ("1.2.840.3_T1w.nii", None, "1.2.840.3", (), "T1w"),
        ("ü b_T1w.nii", None, "ü b", (), "T1w"),
    ],
)
def test_a_name_tells_subject_parts_and_series(
    path: str, collection: str | None, subject: str, parts: tuple[str, ...], series: str | None
) -> None:
    found = identify(Path("/study", path), collection)
    assert (found.subject, found.parts, found.series, found.problem) == (subject, parts, series, "")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("T1w.nii.gz", "only the series"),
        ("part-12_T1w.nii", "only the series"),
        ("p1_T1w_brain.nii", "'p1' and 'brain' stand on both sides of 'T1w'"),
        ("100307_3T_T1w_MPR1.nii.gz", "both sides"),
        ("sub-02/anat/sub-01_T1w.nii", "names sub-01 and lies in sub-02"),
        ("sub-02/ses-1/anat/sub-02_ses-2_T1w.nii", "names ses-2 and lies in ses-1"),
        ("sub-01/scan_T1w.nii", "names scan and lies in sub-01"),
        ("sub-01_sub-02_T1w.nii", "names sub-01 and sub-02"),
    ],
)
def test_a_subject_that_cannot_be_told_is_asked_for(tmp_path: Path, path: str, why: str) -> None:
    image = tmp_path / path
    image.parent.mkdir(parents=True, exist_ok=True)
    nifti(image, "x")
    with pytest.raises(
        ConfigError, match=r"\(path, subject\) pairs, on the command line --subject"
    ) as caught:
        RadiObject.from_niftis(tmp_path / "r", niftis=image)
    assert why in str(caught.value)
    assert path in str(caught.value)
    with pytest.raises(ConfigError, match="--subject"):
        ingest_by_cli(tmp_path / "r", image)
    assert not (tmp_path / "r").exists()
    ingest_by_cli(tmp_path / "r", image, "--subject", "p7")
    assert RadiObject(tmp_path / "r").all_obs_ids == ["p7_T1w"]


def test_a_series_that_no_name_states_is_asked_for(tmp_path: Path) -> None:
    image = nifti(tmp_path / "p1.nii", "p1")
    with pytest.raises(ConfigError, match=r"p1.nii: .*collection_name=.* on the command line --collection"):
        RadiObject.from_niftis(tmp_path / "r", niftis=tmp_path)
    ingest_by_cli(tmp_path / "r", image, "--collection", "perf")
    radi = RadiObject(tmp_path / "r")
    assert (radi.collection_names, radi.all_obs_ids) == (("perf",), ["p1_perf"])


@pytest.mark.parametrize(
    ("names", "is_told"),
    [
        (({"p1_0000", "p2_0000"}, {"p1_0001", "p2_0001"}), False),
        (({"p1_0000", "p2_0000"}, {"p1", "p2"}), False),
        (({"p1_DSC"}, {"p1_T1w"}), False),
        (({"foo_1", "foo_2"}, {"bar_1", "bar_2"}), False),
        (({"lung_001", "lung_002"}, {"lung_001", "lung_002"}), True),
        (({"a_001", "a_002"}, {"a_003", "a_004"}), True),
        (({"p1_perf", "p2_perf"}, {"p1_T1w"}), True),
    ],
)
def test_subjects_that_a_constant_part_of_the_names_would_split_are_asked_for(
    tmp_path: Path, names: tuple[set[str], set[str]], is_told: bool
) -> None:
    for folder, group in zip(("a", "b"), names, strict=True):
        (tmp_path / folder).mkdir()
        for name in group:
            (tmp_path / folder / f"{name}.nii").write_bytes(SMALLEST)
    images: dict[str, Images] = {"perf": tmp_path / "a", "other": f"{tmp_path}/b/*.nii"}
    if is_told:
        assert len(told_by(images=images)) == sum(map(len, names))
        return
    with pytest.raises(ConfigError, match="do not tell the subjects"):
        told_by(images=images)
    pairs: dict[str, Images] = {
        name: [(path, path.stem) for path in (tmp_path / folder).iterdir()]
        for name, folder in (("perf", "a"), ("other", "b"))
    }
    assert len(told_by(images=pairs)) == sum(map(len, names))


def test_two_images_of_one_observation_are_refused_with_both_paths(tmp_path: Path) -> None:
    for name in ("p1_T1w.nii", "p1_T1w.nii.gz"):
        nifti(tmp_path / name, "p1")
    with pytest.raises(ConfigError, match=r"p1_T1w \(.*p1_T1w.nii, .*p1_T1w.nii.gz\)"):
        RadiObject.from_niftis(tmp_path / "r", niftis=tmp_path)
    with pytest.raises(ConfigError, match=r"paths \(without subjects\)"):
        RadiObject.from_niftis(tmp_path / "r", niftis=[(path, "p1") for path in tmp_path.iterdir()])
    assert told_by([tmp_path / "p1_T1w.nii", tmp_path / "p1_T1w.nii"]) == {"p1_T1w": ("p1", "T1w")}


def test_subjects_that_differ_by_capitals_alone_are_asked_for(tmp_path: Path) -> None:
    for name in ("sub-A_T1w.nii", "sub-a_FLAIR.nii"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match="two spellings of one subject"):
        told_by(tmp_path)
    with pytest.raises(ConfigError, match="two spellings of one subject"):
        told_by(images={"T1w": f"{tmp_path}/*_T1w.nii", "FLAIR": f"{tmp_path}/*_FLAIR.nii"})
    assert len(told_by([(path, path.stem.split("_")[0]) for path in tmp_path.iterdir()])) == 2


def test_a_folder_gives_its_raw_images(tmp_path: Path) -> None:
    for path in (
        "sub-1/anat/sub-1_T1w.nii.gz",
        "derivatives/sub-1_T1w.nii.gz",
        "sub-1/anat/._sub-1_T1w.nii.gz",
        ".git/sub-9_T1w.nii",
        "sub-1/anat/sub-1_T1w.json",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(SMALLEST)
    (tmp_path / "sub-1" / "loop").symlink_to(tmp_path)
    wanted = {"sub-1_T1w": ("sub-1", "T1w")}
    assert told_by(tmp_path) == told_by(f"{tmp_path}/sub-*") == told_by_cli(tmp_path) == wanted
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="no NIfTI file"):
        told_by(tmp_path / "empty")
    with pytest.raises(NotFoundError, match="there is no file or folder"):
        told_by(tmp_path / "nothing")
    with pytest.raises(NotFoundError, match="no NIfTI file matches"):
        told_by(f"{tmp_path}/*.nii")
    odd = tmp_path / "scans[1]"
    odd.mkdir()
    (odd / "p2_T1w.nii").write_bytes(SMALLEST)
    assert told_by(odd) == told_by(odd / "p2_T1w.nii") == {"p2_T1w": ("p2", "T1w")}


def test_session_and_run_are_columns_of_the_rows(tmp_path: Path) -> None:
    for name in ("sub-1_ses-a_T1w", "sub-1_ses-b_run-2_T1w", "sub-2_T1w"):
        nifti(tmp_path / f"{name}.nii", name)
    radi = RadiObject.from_niftis(tmp_path / "r", niftis=tmp_path)
    assert radi.T1w.filter("session == 'b'").obs_ids == ["sub-1_ses-b_run-2_T1w"]
    assert radi.T1w.filter("run == '2'").obs_subject_ids == ["sub-1"]
    nifti(tmp_path / "sub-3_T1w.nii", "sub-3")
    radi.append(niftis=tmp_path / "sub-3_T1w.nii")
    assert radi.T1w.filter("session == 'a'").obs_ids == ["sub-1_ses-a_T1w"]
    assert len(radi.T1w) == 4


LATIN = os.fsdecode(b"J\xfcrgen")  # as Python gives a name whose bytes are no UTF-8


def test_a_file_name_that_is_no_utf8_is_refused_or_left_out_and_ingested_with_a_subject(
    tmp_path: Path,
) -> None:
    good, bad = tmp_path / "in" / "sub-1_T1w.nii", tmp_path / "in" / f"{LATIN}_T1w.nii"
    good.parent.mkdir()
    nifti(good, "sub-1", "T1w")
    shutil.copy(good, bad)
    for way in (tmp_path / "in", [bad], f"{tmp_path}/in/*"):
        with pytest.raises(ConfigError, match=r"the name is no UTF-8 text: give \(path, subject\) pairs"):
            RadiObject.from_niftis(tmp_path / "r", way)
    for option in ((), ("--dry-run",)):
        done = run("ingest", tmp_path / "r", tmp_path / "in", *option, code=2)
        assert "J\\udcfcrgen_T1w.nii: the name is no UTF-8 text" in done.err
    assert not (tmp_path / "r").exists()
    done = run("ingest", tmp_path / "r", tmp_path / "in", "--skip-errors", code=3)
    assert "reason=the name is no UTF-8 text" in done.out
    assert RadiObject(tmp_path / "r").all_obs_ids == ["sub-1_T1w"]
    named = RadiObject.from_niftis(tmp_path / "s", [(bad, "Jürgen")], collection_name="T1w")
    assert named.T1w.obs_ids == ["Jürgen_T1w"]
    assert named.T1w.iloc[0].to_numpy().flat[0] == code_of("sub-1", "T1w")


def test_a_folder_name_that_is_no_utf8_is_no_subject(tmp_path: Path) -> None:
    for number, subject in enumerate((LATIN, "p")):
        series(tmp_path / "in" / subject, [(0, 0, 0), (0, 0, 1)], series=f"1.{number + 1}")
    folders = [(folder, folder.name) for folder in (tmp_path / "in").iterdir()]
    with pytest.raises(IngestError, match="is no UTF-8 text"):
        RadiObject.from_dicoms(tmp_path / "r", folders)
    with pytest.warns(LeftOutWarning, match="is no UTF-8 text"):
        radi = RadiObject.from_dicoms(tmp_path / "r", folders, on_error="skip")
    assert radi.obs_subject_ids == ["p"]


@pytest.mark.parametrize("name", [LATIN, "\ud800", "", "a\0b"])
def test_a_name_that_no_row_can_hold_is_refused_before_the_voxels(tmp_path: Path, name: str) -> None:
    voxels = np.zeros((2, 2, 2), np.int16)
    scan = nifti(tmp_path / "a.nii", "a")
    with StreamingWriter(tmp_path / "c") as writer:
        for ids in ((name, "a"), ("a_seg", name)):
            with pytest.raises(ConfigError, match="cannot name a subject or an observation"):
                writer.write_volume(voxels, *ids)
        with pytest.raises(VoxtierError, match=r"'note': .* is no UTF-8 text"):
            writer.write_volume(voxels, "b_seg", "b", note=LATIN)
        writer.write_volume(voxels, "a_seg", "a")
    assert VolumeCollection(tmp_path / "c").obs_ids == ["a_seg"]
    assert VolumeCollection(tmp_path / "c").repair() == []
    for call in (
        lambda: RadiObject.from_niftis(tmp_path / "r", [(scan, name)], collection_name="T1w"),
        lambda: RadiObject.from_niftis(tmp_path / "r", [(scan, "a")], collection_name=name or "."),
        lambda: VolumeCollection.from_niftis(
            tmp_path / "r", [(scan, "a")], obs={"obs_id": [name], "obs_subject_id": ["a"]}
        ),
        lambda: Volume.from_numpy(f"{tmp_path}/{name}/v" if name else "", voxels),
        lambda: RadiObject(f"{tmp_path}/{name}" if name else ""),
    ):
        with pytest.raises(ConfigError):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "c"]
