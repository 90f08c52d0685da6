"""Text for people: names made harmless, errors in one line, sizes and durations written and read.

Used by every command, by the progress of long work, and for options that take a size.
"""

from __future__ import annotations

import re

from voxtier.errors import ConfigError

_DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB")
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_MOST_BYTES = 2**63 - 1
_SIZE = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]*)?)\s*(?:([kmgt])(i?))?b?\s*", re.IGNORECASE)


def on_one_line(text: str) -> str:
    """Return text, such as a path, with line breaks and control codes of terminals escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: not so the name of a file whose bytes are none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_non_unicode(text: str, what: str) -> None:
    """Refuse a text that cannot be written as UTF-8.

    Raises
    ------
    ConfigError
        Says what it is.
    """
    if not is_unicode(text):
        raise ConfigError(f"{what}: {text[:200]!r} is no UTF-8 text")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip() if lines else type(error).__name__


def describe_error(error: BaseException) -> str:
    """Return the class of an error and the first line of its text: ``FileNotFoundError: no such file``."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name


def format_count(count: int, noun: str, plural: str | None = None) -> str:
    """Return how many there are, as people read it: ``1 file``, ``2,000 files``, ``3 series``.

    Parameters
    ----------
    count : int
        How many.
    noun : str
        What, if there is one of it.
    plural : str, optional
        What, if there are others than one; by default with an s.

    Returns
    -------
    str
        The number with commas, and the noun.
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def format_bytes(count: float, *, binary: bool = False) -> str:
    """Return a number of bytes with three digits, as ``1.34 GB``, or in powers of 1024 as ``1.25 GiB``."""
    step, units = (1024, _BINARY_UNITS) if binary else (1000, _DECIMAL_UNITS)
    power = 0
    while abs(count) >= step - 0.5 and power < 4:  # 999,960 bytes are 1.00 MB, not 1000 kB
        count /= step
        power += 1
    digits = 0 if not power or abs(count) >= 99.95 else 1 if abs(count) >= 9.995 else 2
    return f"{count:.{digits}f} {units[power]}"


def format_duration(seconds: float) -> str:
    """Return seconds in their two largest units: ``0.4 s``, ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60} min"


def parse_share(text: str) -> tuple[int, int]:
    """Return which of how many shares ``"2/4"`` names: (2, 4).

    Raises
    ------
    ConfigError
        `text` is not of that form, or not 1 <= number <= shares <= 65,536.
    """
    found = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text)
    number, shares = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= shares <= 1 << 16:
        raise ConfigError(f"{text!r} is no share: give I/N with 1 <= I <= N <= 65536, such as 2/4")
    return number, shares


def parse_bytes(text: str) -> int:
    """Return the number of bytes that people wrote: ``2GiB``, ``500MB``, ``1.5 TiB``, ``4096``.

    Raises
    ------
    ConfigError
        The text is not a size, or one that no machine has.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a size: write 2GiB, 500MB or a number of bytes")
    number, prefix, binary = match.groups("")
    size = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " "))
    if size > _MOST_BYTES:
        raise ConfigError(f"{text!r} is no size up to 8 EiB")
    return size
