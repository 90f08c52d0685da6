"""The header of a volume: where its voxels lie, how they are stored, and which way they are turned.

The header goes through MONAI's own reader, without the voxels: affine and metadata are MONAI's. Volumes of
which no sound tensor can be made are refused here, for `generate` and `preprocess`.
"""

from __future__ import annotations

import math
import os
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.data.image_reader import NibabelReader
from numpy.typing import NDArray

from voxtier.errors import ConfigError, EngineLimitError
from voxtier.tensors.engine.headers import MOST_BYTES_PER_BYTE

ELEMENTS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")
"""The types of voxels that the core reads."""

COMMAND = "--accept {} makes it"
"""What `generate` can do about a volume that is refused."""


_PIECE = 32 << 10  # packed bytes that are inflated at once: 33 MB at most
_MAGIC = b"\x1f\x8b"
_GZIP = 16 + zlib.MAX_WBITS  # with the header of gzip, its CRC-32 and its length


@dataclass(frozen=True, slots=True)
class Source:
    """The voxels of one file."""

    path: Path
    is_gzipped: bool
    offset: int
    """First byte of the voxels, counted in the inflated stream."""
    shape: tuple[int, int, int]
    """Voxels along the axes of the file."""
    element: str
    """One of `ELEMENTS`."""
    is_big_endian: bool
    slope: float | None
    """Factor, None for 1."""
    intercept: float | None
    """Summand, None for 0."""


class HeaderReader(NibabelReader):  # type: ignore[misc]  # (MONAI is untyped)
    """MONAI's reader, which gives a single voxel in the place of all, and keeps the files' image objects."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Any] = []

    def get_data(self, img: Any) -> Any:
        """As the reader's own method, for one file."""
        self.images.append(img)
        return super().get_data(img)

    def _get_array_data(self, img: Any, *_: Any) -> NDArray[np.float32]:
        return np.zeros((1,) * len(img.shape), np.float32)


def load_headers(load: Any, item: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Source]]:
    """Read the headers of an item's files.

    Parameters
    ----------
    load : LoadImaged
        The first transform of the pipeline.
    item : dict
        With paths under the keys of ``load``.

    Returns
    -------
    item : dict
        What ``load`` gives, with a single voxel in the place of all voxels of a file.
    sources : dict
        By key, where the voxels are.

    Raises
    ------
    EngineLimitError
        The core does not read this sort of file.
    Exception
        What the reader raises for a file that is no image.
    """
    reader = HeaderReader()
    loaded = load(item, reader=reader)
    sources = {}
    for key, image in zip(load.keys, reader.images, strict=True):
        if not isinstance(item[key], str | os.PathLike):
            raise EngineLimitError("several files")
        sources[key] = _source(Path(item[key]), image)
    return loaded, sources


def _source(path: Path, image: Any) -> Source:
    if type(image) not in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        raise EngineLimitError(f"the file is a {type(image).__name__}")
    proxy = image.dataobj
    shape = tuple(int(length) for length in proxy.shape)
    if len(shape) != 3:
        raise EngineLimitError(f"{len(shape)} axes")
    if min(shape) < 1:
        raise EngineLimitError("no voxels")
    stored = np.dtype(proxy.dtype)
    element = stored.newbyteorder("=").name
    if element not in ELEMENTS:
        raise EngineLimitError(f"voxels of type {element}")
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):  # NiBabel also opens .bz2 and .zst
        raise EngineLimitError(f"a file of type {path.suffix}")
    is_gzipped = name.endswith(".gz")
    most = path.stat().st_size * (MOST_BYTES_PER_BYTE if is_gzipped else 1)
    if math.prod(shape) * stored.itemsize > most:  # before any table is made for such axes
        raise EngineLimitError("a header that promises more than the file can hold")
    slope, intercept = float(proxy.slope), float(proxy.inter)
    if (slope, intercept) != (1.0, 0.0):
        _check_scaling(np.dtype(element), slope, intercept)
    return Source(
        path=path,
        is_gzipped=is_gzipped,
        offset=int(proxy.offset),
        shape=(shape[0], shape[1], shape[2]),
        element=element,
        is_big_endian=stored.newbyteorder("=") != stored,
        slope=None if slope == 1.0 else slope,
        intercept=None if intercept == 0.0 else intercept,
    )


def _check_scaling(stored: np.dtype[Any], slope: float, intercept: float) -> None:
    """Refuse a scaling that NiBabel computes in another type than float64, or that leaves float32."""
    from nibabel.volumeutils import apply_read_scaling

    limits = np.iinfo(stored) if stored.kind in "iu" else np.finfo(stored)
    ends = np.array([limits.min, limits.max], stored)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        scaled = apply_read_scaling(ends, slope, intercept)
        single = scaled.astype(np.float32)
    if scaled.dtype != np.float64 or not (np.isfinite([slope, intercept]).all()):
        raise EngineLimitError("a scaling that is not computed in float64")
    if stored.kind in "iu" and not np.isfinite(single).all():
        raise EngineLimitError("a scaling that leaves float32")


