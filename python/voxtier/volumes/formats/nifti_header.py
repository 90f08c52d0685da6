"""Headers of NIfTI-1 and NIfTI-2: checked before any allocation, geometry by the standard's order of choice.

Clauses refer to nifti1.h and nifti2.h of the NIfTI Data Format Working Group.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import FormatError
from voxtier.volumes.geometry import Affine, OrientationInfo, checked_affine, corner_error, time_step

BYTES = 540
"""Bytes of the longer header, NIfTI-2."""


def _struct(fields: str) -> np.dtype[Any]:
    return np.dtype([tuple(field.split(":")) for field in fields.split()])


_NIFTI1 = _struct(
    "sizeof_hdr:i4 data_type:S10 db_name:S18 extents:i4 session_error:i2 regular:S1 dim_info:u1 dim:8i2"
    " intent_p:3f4 intent_code:i2 datatype:i2 bitpix:i2 slice_start:i2 pixdim:8f4 vox_offset:f4 scl_slope:f4"
    " scl_inter:f4 slice_end:i2 slice_code:u1 xyzt_units:u1 cal_max:f4 cal_min:f4 slice_duration:f4"
    " toffset:f4 glmax:i4 glmin:i4 descrip:S80 aux_file:S24 qform_code:i2 sform_code:i2 quatern:3f4"
    " qoffset:3f4 srow:(3,4)f4 intent_name:S16 magic:S4"
)
_NIFTI2 = _struct(
    "sizeof_hdr:i4 magic:S8 datatype:i2 bitpix:i2 dim:8i8 intent_p:3f8 pixdim:8f8 vox_offset:i8 scl_slope:f8"
    " scl_inter:f8 cal_max:f8 cal_min:f8 slice_duration:f8 toffset:f8 slice_start:i8 slice_end:i8 descrip:S80"
    " aux_file:S24 qform_code:i4 sform_code:i4 quatern:3f8 qoffset:3f8 srow:(3,4)f8 slice_code:i4"
    " xyzt_units:i4 intent_code:i4 intent_name:S16 dim_info:u1 unused_str:S15"
)
_MAGIC1, _MAGIC2 = b"n+1", b"n+2\0\r\n\x1a\n"
_INTEGERS = {2: "u1", 4: "i2", 8: "i4", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_DTYPES = _INTEGERS | {16: "f4", 32: "c8", 64: "f8"}
_REFUSED = {
    1: "1-bit",
    128: "RGB24",
    1536: "float128",
    1792: "complex128",
    2048: "complex256",
    2304: "RGBA32",
}

SPATIAL_UNITS = {1: (1000.0, "m"), 2: (1.0, "mm"), 3: (0.001, "um")}
"""Millimetres and name by the lower three bits of ``xyzt_units``."""


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header.

    Parameters
    ----------
    raw : bytes
        348 or 540 bytes, as in the file.
    fields : numpy.void
        The same by name, in the file's byte order.
    shape : tuple of int
        Voxels along x, y, z[, t].
    dtype : numpy.dtype
        Type of the voxels, in the file's byte order.
    offset : int
        Byte at which the voxels begin in the (inflated) file.
    orientation : OrientationInfo
        Chosen affine.
    slope, inter : float
        Scaling of the stored numbers; 1 and 0 when there is none.
    """

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


def _least_offset(fields: np.void | NDArray[Any]) -> int:
    return 352 if fields.dtype.itemsize == 348 else 544  # the header and its four flags of extensions


def make_single(fields: NDArray[Any]) -> None:
    """Make the fields those of a single file without extensions, also where they were those of a pair."""
    fields["magic"] = _MAGIC1 if fields.dtype.itemsize == 348 else _MAGIC2
    fields["vox_offset"] = _least_offset(fields)


