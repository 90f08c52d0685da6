"""Arguments as users give them: of one kind, whole within their bounds, and one where several may stand."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from typing import Any, overload

from voxtier.errors import ConfigError


def whole_number(name: str, value: object, least: int | None = None, most: int | None = None) -> int:
    """Return a whole number as Python's own; those of NumPy are taken, fractions and truth values are not.

    Parameters
    ----------
    name : str
        What the number is, for the message.
    value : object
        What was given. ``2.0`` is refused like ``2.5``: whoever computes a place decides how it is rounded.
    least, most : int, optional
        Bounds, both included.

    Returns
    -------
    int
        The same number.

    Raises
    ------
    ConfigError
        For anything else, and outside the bounds.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        shown = repr(value) if number is None else number
        raise ConfigError(f"{name} must be a whole number{_bounds(least, most)}, got {shown}")
    return number


def check_kind(name: str, value: object, kind: type | tuple[type, ...], takes: str) -> None:
    """Refuse an argument of another kind where it is given, by its name and with what it takes.

    Parameters
    ----------
    name : str
        Of the argument.
    value : object
        What was given. A class is never taken for one of its objects, which it may look like.
    kind : type or tuple of type
        What is taken.
    takes : str
        The same in words, with an example.

    Raises
    ------
    ConfigError
        For anything else.
    """
    if isinstance(value, type):
        raise ConfigError(f"{name} takes {takes}, got the class {value.__name__}: write {value.__name__}()")
    if not isinstance(value, kind):
        shown = repr(value) if isinstance(value, str | bool) else type(value).__name__
        raise ConfigError(f"{name} takes {takes}, got {shown}")


def _bounds(least: int | None, most: int | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    return f" >= {least}" if least is not None else "" if most is None else f" <= {most}"


@overload
def as_several(given: str | Iterable[str]) -> Iterable[str]: ...
@overload
def as_several(
    given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> Iterable[str | os.PathLike[str]]: ...
@overload
def as_several(given: Any) -> Any: ...
def as_several(given: Any) -> Any:
    """Return what was given where there may be several: one text, path, buffer or open file counts as one.

    Each of these can be iterated over, by its characters, bytes or lines, which nobody means.
    """
    is_text = isinstance(given, str | bytes | bytearray | memoryview | os.PathLike)
    return [given] if is_text or (hasattr(given, "read") and hasattr(given, "seek")) else given


def several(given: str | os.PathLike[str] | Iterable[Any]) -> list[Any]:
    """Return a list of what was given: what counts as one is one, and an iterator is drawn from once."""
    return list(as_several(given))
