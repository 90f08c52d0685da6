"""Configuration, keys, paths and the map: the predecessor's vectors, and its defects."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from monai.data.utils import json_hashing, pickle_hashing

from tensors.cases import CONFIG, fill_cache, rows, run_cli, write_project
from voxtier.errors import ConfigError
from voxtier.tensors import (
    build_transforms,
    cache_params_text,
    directory_hash,
    item_key,
    load_config,
    stable_hash,
)
from voxtier.tensors.identity.config import ImageProcessing
from voxtier.tensors.identity.folders import item_folder, remember_folder
from voxtier.tensors.identity.keys import hub_path, missing_keys, raw_path, read_volume_names


def processing(shape, spacing, b, dtype="float32") -> ImageProcessing:
    return ImageProcessing(tuple(spacing), tuple(shape), -1000, 1000, "LPS", b[0], b[1], dtype)


SMALL = ((16, 32, 32), (1.5, 1.5, 3.0))
LARGE = ((128, 256, 256), (0.75, 0.75, 1.5))


VECTORS = [
    (processing(*SMALL, (-1.0, 1.0)), "17e95ace6fb8b3620cedcb3aaf6a1f1d"),
    (processing(*SMALL, (-1, 1)), "a2e2f962ab61c0e965959873ce5d2cce"),
    (processing(*LARGE, (-1.0, 1.0)), "0bc58549041336377d0bae56dd124b3e"),
    (processing(*LARGE, (-1.0, 1.0), "float16"), "73dc765f10b27e6e791b007ea25908fd"),
]


@pytest.mark.parametrize(("settings", "expected"), VECTORS)
def test_directory_hash_vectors(settings: ImageProcessing, expected: str) -> None:
    assert directory_hash(build_transforms(settings)) == expected


def test_cache_params_bytes() -> None:
    text = cache_params_text(build_transforms(processing(*SMALL, (-1.0, 1.0))))
    assert len(text) == 4725
    assert hashlib.sha256(text.encode("ascii")).hexdigest()[:16] == "bed2ca50b467a8a6"


def test_a_lambda_has_no_hash() -> None:
    from monai.transforms import Lambdad

    with pytest.raises(TypeError, match="cannot be part of a cache key"):
        directory_hash([Lambdad(keys="image", func=len), np.ufunc])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train_1_a_1.nii.gz", "a688fe64537c110e725a890a41ac3dde"),
        ("train_1_a_1", "60b28cef86d5d8bad3e4a1a4790eedec"),
    ],
)
def test_item_key_vectors(name: str, expected: str) -> None:
    assert item_key(name) == expected


@pytest.mark.parametrize(
    ("item", "sha"),
    [
        ({"image": "/data/ct/vol_001.nii.gz", "label": 1}, "2a475ec5f22e"),
        ("/data/ct/vol_001.nii.gz", "ec6da58e682c"),
        ({"image": ["/d/a.nii.gz", "/d/b.nii.gz"], "label": [0, 1]}, "c80c34e4ebe1"),
        (7, "88c41c8c31a3"),
        ({"b": 1, "a": 2}, "d1200ce1d4ac"),
    ],
)
def test_monai_item_hash_vectors(item: object, sha: str) -> None:
    assert pickle_hashing(item)[:12].decode() == sha


def test_monai_json_hash_vector() -> None:
    assert json_hashing({"image": "/data/ct/vol_001.nii.gz", "label": 1})[:12] == b"8df28bfd073a"


def test_stable_hash_ignores_what_is_no_content() -> None:
    text = "/data/ct/vol_001.nii.gz"
    item = {"image": text, "label": 1}
    same = [
        {"label": np.int64(1), "image": Path("/elsewhere/ct/vol_001.nii.gz")},
        {"image": str(text.encode(), "ascii"), "label": 1.0},
        {"image": "C:\\x\\ct\\vol_001.nii.gz", "label": 1},
    ]
    assert {stable_hash(other) for other in same} == {stable_hash(item)}
    different = [{"image": text, "label": 2}, {"image": text}, [text, 1], {"image": text + "x", "label": 1}]
    assert stable_hash(item) not in {stable_hash(other) for other in different}
    assert stable_hash(["ab", "c"]) != stable_hash(["a", "bc"])
    assert stable_hash({"x": float("nan")}) == stable_hash({"x": np.float32("nan")}) != stable_hash({"x": 0})
    assert stable_hash(float("inf")) != stable_hash(float("-inf"))
    assert stable_hash(2**80) == stable_hash(float(2**80))
    with pytest.raises(TypeError, match="hash_func"):
        stable_hash({"image": object()})


@pytest.mark.parametrize(
    ("name", "nested", "flat", "hub"),
    [
        (
            "train_1_a_1.nii.gz",
            "train_1/train_1_a/train_1_a_1.nii.gz",
            "train_1_a_1__transformed.nii.gz",
            "dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz",
        ),
        (
            "valid_12_b_2",
            "valid_12/valid_12_b/valid_12_b_2.nii.gz",
            "valid_12_b_2__transformed.nii.gz",
            "dataset/valid_fixed/valid_12/valid_12_b/valid_12_b_2.nii.gz",
        ),
        ("x_1.nii.gz", "x_1.nii.gz", "x_1__transformed.nii.gz", "dataset/x/x_1.nii.gz"),
    ],
)
def test_paths(name: str, nested: str, flat: str, hub: str) -> None:
    base = Path("/b")
    assert raw_path(base, name, "nested") == base / nested
    assert raw_path(base, name, "flat") == base / flat
    assert hub_path(name) == hub
    with pytest.raises(ConfigError):
        raw_path(base, name, "deep")


def test_config(tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", ["train_1_a_1.nii.gz"])
    config = load_config(path, environment={})
    assert config.img_dir == tmp_path / "p" / "images"
    assert config.logs_dir == tmp_path / "p" / "logs"
    assert config.subsets == (tmp_path / "p/data/train.csv", tmp_path / "p/data/valid.csv")
    assert config.processing == processing(*SMALL, (-1.0, 1.0))
    assert (config.downloads.repo_id, config.downloads.max_workers) == ("some/CT-RATE", 2)
    assert load_config(path, environment={"BASE": "/other"}).cache_dir == Path("/other/cache")


def test_the_token_stays_out_of_texts(tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", [])
    config = load_config(path, environment={"HF_TOKEN": "hf_secret"})
    assert config.downloads.token == "hf_secret"
    assert "hf_secret" not in repr(config)
    for wrong in (
        CONFIG.replace("downloads: {", "downloads: {hf_token: [hf_secret], "),
        CONFIG + "extra:\n  hf_token: hf_secret: oh\n",
        CONFIG + "extra: 'hf_secret\n",
    ):
        path.write_text(wrong)
        with pytest.raises(ConfigError) as caught:
            load_config(path, environment={})
        assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("${IMG_DIR}", "${UNSET_THING}", "UNSET_THING"),
        ("float32", "float33", "torch_dtype"),
        ("nested", "deep", "paths.dir_structure"),
        ("[16, 32, 32]", "[16, 32]", "image_processing.target_shape_dhw"),
        ("[16, 32, 32]", "[16, 32.5, 32]", "image_processing.target_shape_dhw"),
        ("[1.5, 1.5, 3.0]", "[1.5, -1.5, 3.0]", "image_processing.target_spacing"),
        ("  target_spacing: [1.5, 1.5, 3.0]\n", "", "image_processing.target_spacing"),
        ("clip_hu_min: -1000", "clip_hu_min: 2000", "image_processing.clip_hu_min"),
        ("clip_hu_min: -1000", "clip_hu_min: low", "image_processing.clip_hu_min"),
        ("clip_hu_min: -1000", "clip_hu_min: -.inf", "image_processing.clip_hu_min"),
        ("[1.5, 1.5, 3.0]", "[1.5, .inf, 3.0]", "image_processing.target_spacing"),
        ("axcodes: LPS", "axcodes: LRS", "image_processing.orientation_axcodes"),
        ("{train: train.csv, valid: valid.csv}", "train.csv", "paths.data_subsets"),
        ("max_workers: 2", "max_workers: 0", "downloads.max_workers"),
        ("paths:", "paths: [", "not YAML"),
        ("paths:", "loop: &loop [*loop]\npaths:", "holds itself"),
        ("paths:", f"deep: {'[' * 3000}\npaths:", "nested too deeply"),
    ],
    ids=lambda value: value[:40],
)
def test_a_wrong_configuration_names_the_key(old: str, new: str, named: str, tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", [], config=CONFIG.replace(old, new, 1))
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        load_config(path, environment={})


def test_a_dotenv_that_is_no_text(tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", [])
    (tmp_path / "p" / ".env").write_bytes(b"BASE=\xff\xfe")
    with pytest.raises(ConfigError, match=r"\.env: cannot be read"):
        load_config(path, environment={})


def test_a_remembered_folder_leads_nowhere_else(tmp_path: Path) -> None:
    config = load_config(write_project(tmp_path / "p", []), environment={})
    remember_folder(config, tmp_path / "elsewhere" / ".." / "..")
    assert item_folder(config).parent == config.cache_dir
    assert item_folder(config).name == "17e95ace6fb8b3620cedcb3aaf6a1f1d"
    for text in ("[" * 100_000, "[1]", '"x"'):
        (config.cache_dir / ".voxtier" / "folders.json").write_text(text)
        assert item_folder(config).name == "17e95ace6fb8b3620cedcb3aaf6a1f1d"
        remember_folder(config, item_folder(config))


def test_the_folder_is_remembered_without_monai(tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", [])
    config = load_config(path, environment={})
    folder = item_folder(config)
    assert folder == config.cache_dir / "17e95ace6fb8b3620cedcb3aaf6a1f1d"
    remember_folder(config, folder)
    script = (
        "import sys; from voxtier.tensors.identity.config import load_config\n"
        "from voxtier.tensors.identity.folders import item_folder\n"
        f"print(item_folder(load_config({str(path)!r})).name, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.split() == [folder.name, "False"]
    path.write_text(CONFIG.replace("-1.0", "-1"))
    assert item_folder(load_config(path, environment={})) != folder


def test_csv_names_are_distinct_and_checked(tmp_path: Path) -> None:
    one, two = tmp_path / "1.csv", tmp_path / "2.csv"
    one.write_text("\ufeffLabel,VolumeName\n0,a.nii.gz\n1,b.nii.gz\n2,a.nii.gz\n3,\n")
    two.write_text("VolumeName\nb.nii.gz\nc.nii.gz\n")
    assert read_volume_names([one, two]) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    two.write_text("volumename\nb\n")
    with pytest.raises(ConfigError, match="VolumeName, found volumename"):
        read_volume_names([two])
    two.write_text("VolumeName\n../../etc/passwd\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_volume_names([two])
    two.write_text(f"VolumeName\n{'é' * 120}\n")  # 240 bytes, and more as a path
    with pytest.raises(ConfigError, match="cannot be a file name"):
        read_volume_names([two])
    two.write_bytes(b"\x00\xff\xfe")
    with pytest.raises(ConfigError):
        read_volume_names([two])


def test_missing_analysis(healthy: Path, tmp_path: Path) -> None:
    paths = fill_cache(tmp_path / "c", healthy, 3)
    paths[0].rename(paths[0].with_name(f"{'0' * 32}.pt"))
    (tmp_path / "c" / "cache_params.json").write_text("{}")
    found = missing_keys([f"train_{n}_a_1.nii.gz" for n in range(1, 6)] + ["train_2_a_1"], tmp_path / "c")
    assert found.missing == ["train_1_a_1.nii.gz", "train_4_a_1.nii.gz", "train_5_a_1.nii.gz", "train_2_a_1"]
    assert found.orphans == [f"{'0' * 32}.pt"]
    assert found.ambiguous == ["train_2_a_1"]
    assert len(missing_keys(["a"], tmp_path / "absent").missing) == 1


def test_d3_every_key_of_the_map_names_a_file(healthy: Path, tmp_path: Path) -> None:
    paths = fill_cache(tmp_path / "c", healthy, 8)
    table = tmp_path / "v.csv"
    table.write_text("VolumeName\n" + "".join(f"train_{n}_a_1.nii.gz\n" for n in range(1, 9)))
    target = tmp_path / "new" / "folder" / "map.json"
    assert run_cli("map", "--csv-path", table, "--output-path", target).returncode == 0
    text = target.read_text()
    mapping = json.loads(text)
    assert {f"{key}.pt" for key in mapping} == {path.name for path in paths}
    assert text == json.dumps(mapping, indent=4)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert run_cli("map", "--csv-path", table, "--output-path", target, "--legacy-hex").returncode == 0
    legacy = json.loads(target.read_text())
    assert {bytes.fromhex(key).decode() for key in legacy} == set(mapping)
    assert all(len(key) == 64 for key in legacy)
    assert run_cli("map", "--csv-path", table, "--output-path", target, "--redact").returncode == 0
    redacted = json.loads(target.read_text())
    assert redacted.keys() == mapping.keys()
    assert "train" not in target.read_text()
    table.write_text("Name\nx\n")
    failed = run_cli("map", "--csv-path", table, "--output-path", target)
    assert (failed.returncode, "VolumeName" in failed.stderr) == (2, True)
    assert json.loads(target.read_text()) == redacted


def test_verify_with_a_configuration_finds_orphans(healthy: Path, tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", [f"train_{n}_a_1.nii.gz" for n in (1, 2)])
    config = load_config(path, environment={})
    fill_cache(item_folder(config), healthy, 3)
    (tmp_path / "p" / "logs").mkdir()
    started = time.time()
    done = run_cli("verify", "--config", path, "--json")
    assert done.returncode == 0, done.stderr
    assert sorted(row["state"] for row in rows(done.stdout)) == ["ok", "ok", "orphan"]
    log = tmp_path / "p" / "logs" / "cache_verification.log"
    assert log.stat().st_mtime >= started - 1
