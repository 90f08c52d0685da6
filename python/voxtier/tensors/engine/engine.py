"""`Engine`: an item of the stock pipeline made by the core, by MONAI, or by both and compared bit by bit."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing

from voxtier import _core
from voxtier.errors import EngineLimitError, FormatError, SourceError
from voxtier.tensors.engine.outcome import Outcome
from voxtier.tensors.engine.plan import (
    Oriented,
    Shape,
    Tables,
    make_label_tables,
    make_tables,
    move_metadata,
    orient,
)
from voxtier.tensors.engine.rounding import TorchState, ask_again_after_change, torch_state
from voxtier.tensors.engine.source import Source, is_singular, load_headers

if TYPE_CHECKING:
    from voxtier.tensors.engine.pipelines import Pipeline

Item = dict[str, Any]
_VIEWS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Engine:
    """The items of a pipeline, by the core where it gives the same bits.

    Parameters
    ----------
    pipeline : Pipeline
        What the core and MONAI do.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._tables = lru_cache(maxsize=64)(self._make_tables)

    def make(
        self,
        item: Item,
        stock: Callable[[], Item],
        *,
        is_checked: bool = False,
    ) -> tuple[Item, Outcome]:
        """Make an item.

        Parameters
        ----------
        item : dict
            With the path as ``image``.
        stock : callable
            Makes it by the stock pipeline.
        is_checked : bool
            Whether both make it, and their tensors are compared.

        Returns
        -------
        item : dict
            As the stock pipeline gives it; the image may be a tensor without metadata.
        outcome : Outcome
            Who made it.

        Raises
        ------
        Exception
            What the stock pipeline raises.
        """
        started = time.thread_time()
        try:
            made, rounding = self.fuse(item)
        except EngineLimitError as limit:
            return stock(), Outcome("stock", limit.reason)
        except (
            FormatError,
            SourceError,
        ) as error:  # damaged, or changed meanwhile: stock refuses it, or `make_stock` does
            return stock(), Outcome("stock", error.kind)
        except MemoryError:
            raise
        except Exception as error:  # a header that NiBabel or MONAI refuses: stock refuses it too
            return stock(), Outcome("stock", type(error).__name__)
        seconds = {"fused": time.thread_time() - started}
        if not is_checked:
            return made, Outcome("fused", seconds=seconds, rounding=rounding)
        started = time.thread_time()
        expected = stock()
        seconds["stock"] = time.thread_time() - started
        difference = describe_difference(made, expected)
        engine, reason = ("stock", "differs") if difference else ("fused", "")
        outcome = Outcome(
            engine, reason, is_checked=True, difference=difference, seconds=seconds, rounding=rounding
        )
        return expected if difference else made, outcome

    def fuse(self, item: Item) -> tuple[Item, tuple[str, ...]]:
        """Make an item by the core.

        Returns
        -------
        item : dict
            As the stock pipeline gives it.
        rounding : tuple of str
            For `Outcome`.

        Raises
        ------
        EngineLimitError
            The core cannot equal the stock pipeline on this volume.
        FormatError, SourceError
            The file is damaged or cannot be read.
        """
        pipeline, state = self._pipeline, torch_state()
        ask_again_after_change(state)
        loaded, sources = load_headers(pipeline.load, item)
        for transform in pipeline.channel:
            loaded = transform(loaded)
        is_resized = bool(pipeline.processing.target_shape_dhw)
        image: tuple[Oriented, Tables] | None = None
        for key, source in sources.items():
            oriented = self._orient(loaded[key], source)
            place = oriented.shape, oriented.affine.tobytes(), state
            tables = self._tables(*place, _label_shape(image, oriented) if image else None)
            voxels = torch.empty((1, *tables.size))  # torch's memory: its kernels follow
            self._compute(source, oriented, tables, voxels.view(-1).numpy(), resized=is_resized)
            move_metadata(loaded, key, oriented, tables, resized=is_resized)
            if tables.xform is None and tables.size == tables.spaced:
                voxels = _as_turned(voxels, oriented, is_scaled=image is None)
            loaded[key] = MetaTensor(voxels).copy_meta_from(loaded[key])
            image = image or (oriented, tables)
        for transform in pipeline.followers:
            loaded = transform(loaded)
        return loaded, image[1].rounding if image else ()

    def _orient(self, image: Any, source: Source) -> Oriented:
        affine = np.asarray(image.affine, np.float64)
        written = np.asarray(nibabel.load(source.path).affine)  # type: ignore[attr-defined]
        if not np.array_equal(affine, written):
            raise EngineLimitError("an affine that MONAI changes")
        if is_singular(affine):  # `make_stock` refuses it
            raise EngineLimitError("an affine that maps the volume to a plane")
        return orient(self._pipeline.orientation, source.shape, affine)

    @staticmethod
    def _compute(source: Source, oriented: Oriented, tables: Tables, out: Any, *, resized: bool) -> None:
        file = (
            (source.path, source.is_gzipped, source.offset),
            (source.element, source.is_big_endian, source.slope, source.intercept),
            source.shape,
            oriented.axes,
        )
        if isinstance(tables.core, _core.LabelPicks):
            tables.core.copy(*file, out)
            return
        is_constant, is_finite = (tables.core.run if resized else tables.core.space)(*file, out)
        if is_constant or not is_finite:
            raise EngineLimitError("constant" if is_constant else "NaN or infinite")

    def _make_tables(
        self, shape: Shape, affine: bytes, state: TorchState, label: tuple[Shape | None] | None
    ) -> Tables:
        """Return the tables of an image; with ``label``, of a label spaced to the shape in it, if any."""
        matrix = np.frombuffer(affine, np.float64).reshape(4, 4).copy()
        axes = ((0, False), (1, False), (2, False))  # of no account here
        oriented, pipeline = Oriented(axes, shape, matrix, np.eye(4)), self._pipeline
        if label is not None:
            return make_label_tables(pipeline.spacing, oriented, pipeline.processing, spaced=label[0])
        return make_tables(
            pipeline.spacing,
            oriented,
            pipeline.processing,
            threads=state.threads,
            is_smoothed=pipeline.is_smoothed,
        )


