"""Loops that others write over `batches()`: the examples for torch and MONAI, and nnU-Net's trainer."""

from __future__ import annotations

import importlib.util
import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
blosc2 = pytest.importorskip("blosc2")

from volumes.training.test_batches import cohort  # noqa: E402, F401
from voxtier.errors import ConfigError, IngestError, LeftOutWarning  # noqa: E402
from voxtier.volumes import BatchesMixin, RadiObject, import_nnunet  # noqa: E402
from voxtier.volumes.store import foreground  # noqa: E402
from voxtier.volumes.training.epochs import generator  # noqa: E402
from voxtier.volumes.training.nnunet.sampling import RegionSampler  # noqa: E402

EXAMPLES = Path(__file__).parents[3] / "examples"
SHAPES = [(40, 36, 33), (34, 41, 35), (20, 50, 36), (36, 36, 36)]


@pytest.mark.parametrize("name", ["train_torch", "train_monai"])
@pytest.mark.filterwarnings("ignore")
def test_the_examples_train(cohort: Path, name: str) -> None:  # noqa: F811
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    losses = module.train(str(cohort), "PET", "seg", size=16, per_volume=4)
    assert len(losses) == 6
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


def save_case(path: Path, data: Any, seg: Any) -> None:
    """Write a case as nnUNetDatasetBlosc2.save_case of nnU-Net 2.8 does."""
    for array, name, chosen in ((data, f"{path}.b2nd", "SHUFFLE"), (seg, f"{path}_seg.b2nd", "NOFILTER")):
        cparams = {
            "codec": blosc2.Codec.LZ4HC,
            "filters": [blosc2.Filter[chosen]],
            "nthreads": 4,
            "clevel": 5,
        }
        blosc2.asarray(
            np.ascontiguousarray(array), urlpath=name, mode="w", cparams=cparams,
            chunks=(1, 32, 32, 32), blocks=(1, 16, 16, 16),
        )  # fmt: skip
    with open(f"{path}.pkl", "wb") as file:
        pickle.dump({"class_locations": {}}, file)


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[Any, Any]]]:
    """Four cases of two channels; -1 outside of the body, two classes."""
    folder = tmp_path_factory.mktemp("nnUNet") / "Dataset001_X" / "nnUNetPlans_3d_fullres"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    truth = {}
    for number, shape in enumerate(SHAPES):
        data = rng.normal(size=(2, *shape)).astype(np.float32)
        seg = np.zeros((1, *shape), np.int16)
        seg[0, :2], seg[0, 9:13, 5:9, 20:24], seg[0, 15, 30, 30] = -1, 1, 2
        save_case(folder / f"case_{number}", data, seg)
        truth[f"case_{number}"] = data, seg
    import_nnunet(folder, f"{folder}.voxtier")
    return folder, truth


def test_imported_cases_are_those_of_nnunet(preprocessed: Any) -> None:
    folder, truth = preprocessed
    radi = RadiObject(f"{folder}.voxtier")
    assert radi.collection_names == ("image_0000", "image_0001", "seg")
    for case, (data, seg) in truth.items():
        for channel in range(2):
            volume = radi.collection(f"image_000{channel}").sel(subject=case).iloc[0]
            assert np.array_equal(volume.to_numpy(), data[channel])
            assert max(volume.tile_extents) == 32
        mask = radi.collection("seg").sel(subject=case).iloc[0]
        assert np.array_equal(mask.to_numpy(), seg[0])
        for label in (-1, 1, 2):  # counted at ingest, with the voxels outside of the body
            counts = foreground.read_counts(mask.uri, mask.meta, mask.shape, label, mask.session)
            assert counts is not None
            assert counts.sum() == (seg == label).sum()


def test_bad_cases_are_refused_by_name_or_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match=r"no \.b2nd files"):
        import_nnunet(tmp_path, tmp_path / "s")
    data, seg = rng.normal(size=(1, 20, 20, 20)).astype(np.float32), np.zeros((1, 20, 20, 20), np.int16)
    for name in ("a", "b", "c", "d"):
        save_case(tmp_path / name, data, seg)
    whole = (tmp_path / "b.b2nd").read_bytes()
    (tmp_path / "b.b2nd").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c_seg.b2nd").write_bytes(b"not an array")
    with pytest.raises(IngestError) as caught:
        import_nnunet(tmp_path, tmp_path / "s")
    assert "b.b2nd" in str(caught.value)
    (tmp_path / "b.b2nd").write_bytes(whole)
    save_case(tmp_path / "a", np.concatenate([data, data]), seg)
    with pytest.raises(IngestError) as caught:
        import_nnunet(tmp_path, tmp_path / "s")
    assert "b.b2nd has 1 channels, not 2" in str(caught.value)
    save_case(tmp_path / "a", data, seg)
    with pytest.raises(IngestError) as caught:
        import_nnunet(tmp_path, tmp_path / "s")
    assert "c_seg.b2nd" in str(caught.value)
    assert not (tmp_path / "s").exists()
    with pytest.warns(LeftOutWarning, match=r"c_seg\.b2nd"):
        assert len(import_nnunet(tmp_path, tmp_path / "s", on_error="skip").collection("seg")) == 3
    (tmp_path / "d_seg.b2nd").unlink()
    with pytest.raises(ConfigError, match=r"case 'd' has no d_seg\.b2nd"):
        import_nnunet(tmp_path, tmp_path / "s")


