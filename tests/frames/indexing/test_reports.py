"""Reports as the predecessor's status objects, and arguments that are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from voxtier import _core
from voxtier.frames.indexing.run import FileReport


@pytest.mark.parametrize(
    ("report", "status"),
    [
        (FileReport("/x", "ok", 7, None, None, None), {"status": "cached", "num_frames": 7}),
        (
            FileReport("/x", "unchanged", 7, None, None, None),
            {"status": "skipped", "reason": "already_cached", "num_frames": 7},
        ),
        (
            FileReport("/x", "no_pixels", 0, None, None, None),
            {"status": "skipped", "reason": "no_pixels", "num_frames": 0},
        ),
        (
            FileReport("/x", "truncated", 7, 3, None, None),
            {"status": "partial", "num_frames": 7, "truncated_from": 3},
        ),
        (
            FileReport("/x", "unchanged", 7, 3, None, None),
            {"status": "partial", "num_frames": 7, "truncated_from": 3},
        ),
        (
            FileReport("/x", "unchanged", 7, 0, None, None),
            {"status": "partial", "num_frames": 7, "truncated_from": 0},
        ),
        (
            FileReport("/x", "unchanged", 0, None, None, None),
            {"status": "skipped", "reason": "no_pixels", "num_frames": 0},
        ),
        (
            FileReport("/x", "error", 0, None, "empty", "e" * 600),
            {"status": "error", "error": "e" * 500},
        ),
    ],
    ids=lambda value: value.status if isinstance(value, FileReport) else "",
)
def test_a_report_is_the_predecessors_status_object(report: FileReport, status: dict[str, object]) -> None:
    assert report.as_status() == status


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: _core.Indexer("s", threads=0, verify="all"),
        lambda: _core.Indexer("s", threads=2, verify="much"),  # type: ignore[arg-type]
        lambda: _core.take_unchanged(["/a"], b"", []),
        lambda: _core.refused_status("no such kind"),
    ],
    ids=["no threads", "unknown depth", "lists of two lengths", "unknown kind"],
)
def test_arguments_outside_their_domain_are_value_errors(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        wrong()
