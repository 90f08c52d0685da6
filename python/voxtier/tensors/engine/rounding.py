"""What torch's kernels do, asked of torch: which indices, weights and roundings they use.

They are properties of a build of torch, of the instruction set, of what is set (`TorchState`) and, for
convolutions, of the shape.
So nothing here is a constant: `plan.py` asks before it makes tables. An answer that does not come, because a
private function of torch is gone or a kernel rounds in a way that the core does not know, is an
`EngineLimitError`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.networks.layers.convutils import gaussian_1d
from numpy.typing import NDArray
from torch.nn.functional import affine_grid, interpolate

from voxtier.errors import EngineLimitError
from voxtier.tensors.engine.proofs import FULL_PRECISION

Float32s = NDArray[np.float32]
ROWS = 1024
"""Inputs of an axis that torch is asked about at once: memory grows with the axis, not with its square."""


class Lines(NamedTuple):
    """The linear interpolation of one axis: output ``j`` lies between ``voxel[j]`` and the next voxel."""

    length: int
    """Number of input voxels."""
    voxel: NDArray[np.uint32]
    near: NDArray[Any]
    """Weights of ``voxel``, float64 in the first step, float32 in the second."""
    far: NDArray[Any]
    """Weights of the next voxel, or once more of the last one."""


class Grid(NamedTuple):
    """The first step for turned axes: places of outputs by a matrix, as `affine_grid` computes them."""

    lengths: tuple[int, int, int]
    """Voxels of the input."""
    coordinates: list[NDArray[np.float64]]
    """Of the outputs along x, y, z."""
    matrix: list[list[float]]
    """For the places along x, y, z: factors of the coordinates along z, y, x, and a summand."""
    fused: bool
    """Whether the sums round once for each product."""


class TorchState(NamedTuple):
    """What a thread has set that decides bits of torch's kernels: a proof holds for one state."""

    threads: int
    onednn: bool
    """Whether torch may use oneDNN."""
    precision: str
    """`FULL_PRECISION`, or what lets torch compute in another precision than float32."""


def torch_state() -> TorchState:
    """Return what this thread would compute with now."""
    try:
        matmul = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by both of torch's interfaces; the newer one tells
        matmul = "mixed"
    found = [] if matmul == "highest" else [f"matmul {matmul}"]
    for name in ("conv", "matmul"):
        level = getattr(getattr(torch.backends.mkldnn, name, None), "fp32_precision", "none")
        found += [] if level in ("none", "ieee") else [f"oneDNN {name} {level}"]
    if torch.is_autocast_enabled("cpu"):
        found.append(f"autocast {torch.get_autocast_dtype('cpu')}")
    if torch.get_default_dtype() != torch.float32:
        found.append(f"default {torch.get_default_dtype()}")
    precision = ", ".join(found) or FULL_PRECISION
    return TorchState(torch.get_num_threads(), bool(torch.backends.mkldnn.enabled), precision)


@lru_cache(maxsize=256)
def resize_lines(inputs: int, outputs: int) -> Lines:
    """Return how `torch.nn.functional.interpolate` makes ``outputs`` of ``inputs`` voxels of an axis.

    The weights are computed as torch's source says, in the two roundings that a compiler may make of it, and
    the one is taken that torch's own answer for an identity matrix confirms.
    """
    if inputs == outputs:
        index = np.arange(inputs, dtype=np.uint32)
        return Lines(inputs, index, np.ones(inputs, np.float32), np.zeros(inputs, np.float32))
    places = np.arange(outputs)
    scale = np.float32(inputs) / np.float32(outputs)
    middle = places.astype(np.float32) + np.float32(0.5)
    rounded = scale * middle - np.float32(0.5)
    contracted = (np.float64(scale) * middle - 0.5).astype(np.float32)
    for source in (rounded, contracted):
        source = np.maximum(source, np.float32(0))
        index = np.minimum(source.astype(np.int64), inputs - 1)
        far = np.clip(source - index.astype(np.float32), np.float32(0), np.float32(1))
        lines = Lines(inputs, index.astype(np.uint32), np.float32(1) - far, far)
        if all(_confirms(lines, places, first) for first in range(0, inputs, ROWS)):
            return lines
    raise EngineLimitError("torch interpolates with other weights than the engine knows")


def _confirms(lines: Lines, places: NDArray[np.int64], first: int) -> bool:
    """Whether torch has these weights for the inputs from ``first`` on, `ROWS` of them."""
    count = min(ROWS, lines.length - first)
    identity = torch.zeros(1, count, lines.length)
    identity[0, range(count), range(first, first + count)] = 1
    answer = interpolate(identity, size=len(places), mode="linear", align_corners=False)[0].numpy()
    expected = np.zeros_like(answer)
    near = lines.voxel.astype(np.int64) - first
    following = np.minimum(near + 1, lines.length - 1 - first)
    for index, weights in ((near, lines.near), (following, lines.far)):
        inside = (index >= 0) & (index < count)
        expected[index[inside], places[inside]] += weights[inside]
    return np.array_equal(expected, answer)


