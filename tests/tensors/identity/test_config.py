"""The configuration: paths, variables, the token, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensors.cases import CONFIG, run_cli, write_project
from voxtier.errors import ConfigError
from voxtier.tensors import load_config
from voxtier.tensors.identity.config import ImageProcessing


def test_a_configuration_is_read_with_absolute_paths(tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", ["train_1_a_1.nii.gz"])
    config = load_config(path, environment={})
    assert config.img_dir == tmp_path / "p" / "images"
    assert config.logs_dir == tmp_path / "p" / "logs"
    assert config.subsets == (tmp_path / "p/data/train.csv", tmp_path / "p/data/valid.csv")
    assert config.processing == ImageProcessing(
        target_spacing=(1.5, 1.5, 3.0),
        target_shape_dhw=(16, 32, 32),
        clip_hu_min=-1000,
        clip_hu_max=1000,
        orientation_axcodes="LPS",
        scale_b_min=-1.0,
        scale_b_max=1.0,
        torch_dtype="float32",
    )
    assert (config.downloads.repo_id, config.downloads.max_workers) == ("some/CT-RATE", 2)
    assert load_config(path, environment={"BASE": "/other"}).cache_dir == Path("/other/cache")


def test_the_token_is_in_no_message(tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", [])
    config = load_config(path, environment={"HF_TOKEN": "hf_secret"})
    assert config.downloads.token == "hf_secret"
    assert "hf_secret" not in repr(config)
    for wrong in (
        CONFIG.replace("downloads: {", "downloads: {hf_token: [hf_secret], "),
        CONFIG + "extra:\n  hf_token: hf_secret: oh\n",
        CONFIG + "extra: 'hf_secret\n",
        CONFIG.replace("downloads: {", "downloads: hf_secret\nrest: {"),
        "- hf_secret\n",
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
        ("target_spacing:", "target_spacng:", "did you mean image_processing.target_spacing"),
        ("torch_dtype:", "torch_dtyp:", "did you mean torch_dtype"),
        ("image_processing:", "image_procesing:", "did you mean image_processing"),
        ("max_workers:", "workers:", "did you mean downloads.max_workers"),
        ("dir_structure:", "structure:", "paths.structure is no key"),
        ("  cache_dir:", "  cachedir:", "did you mean paths.cache_dir"),
        ("downloads: {", "revision: main\ndownloads: {", "revision is no key"),
        ("downloads: {", "downloads: {7: 8, ", "downloads.7 is no key"),
        ("${BASE}/cache", "''", "paths.cache_dir must not be empty"),
        ("${BASE}/cache", "' '", "paths.cache_dir must not be empty"),
        ("${IMG_DIR}", "''", "paths.img_dir must not be empty"),
        ("some/CT-RATE", "''", "downloads.repo_id must not be empty"),
        ("valid: valid.csv", "valid: ''", "paths.data_subsets.valid"),
        ("scale_b_min: -1.0", "scale_b_min: 1.0", "image_processing.scale_b_min"),
        ("paths:", "loop: &loop [*loop]\npaths:", "holds itself"),
        ("paths:", "paths: text\nrest:", "paths must hold keys with values, found a str"),
        ("downloads: {", "downloads: []\nrest: {", "downloads must hold keys with values, found a list"),
        ("downloads: {", "downloads: {max_workers: 1, ", "the key max_workers stands twice"),
        ("torch_dtype:", "torch_dtype: int16\ntorch_dtype:", "not YAML in line 9: the key torch_dtype"),
        ("${BASE}/cache", '"a\\0b"', "paths.cache_dir must not hold a NUL"),
        ("valid: valid.csv", 'valid: "v\\0.csv"', "paths.data_subsets.valid"),
        ("paths:", f"deep: {'[' * 3000}\npaths:", "nested too deeply"),
    ],
    ids=lambda value: value[:40],
)
def test_a_wrong_configuration_names_the_key(old: str, new: str, named: str, tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", [], config=CONFIG.replace(old, new, 1))
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        load_config(path, environment={})


def test_keys_of_the_trainer_are_accepted(tmp_path: Path) -> None:
    extra = "  labels: {train: l.csv}\n  output_dir: out\n  metadata: {train: m.csv}\n  dir_structure:"
    text = CONFIG.replace("  dir_structure:", extra)
    text += (
        "model: {type: vit3d}\ncache: {use_cache: true}\ntraining: {seed: 1}\npathologies: {columns: []}\n"
    )
    path = write_project(tmp_path / "p", [], config=text)
    assert load_config(path, environment={}).dir_structure == "nested"


def test_the_starting_configuration_loads_and_explains_every_key(tmp_path: Path) -> None:
    done = run_cli("init")
    assert done.returncode == 0
    path = tmp_path / "sub" / "config.yaml"
    path.parent.mkdir()
    path.write_text(done.stdout)
    config = load_config(path, environment={})
    # Relative paths start at the file's folder, whatever the current one is.
    assert config.img_dir == path.parent / "images"
    assert config.cache_dir == path.parent / "cache"
    assert config.logs_dir == path.parent / "logs"
    assert config.subsets == (path.parent / "data/train.csv", path.parent / "data/valid.csv")
    assert config.downloads.repo_id == "ibrahimhamamci/CT-RATE"
    lines = done.stdout.splitlines()
    for number, line in enumerate(lines):
        key = line.strip()
        if key and not key.startswith("#") and not key.startswith(("train:", "valid:")):
            below = lines[number + 1].lstrip() if key.endswith(":") else ""
            assert lines[number - 1].lstrip().startswith("#") or below.startswith("#"), key


def test_relative_paths_start_at_the_base_folder(tmp_path: Path) -> None:
    text = CONFIG.replace("${BASE}/", "").replace("base_project_dir: ${BASE}", "base_project_dir: ../work")
    path = write_project(tmp_path / "p", [], config=text.replace("${IMG_DIR}", "~/images"))
    config = load_config(path, environment={})
    base = tmp_path / "p" / "work"
    assert (config.cache_dir, config.data_dir, config.logs_dir) == (
        base / "cache",
        base / "data",
        base / "logs",
    )
    assert config.subsets[0] == base / "data" / "train.csv"
    assert config.img_dir == Path.home() / "images"


def test_a_dotenv_that_is_not_text_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", [])
    (tmp_path / "p" / ".env").write_bytes(b"BASE=\xff\xfe")
    with pytest.raises(ConfigError, match=r"\.env: cannot be read"):
        load_config(path, environment={})


def test_merged_keys_of_yaml_stand_once(tmp_path: Path) -> None:
    anchors = "base: &base {repo_id: a/b, max_workers: 1}\nnext: &next {<<: *base, max_workers: 2}\n"
    merged = anchors + CONFIG.replace("downloads: {repo_id: some/CT-RATE, ", "downloads: {<<: *next, ")
    config = load_config(write_project(tmp_path / "p", [], config=merged), environment={})
    assert (config.downloads.repo_id, config.downloads.max_workers) == ("a/b", 2)
