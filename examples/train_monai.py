"""Train MONAI's UNet on patches of a store; batches hold MetaTensors, whose affines are those of the patches.

``python examples/train_monai.py STORE IMAGE MASK``; IMAGE and MASK are collections of the store.
"""

from __future__ import annotations

import argparse

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet

from voxtier.volumes import (
    Augmentation,
    ClassSampler,
    DatasetConfig,
    RadiObject,
    SegmentationDataset,
    batches,
)


def train(store: str, image: str, mask: str, *, size: int = 96, per_volume: int = 8) -> list[float]:
    """Return the loss of each batch of one epoch."""
    radi = RadiObject(store)
    config = DatasetConfig("patch", size, per_volume, ClassSampler({0: 1, 1: 1, 2: 1}))
    data = SegmentationDataset(radi.collection(image), radi.collection(mask), config)
    network = UNet(3, in_channels=1, out_channels=3, channels=(8, 16), strides=(2,))
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    losses = []
    for batch in batches(data, 2, augment=Augmentation(), kind="metatensor"):
        assert batch["image"].affine.shape == (len(batch["image"]), 4, 4)
        loss = loss_of(network(batch["image"].contiguous()), batch["mask"].contiguous().clamp(0, 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("store", "image", "mask"):
        parser.add_argument(name)
    parser.add_argument("--size", type=int, default=96)
    given = parser.parse_args()
    print(train(given.store, given.image, given.mask, size=given.size))
