"""The cache folder of a configuration is remembered, and found again without MONAI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tensors.cases import CONFIG, write_project
from voxtier.errors import ConfigError, MissingExtraError
from voxtier.tensors import load_config
from voxtier.tensors.identity.folders import item_folder, remember_folder


def test_a_remembered_folder_outside_the_cache_is_ignored(tmp_path: Path) -> None:
    config = load_config(write_project(tmp_path / "p", []), environment={})
    remember_folder(config, tmp_path / "elsewhere" / ".." / "..")
    assert item_folder(config).parent == config.cache_dir
    assert item_folder(config).name == "17e95ace6fb8b3620cedcb3aaf6a1f1d"
    for text in ("[" * 100_000, "[1]", '"x"'):
        (config.cache_dir / ".voxtier" / "folders.json").write_text(text)
        assert item_folder(config).name == "17e95ace6fb8b3620cedcb3aaf6a1f1d"
        remember_folder(config, item_folder(config))


def test_a_remembered_folder_is_found_without_importing_monai(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (ModuleNotFoundError("No module named 'monai'", name="monai"), MissingExtraError, "not installed"),
        (
            ImportError("libtorch_cpu.so: failed to map segment", name="_C"),
            ConfigError,
            "failed to map segment",
        ),
        (OSError(12, "Cannot allocate memory"), ConfigError, "Cannot allocate memory"),
    ],
    ids=["absent", "not mapped", "no memory"],
)
def test_what_cannot_be_loaded_is_not_called_not_installed(
    raised: Exception, expected: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuse:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "voxtier.tensors.identity.pipeline":
                raise raised

    config = load_config(write_project(tmp_path / "p", []), environment={})
    monkeypatch.delitem(sys.modules, "voxtier.tensors.identity.pipeline", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    with pytest.raises(expected, match=said):
        item_folder(config)