def parse_header(raw: bytes, what: str, *, is_pair: bool = False) -> Header:
    """Parse and check the first 348 or 540 bytes of a NIfTI file (nifti1.h, nifti2.h).

    Parameters
    ----------
    raw : bytes
        The beginning of the file.
    what : str
        Names the file in messages.
    is_pair : bool
        The voxels lie in a file of their own.

    Returns
    -------
    Header
        Checked.

    Raises
    ------
    FormatError
        For anything the standard does not allow, before any allocation.
    """
    fields = parse_fields(raw, what)
    if not is_pair and bytes(fields["magic"]).startswith(b"ni"):
        raise FormatError(
            "unsupported_image", 344, f"{what}: the header of a .hdr/.img pair in a single file"
        )
    shape = _shape(fields, what)
    code = int(fields["datatype"])
    if code not in _DTYPES:
        name = _REFUSED.get(code, "unknown")
        raise FormatError(
            "unsupported_image", 70, f"{what}: voxels of NIfTI datatype {code} ({name}) are not stored"
        )
    order = cast(Literal["<", ">", "="], fields.dtype["sizeof_hdr"].byteorder)
    dtype = np.dtype(_DTYPES[code]).newbyteorder(order if order != "=" else "<")
    start, least = float(fields["vox_offset"]), 0 if is_pair else _least_offset(fields)
    if not np.isfinite(start) or start != int(start) or start < least:
        kind = "pair" if is_pair else "single file"
        raise FormatError("value_past_end", 108, f"{what}: vox_offset {start} (a {kind} has >= {least})")
    slope, inter = _scaling(fields, what)
    raw = raw[: fields.dtype.itemsize]
    return Header(raw, fields, shape, dtype, int(start), _orientation(fields, shape, what), slope, inter)


def parse_fields(raw: bytes, what: str) -> np.void:
    """Return the fields of a header by name, in the byte order that its first field states.

    Raises
    ------
    FormatError
        When it is no NIfTI header; ``what`` names the file.
    """
    if len(raw) < 348:
        raise FormatError("truncated_header", len(raw), f"{what}: {len(raw)} bytes, a NIfTI header has 348")
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for layout, magic in ((_NIFTI1, _MAGIC1), (_NIFTI2, _MAGIC2)):
        for order in orders:
            kind = layout.newbyteorder(order)
            if len(raw) < kind.itemsize:
                continue
            fields: np.void = np.frombuffer(raw[: kind.itemsize], kind)[0]
            if int(fields["sizeof_hdr"]) == kind.itemsize:
                found = bytes(fields["magic"]).rstrip(b"\0")
                known = magic.partition(b"\0")[0]
                if found not in (magic, known, known.replace(b"n+", b"ni"), magic.replace(b"n+", b"ni")):
                    raise FormatError("bad_header", 344, f"{what}: no NIfTI magic (Analyze 7.5 has no world)")
                return fields
    raise FormatError("bad_header", 0, f"{what}: neither NIfTI-1 nor NIfTI-2 (sizeof_hdr is not 348 or 540)")


def _shape(fields: np.void, what: str) -> tuple[int, ...]:
    dim = [int(size) for size in fields["dim"]]
    if not 1 <= dim[0] <= 7:
        raise FormatError("bad_header", 40, f"{what}: dim[0] is {dim[0]}, allowed are 1 to 7")
    sizes = dim[1 : dim[0] + 1]
    if any(size < 1 for size in sizes):
        raise FormatError("bad_header", 40, f"{what}: dimensions {sizes} hold no voxel")
    while len(sizes) > 4 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) > 4:
        raise FormatError(
            "unsupported_image", 40, f"{what}: {len(sizes)} dimensions {sizes}; 3 or 4 are stored"
        )
    if len(sizes) == 4 and sizes[3] == 1 and dim[0] > 4:
        sizes.pop()
    return tuple(sizes + [1] * (3 - len(sizes)))


def _scaling(fields: np.void, what: str) -> tuple[float, float]:
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    if not np.isfinite(inter):
        raise FormatError("bad_header", 116, f"{what}: scl_slope is {slope} but scl_inter is {inter}")
    return slope, inter


