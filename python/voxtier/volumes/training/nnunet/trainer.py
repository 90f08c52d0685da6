"""A mix-in for nnU-Net v2's trainers: their loaders become `batches()` of an imported store.

In a file of a folder that the environment variable ``nnUNet_extTrainer`` names::

    class nnUNetTrainerVoxtier(BatchesMixin, nnUNetTrainer):
        pass
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from voxtier.errors import ConfigError
from voxtier.volumes.cohort.radi_object import RadiObject
from voxtier.volumes.training.augmenting import Augmentation
from voxtier.volumes.training.batches import Batches, batches
from voxtier.volumes.training.datasets import DatasetConfig, SegmentationDataset
from voxtier.volumes.training.loaders import import_torch
from voxtier.volumes.training.nnunet.importing import MASK, SUFFIX, channel_name, mask_of, state_of
from voxtier.volumes.training.nnunet.sampling import RegionSampler

_OUTSIDE_MASK = -1  # what nnU-Net pads segmentations with, and stores outside of the body


class EndlessBatches:
    """Batches as nnU-Net's loop asks for them, epoch after epoch.

    Parameters
    ----------
    loader : Batches
        The batches.
    each : int
        Of an epoch of nnU-Net.
    finish : callable
        Makes nnU-Net's dict of a batch.
    epoch : int
        The first one.
    """

    def __init__(
        self, loader: Batches, each: int, finish: Callable[[dict[str, Any]], dict[str, Any]], epoch: int
    ) -> None:
        self.loader, self._each, self._finish_batch = loader, each, finish
        self._batches = self._draw(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._batches)

    def _draw(self, epoch: int) -> Iterator[dict[str, Any]]:
        while True:
            self.loader.set_epoch(epoch)
            for _, batch in zip(range(self._each), self.loader, strict=False):
                yield self._finish_batch(batch)
            epoch += 1

    def close(self) -> None:
        """End the threads."""
        self._batches = iter(())


class BatchesMixin:
    """Stands before an ``nnUNetTrainer`` in the bases of a class.

    Epoch, seed and case decide patches and augmentation, so that a training that goes on from a checkpoint
    sees what it would have seen. Patches are drawn around foreground with nnU-Net's probability for each
    patch (its ``probabilistic_oversampling``), and lie inside of a case where it is larger than they are.
    nnU-Net's default rounds by batch: of a batch of two, one patch has foreground in its centre (50 %), here
    33 %; set the trainer's ``oversample_foreground_percent`` to 0.5 for the same share.

    Attributes
    ----------
    voxtier_store : path or None
        The store of `import_nnunet`; by default ``<folder of the preprocessed cases>.voxtier``.
    voxtier_options : dict
        Further options of `batches`, such as ``threads``.
    """

    voxtier_store: str | Path | None = None
    voxtier_options: dict[str, Any] = {}  # noqa: RUF012 -- nnU-Net saves annotations of instances

    def get_dataloaders(self) -> tuple[EndlessBatches, EndlessBatches]:
        """Return the batches of training and validation, as nnU-Net's loop takes them.

        Raises
        ------
        ConfigError
            For what is not done by voxtier: cascades, ignore labels, transforms of the trainer's own; for a
            store that lacks cases, or whose cases were preprocessed again.
        """
        trainer: Any = self
        turns = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        rotation, is_flat, _, mirror_axes = turns
        _refuse_unknown(trainer)
        augment = self.voxtier_augmentation(rotation, mirror_axes, is_flat=is_flat)
        training, validation = trainer.do_split()
        store = RadiObject(self._store_place())
        each = (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch)
        return (
            self._loader(store, training, each[0], augment, seed=0),
            self._loader(store, validation, each[1], None, seed=1),
        )

    def voxtier_augmentation(
        self, rotation: tuple[float, float], mirror_axes: Sequence[int] | None, *, is_flat: bool
    ) -> Augmentation | None:
        """Return the augmentation of training patches, by default that of ``nnUNetTrainer``.

        A trainer with transforms of its own says here what stands for them.

        Parameters
        ----------
        rotation : (float, float)
            Range of angles in radians.
        mirror_axes : sequence of int or None
            Axes of the patch that may be mirrored.
        is_flat : bool
            Whether patches are turned and scaled slice by slice ("dummy 2d").

        Returns
        -------
        Augmentation or None
            None changes nothing.

        Raises
        ------
        ConfigError
            For a trainer with transforms of its own.
        """
        trainer: Any = self
        maker = type(trainer).get_training_transforms
        if not maker.__qualname__.startswith("nnUNetTrainer."):
            raise ConfigError(
                f"{maker.__qualname__} is not what voxtier's threads do: override voxtier_augmentation() to"
                " say what stands for it"
            )
        dims = len(trainer.configuration_manager.patch_size)
        mirrored = {axis + 3 - dims for axis in mirror_axes or ()}
        return Augmentation(
            rotation=(float(rotation[0]), float(rotation[1])),
            mirror=(0 in mirrored, 1 in mirrored, 2 in mirrored),
            flat_axis=0 if is_flat or dims == 2 else None,
        )

    def on_train_end(self) -> None:
        """End the threads, then do what the trainer does."""
        trainer: Any = self
        for loader in (trainer.dataloader_train, trainer.dataloader_val):
            if isinstance(loader, EndlessBatches):
                loader.close()
        super().on_train_end()  # type: ignore[misc]

    def _store_place(self) -> Path:
        folder = str(self.preprocessed_dataset_folder)  # type: ignore[attr-defined]
        place = Path(self.voxtier_store or f"{folder}.voxtier")
        if not place.exists():
            raise ConfigError(
                f"there is no store at {place}: run"
                f" voxtier.volumes.import_nnunet({folder!r}, {str(place)!r}) once"
            )
        return place

    def _loader(
        self, store: RadiObject, cases: Sequence[str], each: int, augment: Augmentation | None, *, seed: int
    ) -> EndlessBatches:
        trainer: Any = self
        torch = import_torch()
        rank, world = 0, 1
        if trainer.is_ddp:
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        size, dims = trainer.configuration_manager.patch_size, len(trainer.configuration_manager.patch_size)
        names = [name for name in store.collection_names if name != MASK]
        wanted = [channel_name(channel) for channel in range(trainer.num_input_channels or len(names))]
        missing = sorted(set(wanted) - set(names))
        if missing:
            raise ConfigError(f"{store.uri} lacks the channel {missing[0]}: import the cases again")
        self._refuse_stale(store, [*wanted, MASK], cases)
        # Ranks take turns over the items; where these do not divide, one comes once more.
        items = each * world * -(-trainer.configuration_manager.batch_size // world)
        config = DatasetConfig(
            "patch",
            (1, *size) if dims == 2 else tuple(size),
            -(-items // len(cases)),
            RegionSampler(trainer.oversample_foreground_percent, _regions(trainer)),
            seed=seed,
            mask_fill=_OUTSIDE_MASK,
        )
        images = [store.collection(name).sel(subject=cases) for name in wanted]
        data = SegmentationDataset(images, store.collection(MASK).sel(subject=cases), config)
        options = {"layout": "contiguous", **self.voxtier_options}
        loader = batches(data, trainer.batch_size, augment=augment, rank=rank, world_size=world, **options)
        return EndlessBatches(loader, each, _finisher(trainer, dims), trainer.current_epoch)

    def _refuse_stale(self, store: RadiObject, names: Sequence[str], cases: Sequence[str]) -> None:
        """Refuse cases that a collection lacks, and files that are not those that were imported."""
        folder = Path(self.preprocessed_dataset_folder)  # type: ignore[attr-defined]
        for name in names:
            rows = {str(row["obs_subject_id"]): row for row in store.collection(name).table.rows()}
            absent = [case for case in cases if case not in rows]
            if absent:
                raise ConfigError(
                    f"{store.uri} lacks the cases {', '.join(absent[:5])} in {name}: import them again"
                )
            for case in cases:
                image, row = folder / f"{case}{SUFFIX}", rows[case]
                path = mask_of(image) if name == MASK else image
                if path.exists() and state_of(path) != (row["source_bytes"], row["source_mtime_ns"]):
                    raise ConfigError(
                        f"{path} was written after {store.uri}: import_nnunet(..., overwrite=True)"
                    )


def _refuse_unknown(trainer: Any) -> None:
    if trainer.is_cascaded:
        raise ConfigError("cascades are not trained through voxtier: use nnU-Net's own loaders")
    if trainer.label_manager.has_ignore_label:
        raise ConfigError("ignore labels are not sampled by voxtier: use nnU-Net's own loaders")


def _regions(trainer: Any) -> list[tuple[int, ...]]:
    labels = trainer.label_manager
    found = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    return [tuple(region) if isinstance(region, (tuple, list)) else (int(region),) for region in found]


def _finisher(trainer: Any, dims: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what makes nnU-Net's dict of a batch: its validation transforms, after the core's work."""
    torch, labels = import_torch(), trainer.label_manager
    transforms = trainer.get_validation_transforms(
        trainer._get_deep_supervision_scales(),
        is_cascaded=False,
        foreground_labels=labels.foreground_labels,
        regions=labels.foreground_regions if labels.has_regions else None,
        ignore_label=None,
    )
    masked = [channel for channel, is_masked in
              enumerate(trainer.configuration_manager.use_mask_for_norm or ()) if is_masked]  # fmt: skip

    def finish(batch: dict[str, Any]) -> dict[str, Any]:
        image, mask = batch["image"], batch["mask"].to(torch.int16)
        outside = mask[:, 0] < 0
        for channel in masked:  # as nnU-Net's MaskImageTransform
            image[:, channel][outside] = 0
        if dims == 2:
            image, mask = image[:, :, 0], mask[:, :, 0]
        done = [transforms(image=one, segmentation=two) for one, two in zip(image, mask, strict=True)]
        targets = [one["segmentation"] for one in done]
        is_list = isinstance(targets[0], list)
        target = [torch.stack(scale) for scale in zip(*targets, strict=True)] if is_list else None
        return {
            "data": torch.stack([one["image"] for one in done]),
            "target": torch.stack(targets) if target is None else target,
            "keys": batch["obs_subject_id"],
        }

    return finish