def make_stock(
    transforms: Any, item: dict[str, Any], accepted: frozenset[str], *, remedy: str = COMMAND
) -> dict[str, Any]:
    """Return the item of the stock pipeline, unless no sound tensor can be made of the volume.

    Parameters
    ----------
    transforms : Compose
        From `build_transforms`.
    item : dict
        With the path as ``image``.
    accepted : frozenset of str
        Of `FINDINGS`: they do not keep the tensor from being made.
    remedy : str
        The end of a message, with ``{}`` for the finding.

    Returns
    -------
    dict
        With the tensor as ``image``.

    Raises
    ------
    ConfigError
        One of `FINDINGS` that is not accepted.
    Exception
        Whatever the transforms raise.
    """
    loaded = transforms(item, end=1)
    # Of the file: MONAI's reader puts the identity in the place of a singular one, without a word.
    affine = np.asarray(nibabel.load(item["image"]).affine)  # type: ignore[attr-defined]
    image = loaded["image"]
    if damage := find_damage(Path(item["image"])):  # after MONAI, which names what it cannot read at all
        _refuse("damaged", damage, accepted, remedy)
    if image.shape[0] != 1:
        _refuse("4d", f"the volume has {image.shape[0]} time points or channels", accepted, remedy)
    if is_singular(affine):
        _refuse("affine", "the affine of the volume is singular", accepted, remedy)
    _check_numbers(image, "", accepted, remedy)
    return dict(transforms(loaded, start=1))


def is_singular(affine: NDArray[Any]) -> bool:
    """Whether a 4 x 4 affine maps a volume to a plane, or nearly so."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    is_regular = bool(np.isfinite(affine).all() and (lengths > 0).all())
    return not is_regular or bool(abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6)


def find_damage(path: Path) -> str:
    """Return what is wrong with a gzipped file, or ``""``.

    NiBabel inflates the bytes that it needs and never comes to the checksum behind them (RFC 1952, 2.3.1):
    to MONAI, whatever a damaged stream inflates to is voxels. Other files have no checksum. Bytes behind the
    last member are ignored, as by gzip(1).

    Raises
    ------
    OSError
        The file cannot be read.
    """
    if not path.name.lower().endswith(".gz"):
        return ""
    member = zlib.decompressobj(_GZIP)
    with path.open("rb") as stream:
        packed = stream.read(_PIECE)
        while packed:
            if member.eof:
                packed = packed.lstrip(b"\0")  # padding
                if len(packed) < len(_MAGIC) and (more := stream.read(_PIECE)):
                    packed += more
                    continue
                if not packed.startswith(_MAGIC):
                    break
                member = zlib.decompressobj(_GZIP)
            try:
                member.decompress(packed)
            except zlib.error as error:
                return f"the gzip stream is damaged ({error})"
            packed = member.unused_data or stream.read(_PIECE)
    return "" if member.eof else "the gzip stream is cut off"


def check_result(
    image: Any, shape: tuple[int, ...], accepted: frozenset[str], *, remedy: str = COMMAND
) -> None:
    """Refuse a tensor of another shape than the configuration's, or with implausible numbers.

    Parameters
    ----------
    image : torch.Tensor
        What the transforms gave.
    shape : tuple of int
        ``target_shape_dhw``.
    accepted, remedy : frozenset of str, str
        As for `make_stock`.

    Raises
    ------
    ConfigError
        What is wrong.
    """
    found = tuple(image.shape)
    if found[1:] != shape or (found[0] != 1 and "4d" not in accepted):
        raise ConfigError(f"the tensor has shape {found}, the configuration says {(1, *shape)}")
    _check_numbers(image, " after the transforms", accepted, remedy)


def _check_numbers(image: Any, when: str, accepted: frozenset[str], remedy: str) -> None:
    if not bool(image.isfinite().all()):
        _refuse("nan", f"the volume has voxels that are NaN or infinite{when}", accepted, remedy)
    elif bool((image == image.reshape(-1)[0]).all()):
        _refuse("constant", f"every voxel is {float(image.reshape(-1)[0]):g}{when}", accepted, remedy)


def _refuse(finding: str, what: str, accepted: frozenset[str], remedy: str) -> None:
    if finding not in accepted:
        raise ConfigError(f"{what}: no tensor is made, the raw file stays; {remedy.format(finding)}")