def _orientation(fields: np.void, shape: tuple[int, ...], what: str) -> OrientationInfo:
    """Choose the affine, and warn where programs would choose another."""
    _warn_of_signs(fields, what)
    sform, qform = _affines(fields, what)
    if sform is not None and qform is not None:
        error = corner_error(sform, qform, shape)
        is_mirrored = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0
        if error > 0.1 or is_mirrored:
            mirror = ", and one mirrors the other (left and right)" if is_mirrored else ""
            warnings.warn(
                f"{what}: sform and qform disagree by up to {error:.3g} mm{mirror}; the sform is used",
                stacklevel=2,
            )
    return choose_orientation(fields, shape, what)


def _affines(fields: np.void, what: str) -> tuple[Affine | None, Affine | None]:
    """Return the affines of sform and qform in millimetres, None where the code of one is 0."""
    factor = SPATIAL_UNITS.get(int(fields["xyzt_units"]) & 7, (1.0, ""))[0]
    scale = np.diag([factor, factor, factor, 1.0])
    sform = qform = None
    if int(fields["sform_code"]) > 0:
        rows = np.vstack([fields["srow"].astype(np.float64), [0, 0, 0, 1]])
        sform = checked_affine(scale @ rows, f"{what}, sform")
    if int(fields["qform_code"]) > 0:
        try:
            qform = scale @ _quaternion_affine(fields, what)
        except FormatError:
            if sform is None:
                raise
    return sform, qform


def choose_orientation(fields: np.void, shape: tuple[int, ...], what: str) -> OrientationInfo:
    """Choose sform, else qform, else the base of nibabel: x negated, centred (nifti1.h, METHOD 1 to 3).

    Parameters
    ----------
    fields : numpy.void
        Of a header.
    shape : tuple of int
        Voxels along x, y, z[, t].
    what : str
        Names the file in messages.

    Returns
    -------
    OrientationInfo
        In millimetres.

    Raises
    ------
    FormatError
        For an affine that cannot be used.
    """
    sform, qform = _affines(fields, what)
    if sform is not None:
        return OrientationInfo(sform, "nifti_sform", "header")
    if qform is not None:
        return OrientationInfo(qform, "nifti_qform", "header")
    factor = SPATIAL_UNITS.get(int(fields["xyzt_units"]) & 7, (1.0, ""))[0]
    zooms = np.abs(fields["pixdim"][1:4].astype(np.float64)) * factor
    zooms[zooms == 0] = 1.0
    base = np.diag([-zooms[0], zooms[1], zooms[2], 1.0])
    base[:3, 3] = -base[:3, :3] @ ((np.array(shape[:3]) - 1) / 2)
    return OrientationInfo(checked_affine(base, f"{what}, pixdim"), "nifti_base", "unknown")


def _warn_of_signs(fields: np.void, what: str) -> None:
    """Warn of signs that programs read differently, so that one shows left where another shows right."""
    qfac, *steps = (float(value) for value in fields["pixdim"][:4])
    chosen = "sform" if int(fields["sform_code"]) > 0 else "qform" if int(fields["qform_code"]) > 0 else ""
    negative = [f"pixdim[{axis}] is {step:g}" for axis, step in enumerate(steps, 1) if step < 0]
    if negative:
        reading = {
            "sform": "the sform is taken as it stands, as nibabel takes it; ITK mirrors",
            "qform": "the sign mirrors the axis, as in ITK; nibabel drops it",
            "": "the sign is dropped, as in nibabel; ITK mirrors",
        }[chosen]
        warnings.warn(
            f"{what}: {', '.join(negative)}: left and right (or another axis) are ambiguous: {reading}",
            stacklevel=2,
        )
    if chosen == "qform" and qfac < 0 and qfac != -1:
        warnings.warn(
            f"{what}: pixdim[0] is {qfac:g}: left and right are ambiguous: it is taken as -1, as in ITK;"
            " nibabel takes 1",
            stacklevel=2,
        )


