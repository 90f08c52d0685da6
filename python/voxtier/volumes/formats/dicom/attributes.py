"""Attributes of DICOM headers as checked numbers: a value that cannot be used is refused by its name."""

from __future__ import annotations

import datetime
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from voxtier.errors import FormatError, MissingExtraError, SourceError
from voxtier.system.fork import after_fork_in_child

_LARGEST = 1e7
"""Millimetres: no position, spacing or scale beyond it is believed, so that no arithmetic overflows."""

_lock = threading.Lock()
_silencers: list[warnings.catch_warnings[None]] = []
_readers = 0


def _begin_child() -> None:
    global _lock
    _lock = threading.Lock()


after_fork_in_child(_begin_child)


def refusal(kind: str, where: str, why: str) -> FormatError:
    """Return the error for a slice or a series that cannot be stored.

    Parameters
    ----------
    kind : str
        Of `VOLUME_KINDS` or of the core.
    where : str
        Which slice or series.
    why : str
        What is wrong with it.

    Returns
    -------
    FormatError
        To be raised.
    """
    return FormatError(kind, None, f"{where}: {why}")


def import_pydicom() -> Any:
    """Return pydicom.

    Raises
    ------
    MissingExtraError
        When it is not installed.
    """
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("pydicom", "volumes") from None
    return pydicom


@contextmanager
def silent_pydicom() -> Iterator[None]:
    """Ignore the warnings of pydicom alone, for as long as any thread is inside.

    The filters are the process's: the first thread sets them, the last one puts back what was there.
    """
    global _readers
    with _lock:
        if _readers == 0:
            _silencers.append(warnings.catch_warnings())
            _silencers[-1].__enter__()
            warnings.filterwarnings("ignore", module="pydicom")
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                _silencers.pop().__exit__(None, None, None)


def read_header(file: Path, tags: Sequence[Any] | None = None) -> Any | None:
    """Return the header of a DICOM file without its pixels; None for a file that is not DICOM Part 10.

    Raises
    ------
    SourceError
        When the file cannot be read.
    FormatError
        ``not_dicom`` when it begins as DICOM and cannot be parsed.
    """
    pydicom = import_pydicom()
    try:
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
    except pydicom.errors.InvalidDicomError:
        return None
    except OSError as error:
        raise SourceError.from_os(error, file) from None
    except Exception as error:
        raise refusal("not_dicom", file.name, f"the header cannot be read: {error}") from None


def first_item(dataset: Any, name: str) -> Any:
    """Return the first item of a sequence, None where there is none."""
    sequence = None
    with suppress(Exception):
        sequence = dataset.get(name) if dataset is not None else None
    return (
        sequence[0] if isinstance(sequence, Sequence) and not isinstance(sequence, str) and sequence else None
    )


def read_numbers(dataset: Any, name: str, count: int, where: str) -> tuple[float, ...]:
    """Return the numbers of an attribute that must be there.

    Parameters
    ----------
    dataset : pydicom.Dataset
        Where it stands.
    name : str
        Its keyword.
    count : int
        How many numbers it has.
    where : str
        The slice, for the message.

    Returns
    -------
    tuple of float
        Finite, of a size that a patient or a scanner has.

    Raises
    ------
    FormatError
        ``bad_header``.
    """
    try:
        values = tuple(float(value) for value in dataset.get(name))
    except Exception:
        raise refusal("bad_header", where, f"{name} is missing or no numbers") from None
    if len(values) != count or not all(abs(value) <= _LARGEST for value in values):
        raise refusal("bad_header", where, f"{name} needs {count} numbers of at most 10 km, has {values}")
    return values


def read_number(dataset: Any, name: str, default: float, where: str) -> float:
    """Return the number of an attribute, or the default where it is absent or empty.

    Parameters
    ----------
    dataset : pydicom.Dataset
        Where it stands.
    name : str
        Its keyword.
    default : float
        For an absent or empty attribute.
    where : str
        The slice, for the message.

    Returns
    -------
    float
        Finite.

    Raises
    ------
    FormatError
        ``bad_header`` for anything but one finite number.
    """
    try:
        text = dataset.get(name)
        value = default if text is None or text == "" else float(text)
    except Exception:
        raise refusal("bad_header", where, f"{name} is no number") from None
    if not np.isfinite(value):
        raise refusal("bad_header", where, f"{name} is {value}")
    return value


def find_numbers(dataset: Any, name: str) -> tuple[float, ...] | None:
    """Return the finite numbers of an attribute; None where it has none."""
    with suppress(Exception):  # pydicom converts a value when it is asked for
        value = dataset.get(name) if dataset is not None else None
        if value is None or value == "":
            return None
        is_several = isinstance(value, Sequence) and not isinstance(value, str)
        numbers = tuple(float(item) for item in (value if is_several else (value,)))
        if numbers and np.isfinite(numbers).all():
            return numbers
    return None


def find_text(dataset: Any, name: str) -> str:
    """Return an attribute as text, several values joined by backslashes; empty where it is absent."""
    value: Any = None
    with suppress(Exception):  # pydicom converts a value when it is asked for
        value = dataset.get(name) if dataset is not None else None
    if value is None:
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\\".join(map(str, value))
    return str(value)


def find_seconds(dataset: Any, time_name: str, date_name: str = "") -> tuple[float, ...] | None:
    """Return the seconds of a TM, with the DA that goes with it, or of a DT (PS3.5 6.2).

    Parameters
    ----------
    dataset : pydicom.Dataset
        Where they stand.
    time_name : str
        Keyword of the TM, or of the DT.
    date_name : str
        Keyword of the DA; empty for a DT.

    Returns
    -------
    tuple of float or None
        One number; None where the time is absent or none.
    """
    time = find_text(dataset, time_name).strip().replace(":", "")
    date = find_text(dataset, date_name).strip().replace(".", "") if date_name else ""
    with suppress(ValueError, OverflowError):
        if not date_name:  # YYYYMMDDHHMMSS.FFFFFF&ZZXX
            date, time = time[:8], time[8:]
        time, zone = _split_zone(time)
        whole, _, fraction = time.partition(".")
        if not whole.isdigit() or len(whole) not in (2, 4, 6) or not (fraction or "0").isdigit():
            return None
        parts = [int(whole[at : at + 2]) for at in range(0, len(whole), 2)]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        days = datetime.datetime.strptime(date, "%Y%m%d").toordinal() if date else 0
        return ((days * 24 + hours) * 3600.0 + minutes * 60 + seconds + float(f"0.{fraction or 0}") - zone,)
    return None


def _split_zone(time: str) -> tuple[str, float]:
    for sign in "+-":
        clock, found, zone = time.partition(sign)
        if found:
            return clock, (int(zone[:2]) * 3600.0 + int(zone[2:4]) * 60) * (1 if sign == "+" else -1)
    return time, 0.0
