"""Write `fixtures/monai-<version>/`: a small cache as that MONAI version leaves it, and its item hashes.

Run once per version with an interpreter that has it, from any folder:

    uv venv /tmp/monai-1.5.0 && uv pip install --python /tmp/monai-1.5.0 monai==1.5.0 nibabel
    /tmp/monai-1.5.0/bin/python tests/tensors/make_fixtures.py
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import monai
import nibabel
import numpy as np
import torch
from monai.data import PersistentDataset
from monai.data.utils import json_hashing, pickle_hashing
from monai.transforms import Compose, LoadImaged, ScaleIntensityRanged, Spacingd

SHAPES = [
    {"image": "/data/ct/vol_001.nii.gz", "label": 1},
    "/data/ct/vol_001.nii.gz",
    {"image": ["/d/a.nii.gz", "/d/b.nii.gz"], "label": [0, 1]},
    7,
    {"b": 1, "a": 2},
]


def main() -> None:
    target = Path(__file__).absolute().parent / "fixtures" / f"monai-{monai.__version__}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    os.chdir(tempfile.mkdtemp())
    Path("raw").mkdir()
    items = []
    for number in range(10):
        values = np.random.default_rng(number).integers(-1000, 1000, (4, 4, 3)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0])), f"raw/vol_{number}.nii.gz")
        items.append({"image": f"raw/vol_{number}.nii.gz", "label": number})
    steps = [
        LoadImaged(keys="image", ensure_channel_first=True, reader="NibabelReader"),
        Spacingd(keys="image", pixdim=(1.0, 1.0, 1.0)),
        ScaleIntensityRanged(keys="image", a_min=-1000, a_max=1000, b_min=0.0, b_max=1.0),
    ]
    dataset = PersistentDataset(items, Compose(steps), target)
    numbers = [float(torch.as_tensor(item["image"]).double().sum()) for item in dataset]
    facts = {
        "monai": monai.__version__,
        "torch": torch.__version__,
        "items": items,
        "keys": [pickle_hashing(item).decode() for item in items],
        "sums": numbers,
        "shapes": [[item, pickle_hashing(item).decode()] for item in SHAPES],
        "json": json_hashing(SHAPES[0]).decode(),
    }
    (target / "facts.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
