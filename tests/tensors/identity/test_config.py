"""The configuration: paths, variables, the token, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensors.cases import CONFIG, write_project
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


def test_a_dotenv_that_is_not_text_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write_project(tmp_path / "p", [])
    (tmp_path / "p" / ".env").write_bytes(b"BASE=\xff\xfe")
    with pytest.raises(ConfigError, match=r"\.env: cannot be read"):
        load_config(path, environment={})
