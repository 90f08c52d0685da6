"""Other versions of MONAI and of the hub's client, each in an environment of its own (needs uv)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tensors.cases import names_of, put_raw, write_project
from voxtier.tensors import load_config
from voxtier.tensors.making.run import Generator, Options

READER = """
import hashlib, json, sys, warnings
warnings.simplefilter("error", UserWarning)
from monai.data import PersistentDataset
from monai.transforms import Compose, Transform

class Never(Transform):
    def __call__(self, item):
        raise SystemExit("a transform was called for a cached item")

folder, names = sys.argv[1], sys.argv[2:]
items = [{"image": "/nowhere", "volume_name": name} for name in names]
hash_func = lambda item: hashlib.md5(item["volume_name"].encode()).hexdigest().encode()
dataset = PersistentDataset(items, Compose([Never()]), folder, hash_func=hash_func)
print(json.dumps([float(item["image"].double().sum()) for item in dataset]))
"""


HASHES = """
import json
from voxtier.tensors import directory_hash
from voxtier.tensors.identity.pipeline import build_transforms
from tensors.identity.test_pipeline import VECTORS
print(json.dumps([directory_hash(build_transforms(settings)) for settings, _ in VECTORS]))
"""
HASHES_OF_1_5_0 = [
    "2ccb303cb08f6e4482693cf0746fd5a7",
    "3db3de80c2e9ff6ba004336a0a729388",
    "71a83277d45c9b21d998437693007477",
    "d0e04e5972024888b39930883905babe",
]
TESTS = Path(__file__).parents[2]

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """Make an environment of those packages; returns its Python."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    home = tmp_path / "env"
    python = home / "bin" / "python"

    def make(*packages: str) -> Path:
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, home], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *packages], check=True)
        return python

    yield make
    shutil.rmtree(home, ignore_errors=True)


def with_voxtier() -> dict[str, str]:
    """Let another environment import this voxtier, whose core knows no version of Python."""
    import voxtier

    return {**os.environ, "PYTHONPATH": f"{Path(voxtier.__file__).parents[1]}{os.pathsep}{TESTS}"}


@pytest.mark.soak
@pytest.mark.parametrize("version", ["1.5.0", "1.5.2"])
def test_stock_monai_reads_what_generate_made(version: str, install: Install, tmp_path: Path) -> None:
    python = install(f"monai=={version}", "nibabel")
    names = names_of(3)
    config = load_config(write_project(tmp_path / "p", names), environment={})
    for number, name in enumerate(names):
        put_raw(tmp_path / "p", name, number)
    generator = Generator(config, Options(workers=2, min_free=0))
    generator.hub = None
    plan = generator.plan()
    assert generator.run(plan).made == 3
    done = subprocess.run([python, "-c", READER, plan.folder, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    import torch

    expected = [float(torch.load(p)["image"].double().sum()) for p in sorted(Path(plan.folder).glob("*.pt"))]
    assert sorted(json.loads(done.stdout)) == pytest.approx(sorted(expected))


@pytest.mark.soak
def test_directory_hashes_under_monai_1_5_0(install: Install) -> None:
    """Its Orientation had other labels, which are part of the hash: the folders of that time are found."""
    python = install("monai==1.5.0", "nibabel", "pyyaml", "pytest", "hypothesis")
    done = subprocess.run([python, "-c", HASHES], env=with_voxtier(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == HASHES_OF_1_5_0


@pytest.mark.soak
@pytest.mark.parametrize("version", ["0.36", "1.33"])
def test_downloads_with_older_hub_clients(version: str, install: Install) -> None:
    """0.36 speaks through requests, 1.x and later through httpx: every fault of `test_hub` again."""
    needed = ["numpy", "click", "pyyaml", "python-dotenv", "pytest", "pytest-timeout"]
    python = install(f"huggingface_hub=={version}.*", *needed)
    command = [python, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/tensors/making/test_hub.py"],
        env=with_voxtier(),
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
