"""The ways from a NIfTI file to a tensor: ``python -m benches.rivals.preprocessing WAY FILE [OUT]``.

Each run is a process of its own with one thread. It prints the CPU seconds (user and system) of the way
alone, without imports, and as JSON the most memory that it took beyond the imports.
"""

from __future__ import annotations

import json
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SPACING = (0.75, 0.75, 1.5)
SIZE = (128, 256, 256)
LOW, HIGH = -1000.0, 1000.0


def processing() -> Any:
    """Return the settings that all ways follow."""
    from voxtier.tensors.identity.config import ImageProcessing

    return ImageProcessing(SPACING, SIZE, LOW, HIGH, "LPS", -1.0, 1.0, "float32")


def stock() -> Callable[[str], Any]:
    from voxtier.tensors.identity.pipeline import build_transforms

    transforms = build_transforms(processing())
    return lambda path: transforms({"image": path})["image"].as_tensor()[0].numpy()


def fused() -> Callable[[str], Any]:
    from voxtier.tensors.engine.engine import Engine
    from voxtier.tensors.engine.pipelines import configured_pipeline
    from voxtier.tensors.identity.pipeline import build_transforms

    engine = Engine(configured_pipeline(build_transforms(processing()), processing()))
    return lambda path: engine.fuse({"image": path})[0]["image"][0].numpy()


def inflate() -> Callable[[str], Any]:
    import gzip

    from voxtier import _core

    def run(path: str) -> Any:
        import nibabel

        with gzip.open(path) as stream:
            header = nibabel.Nifti1Header(stream.read(348))
        count = int(np.prod(header.get_data_shape())) * 2
        return _core.gunzip_range(path, int(header["vox_offset"]), count)

    return run


def lazy() -> Callable[[str], Any]:
    from monai.transforms import Compose

    from voxtier.tensors.identity.pipeline import build_transforms

    transforms = Compose(build_transforms(processing()).transforms[:-1], lazy=True)
    return lambda path: transforms({"image": path})["image"].as_tensor()[0].numpy()


def float32_spacing() -> Callable[[str], Any]:
    from monai.transforms import Compose, Spacingd

    from voxtier.tensors.identity.pipeline import build_transforms

    steps = list(build_transforms(processing()).transforms)
    steps[2] = Spacingd(keys=["image"], pixdim=np.array(SPACING), mode="bilinear", dtype=np.float32)
    transforms = Compose(steps)
    return lambda path: transforms({"image": path})["image"].as_tensor()[0].numpy()


def _finish(spaced: Any) -> Any:
    """Scale, filter and resize a spaced volume as MONAI does: for rivals that only space."""
    import torch
    from monai.transforms import Resize, ScaleIntensityRange

    scale = ScaleIntensityRange(LOW, HIGH, -1.0, 1.0, clip=True)
    resize = Resize(SIZE, mode="trilinear", anti_aliasing=True)
    return resize(scale(torch.from_numpy(np.ascontiguousarray(spaced))[None]))[0].numpy()


def scipy_zoom() -> Callable[[str], Any]:
    import nibabel
    from scipy.ndimage import gaussian_filter, zoom

    def run(path: str) -> Any:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        voxels = np.asarray(image.dataobj)[::-1, ::-1].astype(np.float32)
        spaced = zoom(voxels, np.array(image.header.get_zooms()) / SPACING, order=1)
        scaled = np.clip((spaced - LOW) / (HIGH - LOW) * 2 - 1, -1, 1)
        factors = np.array(scaled.shape) / SIZE
        smooth = gaussian_filter(scaled, np.maximum(0, (factors - 1) / 2))
        return zoom(smooth, 1 / factors, order=1)

    return run


def simple_itk() -> Callable[[str], Any]:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def run(path: str) -> Any:
        image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(path, SimpleITK.sitkFloat32), "LPS")
        lengths = [
            round((count - 1) * before / after + 1)
            for count, before, after in zip(image.GetSize(), image.GetSpacing(), SPACING, strict=True)
        ]
        spaced = SimpleITK.Resample(
            image,
            lengths,
            SimpleITK.Transform(),
            SimpleITK.sitkLinear,
            image.GetOrigin(),
            SPACING,
            image.GetDirection(),
            LOW,
            SimpleITK.sitkFloat32,
        )
        return _finish(SimpleITK.GetArrayViewFromImage(spaced).transpose(2, 1, 0))

    return run


def torch_io() -> Callable[[str], Any]:
    import torchio

    def run(path: str) -> Any:
        image = torchio.Resample(SPACING)(torchio.ToCanonical()(torchio.ScalarImage(path)))
        return _finish(image.numpy()[0, ::-1, ::-1].astype(np.float32))

    return run


WAYS = {
    each.__name__: each
    for each in (stock, fused, inflate, lazy, float32_spacing, scipy_zoom, simple_itk, torch_io)
}


def main() -> None:
    """Run one way."""
    import nibabel  # noqa: F401
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    way, path = WAYS[sys.argv[1]](), sys.argv[2]
    small = Path(path).with_name("small.nii.gz")
    way(str(small))  # imports inside of functions
    before = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    started = resource.getrusage(resource.RUSAGE_SELF)
    answer = way(path)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    if len(sys.argv) > 3:
        np.save(sys.argv[3], answer)
    seconds = ended.ru_utime - started.ru_utime + ended.ru_stime - started.ru_stime
    print(seconds, json.dumps({"peak": (int(peak) - int(before)) * 1024}))


if __name__ == "__main__":
    main()