@lru_cache(maxsize=256)
def nearest_voxels(inputs: int, outputs: int) -> NDArray[np.int64]:
    """Return which voxels of an axis `interpolate` takes by nearest neighbour."""
    if inputs == outputs:
        return np.arange(inputs)
    voxels = torch.arange(inputs, dtype=torch.float32)[None, None]  # exact up to 2**24
    found: NDArray[np.int64] = (
        interpolate(voxels, size=outputs, mode="nearest")[0, 0].numpy().astype(np.int64)
    )
    return found


@lru_cache(maxsize=256)
def gaussian_kernel(sigma: float) -> Float32s:
    """Return the weights of MONAI's Gaussian of this width."""
    kernel: Float32s = gaussian_1d(torch.as_tensor(sigma)).numpy().astype(np.float32, copy=True)
    return kernel


@lru_cache(maxsize=1)
def interpolation_is_fused() -> bool:
    """Whether `interpolate` rounds ``a * near + b * far`` once after the product of ``b``, or twice."""
    generator = np.random.default_rng(7)
    volume = generator.standard_normal((9, 11, 7)).astype(np.float32)
    shape = (7, 16, 12)
    answer = interpolate(torch.from_numpy(volume)[None, None], size=shape, mode="trilinear")[0, 0].numpy()
    for is_fused in (True, False):
        found = volume
        for axis in (2, 1, 0):
            found = _interpolate(found, axis, shape[axis], is_fused=is_fused)
        if np.array_equal(found.view(np.int32), answer.view(np.int32)):
            return is_fused
    raise EngineLimitError("torch's interpolation rounds in another order than the engine")


@lru_cache(maxsize=1)
def grid_is_fused() -> bool:
    """Whether `affine_grid` sums its products in order with one rounding each, or with two."""
    generator = np.random.default_rng(3)
    answers = set()
    for x, y, z in ((5, 7, 11), (33, 18, 29)):  # torch and the library below it choose by size
        matrix = generator.uniform(-1, 1, (3, 4))
        size = [1, 1, x, y, z]
        answer = affine_grid(torch.from_numpy(matrix)[None], size, align_corners=False)[0].numpy()
        base = affine_grid(torch.eye(4, dtype=torch.float64)[None, :3], size, align_corners=False)[0].numpy()
        terms = [base[..., 0], base[..., 1], base[..., 2]]
        for is_fused in (True, False):
            add = _fused_double if is_fused else _multiply_add
            found = np.stack([_sum_row(terms, row, add) for row in matrix], axis=-1)
            if np.array_equal(found, answer):
                answers.add(is_fused)
                break
        else:
            raise EngineLimitError("torch places voxels of turned axes in another order than the engine")
    if len(answers) != 1:
        raise EngineLimitError("torch rounds the places of turned axes by their number")
    return answers.pop()


def _sum_row(terms: list[NDArray[np.float64]], row: Any, add: Any) -> NDArray[np.float64]:
    total = terms[0] * row[0]
    for term, factor in zip(terms[1:], row[1:3], strict=True):
        total = add(term, factor, total)
    return np.asarray(total + row[3])


def _fused_double(term: Any, factor: float, total: Any) -> Any:
    """``term * factor + total`` rounded once, by exact sums of parts (Dekker's product, Knuth's sum)."""
    product = term * factor
    splitter = 134217729.0  # 2**27 + 1
    high = [each * splitter - (each * splitter - each) for each in (term, np.float64(factor))]
    low = [term - high[0], factor - high[1]]
    rest = ((high[0] * high[1] - product) + high[0] * low[1] + low[0] * high[1]) + low[0] * low[1]
    total_ = product + total
    back = total_ - product
    error = (product - (total_ - back)) + (total - back)
    return total_ + (error + rest)


def _interpolate(volume: Float32s, axis: int, outputs: int, *, is_fused: bool) -> Float32s:
    lines = resize_lines(volume.shape[axis], outputs)
    following = np.minimum(lines.voxel + 1, volume.shape[axis] - 1)
    shape = [-1 if each == axis else 1 for each in range(3)]
    near, far = lines.near.reshape(shape), lines.far.reshape(shape)
    a, b = np.take(volume, lines.voxel, axis), np.take(volume, following, axis) * far
    return _fused_add(a, near, b) if is_fused else np.asarray(a * near + b)


