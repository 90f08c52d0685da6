"""Loaders that people train with, each in a process of its own: ``python -m benches.rivals.loaders WAY``.

Every loader draws the same kind of patches (centre on foreground with probability 1/2), hands out float32
images and uint8 labels as torch tensors in batches of two, and has its patches compared with numpy before
it is timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHAPE, BATCH = (240, 240, 155), 2
Batch = dict[str, Any]
Loader = Callable[[Path, int, int, int], Iterator[Batch]]
"""Takes folder, edge, volumes and batches; gives dicts of ``image``, ``mask``, ``idx``, ``start``."""


def write(folder: Path, volumes: int) -> None:
    """Write one cohort in every format."""
    import nibabel as nib

    from voxtier.volumes import CompressionConfig, RadiObject, TileConfig, configured

    rng = np.random.default_rng(5)
    grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij")
    radius = (grid[0] / 0.9) ** 2 + (grid[1] / 0.8) ** 2
    for number in range(volumes):
        body = np.where(radius < 0.9, 40 + rng.normal(0, 20, SHAPE), -1000 + rng.normal(0, 12, SHAPE))
        image = np.where(radius < 1.1, body, -1024).astype(np.int16)
        mask = np.zeros(SHAPE, np.uint8)
        x, y, z = (int(rng.integers(60, n - 60)) for n in SHAPE)
        mask[x - 20 : x + 20, y - 15 : y + 15, z - 10 : z + 10], mask[x, y : y + 9, z : z + 5] = 1, 2
        for name, voxels in (("ct", image), ("seg", mask)):
            np.save(folder / f"{name}{number}.npy", voxels)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"p{number:02d}_{name}.nii")
        _write_blosc(folder, number, image, mask)
        _write_zarr(folder, number, image, mask)
    files = {
        name: [(folder / f"p{n:02d}_{name}.nii", f"p{n:02d}") for n in range(volumes)]
        for name in ("ct", "seg")
    }
    for codec in ("zstd", "lz4"):
        compression = CompressionConfig(codec, 3)  # type: ignore[arg-type]
        tile = TileConfig("isotropic", 32, 32, 32)  # type: ignore[arg-type]
        with configured(tile=tile, compression=compression):
            RadiObject.from_niftis(folder / codec, images=files)
    for file in folder.glob("*.nii"):
        file.unlink()


def _write_blosc(folder: Path, number: int, image: Any, mask: Any) -> None:
    """Write as nnU-Net does: LZ4HC 5 with a bit shuffle, blocks that a cache holds, chunks of a patch."""
    try:
        import blosc2
    except ImportError:
        return
    settings = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE]}
    for name, voxels in (("b2ct", image.astype(np.float32)), ("b2seg", mask)):
        blosc2.asarray(
            np.ascontiguousarray(voxels), urlpath=str(folder / f"{name}{number}.b2nd"), mode="w",
            chunks=(96, 96, 96), blocks=(32, 32, 32), cparams=settings,
        )  # fmt: skip


def _write_zarr(folder: Path, number: int, image: Any, mask: Any) -> None:
    try:
        import tensorstore
    except ImportError:
        return
    for name, voxels in (("zct", image), ("zseg", mask)):
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}]
        spec = {
            "driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / f"{name}{number}.zarr")},
            "metadata": {
                "shape": SHAPE, "data_type": voxels.dtype.name, "codecs": codecs,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [32, 32, 32]}},
            },
        }  # fmt: skip
        tensorstore.open(spec, create=True).result().write(voxels).result()


def ours(codec: str, cache: int, dtype: str = "float32", *, augmented: bool = False) -> Loader:
    """Return voxtier's loader."""

    def load(folder: Path, edge: int, volumes: int, count: int) -> Iterator[Batch]:
        from voxtier.volumes import (
            Augmentation,
            ForegroundSampler,
            RadiObject,
            ReadConfig,
            batches,
            configure,
        )
        from voxtier.volumes.training.datasets import DatasetConfig, SegmentationDataset

        configure(read=ReadConfig(tile_cache_size_mb=cache))
        radi = RadiObject(folder / codec)
        config = DatasetConfig("patch", edge, -(-count * BATCH // volumes), ForegroundSampler(0.5), seed=3)  # type: ignore[arg-type]
        made = SegmentationDataset(radi.collection("ct"), radi.collection("seg"), config)
        augment = Augmentation() if augmented else None
        loader = batches(made, BATCH, dtype=None if dtype == "float32" else dtype, augment=augment)
        while True:
            for batch in loader:
                yield {"start": batch["patch_start"], **batch}

    return load


def _places(folder: Path, edge: int, volumes: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Draw volumes and first voxels: what every loader but ours is given."""
    rng = np.random.default_rng(1)
    inside = [np.argwhere(np.load(folder / f"seg{n}.npy", mmap_mode="r")) for n in range(volumes)]
    while True:
        number = int(rng.integers(volumes))
        if rng.random() < 0.5:
            voxel = inside[number][rng.integers(len(inside[number]))]
            yield (
                number,
                tuple(int(min(max(v - edge // 2, 0), n - edge)) for v, n in zip(voxel, SHAPE, strict=True)),
            )
        else:
            yield number, tuple(int(rng.integers(n - edge + 1)) for n in SHAPE)


def _plain(open_one: Callable[[Path, int], tuple[Any, Any]], *, per_patch: bool = False) -> Loader:
    """Return a loop over a reader that is indexed by a box, two threads reading ahead."""

    def load(folder: Path, edge: int, volumes: int, count: int) -> Iterator[Batch]:
        from concurrent.futures import ThreadPoolExecutor

        import torch

        opened = [open_one(folder, n) for n in range(volumes)]
        places = _places(folder, edge, volumes)

        def one(number: int, start: tuple[int, ...]) -> tuple[Any, Any]:
            image, mask = open_one(folder, number) if per_patch else opened[number]
            box = tuple(slice(s, s + edge) for s in start)
            return (
                torch.from_numpy(np.asarray(image[box]).astype(np.float32)),
                torch.from_numpy(np.array(mask[box])),
            )

        with ThreadPoolExecutor(2) as pool:
            ahead = []
            while True:
                while len(ahead) < 4:
                    some = [next(places) for _ in range(BATCH)]
                    ahead.append((some, [pool.submit(one, *place) for place in some]))
                some, futures = ahead.pop(0)
                pairs = [future.result() for future in futures]
                yield {
                    "image": torch.stack([pair[0] for pair in pairs])[:, None],
                    "mask": torch.stack([pair[1] for pair in pairs])[:, None],
                    "idx": torch.tensor([n for n, _ in some]),
                    "start": torch.tensor([s for _, s in some]),
                }

    return load


def _memmap(folder: Path, number: int) -> tuple[Any, Any]:
    image, mask = (np.load(folder / f"{name}{number}.npy", mmap_mode="r") for name in ("ct", "seg"))
    return image, mask


def _blosc(folder: Path, number: int) -> tuple[Any, Any]:
    import blosc2

    blosc2.set_nthreads(1)
    image, mask = (
        blosc2.open(str(folder / f"{name}{number}.b2nd"), mode="r", mmap_mode="r")
        for name in ("b2ct", "b2seg")
    )
    return image, mask


class _Store:
    """tensorstore, indexed like an array."""

    pool: Any = None

    def __init__(self, path: Path) -> None:
        import tensorstore

        if _Store.pool is None:
            _Store.pool = tensorstore.Context({"cache_pool": {"total_bytes_limit": 512 << 20}})
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(path)},
            "recheck_cached_data": "open",
        }
        self._store = tensorstore.open(spec, context=_Store.pool).result()

    def __getitem__(self, box: Any) -> Any:
        return self._store[box].read().result()


def _tensorstore(folder: Path, number: int) -> tuple[Any, Any]:
    return _Store(folder / f"zct{number}.zarr"), _Store(folder / f"zseg{number}.zarr")


def _zarr(folder: Path, number: int) -> tuple[Any, Any]:
    import zarr

    return zarr.open(str(folder / f"zct{number}.zarr")), zarr.open(str(folder / f"zseg{number}.zarr"))


def _monai(folder: Path, edge: int, volumes: int, count: int) -> Iterator[Batch]:
    """MONAI's CacheDataset at its best: indices noted once, no deep copies, a thread that reads ahead."""
    import torch
    from monai.data import CacheDataset, ThreadDataLoader
    from monai.transforms import Compose, FgBgToIndicesd, Lambdad, RandCropByPosNegLabeld

    def load(path: str) -> Any:
        return torch.from_numpy(np.load(path).astype(np.float32 if "ct" in path else np.uint8))[None]

    items = [
        {"image": str(folder / f"ct{n}.npy"), "mask": str(folder / f"seg{n}.npy"), "idx": n}
        for n in range(volumes)
    ]
    steps = Compose([
        Lambdad(["image", "mask"], load, track_meta=False),
        FgBgToIndicesd("mask"),
        RandCropByPosNegLabeld(
            ["image", "mask"], "mask", (edge,) * 3, pos=1, neg=1, num_samples=1,
            fg_indices_key="mask_fg_indices", bg_indices_key="mask_bg_indices",
        ),
    ])  # fmt: skip
    cached = CacheDataset(items, steps, num_workers=2, copy_cache=False, progress=False)

    def collate(samples: Any) -> Batch:
        flat = [sample[0] for sample in samples]
        return {
            key: torch.stack([torch.as_tensor(one[key]).as_subclass(torch.Tensor) for one in flat])
            for key in ("image", "mask")
        } | {"idx": torch.tensor([one["idx"] for one in flat])}

    while True:
        yield from ThreadDataLoader(cached, batch_size=BATCH, num_workers=0, shuffle=True, collate_fn=collate)


def _read_array(path: Path) -> tuple[Any, Any]:
    """Read an image as TorchIO wants it; its workers get this function pickled."""
    import torch

    voxels = np.load(path).astype(np.float32 if "ct" in Path(path).name else np.uint8)
    return torch.from_numpy(voxels)[None], np.eye(4)


def _torchio(folder: Path, edge: int, volumes: int, count: int) -> Iterator[Batch]:
    """TorchIO's queue of patches, filled from whole volumes by two workers."""
    import torchio as tio

    subjects = [
        tio.Subject(
            image=tio.ScalarImage(folder / f"ct{n}.npy", reader=_read_array),
            mask=tio.LabelMap(folder / f"seg{n}.npy", reader=_read_array),
            idx=n,
        )
        for n in range(volumes)
    ]
    queue = tio.Queue(
        tio.SubjectsDataset(subjects),
        64,
        16,
        tio.LabelSampler(edge, "mask", {0: 1, 1: 1, 2: 1}),
        num_workers=2,
    )
    while True:
        for batch in tio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0):
            yield {
                "image": batch["image"][tio.DATA],
                "mask": batch["mask"][tio.DATA],
                "idx": batch["idx"],
                "start": batch[tio.LOCATION][:, :3],
            }


WAYS: dict[str, tuple[Loader, str]] = {
    "voxtier, zstd, no cache": (ours("zstd", 0), "zstd"),
    "voxtier, lz4, no cache": (ours("lz4", 0), "lz4"),
    "voxtier, cohort in the cache": (ours("zstd", 700), "zstd"),
    "voxtier, cohort in the cache, int16": (ours("zstd", 700, "int16"), "zstd"),
    "voxtier, standard augmentation, no cache": (ours("zstd", 0, augmented=True), "zstd"),
    "voxtier, standard augmentation, cache": (ours("zstd", 700, augmented=True), "zstd"),
    "np.memmap": (_plain(_memmap), "*.npy"),
    "nnU-Net's blosc2, float32, mmap": (_plain(_blosc, per_patch=True), "b2*"),
    "tensorstore, pool of 512 MB": (_plain(_tensorstore), "z*.zarr"),
    "zarr 3": (_plain(_zarr), "z*.zarr"),
    "MONAI CacheDataset, tuned": (_monai, "*.npy"),
    "TorchIO queue": (_torchio, "*.npy"),
}


def _check(folder: Path, batch: Batch) -> None:
    if "start" not in batch:  # MONAI's crops do not say where they lie: found in the volume by their corner
        return
    for image, mask, number, start in zip(
        batch["image"], batch["mask"], batch["idx"], batch["start"], strict=True
    ):
        box = tuple(slice(int(s), int(s) + n) for s, n in zip(start, image.shape[1:], strict=True))
        for name, found in (("ct", image), ("seg", mask)):
            wanted = np.load(folder / f"{name}{int(number)}.npy", mmap_mode="r")[box]
            if not np.array_equal(found[0].numpy(), wanted):
                raise AssertionError(f"the {name} patch of volume {int(number)} at {start} is another")


def _pss() -> float:
    import psutil

    own = psutil.Process()
    return sum(process.memory_full_info().pss for process in (own, *own.children(recursive=True))) / 1e6


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main(way: str, folder: Path, edge: int, volumes: int, warm: int, count: int) -> None:
    """Print seconds, then CPU, PSS, bytes on disk and the time to the first batch as JSON."""
    import torch

    torch.set_num_threads(1)
    load, kept = WAYS[way]
    before = _pss()
    began = time.perf_counter()
    loader = load(folder, edge, volumes, warm + count)
    batch = next(loader)
    first = time.perf_counter() - began
    for number in range(warm):
        if number < 8 and "augmentation" not in way:
            _check(folder, batch)
        batch = next(loader)
    del batch
    cpu, began = _cpu(), time.perf_counter()
    for _ in range(count):
        next(loader)
    seconds, cpu = time.perf_counter() - began, _cpu() - cpu
    facts = {
        "cpu_ms": 1e3 * cpu / count / BATCH, "pss_mb": _pss(), "before_mb": before, "first_s": first,
        "disk_mb": sum(file.stat().st_size for file in _files(folder, kept)) / 1e6,
    }  # fmt: skip
    print(seconds, json.dumps(facts))
    sys.stdout.flush()
    os._exit(0)  # generators of rivals that wait for their threads


def cold(way: str, folder: Path, edge: int, volumes: int, count: int) -> None:
    """Print the bytes of disk that a patch costs of files that are open, but not in the page cache."""
    load, kept = WAYS[way]
    if "tensorstore" in way:
        import tensorstore

        _Store.pool = tensorstore.Context()  # without its pool, which would hold them all
    opening = 2 * volumes  # after so many batches each volume has been drawn
    loader = load(folder, edge, volumes, opening + 4 * count)
    for _ in range(opening):
        next(loader)
    time.sleep(1.0)  # what it reads ahead ends by then
    for file in _files(folder, kept):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())  # what is not on disk cannot leave the page cache
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = _read_bytes()
    for _ in range(count):
        next(loader)
    time.sleep(1.0)
    print((_read_bytes() - before) / BATCH / count)
    sys.stdout.flush()
    os._exit(0)


def _files(folder: Path, kept: str) -> list[Path]:
    found = (each for path in folder.glob(kept) for each in ([path] if path.is_file() else path.rglob("*")))
    return [file for file in found if file.is_file()]


def _read_bytes() -> int:
    """Return the bytes that this process has caused to be read from disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


if __name__ == "__main__":
    if sys.argv[1] == "--cold":
        cold(sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:7]))
    else:
        main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:7]))