def _as_turned(voxels: torch.Tensor, oriented: Oriented, *, is_scaled: bool) -> torch.Tensor:
    """Return a volume that was only turned as it lies in memory in MONAI: mostly a view of the file's axes.

    torch sums along memory, for a mean for instance, and saves a tensor as it lies there. A tensor without
    voxels tells where that is: MONAI asks for contiguous memory before and after each step, and gets a copy
    where a volume looks like channels_last to torch.
    """
    order = [axis for axis, _ in oriented.axes]
    if order == [0, 1, 2]:
        return voxels
    in_file = torch.empty((1, *(oriented.shape[order.index(axis)] for axis in range(3))), device="meta")
    turned = in_file.permute(0, *(1 + axis for axis in order)).to(memory_format=torch.contiguous_format)
    if is_scaled:
        turned = (turned - 1).to(memory_format=torch.contiguous_format)
    if turned.stride() == voxels.stride():
        return voxels
    laid = torch.empty_strided(voxels.shape, turned.stride())
    # By planes across an axis that is the fastest of neither: up to four times faster than at once.
    between = 1 if min((1, 2, 3), key=laid.stride) == 2 else 2
    for to, plane in zip(laid.unbind(between), voxels.unbind(between), strict=True):
        to.copy_(plane)
    return laid


def _label_shape(image: tuple[Oriented, Tables], label: Oriented) -> tuple[Shape | None]:
    """Return the shape that `Spacingd` takes over from the image for a label of its grid, in a tuple."""
    oriented, tables = image
    first, second = (affine_to_spacing(each.affine, 3) for each in (oriented, label))
    is_equal = np.allclose(oriented.shape, label.shape) and np.allclose(first, second, atol=1e-3)
    return (tables.spaced if is_equal else None,)


def describe_difference(made: Item, expected: Item) -> str:
    """Return how two items differ, with numbers, or ``""`` where they are equal bit by bit."""
    for key in sorted(made.keys() | expected.keys(), key=str):
        left, right = made.get(key), expected.get(key)
        if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
            if found := _describe_tensors(left, right):
                return found if key == "image" else f"{key}: {found}"
        elif repr(left) != repr(right):
            return f"the metadata {key}"
    return ""


def _describe_tensors(left: torch.Tensor, right: torch.Tensor) -> str:
    left, right = left.detach(), right.detach()
    left, right = (each.as_tensor() if hasattr(each, "as_tensor") else each for each in (left, right))
    if left.dtype != right.dtype or left.shape != right.shape:
        return f"{left.dtype} of {tuple(left.shape)} instead of {right.dtype} of {tuple(right.shape)}"
    if left.is_complex():
        left, right = (torch.view_as_real(each.resolve_conj()) for each in (left, right))
    kind = _VIEWS[left.element_size()]
    unequal = left.contiguous().view(kind) != right.contiguous().view(kind)
    if bool(unequal.any()):
        largest = (left.double() - right.double()).abs().max().item()
        return f"{int(unequal.sum()):,} of {unequal.numel():,} voxels, by {largest:.3g} at most"
    return ""
