"""NIfTI-1 and NIfTI-2: header checked before any allocation, geometry by the standard's order of choice.

The header is kept byte for byte, so that an export gives back what was read. Clauses refer to nifti1.h of the
NIfTI Data Format Working Group.
"""

from __future__ import annotations

import base64
import gzip
import os
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import FormatError, SourceError
from voxtier.volumes.geometry import Affine, OrientationInfo, axcodes, checked_affine, corner_error

_NIFTI1: Final = np.dtype(
    [
        ("sizeof_hdr", "i4"), ("data_type", "S10"), ("db_name", "S18"), ("extents", "i4"),
        ("session_error", "i2"), ("regular", "S1"), ("dim_info", "u1"), ("dim", "i2", 8),
        ("intent_p", "f4", 3), ("intent_code", "i2"), ("datatype", "i2"), ("bitpix", "i2"),
        ("slice_start", "i2"), ("pixdim", "f4", 8), ("vox_offset", "f4"), ("scl_slope", "f4"),
        ("scl_inter", "f4"), ("slice_end", "i2"), ("slice_code", "u1"), ("xyzt_units", "u1"),
        ("cal_max", "f4"), ("cal_min", "f4"), ("slice_duration", "f4"), ("toffset", "f4"),
        ("glmax", "i4"), ("glmin", "i4"), ("descrip", "S80"), ("aux_file", "S24"),
        ("qform_code", "i2"), ("sform_code", "i2"), ("quatern", "f4", 3), ("qoffset", "f4", 3),
        ("srow", "f4", (3, 4)), ("intent_name", "S16"), ("magic", "S4"),
    ]
)  # fmt: skip
_NIFTI2: Final = np.dtype(
    [
        ("sizeof_hdr", "i4"), ("magic", "S8"), ("datatype", "i2"), ("bitpix", "i2"), ("dim", "i8", 8),
        ("intent_p", "f8", 3), ("pixdim", "f8", 8), ("vox_offset", "i8"), ("scl_slope", "f8"),
        ("scl_inter", "f8"), ("cal_max", "f8"), ("cal_min", "f8"), ("slice_duration", "f8"),
        ("toffset", "f8"), ("slice_start", "i8"), ("slice_end", "i8"), ("descrip", "S80"),
        ("aux_file", "S24"), ("qform_code", "i4"), ("sform_code", "i4"), ("quatern", "f8", 3),
        ("qoffset", "f8", 3), ("srow", "f8", (3, 4)), ("slice_code", "i4"), ("xyzt_units", "i4"),
        ("intent_code", "i4"), ("intent_name", "S16"), ("dim_info", "u1"), ("unused_str", "S15"),
    ]
)  # fmt: skip
_DTYPES: Final = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 32: "c8", 64: "f8", 256: "i1", 512: "u2", 768: "u4",
    1024: "i8", 1280: "u8",
}  # fmt: skip
_OTHER_DTYPES: Final = {
    1: "1-bit", 128: "RGB24", 1536: "float128", 1792: "complex128", 2048: "complex256", 2304: "RGBA32",
}  # fmt: skip
_SPATIAL_UNITS: Final = {1: (1000.0, "m"), 2: (1.0, "mm"), 3: (0.001, "um")}
_TIME_UNITS: Final = {8: 1.0, 16: 1e-3, 24: 1e-6}


@dataclass(frozen=True, slots=True)
class NiftiImage:
    """One image: voxels as stored (little-endian), affine, and what a round trip needs.

    Parameters
    ----------
    voxels : numpy.ndarray
        (x, y, z) or (x, y, z, t), Fortran order (x fastest, as in the file).
    orientation : OrientationInfo
        Chosen affine.
    slope, inter : float
        Scaling of the stored numbers; 1 and 0 when there is none.
    meta : dict
        Metadata of the volume that is made of it.
    row : dict
        Columns of its observation row.
    """

    voxels: NDArray[Any]
    orientation: OrientationInfo
    slope: float
    inter: float
    meta: dict[str, str]
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header; ``shape`` has 3 or 4 dimensions, ``offset`` is where the voxels begin."""

    raw: bytes
    fields: np.void
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    orientation: OrientationInfo
    slope: float
    inter: float

    @property
    def voxel_bytes(self) -> int:
        """Bytes of the voxels in the (inflated) file."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def parse_header(raw: bytes, what: str) -> Header:
    """Parse and check the first 348 or 540 bytes of a NIfTI file (nifti1.h, nifti2.h).

    Raises
    ------
    FormatError
        For anything the standard does not allow, before any allocation.
    """
    fields = _fields(raw, what)
    shape = _shape(fields, what)
    code = int(fields["datatype"])
    if code not in _DTYPES:
        name = _OTHER_DTYPES.get(code, "unknown")
        raise FormatError("invalid_argument", 70, f"{what}: voxels of NIfTI datatype {code} ({name})")
    order = cast(Literal["<", ">", "="], fields.dtype["sizeof_hdr"].byteorder)
    dtype = np.dtype(_DTYPES[code]).newbyteorder(order if order != "=" else "<")
    start = float(fields["vox_offset"])
    least = 352 if fields.dtype.itemsize == 348 else 544
    if not (start == int(start) if np.isfinite(start) else False) or start < least:
        raise FormatError("value_past_end", 108, f"{what}: vox_offset {start} (a single file has >= {least})")
    slope, inter = _scaling(fields, what)
    return Header(
        raw[: fields.dtype.itemsize],
        fields,
        shape,
        dtype,
        int(start),
        _orientation(fields, shape, what),
        slope,
        inter,
    )


