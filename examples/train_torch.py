"""Train a network on patches of a store, in a plain loop of torch.

``python examples/train_torch.py STORE IMAGE MASK``; IMAGE and MASK are collections of the store. Under
``torchrun --nproc-per-node N`` each rank takes its part, and all of them hold decoded tiles once.
"""

from __future__ import annotations

import argparse
import os

import torch

from voxtier.volumes import (
    Augmentation,
    DatasetConfig,
    ForegroundSampler,
    RadiObject,
    SegmentationDataset,
    batches,
)


def train(
    store: str, image: str, mask: str, *, size: int = 96, per_volume: int = 8, epochs: int = 1
) -> list[float]:
    """Return the loss of each batch."""
    radi = RadiObject(store)
    config = DatasetConfig("patch", size, per_volume, ForegroundSampler(0.5), seed=0)
    data = SegmentationDataset(radi.collection(image), radi.collection(mask), config)
    loader = batches(
        data,
        batch_size=2,
        augment=Augmentation(),  # nnU-Net's standard set, done by the core
        device="cuda" if torch.cuda.is_available() else None,
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        drop_last=True,
    )
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1),
        torch.nn.InstanceNorm3d(8),
        torch.nn.ReLU(),
        torch.nn.Conv3d(8, 3, 3, padding=1),
    )
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(epochs):
        for batch in loader:
            target = batch["mask"][:, 0].long().clamp(0, 2)
            loss = torch.nn.functional.cross_entropy(network(batch["image"]), target)
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
    parser.add_argument("--epochs", type=int, default=1)
    given = parser.parse_args()
    print(train(given.store, given.image, given.mask, size=given.size, epochs=given.epochs))
