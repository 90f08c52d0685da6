"""Every reference case, from every kind of source, at every depth of verification."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from frames.dicom.cases import CASES, LISTED, SPARSE, Case, SparseCase
from frames.dicom.cases.model import A, encapsulated
from frames.dicom.sources import KINDS, opened
from voxtier._core import ERROR_KINDS
from voxtier.errors import FormatError
from voxtier.frames import FrameTable, RangedSource, read_frame, read_table

NOTES = Path(__file__).parents[3] / "rust" / "src" / "frames" / "notes.rs"
ENVIRONMENT = {"io_error", "limit_exceeded", "changed_during_read", "invalid_argument"}
BEYOND_THE_PARSER = {"bad_table", "bad_tile", "fragmented_frame", "truncated_frame"}


def check_attributes(case: Case, table: FrameTable) -> None:
    found = {
        "status": table.status,
        "kind": table.kind,
        "number_of_frames": table.number_of_frames,
        "frames": len(table),
        "truncated_from": table.truncated_from,
        "offsets_in": table.offsets_in,
        "transfer_syntax_uid": table.transfer_syntax_uid or None,
        "pixel_data_pos": table.pixel_data_pos,
    }
    assert found == {
        "status": case.status,
        "kind": case.kind,
        "number_of_frames": case.number_of_frames,
        "frames": len(case.ranges),
        "truncated_from": case.truncated_from,
        "offsets_in": case.offsets_in,
        "transfer_syntax_uid": case.transfer_syntax_uid,
        "pixel_data_pos": case.pixel_tag,
    }
    assert tuple(table.bit_offset(index) for index in range(len(table))) == case.bit_offsets


def check_spans(case: Case, table: FrameTable) -> None:
    """Below ``all`` a frame may be one span that holds the headers of its items."""
    whole = case.ranges if case.truncated_from is None else case.ranges[: case.truncated_from]
    for index, ranges in enumerate(whole):
        found = table.ranges(index)
        assert (found[0][0], found[-1][1]) == (min(ranges)[0], max(ranges)[1]) or found == list(ranges)


def check_frames(case: Case, source: Any, table: FrameTable) -> None:
    for index, expected in enumerate(case.pixels):
        assert read_frame(source, table, index) == expected
    if case.truncated_from is not None:
        with pytest.raises(FormatError) as caught:
            read_frame(source, table, case.truncated_from)
        assert caught.value.kind == "truncated_frame"
    with pytest.raises(IndexError):
        read_frame(source, table, len(table))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_verified_as_a_whole_gives_its_frames(case: Case, tmp_path: Path) -> None:
    for kind in KINDS:
        check_as_a_whole(case, kind, tmp_path)


def check_as_a_whole(case: Case, kind: str, tmp_path: Path) -> None:
    with opened(kind, case.content, tmp_path) as source:
        if case.error:
            with pytest.raises(FormatError) as caught:
                read_table(source, verify="all")
            assert caught.value.kind == case.error
            return
        table = read_table(source, verify="all")
        check_attributes(case, table)
        assert table.method == case.method
        assert set(table.notes) == case.notes
        whole = case.ranges if case.truncated_from is None else case.ranges[: case.truncated_from]
        assert [tuple(table.ranges(index)) for index in range(len(whole))] == list(whole)
        check_frames(case, source, table)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_verified_at_its_ends_gives_its_frames(case: Case, tmp_path: Path) -> None:
    for kind in KINDS:
        check_at_its_ends(case, kind, tmp_path)


def check_at_its_ends(case: Case, kind: str, tmp_path: Path) -> None:
    with opened(kind, case.content, tmp_path) as source:
        if case.error:
            with pytest.raises(FormatError) as caught:
                table = read_table(source)
                assert case.found_when_read
                for index in range(len(table)):
                    read_frame(source, table, index)
            assert caught.value.kind == case.error
            return
        table = read_table(source)
        check_attributes(case, table)
        assert table.method == case.method
        check_spans(case, table)
        check_frames(case, source, table)


@pytest.mark.parametrize("case", [case for case in CASES if case.table_serves], ids=str)
def test_a_right_offset_table_serves_unverified(case: Case, tmp_path: Path) -> None:
    for kind in KINDS:
        check_unverified(case, kind, tmp_path)


def check_unverified(case: Case, kind: str, tmp_path: Path) -> None:
    with opened(kind, case.content, tmp_path) as source:
        table = read_table(source, verify="none")
        assert (table.method, table.verified) == (case.method, "none")
        check_frames(case, source, table)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_table_not_verified_never_leads_outside_the_file(case: Case) -> None:
    """A table that nobody checked may be wrong, never dangerous: reading it gives bytes or a refusal."""
    try:
        table = read_table(case.content, verify="none")
    except FormatError as refused:
        assert refused.kind == case.error
        return
    for index in range(min(len(table), 1000)):
        try:
            assert len(read_frame(case.content, table, index)) <= len(case.content)
        except FormatError as refused:
            assert refused.kind in ERROR_KINDS


@pytest.mark.parametrize("kind", ["path", "fd", "ranged"])
@pytest.mark.parametrize("verify", ["ends", "all"])
@pytest.mark.parametrize("case", SPARSE, ids=str)
def test_frames_beyond_4_gib_are_found(case: SparseCase, verify: Any, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "sparse.dcm"
    with path.open("wb") as file:
        case.write(file)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        ranged = RangedSource(lambda offset, length: os.pread(descriptor, length, offset), case.size)
        source = {"path": path, "fd": descriptor, "ranged": ranged}[kind]
        table = read_table(source, verify=verify)
        check_attributes(case, table)
        assert table.method == case.method
        assert set(table.notes) >= case.notes
        assert [tuple(table.ranges(index)) for index in range(len(table))] == list(case.ranges)
        last = len(table) - 1
        start, end = case.ranges[last][0]
        assert read_frame(source, table, last) == os.pread(descriptor, end - start, start)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("verify", ["none", "ends"])
@pytest.mark.parametrize(
    "tables",
    [
        {"bot": (0, 30, 62)},
        {"bot": (0, 24, 62)},
        {"eot": ((0, 30, 62), (22, 24, 30))},
        {"eot": ((0, 24, 62), (16, 30, 30))},
    ],
    ids=["bot late", "bot early", "eot late", "eot early"],
)
def test_a_table_wrong_in_the_middle_is_found_when_read(tables: dict[str, Any], verify: Any) -> None:
    """Both ends of these tables are right, so they are taken; the Item headers betray them on reading."""
    case = encapsulated("", A, **tables)
    table = read_table(case.content, verify=verify)
    assert table.method == next(iter(tables))
    check_frames(case, case.content, table)
    assert read_table(case.content, verify="all").method == "one_fragment_per_frame"


def test_every_case_of_the_reference_list_is_there() -> None:
    assert len({case.name for case in LISTED}) == 114


def test_every_note_has_a_case() -> None:
    closed_list = NOTES.read_text().split("\nnotes! {")[1].split("}")[0]
    declared = set(re.findall(r"\w+", closed_list))
    noted = set().union(*(case.notes for case in [*CASES, *SPARSE]))
    assert len(declared) > 40
    assert noted == declared


def test_every_refusal_of_the_parser_has_a_case() -> None:
    kinds = {case.error for case in CASES if case.error}
    assert kinds == set(ERROR_KINDS) - ENVIRONMENT - BEYOND_THE_PARSER
