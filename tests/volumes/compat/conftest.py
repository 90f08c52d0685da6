"""A small cohort as the origin's notebooks have a large one."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("pandas")

import pandas as pd

SUBJECTS = [f"BRATS_{n:03d}" for n in (3, 1, 5, 2, 4)]
MODALITIES = ["FLAIR", "T1w", "T1gd", "T2w"]
SHAPE = (24, 20, 16)
GRID = np.array([[-1.0, 0, 0, 90], [0, -1.5, 0, 126], [0, 0, 2, -72], [0, 0, 0, 1]])


def voxels_of(subject: str, modality: str) -> np.ndarray:
    """Return voxels that tell subject and modality."""
    seed = 100 * SUBJECTS.index(subject) + MODALITIES.index(modality)
    return np.random.default_rng(seed).normal(100, 20, SHAPE).astype(np.float32)


@pytest.fixture(scope="session")
def nifti_list(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """One file for each subject and modality, subjects unsorted."""
    folder = tmp_path_factory.mktemp("split_niftis")
    found = []
    for subject in SUBJECTS:
        for modality in MODALITIES:
            path = folder / f"{subject}_{modality}.nii.gz"
            nib.save(nib.Nifti1Image(voxels_of(subject, modality), GRID), path)
            found.append((path, subject))
    return found


@pytest.fixture(scope="session")
def obs_meta_df() -> pd.DataFrame:
    """The table of subjects of the notebook."""
    return pd.DataFrame(
        {
            "obs_subject_id": SUBJECTS,
            "obs_id": SUBJECTS,
            "dataset": "BraTS",
            "tumor_grade": ["HGG", "LGG", "HGG", "HGG", "LGG"],
            "age": [63, 41, 52, 37, 58],
        }
    )


@pytest.fixture(scope="session")
def brats_uri(
    tmp_path_factory: pytest.TempPathFactory, nifti_list: list[tuple[Path, str]], obs_meta_df: pd.DataFrame
) -> str:
    """A store as the first notebook makes it."""
    from voxtier.volumes.compat import RadiObject

    uri = str(tmp_path_factory.mktemp("store") / "brats")
    RadiObject.from_niftis(uri=uri, niftis=nifti_list, obs_meta=obs_meta_df)
    return uri


@pytest.fixture(scope="session")
def lung_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CT images and masks as MSD's Task06_Lung has them."""
    root = tmp_path_factory.mktemp("Task06_Lung")
    rng = np.random.default_rng(6)
    for n in range(4):
        mask = np.zeros(SHAPE, np.uint8)
        mask[10:14, 8:12, 5 + n : 8 + n] = 1
        image = (rng.normal(-800, 50, SHAPE) + 700.0 * mask).astype(np.int16)
        for name, voxels in (("imagesTr", image), ("labelsTr", mask)):
            (root / name).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, GRID), root / name / f"lung_{n:03d}.nii.gz")
    return root