@pytest.mark.filterwarnings("ignore::voxtier.errors.LeftOutWarning")
@pytest.mark.parametrize(
    ("name", "is_there", "lacking", "counts"),
    [
        ("case_0.b2nd", True, "image_0000", (3, 4)),
        ("case_0.b2nd", False, "image_0000", (3, 3)),  # a case is what has an image
        ("case_0_seg.b2nd", False, "seg", (4, 3)),
        ("case_2_seg.b2nd", True, "seg", (4, 3)),
    ],
)
def test_a_case_that_was_left_out_is_not_trained(
    tmp_path: Path, name: str, lacking: str, counts: tuple[int, int], *, is_there: bool
) -> None:
    folder = tmp_path / "nnUNetPlans_3d_fullres"
    folder.mkdir()
    data, seg = np.ones((2, 20, 20, 20), np.float32), np.ones((1, 20, 20, 20), np.int16)
    for number in range(4):
        save_case(folder / f"case_{number}", data, seg)
    (folder / name).unlink()
    if is_there:
        (folder / name).write_bytes(b"not an array")
    radi = import_nnunet(folder, f"{folder}.voxtier", on_error="skip")
    assert (len(radi.collection("image_0000")), len(radi.collection("seg"))) == counts
    case = name.partition(".")[0].removesuffix("_seg")
    with pytest.raises(ConfigError, match=f"lacks the cases {case} in {lacking}: import them again"):
        Trainer(folder, [8, 8, 8]).get_dataloaders()


class Transforms:
    """What nnU-Net's validation transforms do without regions: -1 becomes 0, then smaller targets."""

    def __call__(self, *, image: Any, segmentation: Any) -> dict[str, Any]:
        segmentation = torch.where(segmentation == -1, 0, segmentation)
        return {"image": image, "segmentation": [segmentation, segmentation[..., ::2, ::2]]}


class nnUNetTrainer:  # noqa: N801
    """What the mix-in asks of nnU-Net's class of this name (2.8), without its network."""

    def __init__(
        self, folder: Path, size: list[int], *, epoch: int = 0, rank: tuple[int, int] = (0, 1)
    ) -> None:
        self.preprocessed_dataset_folder = str(folder)
        self.is_ddp, self.is_cascaded, self.rank = False, False, rank
        self.num_input_channels, self.current_epoch = 2, epoch
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 5, 3
        self.batch_size, self.oversample_foreground_percent = 2, 0.33
        self.configuration_manager = SimpleNamespace(
            patch_size=size, batch_size=2, use_mask_for_norm=[False, True]
        )
        self.label_manager = SimpleNamespace(
            has_regions=False, foreground_labels=[1, 2], has_ignore_label=False, all_labels=[0, 1, 2]
        )
        self.dataloader_train: Any = None
        self.dataloader_val: Any = None
        self.ended = False

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:
        is_flat = (
            len(self.configuration_manager.patch_size) == 3 and self.configuration_manager.patch_size[0] < 8
        )
        return (-0.5, 0.5), is_flat, None, (0, 1, 2)[: len(self.configuration_manager.patch_size)]

    def do_split(self) -> tuple[list[str], list[str]]:
        return ["case_0", "case_1", "case_2"], ["case_3"]

    def _get_deep_supervision_scales(self) -> Any:
        return [[1, 1, 1], [0.5, 0.5, 0.5]]

    def get_training_transforms(self) -> None: ...

    @staticmethod
    def get_validation_transforms(scales: Any, **options: Any) -> Transforms:
        return Transforms()

    def on_train_start(self) -> None:
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()  # type: ignore[attr-defined]

    def on_train_end(self) -> None:
        self.ended = True


class Trainer(BatchesMixin, nnUNetTrainer):
    pass


