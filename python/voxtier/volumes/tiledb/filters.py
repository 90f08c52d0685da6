"""The one filter grammar: comparisons, ``in``, ``and``, ``or``, ``not`` over columns of a table.

``"age > 40 and sex == 'F'"``, ``"site in ['A', 'B'] and not"
    " excluded"``. Parsed, never evaluated as Python; a row
whose value is missing satisfies no comparison.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError

Column = NDArray[Any] | np.ma.MaskedArray[Any, Any]
Mask = NDArray[np.bool_]

_COMPARE: Final[dict[type[ast.cmpop], Callable[[Any, Any], Any]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MAX_LENGTH: Final = 10_000


def matching(expression: str, columns: Mapping[str, Column], rows: int) -> Mask:
    """Return which rows satisfy the expression.

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
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the filter {expression!r} cannot be read: {error}") from None


class _Filter:
    def __init__(self, expression: str, columns: Mapping[str, Column], rows: int) -> None:
        self.expression, self.columns, self.rows = expression, columns, rows

    def refuse(self, why: str) -> ConfigError:
        return ConfigError(f"the filter {self.expression!r}: {why}")

    def mask(self, node: ast.expr) -> Mask:
        if isinstance(node, ast.BoolOp):
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            found = self.mask(node.values[0])
            for value in node.values[1:]:
                found = join(found, self.mask(value))
            return found
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.mask(node.operand)
        if isinstance(node, ast.Compare):
            return self.comparison(node)
        if isinstance(node, ast.Name):
            column = self.column(node)
            if column.dtype.kind != "b":
                raise self.refuse(f"column {node.id!r} is not boolean: compare it with something")
            return _truth(column)
        raise self.refuse("use comparisons, in, and, or, not")

    def comparison(self, node: ast.Compare) -> Mask:
        found = np.ones(self.rows, bool)
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            found &= self.compare(left, op, right)
            left = right
        return found

    def compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Mask:
        if isinstance(op, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
                raise self.refuse("'in' takes a list of values")
            column = self.column(left)
            inside = np.zeros(self.rows, bool)
            for item in right.elts:
                inside |= self.compared(operator.eq, column, self.constant(item))
            return inside if isinstance(op, ast.In) else ~inside & _present(column)
        if type(op) not in _COMPARE:
            raise self.refuse("use ==, !=, <, <=, >, >=, in")
        sides = [
            self.column(side) if isinstance(side, ast.Name) else self.constant(side) for side in (left, right)
        ]
        if not any(isinstance(side, np.ndarray) for side in sides):
            raise self.refuse("a comparison names at least one column")
        return self.compared(_COMPARE[type(op)], sides[0], sides[1])

    def compared(self, compare: Callable[[Any, Any], Any], left: Any, right: Any) -> Mask:
        kinds = {"text" if _is_text(side) else "number" for side in (left, right)}
        if len(kinds) > 1:
            raise self.refuse("text is compared with text, numbers with numbers")
        return _truth(compare(left, right)) & _present(left) & _present(right)

    def column(self, node: ast.expr) -> Column:
        if not isinstance(node, ast.Name):
            raise self.refuse("write the column on the left of 'in'")
        if node.id not in self.columns:
            raise self.refuse(f"no column {node.id!r}; there are {', '.join(sorted(self.columns))}")
        return self.columns[node.id]

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


def _is_text(side: Any) -> bool:
    if isinstance(side, np.ndarray):
        return side.dtype.kind in "UO"
    return isinstance(side, str)


def _present(side: Any) -> Mask | bool:
    return ~np.ma.getmaskarray(side) if isinstance(side, np.ma.MaskedArray) else True


def _truth(values: Any) -> Mask:
    return np.asarray(np.ma.filled(values, fill_value=False), dtype=bool)
