"""`generate` from the hub to files that stock MONAI reads: counts, logs, exit codes, single failures."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import PersistentDataset
from monai.transforms import Compose, Transform

from tensors.cases import CONFIG, names_of, nifti_bytes, put_raw, rows, run_cli
from tensors.making.hub_server import Fault, HubServer
from tensors.making.project import Project
from voxtier.errors import ConfigError
from voxtier.tensors import build_transforms, preprocess, volume_hash
from voxtier.tensors.engine.headers import read_header
from voxtier.tensors.identity.keys import hub_path
from voxtier.tensors.making.download import part_paths
from voxtier.tensors.making.hub import Hub
from voxtier.tensors.making.run import Generator, Options


class Never(Transform):
    """Stands where the transforms would run."""

    def __call__(self, _: object) -> object:
        raise AssertionError("a transform was called for a cached item")


def test_from_the_hub_to_stock_monai_with_zero_transform_calls(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(5), server)
    done = project.cli("--yes", "--json")
    assert done.returncode == 0, done.stderr
    plan, *_, result = rows(done.stdout)
    assert (plan["missing"], plan["to_download"]) == (5, 5)
    assert plan["download_bytes"] == sum(map(len, server.files.values()))
    assert result["result"] == {"made": 5, "elsewhere": 0, "failed": 0, "raws_removed": 5}
    project.assert_sound()
    items = [{"image": project.raw(name), "volume_name": name} for name in project.names]
    stock = PersistentDataset(items, Compose([Never()]), project.folder, hash_func=volume_hash)
    for item in stock:
        assert item["image"].shape == (1, 16, 32, 32)
        assert item["image"].dtype == torch.float32
        assert -1 <= item["image"].min() < item["image"].max() <= 1
        assert list(item) == ["image", "image_meta_dict"]
    params = (project.folder / "cache_params.json").read_bytes()
    assert hashlib.sha256(params).hexdigest().startswith("bed2ca50b467a8a6")
    # Nothing of the raw files is left, not even the patients' folders.
    assert list((project.base / "images").iterdir()) == []
    status = json.loads((project.base / "logs" / "generate_cache_status.json").read_text())
    assert (status["status"], status["num_batches"]) == ("completed", 1)
    logs = sorted(path.name for path in (project.base / "logs").glob("*.log"))
    assert logs == [f"generate_cache{kind}.log" for kind in ("", "_errors", "_fatal", "_missing_files")]
    before = len(server.requests)
    assert project.cli("--yes").returncode == 0
    assert len(server.requests) == before
    # The same numbers as the transforms give without us.
    put_raw(project.base, project.names[0], 0)
    expected = build_transforms(project.config.processing)(items[0])["image"]
    assert torch.equal(stock[0]["image"], expected.as_tensor())


def test_the_coordinator_imports_neither_torch_nor_monai(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(1))
    project.put_raw_files()
    script = (
        "import sys; from voxtier.tensors import load_config\n"
        "from voxtier.tensors.making.run import Generator, Options\n"
        f"generator = Generator(load_config({str(project.path)!r}), Options(workers=1, min_free=0))\n"
        "plan = generator.plan()\n"
        "generator.stop.set()\n"
        "generator.run(plan)\n"
        "print(plan.missing, {'torch', 'monai'} & set(sys.modules))"
    )
    env = {**os.environ, **project.env}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout == "1 set()\n", done.stderr


def test_what_the_hub_lacks_is_asked_for_once_per_commit(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(2), server)
    gone = hub_path(project.names[0])
    del server.files[gone]
    assert project.run().exit_code() == 3
    before = len(server.requests)
    assert project.run().exit_code() == 3
    asked = [where for method, where, _ in server.requests[before:] if method == "POST"]
    assert asked == []
    assert "not in the repository" in project.log("generate_cache_missing_files")
    server.commit = "2" * 40
    server.files[gone] = nifti_bytes(9)
    assert project.run().made == 1


def test_exit_codes_tell_configuration_failure_and_hub_apart(server: HubServer, tmp_path: Path) -> None:
    """D5: 2 for a wrong configuration and an unanswered question, 3 for failures, 4 for the hub."""
    project = Project(tmp_path / "p", names_of(2), server)
    assert run_cli("generate", "--config", tmp_path / "absent.yaml", "--yes").returncode == 2
    unasked = project.cli("--clean-local-raw-files")
    assert (unasked.returncode, "--yes" in unasked.stderr) == (2, True)
    for name in project.names:
        server.faults[hub_path(name)] = [Fault("corrupt", at=1)] * 9
    failed = project.run()
    assert failed.exit_code() == 3
    assert all("checksum" in reason for reason in failed.failed.values())
    project.env["HF_ENDPOINT"] = "http://127.0.0.1:9"
    server.api_faults = [Fault("status", at=500)] * 99
    down = project.run()
    assert (down.made, down.exit_code()) == (0, 4)
    server.api_faults.clear()
    server.token = "hf_right"
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        project.run()


def put_volume(project: Project, index: int, values: Any, affine: Any) -> Path:
    path = project.raw(project.names[index])
    path.parent.mkdir(parents=True, exist_ok=True)
    header = nibabel.Nifti1Header()
    header.set_sform(affine, code="scanner")  # nibabel would make a quaternion of a singular affine as well
    path.write_bytes(gzip.compress(nibabel.Nifti1Image(values, None, header).to_bytes()))
    return path


def test_implausible_volumes_are_named_and_their_raw_files_stay(tmp_path: Path) -> None:
    """Also with --clean-local-raw-files; each is made when its finding is accepted."""
    project = Project(tmp_path / "p", names_of(6))
    values = np.random.default_rng(1).integers(-1000, 1000, (12, 10, 8)).astype(np.float32)
    regular = np.diag([1.5, 1.5, 3.0, 1.0])
    holed = values.copy()
    holed[3, 3, 3] = np.nan
    flat = regular.copy()
    flat[2, :3] = flat[1, :3]
    cases = {
        "constant": (np.zeros_like(values), regular),
        "nan": (holed, regular),
        "4d": (np.stack([values] * 3, axis=-1), regular),
        "affine": (values, flat),
        "constant after": (values + 5000, regular),
        "fine": (values, regular),
    }
    raws = [put_volume(project, index, *case) for index, case in enumerate(cases.values())]
    result = project.run(clean_raw=True)
    assert (result.made, result.exit_code(), result.raw_files_removed) == (1, 3, 1)
    for name, case in zip(project.names, list(cases)[:5], strict=False):
        assert f"--accept {case.split()[0]}" in result.failed[name]
        assert not project.final(name).exists()
    assert [raw.exists() for raw in raws] == [True] * 5 + [False]
    assert "\x1b" not in project.log() + project.log("generate_cache_errors")
    accepted = project.run(accepted=frozenset({"constant", "nan", "4d"}))
    assert accepted.made == 4
    assert torch.load(project.final(project.names[2]))["image"].shape == (3, 16, 32, 32)
    assert list(accepted.failed) == [project.names[3]]
    for engine, (name, case) in product(
        ("fused", "stock"), zip(project.names, list(cases)[:5], strict=False)
    ):
        config = dataclasses.replace(project.config, engine=engine)
        finding = case.split()[0]
        with pytest.raises(ConfigError) as refused:
            preprocess(project.raw(name), config)
        reason = result.failed[name].replace(f"--accept {finding}", f"accept=({finding!r},)")
        assert str(refused.value) == f"{project.raw(name)}: {reason}"
        if finding == "affine":  # MONAI cannot turn it
            continue
        made = preprocess(project.raw(name), config, accept=finding)
        kept = torch.load(project.final(name))["image"]
        assert torch.equal(made.view(torch.int32), kept.view(torch.int32))
    with pytest.raises(ConfigError, match="accept knows constant, nan, 4d, affine, damaged, found holes"):
        preprocess(raws[0], project.config, accept=["nan", "holes"])


def test_a_run_that_makes_nothing_does_not_say_made(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(2))
    for raw in project.put_raw_files():
        raw.write_bytes(b"no volume")
    code, errors = project.fork().wait()
    assert code == 3, errors
    assert "2 of 2 volumes done" in errors
    assert ", 0 made, 2 failed" in errors
    assert "2 of 2 made" not in errors
    wrong = project.cli("--accept", "constant,holes")
    assert (wrong.returncode, "--accept knows" in wrong.stderr) == (2, True)


def test_a_volume_named_ok_that_fails_counts_as_failed(server: HubServer, tmp_path: Path) -> None:
    """D10: success is a status, not a word in a text."""
    project = Project(tmp_path / "p", [*names_of(2), "OK_1.nii.gz"], server)
    server.files[hub_path("OK_1.nii.gz")] = b"no volume"
    result = project.run()
    assert result.made == 2
    assert list(result.failed) == ["OK_1.nii.gz"]
    assert not project.final("OK_1.nii.gz").exists()
    project.assert_sound()


def test_a_damaged_raw_file_fails_its_volume_only(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(2))
    damaged, _ = project.put_raw_files()
    content = bytearray(damaged.read_bytes())
    content[10:14] = b"\xff" * 4
    damaged.write_bytes(content)
    assert read_header(damaged) is None
    result = project.run()
    assert (result.made, list(result.failed)) == (1, [project.names[0]])


def test_a_failed_volume_is_told_by_the_class_of_its_cause(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(1))
    (cut,) = project.put_raw_files()
    cut.write_bytes(cut.read_bytes()[:-200])
    (reason,) = project.run().failed.values()
    assert reason == "EOFError: Compressed file ended before the end-of-stream marker was reached"


def test_the_order_of_keys_does_not_follow_the_hash_seed() -> None:
    """D12: two interpreters with different seeds; MONAI and torch, which take seconds, are left out."""
    script = (
        "import sys, types\n"
        "class Stub(types.ModuleType):\n"
        "    def __getattr__(self, name):\n"
        "        return type(name, (), {'__init__': lambda self, **_: None})\n"
        "sys.modules.update({name: Stub(name) for name in ('torch', 'monai', 'monai.transforms')})\n"
        "from voxtier.tensors.identity.pipeline import KeyCleanerD, KEPT\n"
        "print(list(KeyCleanerD(KEPT)({'x': 0, 'image_meta_dict': 1, 'image': 2})))"
    )
    orders = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
        )
        orders.add(done.stdout)
    assert orders == {"['image', 'image_meta_dict']\n"}


def test_the_status_file_is_valid_json_at_every_moment(tmp_path: Path) -> None:
    """D14: also, memory is what the processes hold now."""
    project = Project(tmp_path / "p", names_of(12))
    project.put_raw_files()
    status = project.base / "logs" / "generate_cache_status.json"
    seen: list[str] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            if status.exists():
                seen.append(json.loads(status.read_text())["status"])
            time.sleep(0.0005)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        project.run()
    finally:
        over.set()
    reader.join()
    assert len(seen) > 10
    assert set(seen) <= {"started", "running", "completed"}
    final = json.loads(status.read_text())
    assert 0 < final["process_rss_mb"] < 1e6


def test_a_real_volume_that_nibabel_ships_is_made(tmp_path: Path) -> None:
    source = Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii"
    project = Project(tmp_path / "p", ["train_1_a_1.nii.gz"])
    raw = project.raw("train_1_a_1.nii.gz")
    raw.parent.mkdir(parents=True)
    raw.write_bytes(gzip.compress(source.read_bytes()))
    assert project.run().made == 1
    loaded = torch.load(project.final("train_1_a_1.nii.gz"), weights_only=True)
    assert loaded["image"].shape == (1, 16, 32, 32)
    assert "affine" in loaded["image_meta_dict"]


def test_float16_is_written_as_configured(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(1), config=CONFIG.replace("float32", "float16"))
    project.put_raw_files()
    assert project.run().made == 1
    assert torch.load(project.final(project.names[0]))["image"].dtype == torch.float16


def test_a_cache_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(1))
    blocked = dataclasses.replace(project.config, cache_dir=project.base / "configs" / "config.yaml" / "x")
    generator = Generator(blocked, Options(min_free=0))
    generator.hub = None
    with pytest.raises(ConfigError, match=r"config.yaml/x.*(read|written): Not a directory"):
        generator.run(generator.plan())


def test_the_token_is_in_no_file(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(2), server)
    server.token = "hf_very_secret"
    server.faults[hub_path(project.names[0])] = [Fault("status", at=503)] * 99
    project.env |= {"HF_TOKEN": "hf_very_secret", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    generator = project.generator()
    generator.hub = Hub("some/CT-RATE", endpoint=server.endpoint, token="hf_very_secret", pause=0.001)
    result = generator.run(generator.plan())
    assert (result.made, result.exit_code()) == (1, 3)
    for path in project.base.rglob("*"):
        if path.is_file():
            assert b"hf_very_secret" not in path.read_bytes(), path


def test_a_killed_run_s_download_is_continued_by_the_next(server: HubServer, tmp_path: Path) -> None:
    project = Project(tmp_path / "p", names_of(1), server)
    name = project.names[0]
    server.files[hub_path(name)] = nifti_bytes(1, shape=(80, 80, 60))
    server.held.add(hub_path(name))
    running = project.fork()
    part, _ = part_paths(project.raw(name))
    running.wait_until(lambda: part.exists() and part.stat().st_size > 60_000)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not project.raw(name).exists()
    server.release.set()
    before = len(server.requests)
    assert project.run().made == 1
    assert any("Range" in headers for _, _, headers in server.requests[before:])
    assert not part.exists()


def test_a_run_without_a_reader_of_its_output_makes_everything(tmp_path: Path) -> None:
    project = Project(tmp_path, names_of(2))
    project.put_raw_files()
    read_end, write_end = os.pipe()
    os.close(read_end)
    running = project.fork("--num-workers", "1", "--json", stdout=write_end)
    os.close(write_end)
    code, errors = running.wait()
    assert code == 0, errors
    assert len(list(project.folder.glob("*.pt"))) == 2
    project.assert_sound()
