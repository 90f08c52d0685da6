from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


@pytest.fixture(scope="session", autouse=True)
def _no_proofs_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Also for fixtures of modules, which are set up before those of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOXTIER_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 132 KB as the predecessor's pipeline leaves it: an image and its metadata."""
    path = tmp_path_factory.mktemp("healthy") / "a688fe64537c110e725a890a41ac3dde.pt"
    generator = torch.Generator().manual_seed(5)
    item = {
        "image": torch.rand((1, 32, 32, 32), generator=generator),
        "image_meta_dict": {"affine": torch.eye(4, dtype=torch.float64), "filename_or_obj": "ct.nii.gz"},
    }
    torch.save(item, path)
    return path