def _fields(raw: bytes, what: str) -> np.void:
    if len(raw) < 348:
        raise FormatError("truncated_header", len(raw), f"{what}: {len(raw)} bytes, a NIfTI header has 348")
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for layout, magics in ((_NIFTI1, (b"n+1",)), (_NIFTI2, (b"n+2\0\r\n\x1a\n", b"n+2"))):
        for order in orders:
            kind = layout.newbyteorder(order)
            if len(raw) < kind.itemsize:
                continue
            fields: np.void = np.frombuffer(raw[: kind.itemsize], kind)[0]
            if int(fields["sizeof_hdr"]) == kind.itemsize:
                if bytes(fields["magic"]).rstrip(b"\0") in (b"ni1", b"ni2"):
                    raise FormatError(
                        "invalid_argument", 344, f"{what}: a .hdr/.img pair; join it into one .nii"
                    )
                if bytes(fields["magic"]).rstrip(b"\0") not in [magic.rstrip(b"\0") for magic in magics]:
                    raise FormatError(
                        "invalid_argument", 344, f"{what}: no NIfTI magic (Analyze 7.5 has no world)"
                    )
                return fields
    raise FormatError(
        "invalid_argument", 0, f"{what}: neither NIfTI-1 nor NIfTI-2 (sizeof_hdr is not 348 or 540)"
    )


def _shape(fields: np.void, what: str) -> tuple[int, ...]:
    dim = [int(size) for size in fields["dim"]]
    if not 1 <= dim[0] <= 7:
        raise FormatError("invalid_argument", 40, f"{what}: dim[0] is {dim[0]}, allowed are 1 to 7")
    sizes = dim[1 : dim[0] + 1]
    if any(size < 1 for size in sizes):
        raise FormatError("invalid_argument", 40, f"{what}: dimensions {sizes} hold no voxel")
    while len(sizes) > 4 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) > 4:
        raise FormatError(
            "invalid_argument", 40, f"{what}: {len(sizes)} dimensions {sizes}; 3 or 4 are stored"
        )
    if len(sizes) == 4 and sizes[3] == 1 and dim[0] > 4:
        sizes.pop()
    return tuple(sizes + [1] * (3 - len(sizes)))


def _scaling(fields: np.void, what: str) -> tuple[float, float]:
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    if not np.isfinite(inter):
        raise FormatError("invalid_argument", 116, f"{what}: scl_slope is {slope} but scl_inter is {inter}")
    return slope, inter


def _orientation(fields: np.void, shape: tuple[int, ...], what: str) -> OrientationInfo:
    """Choose sform, else qform, else the base of nibabel: x negated, centred (nifti1.h, METHOD 1 to 3)."""
    factor = _SPATIAL_UNITS.get(int(fields["xyzt_units"]) & 7, (1.0, ""))[0]
    scale = np.diag([factor, factor, factor, 1.0])
    sform = qform = None
    if int(fields["sform_code"]) > 0:
        sform = checked_affine(
            scale @ np.vstack([fields["srow"].astype(np.float64), [0, 0, 0, 1]]), f"{what}, sform"
        )
    if int(fields["qform_code"]) > 0:
        try:
            qform = scale @ quaternion_affine(fields, what)
        except FormatError:
            if sform is None:
                raise
    if sform is not None:
        if qform is not None:
            error = corner_error(sform, qform, shape)
            if error > 0.1:
                warnings.warn(
                    f"{what}: sform and qform disagree by up to {error:.3g} mm; the sform is used",
                    stacklevel=2,
                )
        return OrientationInfo(axcodes(sform), sform, "nifti_sform", "header")
    if qform is not None:
        return OrientationInfo(axcodes(qform), qform, "nifti_qform", "header")
    zooms = np.abs(fields["pixdim"][1:4].astype(np.float64)) * factor
    zooms[zooms == 0] = 1.0
    base = np.diag([-zooms[0], zooms[1], zooms[2], 1.0])
    base[:3, 3] = -base[:3, :3] @ ((np.array(shape[:3]) - 1) / 2)
    base = checked_affine(base, f"{what}, pixdim")
    return OrientationInfo(axcodes(base), base, "nifti_base", "unknown")


