"""NIfTI images: read without scaling, written back with the header that was read.

The header is kept byte for byte in the metadata of a volume, so that an export gives back what was read.
"""

from __future__ import annotations

import base64
import gzip
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier._core import gunzip_range
from voxtier.errors import FormatError, SourceError
from voxtier.system.durable import EagerFile, write_file
from voxtier.volumes.formats.image import Image
from voxtier.volumes.formats.nifti_files import NiftiFiles, locate, open_bytes
from voxtier.volumes.formats.nifti_header import (
    BYTES,
    SPATIAL_UNITS,
    Header,
    choose_orientation,
    make_single,
    new_fields,
    parse_fields,
    parse_header,
)
from voxtier.volumes.geometry import TIME_STEP, OrientationInfo

ROW_INTEGERS = ("datatype", "bitpix", "xyzt_units", "qform_code", "sform_code")
ROW_FLOATS = ("scl_slope", "scl_inter")
"""Columns of numbers that `header_row` fills; any other is text."""

# Seconds by bits 3 to 5 of ``xyzt_units``; 0 is no unit, which means seconds. The others are no times (Hz).
_TIME_UNITS = {0: 1.0, 8: 1.0, 16: 1e-3, 24: 1e-6}


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of an image: a single file or a pair, gzipped or not.

    Raises
    ------
    FormatError
        When the header lies, or the file is shorter than it promises.
    SourceError
        When the file cannot be read.
    """
    return _read_header(locate(Path(path)))


def _read_header(files: NiftiFiles) -> Header:
    with open_bytes(files.header) as stream:
        try:
            raw = stream.read(BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise FormatError("truncated_header", None, f"{files.header.name}: {error}") from None
    header = parse_header(raw, files.header.name, is_pair=files.is_pair)
    if not files.is_packed and files.voxels.stat().st_size < header.offset + header.voxel_bytes:
        raise _too_short(header, files.voxels, files.voxels.stat().st_size)
    return header


def _too_short(header: Header, source: Path, size: int) -> FormatError:
    return FormatError(
        "value_past_end",
        size,
        f"{source.name}: the header promises {header.voxel_bytes} bytes of voxels from byte {header.offset},"
        f" the file ends at {size}",
    )


def read_nifti(path: str | os.PathLike[str]) -> Image:
    """Read one image, without applying its scaling.

    Raises
    ------
    FormatError
        When the header lies or the file is truncated.
    SourceError
        When the file cannot be read.
    """
    files = locate(Path(path))
    header, source = _read_header(files), files.voxels
    if files.is_packed:
        # Memory grows with what the file yields, never with what its header promises.
        content = gunzip_range(os.fspath(source), header.offset, header.voxel_bytes)
    else:
        content = np.fromfile(source, np.uint8, header.voxel_bytes, offset=header.offset)
    if content.size < header.voxel_bytes:
        raise _too_short(header, source, header.offset + content.size)
    voxels = content.view(header.dtype).reshape(header.shape, order="F")
    if header.dtype.byteorder == ">":
        voxels = voxels.astype(header.dtype.newbyteorder("<"))
    return Image(voxels, header.orientation, _meta(header), header_row(header))


def _meta(header: Header) -> dict[str, Any]:
    fields = header.fields
    meta: dict[str, Any] = {
        "nifti_sform_code": str(int(fields["sform_code"])),
        "nifti_qform_code": str(int(fields["qform_code"])),
        "nifti_scl_slope": repr(header.slope),
        "nifti_scl_inter": repr(header.inter),
        "nifti_xyzt_units": str(int(fields["xyzt_units"])),
        "nifti_header": base64.b64encode(header.raw).decode("ascii"),
    }
    if len(header.shape) == 4:
        step = float(fields["pixdim"][4]) * _TIME_UNITS.get(int(fields["xyzt_units"]) & 0x38, 0.0)
        if 0 < step < math.inf:
            meta[TIME_STEP] = repr(step)
    return meta


def header_row(header: Header) -> dict[str, Any]:
    """Return the columns of a row of observations that the header fills."""
    fields = header.fields
    return {
        "datatype": int(fields["datatype"]),
        "bitpix": int(fields["bitpix"]),
        "scl_slope": header.slope,
        "scl_inter": header.inter,
        "xyzt_units": int(fields["xyzt_units"]),
        "spatial_units": SPATIAL_UNITS.get(int(fields["xyzt_units"]) & 7, (1.0, "unknown"))[1],
        "qform_code": int(fields["qform_code"]),
        "sform_code": int(fields["sform_code"]),
    }


def _own_fields(
    meta: Mapping[str, Any], shape: tuple[int, ...], orientation: OrientationInfo | None
) -> NDArray[Any] | None:
    """Return the fields of the stored header; None where it is not that of these voxels, in this order."""
    header = meta.get("nifti_header")
    if not header or orientation is None:
        return None
    what = "the stored header"
    fields = parse_fields(base64.b64decode(header), what)
    if list(fields["dim"][1 : 1 + len(shape)]) != list(shape):
        return None
    affine = choose_orientation(fields, shape, what).affine
    # A flip keeps the shape; only the affine tells that the voxels lie in another order than the file's.
    return np.array(fields) if np.allclose(affine, orientation.affine, rtol=1e-6, atol=1e-6) else None


def write_nifti(
    path: str | os.PathLike[str],
    voxels: NDArray[Any],
    orientation: OrientationInfo | None,
    meta: Mapping[str, Any],
    *,
    is_tilted: bool = False,
) -> None:
    """Write a volume; one that came from NIfTI and kept its shape and affine gets its own header back.

    Parameters
    ----------
    path : path-like
        ``.nii`` or ``.nii.gz``; written beside and renamed, so that no half file is ever seen.
    voxels : numpy.ndarray
        Stored numbers (unscaled), (x, y, z[, t]).
    orientation : OrientationInfo or None
        None writes both codes as 0.
    meta : mapping
        Metadata of the volume.
    is_tilted : bool
        The affine has a shear that a quaternion cannot hold: qform_code 0.

    Raises
    ------
    FormatError
        For voxels of a type that NIfTI lacks.
    SourceError
        When the file cannot be written.
    """
    fields = _own_fields(meta, voxels.shape, orientation)
    if fields is None:
        fields = new_fields(voxels, orientation, meta, is_tilted=is_tilted)
    fields = fields.astype(fields.dtype.newbyteorder("<"))
    make_single(fields)
    target = Path(path)
    body = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False)

    def write(file: EagerFile) -> None:
        is_packed = target.suffix.lower() == ".gz"
        stream: Any = gzip.GzipFile("", "wb", 6, file, mtime=0) if is_packed else file
        stream.write(fields.tobytes().ljust(int(fields["vox_offset"]), b"\0"))
        for part in body if body.ndim < 3 else np.moveaxis(body, -1, 0):
            stream.write(part.tobytes(order="F"))
        if stream is not file:
            stream.close()

    try:
        write_file(target, write)
    except OSError as error:
        raise SourceError.from_os(error, target) from None
