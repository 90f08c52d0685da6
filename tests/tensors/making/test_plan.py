"""The plan: its counts come true, shards are disjoint and complete, sizes are read from headers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tensors.cases import CONFIG, constant_volume, names_of, nifti_bytes, put_raw, rows, run_cli
from tensors.making.hub_server import HubServer
from tensors.making.project import Project
from voxtier.errors import ConfigError
from voxtier.tensors.engine.headers import read_header
from voxtier.tensors.identity.keys import hub_path, item_key
from voxtier.tensors.making.hub import Hub
from voxtier.tensors.making.plan import make_plan, shard
from voxtier.tensors.manifest import Manifest


def test_the_run_does_what_the_plan_says(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(4), server)
    del server.files[hub_path(project.names[0])]
    put_raw(project.base, project.names[1], 1)
    done = project.cli("--dry-run", "--json")
    assert done.returncode == 0
    (plan,) = rows(done.stdout)
    counts = ("required", "present", "missing", "local_raws", "to_download", "unavailable")
    assert [plan[name] for name in counts] == [4, 0, 4, 1, 2, 1]
    assert not project.folder.exists()
    result = project.run()
    assert (result.made, list(result.failed)) == (3, [project.names[0]])
    written = sum(path.stat().st_size for path in project.folder.glob("*.pt"))
    assert abs(written - plan["output_bytes"]) < 0.2 * written
    assert result.exit_code() == 3


def test_a_plan_reads_the_manifest_once(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path / "p", names_of(2), server)
    Manifest(project.folder).record([{"key": "a", "seconds": 40.0}, {"key": "b", "seconds": 60.0}])
    reads: list[Path] = []
    read = Manifest.read
    monkeypatch.setattr(Manifest, "read", lambda manifest: reads.append(manifest.path) or read(manifest))
    plan = project.generator(workers=1).plan()
    assert (plan.to_download, plan.seconds) == (2, 100.0)
    assert len(reads) == 1


def test_a_tensor_that_is_no_file_fails_and_is_not_taken_for_present(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(2))
    project.folder.mkdir()
    project.put_raw_files()
    dangling, folder = map(project.final, project.names)
    dangling.symlink_to(tmp_path / "gone.pt")
    folder.mkdir()
    generator = project.generator(clean_raw=True)
    plan = generator.plan()
    assert (plan.present, plan.missing, plan.unreadable) == (0, 0, 2)
    assert any("target is gone" in warning for warning in plan.warnings)
    result = generator.run(plan)
    assert (list(result.failed), result.made, result.exit_code()) == (project.names, 0, 3)
    assert dangling.is_symlink() and folder.is_dir()
    assert all(map(Path.is_file, map(project.raw, project.names)))


def test_shards_are_disjoint_and_complete_and_download_nothing(server: HubServer, tmp_path: Path) -> None:
    names = names_of(11)
    parts = [shard(names, 3, index) for index in range(3)]
    assert [name for part in parts for name in part] == names
    with pytest.raises(ConfigError):
        shard(names, 3, 3)
    project = Project(tmp_path / "p", names_of(4), server)
    for number in (0, 1, 2):
        put_raw(project.base, project.names[number], number)
    project.server = None
    assert project.run(num_shards=2, shard_id=0).made == 2
    result = project.run(num_shards=2, shard_id=1)
    assert (result.made, result.unavailable, result.exit_code()) == (1, 1, 3)
    assert str(project.raw(project.names[3])) in result.failed[project.names[3]]
    assert server.requests == []


def test_a_volume_that_is_not_on_disk_is_named_with_the_path_that_was_tried(
    server: HubServer, tmp_path: Path
) -> None:
    server.files.clear()
    nested = Project(tmp_path / "nested", ["sub-1"])
    nested.server = server
    flat = Project(tmp_path / "flat", ["sub-1"], config=CONFIG.replace("nested", "flat"))
    (flat.base / "images/sub-1.nii.gz").write_bytes(nifti_bytes(0))  # where `nested` looks for it
    tried = [nested.base / "images/sub-1.nii.gz", flat.base / "images/sub-1__transformed.nii.gz"]
    plan = nested.generator().plan()
    told = f"1 volume is not on disk (first: sub-1 as {tried[0]}, by dir_structure: nested), and "
    assert plan.warnings[0] == f"{told}not in the repository"
    failed = nested.run().failed
    assert failed == {"sub-1": f"not on disk as {tried[0]}, and not in the repository"}
    done = flat.cli(HF_HUB_OFFLINE="1")
    assert f"(first: sub-1 as {tried[1]}, by dir_structure: flat), and the hub does not help: " in done.stderr
    assert f"failed: sub-1: not on disk as {tried[1]}, and the hub does not help\n" in done.stderr
    assert done.returncode == 4
    nested.put_raw_files()[0].rename(tried[1])
    assert flat.run().made == 1


@pytest.mark.parametrize("command", ["plan", "generate"])
def test_lists_without_a_name_are_said_and_are_1(tmp_path: Path, command: str) -> None:
    project = Project(tmp_path / "p", [])
    done = run_cli(command, "--config", project.path, "--shard", "1/2")
    assert done.returncode == 1, done.stderr
    assert f"no name of a volume below VolumeName in {project.base}/data/train.csv" in done.stderr
    one = Project(tmp_path / "q", names_of(1))
    one.put_raw_files()
    assert run_cli(command, "--config", one.path, "--shard", "1/2").returncode == 0  # an empty share


def test_voxels_are_read_from_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(nifti_bytes(1, shape=(5, 6, 7)))
    header = read_header(tmp_path / "a.nii.gz")
    assert header is not None
    assert header.voxels == 210
    (tmp_path / "b.nii.gz").write_bytes(b"no volume")
    assert read_header(tmp_path / "b.nii.gz") is None
    assert read_header(tmp_path / "c.nii.gz") is None


def test_what_an_earlier_run_downloaded_is_used_only_if_the_repository_still_has_it(
    server: HubServer, tmp_path: Path
) -> None:
    """The volume was refused, so that its raw file stayed; the repository has another one now."""
    project = Project(tmp_path / "p", names_of(3), server)
    refused = constant_volume()
    server.files |= dict.fromkeys(map(hub_path, project.names), refused)
    assert len(project.run().failed) == 3
    replaced, same, gone = project.names
    before = server.sent.copy()
    server.commit = "2" * 40
    server.files[hub_path(replaced)] = nifti_bytes(5)
    del server.files[hub_path(gone)]
    plan = project.generator().plan()
    assert (plan.local_raw_files, plan.to_download, plan.unavailable) == (1, 1, 1)
    assert project.raw(replaced).read_bytes() == refused, "a plan changes nothing"
    origin = f"downloaded from some/CT-RATE at {'1' * 40}, and the configuration names another"
    told = f"{project.raw(gone)}: {origin}: remove it, or name that commit"
    assert f"1 raw file on disk not used, and not in the repository (first: {told})" in plan.warnings
    assert not any("not on disk" in warning for warning in plan.warnings)
    result = project.run()
    assert (result.made, list(result.failed)) == (1, [gone, same])
    assert result.failed[gone] == told
    assert server.sent - before == {hub_path(replaced): len(nifti_bytes(5))}
    source = Manifest(project.folder).read()[item_key(replaced)]["source"]
    assert source["commit"] == server.commit
    assert [project.raw(name).exists() for name in project.names] == [False, True, True]


@pytest.mark.parametrize(
    ("revision", "is_used"),
    [("main", True), ("1" * 40, True), ("2" * 40, False)],
    ids=["branch", "same", "other"],
)
def test_without_an_answer_of_the_hub_an_earlier_download_is_used_unless_another_commit_is_named(
    revision: str, is_used: bool, server: HubServer, tmp_path: Path
) -> None:
    project = Project(tmp_path / "p", names_of(1), server)
    server.files[hub_path(project.names[0])] = constant_volume()
    assert len(project.run().failed) == 1
    downloads = dataclasses.replace(project.config.downloads, revision=revision)
    config = dataclasses.replace(project.config, downloads=downloads)
    closed = Hub(downloads.repo_id, revision, endpoint="http://127.0.0.1:9", pause=0)
    for hub in (None, closed):
        plan = make_plan(config, hub=hub)
        assert (plan.local_raw_files, plan.unavailable) == ((1, 0) if is_used else (0, 1))
        assert plan.hub_down == (hub is not None and not is_used)
        assert any("names another" in warning for warning in plan.warnings) != is_used
    other = dataclasses.replace(config, downloads=dataclasses.replace(downloads, repo_id="other/CT"))
    assert make_plan(other).local_raw_files == 0
    project.put_raw_files()
    assert make_plan(other).local_raw_files == 1, "the user's own"
