"""Images and stores made from a few arguments: NIfTI files whose voxels tell their subject, DICOM series."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import tiledb
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def code_of(subject: str, series: str = "") -> int:
    """Return a number that tells subject and series, for their voxels."""
    return zlib.crc32(f"{subject}/{series}".encode()) % 30_000


def nifti(
    path: Path,
    subject: str,
    series: str = "",
    shape: tuple[int, ...] = (5, 6, 7),
    dtype: Any = np.int16,
    affine: Any = None,
) -> Path:
    """Write an image whose every voxel is ``code_of(subject, series)``."""
    voxels = np.full(shape, code_of(subject, series), dtype)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine), path)
    return path


def pairs(
    folder: Path, subjects: Sequence[str], series: str = "T1w", **options: Any
) -> list[tuple[Path, str]]:
    """Write one image per subject, in this order."""
    folder.mkdir(exist_ok=True)
    return [
        (nifti(folder / f"{number:03d}_{series}.nii", subject, series, **options), subject)
        for number, subject in enumerate(subjects)
    ]


def slice_dataset(
    position: Any,
    orientation: str = (1, 0, 0, 0, 1, 0),
    spacing: Any = (0.5, 0.8),
    *,
    series: str = "1.2.3",
    pixels: NDArray[Any] | None = None,
    number: int = 1,
    **tags: Any,
) -> Dataset:
    """Return one CT slice; ``pixels`` (rows, columns) are stored numbers."""
    pixels = np.full((4, 3), number, np.int16) if pixels is None else pixels
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = series, "1.2.9"
    dataset.Modality, dataset.InstanceNumber = "CT", number
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(position), list(orientation)
    dataset.PixelSpacing = list(spacing)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def series(
    folder: Path, positions: Sequence[Any], *args: Any, names: Sequence[str] | None = None, **tags: Any
) -> Path:
    """Write a series: one file per position, in this order; pixels hold the number of the file (from 1)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, position in enumerate(positions, 1):
        dataset = slice_dataset(position, *args, number=number, **tags)
        name = f"{number:03d}.dcm" if names is None else names[number - 1]
        pydicom.dcmwrite(folder / name, dataset, enforce_file_format=True)
    return folder


def concatenation(
    folder: Path, ends: Sequence[int], *, height: float = 0, total: bool = True, **tags: Any
) -> list[Path]:
    """Write frames every 2 mm as the parts of one enhanced image (PS3.3 C.7.6.16.2.2.4).

    Each part goes up to one of the ends; each frame holds its number from 1, from ``height`` upwards.
    """
    folder.mkdir(exist_ok=True)

    def item(**elements: Any) -> list[Dataset]:
        found = Dataset()
        for name, value in elements.items():
            setattr(found, name, value)
        return [found]

    shared = {
        "PlaneOrientationSequence": item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        "PixelMeasuresSequence": item(PixelSpacing=[0.5, 0.8], SliceThickness=2),
    }
    uid, paths = generate_uid(), []
    for number, (begin, end) in enumerate(pairwise((0, *ends)), 1):
        pixels = np.stack([np.full((4, 3), n + 1, np.int16) for n in range(begin, end)])
        dataset = slice_dataset((0, 0, 0), pixels=pixels[0], PixelData=pixels.tobytes(), **tags)
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            delattr(dataset, name)
        dataset.NumberOfFrames, dataset.ConcatenationUID = end - begin, uid
        dataset.InConcatenationNumber, dataset.ConcatenationFrameOffsetNumber = number, begin
        if total:
            dataset.InConcatenationTotalNumber = len(ends)
        dataset.SharedFunctionalGroupsSequence = item(**shared)
        dataset.PerFrameFunctionalGroupsSequence = [
            item(PlanePositionSequence=item(ImagePositionPatient=[0, 0, height + 2 * n]))[0]
            for n in range(begin, end)
        ]
        paths.append(folder / f"{height:g}-{number}.dcm")
        pydicom.dcmwrite(paths[-1], dataset, enforce_file_format=True)
    return paths


def old_store(
    root: Path, order: Sequence[str], names: Sequence[str] = ("T1w",), key: str = "tile_orientation"
) -> Path:
    """Write a store as RadiObject 0.1.1 does: arrays 0, 1, 2... in ingest order, rows in order of keys."""
    tiledb.Group.create(str(root))
    keys = [tiledb.Dim(name=name, dtype="ascii") for name in ("obs_subject_id", "obs_id")]
    empty = tiledb.ArraySchema(domain=tiledb.Domain(*keys), attrs=[tiledb.Attr("sex", "U1")], sparse=True)
    tiledb.Array.create(str(root / "obs_meta"), empty)
    ids = np.array(order, dtype=object)
    with tiledb.open(str(root / "obs_meta"), "w") as array:
        array[ids, ids] = {"sex": np.array(["F"] * len(order), "U1")}
    tiledb.Group.create(str(root / "collections"))
    for name in names:
        base = root / "collections" / name
        tiledb.Group.create(str(base))
        tiledb.Group.create(str(base / "volumes"))
        schema = tiledb.ArraySchema(
            domain=tiledb.Domain(*keys), attrs=[tiledb.Attr("series_type", "U32")], sparse=True
        )
        tiledb.Array.create(str(base / "obs"), schema)
        obs_ids = np.array([f"{subject}_{name}" for subject in order], dtype=object)
        with tiledb.open(str(base / "obs"), "w") as array:
            array[ids, obs_ids] = {"series_type": np.array([name] * len(order), "U32")}
        for place, subject in enumerate(order):
            uri = str(base / "volumes" / str(place))
            dims = [tiledb.Dim(name=d, domain=(0, 3), tile=4, dtype=np.int32) for d in "xyz"]
            tiledb.Array.create(
                uri, tiledb.ArraySchema(domain=tiledb.Domain(*dims), attrs=[tiledb.Attr("voxels", "int16")])
            )
            with tiledb.open(uri, "w") as array:
                array[:] = np.full((4, 4, 4), code_of(subject, name), np.int16)
                array.meta["obs_id"], array.meta[key] = f"{subject}_{name}", "axial"
            with tiledb.Group(str(base / "volumes"), "w") as group:
                group.add(uri, name=str(place))
        with tiledb.Group(str(base), "w") as group:
            group.meta["n_volumes"], group.meta["name"] = len(order), name
            group.add(str(base / "volumes"), name="volumes")
            group.add(str(base / "obs"), name="obs")
        with tiledb.Group(str(root / "collections"), "w") as group:
            group.add(str(base), name=name)
    with tiledb.Group(str(root), "w") as group:
        group.meta["subject_count"], group.meta["n_collections"] = len(order), len(names)
        group.add(str(root / "obs_meta"), name="obs_meta")
        group.add(str(root / "collections"), name="collections")
    return root