def convolution_sum(shape: tuple[int, int, int], weights: tuple[int, int, int], threads: int) -> str:
    """Return how `conv3d` sums: oneDNN in order and fused, torch's own kernel as the gemm below it does.

    Parameters
    ----------
    shape : tuple of int
        Voxels of the padded input.
    weights : tuple of int
        Shape of the kernel.
    threads : int
        Threads of torch.

    Returns
    -------
    str
        ``mul+add``, ``fma`` or ``blocks``, as the core names them.

    Raises
    ------
    EngineLimitError
        torch does not say which kernel it takes, or takes one that is not known.
    """
    select = getattr(torch._C, "_select_conv_backend", None)
    if select is None:
        raise EngineLimitError("torch does not say which convolution it takes")
    before = torch.get_num_threads()
    try:
        if threads != before:
            torch.set_num_threads(threads)
        # Memory that nobody writes to: torch chooses by shape and device.
        volume, kernel = torch.empty(1, 1, *shape), torch.empty(1, 1, *weights)
        ones, zeros, transposed = [1, 1, 1], [0, 0, 0], False
        backend = str(select(volume, kernel, None, ones, zeros, ones, transposed, zeros, 1, None))
    finally:
        if threads != before:
            torch.set_num_threads(before)
    if "Mkldnn" in backend:
        return "fma"
    if "Slow3d" in backend:
        return _slow_sum(max(weights))
    raise EngineLimitError(f"torch convolves by {backend}, which the engine does not know")


@lru_cache(maxsize=256)
def _slow_sum(taps: int) -> str:
    """Return how torch's own convolution sums so many products: the first way that gives its bits."""
    convolve = getattr(torch.ops.aten, "slow_conv3d", None)
    if convolve is None:
        raise EngineLimitError("torch has lost its own convolution")
    generator = np.random.default_rng(taps)
    outputs, width = 37, 17  # 629 outputs: 39 vectors of 16, and a tail of 5
    volume = generator.uniform(-1, 1, (outputs + taps - 1, width)).astype(np.float32)
    weights = generator.uniform(0, 0.3, taps).astype(np.float32)
    size = [taps, 1, 1]
    kernel = torch.from_numpy(weights).reshape(1, 1, *size)
    answer = convolve(torch.from_numpy(volume)[None, None, :, :, None], kernel, size)[0, 0, :, :, 0].numpy()
    rows = [volume[tap : tap + outputs] for tap in range(taps)]
    for name, add in (("mul+add", _multiply_add), ("fma", _fused_add)):
        found = np.zeros_like(answer)
        for row, weight in zip(rows, weights, strict=True):
            found = add(row, weight, found)
        if np.array_equal(found, answer):
            return name
    if np.array_equal(_sum_blocks(rows, weights), answer):
        return "blocks"
    raise EngineLimitError("torch's convolution sums in an order that the engine does not know")


def _multiply_add(row: NDArray[Any], weight: Any, total: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(row * weight + total)


def _fused_add(row: Float32s, weight: Any, total: Float32s) -> Float32s:
    # A product of two float32 is exact in float64. The sum is rounded twice, which differs from once only
    # where the first rounding ends exactly between two float32: in no sample of this file.
    return np.asarray((row.astype(np.float64) * np.asarray(weight, np.float64) + total).astype(np.float32))


def _sum_blocks(rows: list[Float32s], weights: Float32s) -> Float32s:
    total = np.zeros_like(rows[0])
    whole = len(weights) // 8 * 8
    for start in range(0, whole, 8):
        partial = []
        for first, second in ((6, 4), (7, 5), (2, 0), (3, 1)):
            begun = total if first == 6 else np.zeros_like(total)
            for tap in (start + first, start + second):
                begun = _fused_add(rows[tap], weights[tap], begun)
            partial.append(begun)
        total = (partial[0] + partial[1]) + (partial[2] + partial[3])
    in_order = np.zeros_like(total)
    for tap, weight in enumerate(weights):
        if tap >= whole:
            total = _fused_add(rows[tap], weight, total)
        in_order = _fused_add(rows[tap], weight, in_order)
    tail = total.size - total.size % 16
    total.reshape(-1)[tail:] = in_order.reshape(-1)[tail:]
    return total


_asked: list[TorchState] = []  # the state in which torch gave the answers that are kept


def ask_again_after_change(state: TorchState) -> None:
    """Forget the answers that torch gave in another state."""
    if _asked != [state]:
        clear()
        _asked[:] = [state]


def clear() -> None:
    """Forget the answers."""
    for cached in (
        resize_lines,
        nearest_voxels,
        gaussian_kernel,
        interpolation_is_fused,
        grid_is_fused,
        _slow_sum,
    ):
        cached.cache_clear()
