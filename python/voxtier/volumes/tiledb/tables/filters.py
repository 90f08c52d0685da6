"""The one filter grammar: comparisons, ``in``, ``and``, ``or``, ``not`` over columns of a table.

``"age > 40 and sex == 'F'"``, ``"site in ['A', 'B'] and not excluded"``, ``"until >= '2020-01-31'"``. Parsed,
never evaluated as Python; a row whose value is missing satisfies no comparison.
"""

from __future__ import annotations

import ast
import operator
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError

_Column = NDArray[Any] | np.ma.MaskedArray[Any, Any]
_Mask = NDArray[np.bool_]

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MAX_LENGTH = 10_000
_DATE = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?)?)?)?")  # ISO 8601, without a zone


def find_matches(expression: str, columns: Mapping[str, _Column], rows: int) -> _Mask:
    """Return which rows satisfy an expression.

    Parameters
    ----------
    expression : str
        At most 10,000 characters of the grammar above.
    columns : mapping
        Column name -> values.
    rows : int
        Length of the columns.

    Returns
    -------
    numpy.ndarray of bool, (rows,)
        True for each row that satisfies it.

    Raises
    ------
    ConfigError
        For anything outside the grammar and for a column that does not exist.
    """
    if len(expression) > _MAX_LENGTH:
        raise ConfigError(f"a filter may have {_MAX_LENGTH} characters, this one has {len(expression)}")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        return _Filter(expression, columns, rows).mask(tree)
    except (SyntaxError, RecursionError, MemoryError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the filter {expression!r} cannot be read: {error}") from None


class _Filter:
    def __init__(self, expression: str, columns: Mapping[str, _Column], rows: int) -> None:
        self.expression, self.columns, self.rows = expression, columns, rows

    def refuse(self, why: str) -> ConfigError:
        return ConfigError(f"the filter {self.expression!r}: {why}")

    def mask(self, node: ast.expr) -> _Mask:
        if isinstance(node, ast.BoolOp):
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            result = self.mask(node.values[0])
            for value in node.values[1:]:
                result = join(result, self.mask(value))
            return result
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.mask(node.operand)
        if isinstance(node, ast.Compare):
            return self.compare_chain(node)
        if isinstance(node, ast.Name):
            column = self.column(node)
            if column.dtype.kind != "b":
                raise self.refuse(f"column {node.id!r} is not boolean: compare it with something")
            return _as_mask(column)
        raise self.refuse("use comparisons, in, and, or, not")

    def compare_chain(self, node: ast.Compare) -> _Mask:
        result = np.ones(self.rows, bool)
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            result &= self.compare(left, op, right)
            left = right
        return result

    def compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Mask:
        if isinstance(op, (ast.In, ast.NotIn)):
            return self.compare_list(left, op, right)
        if type(op) not in _COMPARISONS:
            raise self.refuse("use ==, !=, <, <=, >, >=, in")
        sides = [
            self.column(side) if isinstance(side, ast.Name) else self.constant(side) for side in (left, right)
        ]
        if not any(isinstance(side, np.ndarray) for side in sides):
            raise self.refuse("a comparison names at least one column")
        return self.apply(_COMPARISONS[type(op)], sides[0], sides[1])

    def compare_list(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Mask:
        if not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
            raise self.refuse("'in' takes a list of values")
        column = self.column(left)
        inside = np.zeros(self.rows, bool)
        for item in right.elts:
            inside |= self.apply(operator.eq, column, self.constant(item))
        return inside if isinstance(op, ast.In) else ~inside & _present(column)

    def apply(self, compare: Callable[[Any, Any], Any], left: Any, right: Any) -> _Mask:
        if _is_date(left) != _is_date(right):
            left, right = (side if _is_date(side) else self.date(side) for side in (left, right))
        if _is_text(left) != _is_text(right):
            raise self.refuse("text is compared with text, numbers with numbers")
        if _is_date(left):
            left, right = self.in_one_unit(left, right)
        # As plain arrays: masked ones make 64 bits of a number, and no float32 equals the 0.1 of 64 bits.
        cells = [np.ma.getdata(side) if isinstance(side, np.ndarray) else side for side in (left, right)]
        with np.errstate(over="ignore"):  # 1e300 is infinite beside 32 bits, and compares so
            return _as_mask(compare(*cells)) & _present(left) & _present(right)

    def date(self, side: Any) -> NDArray[np.datetime64]:
        if not isinstance(side, str) or not _DATE.fullmatch(side):
            raise self.refuse(f"dates are compared with dates such as '2020-01-31' (in quotes), not {side!r}")
        return np.asarray(np.datetime64(side))

    def in_one_unit(self, left: _Column, right: _Column) -> tuple[_Column, _Column]:
        for dtype in (left.dtype, right.dtype, np.dtype("M8[us]")):
            sides = cast_dates(left, dtype), cast_dates(right, dtype)
            if sides[0] is not None and sides[1] is not None:
                return sides[0], sides[1]
        raise self.refuse("these dates are too far apart for one unit of time")

    def column(self, node: ast.expr) -> _Column:
        if not isinstance(node, ast.Name):
            raise self.refuse("write the column on the left of 'in'")
        if node.id in self.columns:
            return self.columns[node.id]
        # Python reads names in the form NFKC: the micro sign as the Greek letter.
        same = [name for name in self.columns if unicodedata.normalize("NFKC", name) == node.id]
        if len(same) != 1:
            raise self.refuse(f"no column {node.id!r}; there are {', '.join(sorted(self.columns))}")
        return self.columns[same[0]]

    def constant(self, node: ast.expr) -> Any:
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            sign, node = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, bool)):
            if not isinstance(node.value, str):
                return sign * node.value
            if sign == 1:
                return node.value
        raise self.refuse("values are numbers, 'text', True or False")


def cast_dates(dates: _Column, dtype: np.dtype[Any]) -> _Column | None:
    """Return dates in another unit; None for one that it cannot hold, of which numpy makes another date."""
    cast = dates.astype(dtype)
    differs = np.ma.getdata(cast.astype(dates.dtype)).view(np.int64) != np.ma.getdata(dates).view(np.int64)
    return None if (differs & ~np.ma.getmaskarray(dates)).any() else cast


def _is_date(side: Any) -> bool:
    return isinstance(side, np.ndarray) and side.dtype.kind == "M"


def _is_text(side: Any) -> bool:
    if isinstance(side, np.ndarray):
        return side.dtype.kind in "UO"
    return isinstance(side, str)


def _present(side: Any) -> _Mask | bool:
    is_there = ~np.ma.getmaskarray(side) if isinstance(side, np.ma.MaskedArray) else True
    return is_there & ~np.isnat(np.ma.getdata(side)) if _is_date(side) else is_there


def _as_mask(values: Any) -> _Mask:
    return np.asarray(np.ma.filled(values, fill_value=False), dtype=bool)
