"""Caches, configurations and command lines for the tests of this room."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


def run_cli(
    *arguments: object, env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "voxtier", "tensors", *map(str, arguments)]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        timeout=250,
        stdin=subprocess.DEVNULL,
        **options,
    )


def run_unread(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command whose output nobody reads any more, as behind ``| head`` when that has ended."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "voxtier", "tensors", *map(str, arguments)]
    try:
        return subprocess.run(
            command,
            stdout=write_end,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=250,
        )
    finally:
        os.close(write_end)


def fork(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a child of this process, which has imported MONAI and torch: that takes others seconds."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    with warnings.catch_warnings():  # Python 3.12 warns of a fork beside threads, such as numpy's
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def become_command(arguments: Sequence[object], env: dict[str, str], stdout: int, stderr: int) -> None:
    """In a forked child: do what shell and interpreter do for a command, then run it and end."""
    from voxtier.cli import main

    os.environ.update(env)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv = ["voxtier", "tensors", *map(str, arguments)]
    main()


def run_forked(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command that needs MONAI, as `run_cli` does, but in a child of this process."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = fork(become_command, arguments, {}, out.fileno(), errors.fileno())
        process.join()
        assert process.exitcode is not None
        for stream in (out, errors):
            stream.seek(0)
        return subprocess.CompletedProcess(arguments, process.exitcode, out.read(), errors.read())


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def fill_cache(folder: Path, healthy: Path, count: int) -> list[Path]:
    """Copy a healthy file under `count` names of the predecessor."""
    from voxtier.tensors import item_key

    folder.mkdir(parents=True, exist_ok=True)
    content = healthy.read_bytes()
    paths = [folder / f"{item_key(f'train_{n}_a_1.nii.gz')}.pt" for n in range(1, count + 1)]
    for path in paths:
        path.write_bytes(content)
    return paths


CONFIG = """\
paths:
  img_dir: ${IMG_DIR}
  base_project_dir: ${BASE}
  cache_dir: ${BASE}/cache
  data_dir: ${BASE}/data
  dir_structure: nested
  data_subsets: {train: train.csv, valid: valid.csv}
torch_dtype: float32
image_processing:
  target_spacing: [1.5, 1.5, 3.0]
  target_shape_dhw: [16, 32, 32]
  clip_hu_min: -1000
  clip_hu_max: 1000
  orientation_axcodes: LPS
  scale_b_min: -1.0
  scale_b_max: 1.0
downloads: {repo_id: some/CT-RATE, max_workers: 2}
workflow: {mode: feature_based}
"""


def write_project(base: Path, train: list[str], valid: list[str] = [], config: str = CONFIG) -> Path:  # noqa: B006
    """Lay out a project folder; return the path of its configuration."""
    (base / "configs").mkdir(parents=True)
    (base / "data").mkdir()
    (base / "images").mkdir()
    (base / ".env").write_text(f"IMG_DIR={base}/images\nBASE={base}\n")
    for name, volumes in (("train", train), ("valid", valid)):
        text = "VolumeName,Label\n" + "".join(f"{volume},0\n" for volume in volumes)
        (base / "data" / f"{name}.csv").write_text(text)
    path = base / "configs" / "config.yaml"
    path.write_text(config)
    return path


def nifti_bytes(seed: int, shape: tuple[int, ...] = (24, 20, 12)) -> bytes:
    """A gzipped NIfTI volume with an oblique-free affine and values of a CT."""
    import numpy as np

    values = np.random.default_rng(seed).integers(-1200, 1200, shape).astype(np.int16)
    return _as_nifti(values)


def constant_volume() -> bytes:
    """A gzipped NIfTI volume that a run refuses: all of its voxels are equal."""
    import numpy as np

    return _as_nifti(np.zeros((24, 20, 12), np.int16))


def _as_nifti(values: Any) -> bytes:
    import gzip

    import nibabel
    import numpy as np

    image = nibabel.Nifti1Image(values, np.diag([-1.4, -1.4, 2.8, 1.0]))
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def put_raw(base: Path, name: str, seed: int = 0, **options: Any) -> Path:
    """Lay a volume where the configuration looks for it."""
    from voxtier.tensors.identity.keys import raw_path

    path = raw_path(base / "images", name, "nested")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(nifti_bytes(seed, **options))
    return path


def names_of(count: int, split: str = "train") -> list[str]:
    return [f"{split}_{number}_a_1.nii.gz" for number in range(1, count + 1)]
