from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


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
