"""The starting configuration, which `voxtier tensors init` prints; its keys are those that are known.

config.py refuses a key that is neither here nor the trainer's.
"""

from __future__ import annotations

STARTER = """\
# A configuration of `voxtier tensors`. ${NAME} stands for an environment variable, or for a line of a file
# .env beside this file or in a folder above. Relative paths start at base_project_dir.

paths:
  # Where relative paths start; relative itself, it starts at the folder of this file.
  base_project_dir: .
  # Volumes as NIfTI; what is missing is downloaded to here.
  img_dir: images
  # Tensors: <cache_dir>/<hash of the transforms>/<hash of the volume's name>.pt
  cache_dir: cache
  # Where the relative paths of data_subsets start.
  data_dir: data
  # Logs and generate_cache_status.json.
  logs_dir: logs
  # nested: img_dir/train_1/train_1_a/train_1_a_1.nii.gz; flat: img_dir/train_1_a_1__transformed.nii.gz
  dir_structure: nested
  # CSV files with a column VolumeName; any names, together they are the list of volumes.
  data_subsets:
    train: train.csv
    valid: valid.csv

# Type of the stored numbers: float32, float16 (half the disk), bfloat16, float64, int16, int32, uint8.
torch_dtype: float32

# Who makes the tensors; the bits are the same. fused: voxtier's core, in a fraction of the time; volumes
# that it does not take, and some for comparison, go through MONAI. stock: MONAI. check: both for each volume.
engine: fused

# Each of these is part of the hash that names the cache folder: a change begins a new cache.
image_processing:
  # Millimetres along the three axes.
  target_spacing: [0.75, 0.75, 1.5]
  # Voxels along the axes (x, y, z) of the array, in spite of the name.
  target_shape_dhw: [128, 256, 256]
  # Values outside are clipped. Hounsfield units if the NIfTI file's own slope and intercept give them: a
  # metadata table with RescaleSlope is not read.
  clip_hu_min: -1000
  # The other end.
  clip_hu_max: 1000
  # Directions of the axes.
  orientation_axcodes: LPS
  # What clip_hu_min becomes.
  scale_b_min: 0.0
  # What clip_hu_max becomes.
  scale_b_max: 1.0

downloads:
  # The Hugging Face dataset of volumes that are not on disk.
  repo_id: ibrahimhamamci/CT-RATE
  # Branch, tag or commit; a commit makes runs repeatable.
  revision: main
  # Downloads at once.
  max_workers: 8
  # A token; better left empty, and set as HF_TOKEN in the environment or in .env.
  hf_token: ""
"""

TRAINER_KEYS = {
    "paths": frozenset({"labels", "reports", "metadata", "output_dir", "train_img_dir", "valid_img_dir"}),
    "downloads": frozenset({"hf_cache_dir"}),
}
"""Keys of the predecessor's trainer in our sections; sections of its own (model, training) are ignored."""
