"""`generate`, `preprocess` and the dataset with the engine: the same files, and who made them."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("monai")

import torch
from monai.transforms import Compose, RandFlipd

from tensors.cases import CONFIG, names_of, nifti_bytes, run_forked
from tensors.making.project import Project
from voxtier.errors import ConfigError
from voxtier.tensors import Manifest, item_key, preprocess
from voxtier.tensors.dataset import HealingPersistentDataset
from voxtier.tensors.engine.headers import read_header
from voxtier.tensors.engine.outcome import Outcome
from voxtier.tensors.engine.pipelines import find_pipeline
from voxtier.tensors.engine.proofs import EnginePolicy
from voxtier.tensors.identity.pipeline import build_transforms
from voxtier.tensors.making.resources import affordable_workers, volume_bytes
from voxtier.tensors.making.runlog import RunResult


def oblique_bytes(seed: int) -> bytes:
    image = nibabel.Nifti1Image.from_bytes(__import__("gzip").decompress(nifti_bytes(seed)))
    affine = image.affine.copy()
    affine[0, 1] = 0.01
    import gzip

    return gzip.compress(nibabel.Nifti1Image(np.asarray(image.dataobj), affine).to_bytes(), 1, mtime=0)


def int64_bytes(seed: int) -> bytes:
    """A volume that the core leaves to MONAI."""
    import gzip

    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(nifti_bytes(seed)))
    values = np.asarray(image.dataobj).astype(np.int64)
    return gzip.compress(nibabel.Nifti1Image(values, image.affine, dtype=np.int64).to_bytes(), 1, mtime=0)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.pt"))}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Project, Any]:
    """A cache made by stock, and one begun by stock and finished by the engine, from the same files."""
    base = tmp_path_factory.mktemp("twins")
    names = names_of(6)
    projects = []
    for name in ("stock", "mixed"):
        project = Project(base / name, names)
        project.put_raw_files()
        project.raw(names[3]).write_bytes(oblique_bytes(3))
        project.raw(names[4]).write_bytes(int64_bytes(4))
        projects.append(project)
    stock, mixed = projects
    # Both name the same raw files: paths are part of the metadata.
    config = CONFIG.replace("${IMG_DIR}", str(stock.base / "images"))
    mixed.path.write_text(config)
    from voxtier.tensors import load_config

    mixed.config = load_config(mixed.path, environment={"IMG_DIR": "unused", "BASE": str(mixed.base)})
    assert stock.run(engine="stock").made == 6
    csv = mixed.base / "data" / "train.csv"
    whole = csv.read_text()
    csv.write_text("\n".join(whole.splitlines()[:3]) + "\n")
    assert mixed.run(engine="stock").made == 2
    csv.write_text(whole)
    result = mixed.run(engine="fused")
    return stock, mixed, result


def test_no_reader_can_tell_who_finished_a_cache(twins: tuple[Project, Project, Any]) -> None:
    stock, mixed, result = twins
    assert result.made == 4
    assert stock.folder.name == mixed.folder.name
    assert hashes(stock.folder) == hashes(mixed.folder)
    mixed.assert_sound()


def test_the_manifest_and_the_summary_say_who_made_what(twins: tuple[Project, Project, Any]) -> None:
    _, mixed, result = twins
    assert result.engines == {"fused": 3, "stock(voxels of type int64)": 1}
    summary = result.engine_summary()
    assert summary.startswith("3 fused, 1 stock: voxels of type int64; ")
    assert "times the speed of MONAI" in summary
    rows = Manifest(mixed.folder).read()
    labels = [rows[item_key(name)]["engine"] for name in mixed.names]
    assert labels == ["stock", "stock", "fused", "fused", "stock(voxels of type int64)", "fused"]
    facts = rows[item_key(mixed.names[2])]["fingerprint"]["engine"]
    assert facts["name"] == "fused"
    assert facts["threads"] == 1
    assert facts["isa"] == torch.backends.cpu.get_cpu_capability()
    assert len(facts["rounding"]) == 4
    assert rows[item_key(mixed.names[0])]["fingerprint"]["engine"]["name"] == "stock"
    from voxtier.tensors.identity.fingerprint import describe_processing
    from voxtier.tensors.keeping.adopt import find_stale

    assert list(find_stale(mixed.folder, describe_processing(mixed.config.processing))) == []


def test_a_second_run_needs_no_proof(tmp_path: Path) -> None:
    project = Project(tmp_path, names_of(6))
    project.put_raw_files()
    csv = project.base / "data" / "train.csv"
    whole = csv.read_text()
    csv.write_text("\n".join(whole.splitlines()[:4]) + "\n")
    first = project.run(workers=1)
    assert (first.engines, "stock" in first.engine_seconds) == ({"fused": 3}, True)
    csv.write_text(whole)
    second = project.run(workers=1)
    assert second.engines == {"fused": 3}
    assert "stock" not in second.engine_seconds
    assert second.engine_summary().startswith("3 fused; ")  # by what the first run measured
    expected = {name: hashes(project.folder)[name] for name in hashes(project.folder)}
    for path in project.folder.glob("*.pt"):
        path.unlink()
    assert project.run(engine="stock").made == 6
    assert hashes(project.folder) == expected


@pytest.mark.parametrize("engine", ["fused", "stock"])
def test_no_tensor_is_made_of_a_damaged_raw_file_unless_it_is_accepted(tmp_path: Path, engine: str) -> None:
    project = Project(tmp_path, names_of(3))
    _, damaged, _ = project.put_raw_files()
    content = bytearray(damaged.read_bytes())
    content[-8] ^= 1  # its CRC-32, at which MONAI does not look
    damaged.write_bytes(content)
    result = project.run(engine=engine, clean_raw=True, workers=1)
    assert (result.made, result.exit_code(), result.raw_files_removed) == (2, 3, 2)
    assert damaged.exists()
    assert "the gzip stream is damaged" in result.failed[project.names[1]]
    assert "--accept damaged makes it" in result.failed[project.names[1]]
    assert project.run(engine=engine, accepted=frozenset({"damaged"})).made == 1


def test_plan_counts_oblique_volumes_and_the_command_says_who_made_what(tmp_path: Path) -> None:
    project = Project(tmp_path, names_of(3))
    project.put_raw_files()
    project.raw(project.names[1]).write_bytes(oblique_bytes(1))
    planned = run_forked("plan", "--config", project.path)
    assert "1 of 3 volumes on disk are oblique" in planned.stderr
    code, errors = project.fork("--engine", "check").wait()
    assert code == 0, errors
    assert "engine: 3 fused; " in errors
    project.path.write_text(CONFIG + "engine: quick\n")
    refused = run_forked("plan", "--config", project.path)
    assert refused.returncode == 2
    assert "engine must be one of fused, stock, check" in refused.stderr


def test_a_single_volume_has_the_tensor_of_the_cache(twins: tuple[Project, Project, Any]) -> None:
    from voxtier.tensors import preprocessing

    preprocessing._tools.cache_clear()  # of other tests
    stock, mixed, _ = twins
    for name in (mixed.names[0], mixed.names[4]):
        cached = torch.load(stock.final(name), weights_only=False)["image"]
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        found = preprocess(stock.raw(name), mixed.config)
        torch.set_num_threads(before)
        assert torch.equal(found.view(torch.int32), cached.view(torch.int32))
        assert type(found) is torch.Tensor
    tools = preprocessing._tools.cache_info()
    assert (tools.currsize, tools.hits) == (1, 1)  # the engine of the first call serves the second


def test_with_check_a_single_volume_is_made_by_both_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from voxtier.tensors import preprocessing
    from voxtier.tensors.engine import engine

    monkeypatch.setenv("VOXTIER_HOME", str(tmp_path / "home"))  # what differs here is nothing to remember
    preprocessing._tools.cache_clear()
    project = Project(tmp_path / "project", names_of(1))
    (raw,) = project.put_raw_files()
    expected = preprocess(raw, dataclasses.replace(project.config, engine="stock"))
    compared: list[str] = []
    describe_difference = engine.describe_difference

    def compare(*items: Any) -> str:
        compared.append(describe_difference(*items))
        return compared[-1]

    monkeypatch.setattr(engine, "describe_difference", compare)
    config = dataclasses.replace(project.config, engine="check")
    preprocess(raw, config)  # after the self-test, if this machine has proved nothing yet
    compared.clear()
    for _ in range(4):
        assert torch.equal(preprocess(raw, config), expected)
    assert compared == [""] * 4
    monkeypatch.setattr(engine, "describe_difference", lambda *_: "3 of 5 voxels, by 1 at most")
    for _ in range(2):  # and again after a difference
        with pytest.warns(
            UserWarning, match="core and MONAI differ in .*3 of 5 voxels.*MONAI's tensor is kept"
        ):
            assert torch.equal(preprocess(raw, config), expected)
    monkeypatch.undo()
    preprocessing._tools.cache_clear()


def test_the_dataset_computes_by_the_core_what_the_configuration_names(tmp_path: Path) -> None:
    project = Project(tmp_path, names_of(4))
    project.put_raw_files()
    pipeline = build_transforms(project.config.processing)
    data = [{"image": str(project.raw(name))} for name in project.names]
    random = RandFlipd(keys=["image"], prob=0.5)
    files = {}
    for engine in ("stock", "fused"):
        transform = Compose([*pipeline.transforms, random])
        dataset = HealingPersistentDataset(data, transform, tmp_path / engine, engine=engine)
        if engine == "fused":
            assert dataset._pipeline is not None
            assert (dataset._pipeline.processing, dataset._pipeline.text) == (project.config.processing, "")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number in range(4):
                dataset[number]
        files[engine] = hashes(tmp_path / engine)
    assert files["stock"] == files["fused"]
    assert len(files["fused"]) == 4
    with pytest.raises(ConfigError, match="engine"):
        HealingPersistentDataset(data, pipeline, tmp_path, engine="quick")


def test_other_pipelines_are_not_taken_for_the_configurations(tmp_path: Path) -> None:
    config = Project(tmp_path, []).config
    steps = list(build_transforms(config.processing).transforms)

    def found(steps: list[Any]) -> Any:
        """The settings of a configuration's own pipeline."""
        pipeline = find_pipeline(steps)
        return pipeline.processing if pipeline is not None and not pipeline.text else None

    assert found(steps) == config.processing
    from monai.transforms import LoadImaged, Resized, Spacingd

    def load(**options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LoadImaged(keys=["image"], image_only=False, ensure_channel_first=True, **options)

    others = [
        load(reader="NumpyReader"),
        load(reader="NibabelReader", dtype=np.float64),
        Spacingd(keys=["image"], pixdim=np.array(config.processing.target_spacing), mode="nearest"),
        Resized(keys=["image"], spatial_size=(16, 32, 32), mode="trilinear", anti_aliasing=False),
    ]
    for place, other in zip((0, 0, 2, 4), others, strict=True):
        assert found([*steps[:place], other, *steps[place + 1 :]]) is None, other
    assert found(steps[:-1]) is None
    assert find_pipeline(steps[:3]) is None
    assert find_pipeline([]) is None


def test_each_class_is_proved_twice_then_one_volume_in_so_many() -> None:
    policy = EnginePolicy("fused", check_every=5)

    def next_mode(volume_class: str, *, proved: bool = True) -> str:
        mode = policy.expect(volume_class)
        policy.begin(volume_class, mode)
        is_checked = proved and mode == "check"
        policy.settle(volume_class, mode, Outcome("fused", is_checked=is_checked))
        return mode

    assert [next_mode("a") for _ in range(4)] == ["check", "check", "fused", "fused"]
    assert next_mode("b", proved=False) == "check"  # stock alone could make it: nothing is proved
    assert [next_mode("b") for _ in range(3)] == ["check", "check", "fused"]
    assert [next_mode(name) for name in "ccdd"] == ["check"] * 4
    modes = [next_mode("e") for _ in range(20)]  # a fifth class
    checks = [place for place, each in enumerate(modes) if each == "check"]
    assert np.diff(checks).tolist() == [5, 5, 5]
    mode = policy.expect("a")
    differs = Outcome("stock", "differs", is_checked=True, difference="3 voxels")
    assert policy.settle("a", mode, differs)
    assert not policy.settle("a", mode, differs)
    assert policy.expect("a") == "stock"
    assert EnginePolicy("check").expect("a") == "check"
    assert EnginePolicy("stock").expect("a") == "stock"


def test_two_of_a_class_under_way_are_enough_proofs() -> None:
    policy = EnginePolicy("fused")
    modes = []
    for _ in range(3):
        modes.append(policy.expect("a"))
        policy.begin("a", modes[-1])
    assert modes == ["check", "check", "fused"]


def test_a_difference_is_named_and_nothing_is_called_saved() -> None:
    result = RunResult()
    assert result.engine_summary() == ""
    result.count_engine("a.nii.gz", Outcome("stock", "differs", True, "3 of 9 voxels, by 1e-07 at most"))
    assert result.engine_summary() == "1 stock: differs"
    assert result.engine_difference == "a.nii.gz: 3 of 9 voxels, by 1e-07 at most"


def test_a_header_tells_the_class_and_whether_the_volume_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(nifti_bytes(1))
    straight = read_header(path)
    path.write_bytes(oblique_bytes(1))
    turned = read_header(path)
    assert straight is not None
    assert turned is not None
    assert (straight.is_oblique, turned.is_oblique) == (False, True)
    assert straight.voxels == 24 * 20 * 12
    assert straight.volume_class != turned.volume_class
    for broken in (b"", b"\x5c\x01\0\0", b"\x5c\x01\0\0" + b"\xff" * 344):
        (tmp_path / "b.nii").write_bytes(broken)
        read_header(tmp_path / "b.nii")


def test_more_workers_fit_where_the_core_makes_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtier.tensors.making.resources.available_memory", lambda: 16 << 30)
    voxels = 512 * 512 * 240
    assert affordable_workers(64, voxels) == 4
    assert affordable_workers(64, voxels, is_fused=True, output=34_000_000) >= 14
    assert volume_bytes(voxels, is_fused=True, output=34_000_000) < volume_bytes(voxels) / 8
