# %% [markdown]
# # A cohort, and patches for training
#
# Cells are separated by `# %%`; `python examples/run.py training` runs it.

# %%
from pathlib import Path

import nibabel as nib
import numpy as np

from voxtier.volumes import (
    Augmentation,
    DatasetConfig,
    ForegroundSampler,
    RadiObject,
    SegmentationDataset,
    batches,
)

Path("scans").mkdir(exist_ok=True)
random = np.random.default_rng(0)
for number in range(4):
    image = random.normal(0, 200, (64, 64, 48)).astype(np.int16)
    image[20:40, 20:40, 10:30] += 600
    nib.save(nib.Nifti1Image(image, np.eye(4)), f"scans/sub-{number}_CT.nii.gz")
    nib.save(nib.Nifti1Image((image > 500).astype(np.int16), np.eye(4)), f"scans/sub-{number}_seg.nii.gz")

# %%
radi = RadiObject.from_niftis("cohort", images={"CT": "scans/*_CT.nii.gz", "seg": "scans/*_seg.nii.gz"})
radi

# %%
radi.CT

# %%
radi.CT.loc["sub-0_CT"]

# %% [markdown]
# Patches around the mask, other ones in each epoch, the same ones for the same seed.

# %%
config = DatasetConfig("patch", patch_size=24, patches_per_volume=4, sampler=ForegroundSampler(), seed=3)
dataset = SegmentationDataset(radi.CT, radi.seg, config)
loader = batches(dataset, batch_size=4, augment=Augmentation())
for epoch in range(2):
    shares = [float(batch["mask"].float().mean()) for batch in loader]
    print(f"epoch {epoch}: {len(shares)} batches, {100 * np.mean(shares):.1f} % foreground")

# %% [markdown]
# A checkpoint goes on after the batch at which it was taken.

# %%
first = iter(loader)
next(first)
state = loader.state_dict()
after = next(first)["image"].clone()
again = batches(dataset, batch_size=4, augment=Augmentation())
again.load_state_dict(state)
assert np.array_equal(after.numpy(), next(iter(again))["image"].numpy())