def quaternion_affine(fields: np.void, what: str) -> Affine:
    """Return the qform's affine in the file's unit (nifti1.h, METHOD 2)."""
    b, c, d = (float(part) for part in fields["quatern"])
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < -3e-7:  # float32 components cannot meet the unit length any closer
        raise FormatError("invalid_argument", 256, f"{what}: quaternion ({b}, {c}, {d}) is longer than 1")
    a = 0.0
    if rest > 3e-7:
        a = float(np.sqrt(rest))
    else:
        length = float(np.sqrt(b * b + c * c + d * d))
        b, c, d = b / length, c / length, d / length
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    pixdim = fields["pixdim"].astype(np.float64)
    handedness = -1.0 if pixdim[0] < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * (pixdim[1:4] * [1.0, 1.0, handedness])
    affine[:3, 3] = fields["qoffset"].astype(np.float64)
    return checked_affine(affine, f"{what}, qform")


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a ``.nii`` or ``.nii.gz`` file."""
    source = Path(path)
    with _opened(source) as stream:
        try:
            raw = stream.read(540)
        except (OSError, EOFError, zlib.error) as error:
            raise FormatError("truncated_header", None, f"{source.name}: {error}") from None
    header = parse_header(raw, source.name)
    if source.suffix != ".gz" and source.stat().st_size < header.offset + header.voxel_bytes:
        raise _too_short(header, source, source.stat().st_size)
    return header


def _too_short(header: Header, source: Path, size: int) -> FormatError:
    return FormatError(
        "value_past_end", size,
        f"{source.name}: the header promises {header.voxel_bytes} bytes of voxels from byte {header.offset},"
        f" the file ends at {size}",
    )  # fmt: skip


def _opened(source: Path) -> Any:
    try:
        return gzip.open(source, "rb") if source.suffix == ".gz" else source.open("rb")
    except FileNotFoundError as error:
        raise SourceError("io_error", None, f"there is no file {source}", error.errno) from None
    except OSError as error:
        raise SourceError.from_os(error, source) from None


def read_nifti(path: str | os.PathLike[str]) -> NiftiImage:
    """Read one image, without applying its scaling.

    Raises
    ------
    FormatError
        When the header lies or the file is truncated.
    """
    source = Path(path)
    header = read_header(source)
    content = _inflated(source, header) if source.suffix == ".gz" else None
    if content is None:
        content = np.fromfile(source, np.uint8, header.voxel_bytes, offset=header.offset)
    if content.size < header.voxel_bytes:
        raise _too_short(header, source, header.offset + content.size)
    voxels = content.view(header.dtype).reshape(header.shape, order="F")
    if header.dtype.byteorder == ">":
        voxels = voxels.astype(header.dtype.newbyteorder("<"))
    return NiftiImage(voxels, header.orientation, header.slope, header.inter, _meta(header), _row(header))


def _inflated(source: Path, header: Header) -> NDArray[np.uint8]:
    """Inflate the voxels; memory grows with what the file yields, never with what its header promises."""
    from voxtier._core import gunzip_range

    return gunzip_range(os.fspath(source), header.offset, header.voxel_bytes)


def _meta(header: Header) -> dict[str, str]:
    fields = header.fields
    meta = {
        "nifti_sform_code": str(int(fields["sform_code"])),
        "nifti_qform_code": str(int(fields["qform_code"])),
        "nifti_scl_slope": repr(header.slope),
        "nifti_scl_inter": repr(header.inter),
        "nifti_xyzt_units": str(int(fields["xyzt_units"])),
        "nifti_header": base64.b64encode(header.raw).decode("ascii"),
    }
    if len(header.shape) == 4:
        unit = _TIME_UNITS.get(int(fields["xyzt_units"]) & 0x38, 1.0)
        meta["time_step_s"] = repr(float(fields["pixdim"][4]) * unit)
    return meta


def _row(header: Header) -> dict[str, Any]:
    fields = header.fields
    return {
        "datatype": int(fields["datatype"]),
        "bitpix": int(fields["bitpix"]),
        "scl_slope": header.slope,
        "scl_inter": header.inter,
        "xyzt_units": int(fields["xyzt_units"]),
        "spatial_units": _SPATIAL_UNITS.get(int(fields["xyzt_units"]) & 7, (1.0, "unknown"))[1],
        "qform_code": int(fields["qform_code"]),
        "sform_code": int(fields["sform_code"]),
    }


def write_nifti(
    path: str | os.PathLike[str],
    voxels: NDArray[Any],
    orientation: OrientationInfo | None,
    meta: Mapping[str, Any],
    *,
    reoriented: bool = False,
    tilted: bool = False,
) -> None:
    """Write a volume; one that came from NIfTI and kept its axes gets its own header back.

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
    reoriented : bool
        The affine is no longer that of the kept header.
    tilted : bool
        The affine has a shear that a quaternion cannot hold: qform_code 0.
    """
    kept = meta.get("nifti_header")
    if kept and not reoriented:
        raw = base64.b64decode(kept)
        fields = np.array(_fields(raw, "the kept header"))
        if list(fields["dim"][1 : 1 + voxels.ndim]) != list(voxels.shape):
            fields = _fresh(voxels, orientation, meta, tilted=tilted)
    else:
        fields = _fresh(voxels, orientation, meta, tilted=tilted)
    fields = fields.astype(fields.dtype.newbyteorder("<"))
    offset = 352 if fields.dtype.itemsize == 348 else 544
    fields["vox_offset"] = offset
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    body = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False)
    try:
        with partial.open("wb") as sink:
            stream: Any = gzip.GzipFile("", "wb", 6, sink, mtime=0) if target.suffix == ".gz" else sink
            stream.write(fields.tobytes().ljust(offset, b"\0"))
            for part in body if body.ndim < 3 else np.moveaxis(body, -1, 0):
                stream.write(part.tobytes(order="F"))
            if stream is not sink:
                stream.close()
        partial.replace(target)
    except OSError as error:
        raise SourceError.from_os(error, target) from None
    finally:
        partial.unlink(missing_ok=True)


def _fresh(
    voxels: NDArray[Any], orientation: OrientationInfo | None, meta: Mapping[str, Any], *, tilted: bool
) -> NDArray[Any]:
    layout = _NIFTI1 if max(voxels.shape) < 32768 else _NIFTI2
    fields = np.zeros((), layout)
    fields["sizeof_hdr"] = layout.itemsize
    fields["magic"] = b"n+1" if layout is _NIFTI1 else b"n+2\0\r\n\x1a\n"
    fields["dim"] = [voxels.ndim, *voxels.shape] + [1] * (7 - voxels.ndim)
    plain = voxels.dtype.newbyteorder("=")
    code = next((c for c, name in _DTYPES.items() if np.dtype(name) == plain), None)
    if code is None:
        raise FormatError("invalid_argument", None, f"NIfTI has no voxels of type {voxels.dtype}")
    fields["datatype"], fields["bitpix"] = code, voxels.dtype.itemsize * 8
    fields["scl_slope"] = float(meta.get("nifti_scl_slope", 1.0))
    fields["scl_inter"] = float(meta.get("nifti_scl_inter", 0.0))
    fields["xyzt_units"] = 2 | (8 if voxels.ndim == 4 else 0)
    fields["pixdim"] = 1.0
    if voxels.ndim == 4:
        fields["pixdim"][4] = float(meta.get("time_step_s", 1.0))
    if orientation is not None:
        _put_affine(fields, orientation.affine, tilted=tilted)
    return fields


def _put_affine(fields: NDArray[Any], affine: Affine, *, tilted: bool) -> None:
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    fields["sform_code"] = 1
    fields["srow"] = affine[:3]
    fields["pixdim"][1:4] = zooms
    directions = affine[:3, :3] / zooms
    handedness = -1.0 if np.linalg.det(directions) < 0 else 1.0
    fields["pixdim"][0] = handedness
    fields["qoffset"] = affine[:3, 3]
    if tilted or not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
        return
    fields["qform_code"] = 1
    directions = directions * [1.0, 1.0, handedness]
    left, _, right = np.linalg.svd(directions)
    fields["quatern"] = _quaternion(left @ right)


def _quaternion(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (b, c, d) of a rotation with a >= 0, from the eigenvector that fits best (Bar-Itzhack)."""
    (xx, yx, zx), (xy, yy, zy), (xz, yz, zz) = rotation.T
    symmetric = (
        np.array(
            [
                [xx - yy - zz, 0, 0, 0],
                [yx + xy, yy - xx - zz, 0, 0],
                [zx + xz, zy + yz, zz - xx - yy, 0],
                [zy - yz, xz - zx, yx - xy, xx + yy + zz],
            ]
        )
        / 3.0
    )
    values, vectors = np.linalg.eigh(symmetric)
    b, c, d, a = vectors[:, np.argmax(values)]
    sign = -1.0 if a < 0 else 1.0
    return np.array([b, c, d]) * sign