def test_the_trainer_gets_patches_of_its_cases(preprocessed: Any) -> None:
    folder, truth = preprocessed
    trainer = Trainer(folder, [16, 12, 20])
    trainer.on_train_start()
    for _ in range(7):  # more than an epoch
        batch = next(trainer.dataloader_val)
        assert batch["keys"] == ["case_3", "case_3"]
        assert [target.shape for target in batch["target"]] == [(2, 1, 16, 12, 20), (2, 1, 16, 6, 10)]
        for image, target, case in zip(batch["data"], batch["target"][0], batch["keys"], strict=True):
            data, seg = truth[case]
            [start] = np.argwhere(data[0] == image[0, 0, 0, 0].item())  # every voxel has a number of its own
            box = tuple(slice(s, s + n) for s, n in zip(start, (16, 12, 20), strict=True))
            labels = seg[0][box]
            assert np.array_equal(image[0].numpy(), data[0][box])
            assert np.array_equal(image[1].numpy(), np.where(labels < 0, 0, data[1][box]))
            assert target.dtype == torch.int16
            assert np.array_equal(target[0].numpy(), np.maximum(labels, 0))
    seen = [next(trainer.dataloader_train) for _ in range(10)]
    assert {key for batch in seen for key in batch["keys"]} == {"case_0", "case_1", "case_2"}
    assert all(torch.isfinite(batch["data"]).all() and batch["target"][0].min() >= 0 for batch in seen)
    trainer.on_train_end()
    assert trainer.ended
    # A training that goes on from a checkpoint sees what it would have seen.
    later = Trainer(folder, [16, 12, 20], epoch=1)
    later.on_train_start()
    for batch in seen[5:]:
        again = next(later.dataloader_train)
        assert torch.equal(again["data"], batch["data"])
        assert again["keys"] == batch["keys"]
    later.on_train_end()


def test_slices_are_turned_in_their_plane(preprocessed: Any) -> None:
    folder, truth = preprocessed
    flat = Trainer(folder, [20, 12])
    flat.on_train_start()
    batch = next(flat.dataloader_val)
    assert batch["data"].shape == (2, 2, 20, 12)
    place = np.argwhere(truth["case_3"][0][0] == batch["data"][0, 0, 0, 0].item())[0]
    wanted = truth["case_3"][0][0][place[0], place[1] : place[1] + 20, place[2] : place[2] + 12]
    assert np.array_equal(batch["data"][0, 0].numpy(), wanted)
    assert flat.dataloader_train.loader._options.augment.mirror == (False, True, True)
    thick = Trainer(folder, [6, 12, 20])
    augment = thick.voxtier_augmentation((-0.5, 0.5), (0, 1, 2), is_flat=True)
    assert augment is not None
    for item in range(200):
        matrix, _, _, changes = augment.draw(generator(0, 0, item, stream=2), 2)
        if matrix is not None:
            assert matrix[0] in ([1, 0, 0], [-1, 0, 0])
            assert [row[0] for row in matrix[1:]] == [0, 0]
        assert all(numbers[0] == 1 for _, name, numbers in changes if name == "low_resolution")
    flat.on_train_end()


def test_what_the_mixin_does_not_do_is_refused(preprocessed: Any, tmp_path: Path) -> None:
    folder, _ = preprocessed
    trainer = Trainer(folder, [8, 8, 8])
    trainer.is_cascaded = True
    with pytest.raises(ConfigError, match="cascades"):
        trainer.get_dataloaders()
    trainer = Trainer(folder, [8, 8, 8])
    trainer.label_manager.has_ignore_label = True
    with pytest.raises(ConfigError, match="ignore labels"):
        trainer.get_dataloaders()
    trainer = Trainer(folder, [8, 8, 8])
    trainer.do_split = lambda: (["case_9"], ["case_3"])  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="lacks the cases case_9"):
        trainer.get_dataloaders()
    trainer = Trainer(tmp_path / "elsewhere", [8, 8, 8])
    with pytest.raises(ConfigError, match=r"import_nnunet\('.*elsewhere'"):
        trainer.get_dataloaders()

    class Own(BatchesMixin, nnUNetTrainer):
        def get_training_transforms(self) -> None: ...

    with pytest.raises(ConfigError, match=r"override voxtier_augmentation"):
        Own(folder, [8, 8, 8]).get_dataloaders()
    import os

    for name in ("case_0.b2nd", "case_0_seg.b2nd"):
        state = (folder / name).stat()
        os.utime(folder / name, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
        with pytest.raises(ConfigError, match=f"{name} was written after"):
            Trainer(folder, [8, 8, 8]).get_dataloaders()
        os.utime(folder / name, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_regions_are_drawn_alike_and_their_voxels_too(preprocessed: Any) -> None:
    folder, truth = preprocessed
    radi = RadiObject(f"{folder}.voxtier")
    image, mask = radi.collection("image_0000").iloc[0], radi.collection("seg").iloc[0]
    seg = truth["case_0"][1][0]
    sampler = RegionSampler(1.0, [(1, 2), (2,), (7,)])
    drawn = [seg[sampler.start(image, mask, (1, 1, 1), generator(0, 0, n))] for n in range(400)]
    # Half of the draws take class 2 as such; of the others one in 65, as its voxels are.
    assert np.mean(np.array(drawn) == 2) == pytest.approx(0.5 + 0.5 / 65, abs=0.08)
    assert set(drawn) == {1, 2}
    for p_pos, regions in ((1.5, [(1,)]), (0.5, []), (0.5, [()])):
        with pytest.raises(ConfigError):
            RegionSampler(p_pos, regions)
