"""Items of a dataset that would share one cache file: the second would be given the tensor of the first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
import torch

from voxtier.errors import ConfigError

_SMALL = 4096  # bytes of an array
_COMPRESSED = {
    torch.sparse_csr: ("crow", "col"),
    torch.sparse_bsr: ("crow", "col"),
    torch.sparse_csc: ("ccol", "row"),
    torch.sparse_bsc: ("ccol", "row"),
}


class Difference(NamedTuple):
    """Where two items differ first."""

    key: str
    one: object
    other: object


def is_small(item: object) -> bool:
    """Whether an item is text, paths, numbers and small arrays: cheap to hash and to remember."""
    if item is None or isinstance(item, str | bytes | os.PathLike | Number):
        return True
    if isinstance(item, dict):
        return all(map(is_small, item)) and all(map(is_small, item.values()))
    if isinstance(item, list | tuple):
        return all(map(is_small, item))
    if isinstance(item, torch.Tensor) and item.layout == torch.sparse_coo:  # these have no size of their own
        return is_small(item._indices()) and is_small(item._values())
    size = getattr(item, "nbytes", None)
    return isinstance(size, int) and size <= _SMALL


def refuse_shared(items: Iterable[object], hash_func: Callable[[Any], bytes]) -> None:
    """Refuse different items that one cache file stands for; an item may be listed several times.

    Parameters
    ----------
    items : iterable
        Of a dataset. Those that are not small are left out.
    hash_func : callable
        Names the file of an item. Where it fails, the access will tell.

    Raises
    ------
    ConfigError
        Names both, and what to do.
    """
    known: dict[str, tuple[int, object]] = {}
    for number, item in enumerate(items):
        if not is_small(item):
            continue
        try:
            name = hash_func(item).decode("utf-8")
        except Exception:
            continue
        before, first = known.setdefault(name, (number, item))
        if first is not item:
            refuse_other(name, first, item, f"the items {before} and {number}")


def refuse_other(name: str, first: object, item: object, which: str = "two items") -> None:
    """Refuse an item whose cache file stands for another one.

    Parameters
    ----------
    name : str
        Of the file, without ``.pt``.
    first, item : object
        Who got the name first, and the item.
    which : str
        How the message calls them.

    Raises
    ------
    ConfigError
        They differ.
    """
    found = _find_difference(first, item)
    if found is None:
        return
    place = f" in {found.key}" if found.key else ""
    raise ConfigError(
        f"{which} have one cache file, {name}.pt, and differ{place}: {_show(found.one)} and"
        f" {_show(found.other)}; one would be given the tensor of the other. Give a hash_func that tells them"
        " apart: stable_hash sees the last two parts of a path, volume_hash the volume_name alone"
    )


def _find_difference(one: Any, other: Any, key: str = "") -> Difference | None:
    if one is other:
        return None
    if isinstance(one, dict) and isinstance(other, dict):
        for name in [*one, *(name for name in other if name not in one)]:
            inner = f"{key}[{name!r}]"
            if name not in one or name not in other:
                return Difference(inner, one.get(name), other.get(name))
            if (found := _find_difference(one[name], other[name], inner)) is not None:
                return found
        return None
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next((d for n, pair in pairs if (d := _find_difference(*pair, f"{key}[{n}]"))), None)
    return None if _is_equal(one, other) else Difference(key, one, other)


def _is_equal(one: Any, other: Any) -> bool:
    try:
        if isinstance(one, str | os.PathLike) and isinstance(other, str | os.PathLike):
            left_text, right_text = os.fsdecode(one), os.fsdecode(other)
            if left_text == right_text or os.sep not in left_text + right_text:
                return left_text == right_text
            return os.path.realpath(left_text) == os.path.realpath(right_text)
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            return one.layout == other.layout and _find_difference(_parts(one), _parts(other)) is None
        left, right = np.asarray(one), np.asarray(other)
        both_nan = (left != left) & (right != right)
        return left.shape == right.shape and bool(((left == right) | both_nan).all())
    except Exception:  # what cannot be compared
        return False


def _parts(tensor: torch.Tensor) -> list[Any]:
    """Return what makes a tensor, in arrays of numpy, which has not all of torch's types and layouts."""
    plain = tensor.detach()
    if plain.is_nested:
        return [_parts(each) for each in plain.unbind()]
    kind = [str(plain.dtype), tuple(plain.shape)]
    if plain.is_meta:  # it has no numbers
        return kind
    if plain.layout == torch.sparse_coo:
        plain = plain.coalesce()
        return [*kind, _parts(plain.indices()), _parts(plain.values())]
    if plain.layout in _COMPRESSED:
        places = [getattr(plain, f"{name}_indices")() for name in _COMPRESSED[plain.layout]]
        return [*kind, *map(_parts, places), _parts(plain.values())]
    if plain.is_quantized:
        return [*kind, _parts(plain.dequantize())]
    dense = (plain.to_dense() if plain.is_mkldnn else plain).cpu().resolve_conj().resolve_neg()
    try:
        return [dense.numpy()]
    except TypeError:  # bfloat16 and the like
        return [*kind, dense.contiguous().reshape(-1).view(torch.uint8).numpy()]


def _show(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # tensors of bits have no text
        text = f"a {type(value).__name__}"
    return text if len(text) <= 300 else f"{text[:300]}..."
