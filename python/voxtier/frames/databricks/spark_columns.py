"""Columns of any names and types on their way through Arrow, which refuses some of Spark's."""

from __future__ import annotations

import re

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the usual name
from pyspark.sql.types import (
    ArrayType,
    DataType,
    IntegerType,
    MapType,
    StringType,
    StructField,
    StructType,
    YearMonthIntervalType,
)

from voxtier.errors import ConfigError

_MONTHS = YearMonthIntervalType(YearMonthIntervalType.MONTH, YearMonthIntervalType.MONTH)


class PlacedColumns:
    """The columns of a frame: found by their names as Spark would, and named by their places underway.

    Spark's ``mapInArrow`` looks columns up by name, so that a dot in one, or two columns of one name, end it.
    Arrow has no intervals of months, and no two fields of one name in a structure: the first travel as whole
    numbers, the second by their places.

    Parameters
    ----------
    frame : DataFrame
        The columns.
    case_sensitive : bool
        Whether names that differ in case are of two columns.
    """

    def __init__(self, frame: DataFrame, *, case_sensitive: bool) -> None:
        self.fields = frame.schema.fields
        self.names = [field.name for field in self.fields]
        self._case_sensitive = case_sensitive

    def find(self, name: str) -> list[int]:
        """Return the places of the columns that a name is of."""
        return [place for place, each in enumerate(self.names) if self._fold(each) == self._fold(name)]

    def _fold(self, name: str) -> str:
        return name if self._case_sensitive else name.lower()

    def place_of_paths(self, name: str) -> int:
        """Return the place of the column of paths, whose name may be in backquotes.

        Raises
        ------
        ConfigError
            It is not the name of one column that holds text.
        """
        found = self.find(name)
        if not found and name[0] == name[-1] == "`":
            found = self.find(name[1:-1].replace("``", "`"))
        if len(found) != 1:
            number = f"are {len(found)} columns" if found else "is no column"
            raise ConfigError(f"there {number} {name!r}: set inputCol to one of {', '.join(self.names)}")
        kind = self.fields[found[0]].dataType
        if not isinstance(kind, StringType):
            raise ConfigError(f"the column {name!r} is {kind.simpleString()}: it must hold paths as text")
        return found[0]

    def filter(self, frame: DataFrame, end: str) -> DataFrame:
        """Return the rows of a placed frame whose column ``extension``, if it has one, is that of an end."""
        # The column holds what is after the last dot: of any other end, such as "0.dcm", it says nothing.
        extension, found = re.fullmatch(r"\.([^./]+)", end), self.find("extension")
        if extension and len(found) == 1 and isinstance(self.fields[found[0]].dataType, StringType):
            column = F.col(place_name(found[0]))
            return frame.filter(F.lower(F.ltrim(column, F.lit("."))) == extension[1].lower())
        return frame

    def placed(self, frame: DataFrame) -> DataFrame:
        """Return the frame with its columns named by their places."""
        return frame.toDF(*map(place_name, range(len(self.fields))))

    def to_arrow(self, frame: DataFrame) -> DataFrame:
        """Return a placed frame with types that Arrow has.

        Raises
        ------
        ConfigError
            There are none for a column; it is named.
        """
        kinds = (_for_arrow(field, IntegerType()) for field in self.fields)
        return frame.select([_cast(place, self.fields[place], kind) for place, kind in enumerate(kinds)])

    def schema_in_arrow(self) -> list[StructField]:
        """Return the columns of `to_arrow`."""
        return [
            StructField(place_name(place), _for_arrow(each, IntegerType()), each.nullable, each.metadata)
            for place, each in enumerate(self.fields)
        ]

    def from_arrow(self, frame: DataFrame, added: str, *, name: str) -> DataFrame:
        """Return the columns of `to_arrow` as they were, and one more in place of those of its name.

        Parameters
        ----------
        frame : DataFrame
            Columns of `schema_in_arrow`, and one more.
        added, name : str
            The name that this one has there, and that it gets.

        Returns
        -------
        DataFrame
            The columns.
        """
        replaced = self.find(name)
        kept = [place for place in range(len(self.fields)) if place not in replaced]
        columns = (_cast(place, self.fields[place], self.fields[place].dataType) for place in kept)
        return frame.select(*columns, added).toDF(*(self.names[place] for place in kept), name)


def place_name(place: int) -> str:
    """Return the name underway of the column at a place."""
    return f"column_{place}"


def _cast(place: int, field: StructField, kind: DataType) -> Column | str:
    """Return a column with a type, by way of intervals of one month, which alone are whole numbers."""
    name = place_name(place)
    if _for_arrow(field, IntegerType()) == field.dataType:
        return name  # not F.col, which asks for a setting
    return F.col(name).cast(_for_arrow(field, _MONTHS)).cast(kind).alias(name)


def _for_arrow(field: StructField, interval: DataType) -> DataType:
    """Return the type of a column for Arrow, with a type for intervals of months."""

    def mapped(kind: DataType) -> DataType:
        if isinstance(kind, YearMonthIntervalType):
            return interval
        if isinstance(kind, ArrayType):
            return ArrayType(mapped(kind.elementType), kind.containsNull)
        if isinstance(kind, MapType):
            return MapType(mapped(kind.keyType), mapped(kind.valueType), kind.valueContainsNull)
        if isinstance(kind, StructType):
            is_plain = len(set(kind.names)) == len(kind.names)
            names = kind.names if is_plain else map(place_name, range(len(kind.names)))
            fields = zip(names, kind.fields, strict=True)
            return StructType(
                [StructField(name, mapped(each.dataType), each.nullable) for name, each in fields]
            )
        if kind.typeName() == "interval":
            raise ConfigError(
                f"the column {field.name!r} holds calendar intervals, which Arrow does not: leave it out, or "
                "cast it to text"
            )
        return kind

    return mapped(field.dataType)
