"""Names made fit for one line, sizes and durations as people write them, one text told from several."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import click
import pytest

from voxtier.arguments import as_several
from voxtier.cli.options import SIZE
from voxtier.errors import ConfigError
from voxtier.system.text import (
    describe_error,
    first_line,
    format_bytes,
    format_count,
    format_duration,
    on_one_line,
    parse_bytes,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")],
)
def test_duration_names_the_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/plain/ümläut 影像.dcm", "/plain/ümläut 影像.dcm"),
        ("a\nb\x1b[2J", r"a\nb\x1b[2J"),
        ("\udcff", r"\udcff"),
        ("right‮left", r"right\u202eleft"),
    ],
)
def test_on_one_line_escapes_what_a_terminal_would_obey(text: str, shown: str) -> None:
    assert on_one_line(text) == shown


@pytest.mark.parametrize(
    ("error", "line", "described"),
    [
        (OSError(2, "No such file"), "[Errno 2] No such file", "FileNotFoundError: [Errno 2] No such file"),
        (RuntimeError("\n first \n second\n"), "first", "RuntimeError: first"),
        (RuntimeError(), "RuntimeError", "RuntimeError"),
        (AssertionError(" \n"), "AssertionError", "AssertionError"),
        (ValueError("ValueError"), "ValueError", "ValueError: ValueError"),
    ],
)
def test_an_error_is_told_in_one_line_with_or_without_text(
    error: Exception, line: str, described: str
) -> None:
    assert (first_line(error), describe_error(error)) == (line, described)


def test_format_count_reads_right() -> None:
    assert [format_count(n, "file") for n in (0, 1, 2000)] == ["0 files", "1 file", "2,000 files"]
    assert [format_count(n, "entry", "entries") for n in (1, 2)] == ["1 entry", "2 entries"]


@pytest.mark.parametrize(
    ("count", "decimal", "binary"),
    [
        (0, "0 B", "0 B"),
        (999, "999 B", "999 B"),
        (1000, "1.00 kB", "1000 B"),
        (999_960, "1.00 MB", "977 KiB"),
        (1_048_570, "1.05 MB", "1.00 MiB"),
        (1_342_177_280, "1.34 GB", "1.25 GiB"),
        (33_554_432, "33.6 MB", "32.0 MiB"),
        (123_456_789, "123 MB", "118 MiB"),
        (1.68e12, "1.68 TB", "1.53 TiB"),
        (2e16, "20000 TB", "18190 TiB"),
        (-1500, "-1.50 kB", "-1.46 KiB"),
    ],
)
def test_format_bytes_in_both_systems(count: float, decimal: str, binary: str) -> None:
    assert (format_bytes(count), format_bytes(count, binary=True)) == (decimal, binary)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4096),
        ("2GiB", 2 << 30),
        ("500MB", 500_000_000),
        ("500 gb", 500 * 10**9),
        ("1.5 TiB", 3 << 39),
        ("10k", 10_000),
        ("10ki", 10_240),
        ("7 b", 7),
        (" 0.5KiB ", 512),
        ("1.", 1),
    ],
)
def test_parse_bytes_takes_what_people_write(text: str, count: int) -> None:
    assert parse_bytes(text) == count
    assert SIZE.convert(text, None, None) == count


@pytest.mark.parametrize("text", ["", "many", "-1", "1.2.3GB", "5 PB", "10i", "1e9", "\u0661", "9" * 400])
def test_parse_bytes_refuses_what_is_not_a_size(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size: write 2GiB"):
        parse_bytes(text)
    with pytest.raises(click.BadParameter, match="is not a size: write 2GiB"):
        SIZE.convert(text, None, None)


@pytest.mark.parametrize(
    "one", ["path", b"bytes", bytearray(b"ab"), memoryview(b"ab"), Path("a/b"), BytesIO(b"a\nb")]
)
def test_one_text_counts_as_one_where_there_may_be_several(one: Any) -> None:
    assert list(as_several(one)) == [one]
    assert list(as_several([one])) == [one]
    assert list(as_several(iter([one, one]))) == [one, one]


def test_several_are_not_gone_through() -> None:
    numbers = iter(range(3))
    assert as_several(numbers) is numbers
    assert next(numbers) == 0
