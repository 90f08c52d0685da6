"""What `generate` made, read by a stock MONAI of another version in an environment of its own (needs uv)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tensors.cases import names_of, put_raw, write_project
from voxtier.tensors import load_config
from voxtier.tensors.generate import Generator, Options

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


@pytest.mark.soak
@pytest.mark.parametrize("version", ["1.5.0", "1.5.2"])
def test_stock_monai_reads_what_generate_made(version: str, tmp_path: Path) -> None:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    home = tmp_path / "env"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, home], check=True)
    packages = [f"monai=={version}", "nibabel"]
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", home / "bin" / "python", *packages], check=True
    )
    try:
        names = names_of(3)
        config = load_config(write_project(tmp_path / "p", names), environment={})
        for number, name in enumerate(names):
            put_raw(tmp_path / "p", name, number)
        generator = Generator(config, Options(workers=2, min_free=0))
        generator.hub = None
        plan = generator.plan()
        assert generator.run(plan).made == 3
        command = [home / "bin" / "python", "-c", READER, plan.folder, *names]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        import torch

        expected = [
            float(torch.load(p)["image"].double().sum()) for p in sorted(Path(plan.folder).glob("*.pt"))
        ]
        assert sorted(json.loads(done.stdout)) == pytest.approx(sorted(expected))
    finally:
        shutil.rmtree(home)