def _quaternion_affine(fields: np.void, what: str) -> Affine:
    """Return the qform's affine in the file's unit (nifti1.h, METHOD 2)."""
    b, c, d = (float(part) for part in fields["quatern"])
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < -3e-7:  # float32 components cannot meet the unit length any closer
        raise FormatError("bad_geometry", 256, f"{what}: quaternion ({b}, {c}, {d}) is longer than 1")
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


def new_fields(
    voxels: NDArray[Any], orientation: OrientationInfo | None, meta: Mapping[str, Any], *, is_tilted: bool
) -> NDArray[Any]:
    """Return the fields of a new header; NIfTI-1 unless a dimension needs NIfTI-2.

    Parameters
    ----------
    voxels : numpy.ndarray
        Stored numbers (unscaled), (x, y, z[, t]).
    orientation : OrientationInfo or None
        None writes both codes as 0.
    meta : mapping
        Metadata of the volume: scaling and time step.
    is_tilted : bool
        The affine has a shear that a quaternion cannot hold: qform_code 0.

    Returns
    -------
    numpy.ndarray
        One record, native byte order.

    Raises
    ------
    FormatError
        For voxels of a type that NIfTI lacks.
    """
    layout = _NIFTI1 if max(voxels.shape) < 32768 else _NIFTI2
    fields = np.zeros((), layout)
    fields["sizeof_hdr"] = layout.itemsize
    fields["magic"] = _MAGIC1 if layout is _NIFTI1 else _MAGIC2
    fields["dim"] = [voxels.ndim, *voxels.shape] + [1] * (7 - voxels.ndim)
    native = voxels.dtype.newbyteorder("=")
    code = next((c for c, name in _DTYPES.items() if np.dtype(name) == native), None)
    if code is None:
        raise FormatError("unsupported_image", None, f"NIfTI has no voxels of type {voxels.dtype}")
    fields["datatype"], fields["bitpix"] = code, voxels.dtype.itemsize * 8
    fields["scl_slope"] = float(meta.get("nifti_scl_slope", 1.0))
    fields["scl_inter"] = float(meta.get("nifti_scl_inter", 0.0))
    fields["xyzt_units"] = 2
    fields["pixdim"] = 1.0
    if voxels.ndim == 4:  # 0 and no unit: a step that is not known
        fields["pixdim"][4] = step = time_step(meta)
        fields["xyzt_units"] = 10 if step else 2  # millimetres; with a step, seconds too
    if orientation is not None:
        _put_affine(fields, orientation.affine, is_tilted=is_tilted)
    return fields


def _put_affine(fields: NDArray[Any], affine: Affine, *, is_tilted: bool) -> None:
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    fields["sform_code"] = 1
    fields["srow"] = affine[:3]
    fields["pixdim"][1:4] = zooms
    directions = affine[:3, :3] / zooms
    handedness = -1.0 if np.linalg.det(directions) < 0 else 1.0
    fields["pixdim"][0] = handedness
    fields["qoffset"] = affine[:3, 3]
    if is_tilted or not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
        return
    fields["qform_code"] = 1
    directions = directions * [1.0, 1.0, handedness]
    left, _, right = np.linalg.svd(directions)
    fields["quatern"] = _quaternion(left @ right)


def _quaternion(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (b, c, d) of a rotation with a >= 0, from the eigenvector that fits best (Bar-Itzhack 2000)."""
    (xx, yx, zx), (xy, yy, zy), (xz, yz, zz) = rotation.T
    symmetric = np.array(
        [
            [xx - yy - zz, 0, 0, 0],
            [yx + xy, yy - xx - zz, 0, 0],
            [zx + xz, zy + yz, zz - xx - yy, 0],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    values, vectors = np.linalg.eigh(symmetric / 3.0)
    b, c, d, a = vectors[:, np.argmax(values)]
    sign = -1.0 if a < 0 else 1.0
    return np.array([b, c, d]) * sign
