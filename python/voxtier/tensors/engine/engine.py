"""`Engine`: an item of the stock pipeline made by the core, by MONAI, or by both and compared bit by bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import torch

from voxtier.errors import EngineLimitError, FormatError, SourceError
from voxtier.tensors.engine.outcome import Outcome
from voxtier.tensors.engine.plan import Oriented, Tables, make_tables, move_metadata, orient
from voxtier.tensors.engine.source import load_header

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import ImageProcessing

Item = dict[str, Any]
_VIEWS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Engine:
    """The pipeline of a configuration, by the core where it gives the same bits.

    Parameters
    ----------
    transforms : monai.transforms.Compose
        From `build_transforms`; the stock pipeline.
    processing : ImageProcessing
        The settings of these transforms.
    """

    def __init__(self, transforms: Any, processing: ImageProcessing) -> None:
        load, orientation, spacing, *_, typed, cleaner = transforms.transforms
        self._load = load
        self._orientation = orientation
        self._spacing = spacing
        self._rest = (typed, cleaner)
        self._processing = processing
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
        ) as error:  # damaged, or changed meanwhile: stock finds its own words
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
        loaded, source = load_header(self._load, item)
        image = loaded["image"]
        affine = np.asarray(image.affine, np.float64)
        written = np.asarray(nibabel.load(source.path).affine)  # type: ignore[attr-defined]
        if not np.array_equal(affine, written):
            raise EngineLimitError("an affine that MONAI changes")
        oriented = orient(self._orientation, source.shape, affine)
        tables = self._tables(oriented.shape, oriented.affine.tobytes(), torch.get_num_threads())
        size = self._processing.target_shape_dhw
        voxels = np.empty(math.prod(size), np.float32)
        is_constant, is_finite = tables.core.run(
            (source.path, source.is_gzipped, source.offset),
            (source.element, source.is_big_endian, source.slope, source.intercept),
            source.shape,
            oriented.axes,
            voxels,
        )
        if is_constant or not is_finite:
            raise EngineLimitError("constant" if is_constant else "NaN or infinite")
        move_metadata(loaded, oriented, tables, size)
        loaded["image"] = torch.from_numpy(voxels).reshape(1, *size)
        for transform in self._rest:
            loaded = transform(loaded)
        return loaded, tables.rounding

    def _make_tables(self, shape: tuple[int, int, int], affine: bytes, threads: int) -> Tables:
        matrix = np.frombuffer(affine, np.float64).reshape(4, 4).copy()
        axes = ((0, False), (1, False), (2, False))  # of no account here
        oriented = Oriented(axes, shape, matrix, np.eye(4))
        return make_tables(self._spacing, oriented, self._processing, threads=threads)


def describe_difference(made: Item, expected: Item) -> str:
    """Return how two items differ, with numbers, or ``""`` where they are equal bit by bit."""
    left, right = (torch.as_tensor(item["image"]).detach() for item in (made, expected))
    left, right = (each.as_tensor() if hasattr(each, "as_tensor") else each for each in (left, right))
    if left.dtype != right.dtype or left.shape != right.shape:
        return f"{left.dtype} of {tuple(left.shape)} instead of {right.dtype} of {tuple(right.shape)}"
    kind = _VIEWS[left.element_size()]
    unequal = left.contiguous().view(kind) != right.contiguous().view(kind)
    if bool(unequal.any()):
        largest = (left.double() - right.double()).abs().max().item()
        return f"{int(unequal.sum()):,} of {unequal.numel():,} voxels, by {largest:.3g} at most"
    for key in sorted(made.keys() | expected.keys(), key=str):
        if key != "image" and repr(made.get(key)) != repr(expected.get(key)):
            return f"the metadata {key}"
    return ""
