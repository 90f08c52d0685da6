# %% [markdown]
# # Tensors: damage, verify, heal
#
# Cells are separated by `# %%`; `python examples/run.py tensors` runs it.

# %%
from pathlib import Path

import numpy as np

from voxtier.tensors import HealingPersistentDataset, list_cache, verify

items = [{"image": np.full((1, 8, 8, 8), number, np.float32)} for number in range(3)]


def double(item: dict) -> dict:
    return {"image": item["image"] * 2}


# %% [markdown]
# `HealingPersistentDataset` is `monai.data.PersistentDataset` with the same files.

# %%
from monai.transforms import Lambda  # noqa: E402

dataset = HealingPersistentDataset(items, Lambda(double), cache_dir="cache")
print([float(dataset[number]["image"].max()) for number in range(3)])

# %% [markdown]
# A file loses its end. The check finds it without torch, and without unpickling anything.

# %%
victim = sorted(Path("cache").glob("*.pt"))[0]
victim.write_bytes(victim.read_bytes()[:-100])
for state in verify(list_cache(Path("cache"))):
    print(state.state, Path(state.path).name, state.detail)

# %% [markdown]
# In training the damaged file is made again, and replaced.

# %%
print([float(dataset[number]["image"].max()) for number in range(3)])
assert {state.state for state in verify(list_cache(Path("cache")))} == {"ok"}
