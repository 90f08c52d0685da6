"""nnU-Net v2 trained through voxtier.

Once ``import_nnunet(FOLDER, f"{FOLDER}.voxtier")``, then ``nnUNet_extTrainer=examples/nnunet nnUNetv2_train
DATASET 3d_fullres 0 -tr nnUNetTrainerVoxtier``.
"""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from voxtier.volumes import BatchesMixin


class nnUNetTrainerVoxtier(BatchesMixin, nnUNetTrainer):  # noqa: N801 -- nnU-Net finds trainers by this name
    """The standard training, its loaders exchanged."""
