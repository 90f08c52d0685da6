"""`voxtier explain`: a page for every table, note, method and refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.running import FINDINGS, OK, USAGE, Cli
from voxtier import _core
from voxtier.frames import read_table
from voxtier.frames.dicom import explain as explain_module
from voxtier.frames.dicom.explain import explain


@pytest.mark.parametrize("name", ["ok.dcm", "deep/jpeg.dcm", "truncated.dcm", "no_pixels.dcm"])
def test_a_readable_file_is_a_page_with_status_and_transfer_syntax(
    voxtier: Cli, folder: Path, name: str
) -> None:
    done = voxtier("explain", folder / name)
    table = read_table(folder / name, verify="all")
    assert done.code == OK
    assert f"status          {table.status}" in done.out
    assert f"({explain_module.transfer_syntax_name(table.transfer_syntax_uid)})" in done.out
    assert len(done.out.splitlines()) < 60


@pytest.mark.parametrize("name", ["error.dcm", "ambiguous.dcm", "missing.dcm", "deep"])
def test_a_refused_file_is_explained_and_exits_1_or_2(voxtier: Cli, folder: Path, name: str) -> None:
    done = voxtier("explain", folder / name)
    assert done.code == (USAGE if name == "missing.dcm" else FINDINGS)
    assert "refused" in done.out
    [row] = voxtier("explain", folder / name, "--json").rows
    assert row["error"]["detail"] in done.out


def test_the_facts_of_the_page_as_json(voxtier: Cli, folder: Path) -> None:
    done = voxtier("explain", folder / "deep" / "jpeg.dcm", "--json")
    [row] = done.rows
    assert (done.code, row["status"], row["fragments"], row["number_of_frames"]) == (OK, "ok", 2, 2)
    assert row["transfer_syntax_name"] == "JPEG Baseline"
    assert row["oddities"].keys() == set(row["notes"])
    assert row["error"] is None


def test_every_note_and_method_has_an_explanation() -> None:
    assert list(explain_module._NOTES) == _core.NOTES
    assert set(explain_module._METHODS) == set(_core.METHODS)
    assert all(explain_module._NOTES.values())


def test_every_reference_case_is_explained_with_its_notes() -> None:
    from frames.dicom.cases import CASES

    seen: set[str] = set()
    for case in CASES:
        if not case.error:
            table = read_table(case.content, verify="all")
            page = explain(case.name, table)
            assert all(explain_module._NOTES[note] in page for note in table.notes)
            assert not len(table) or explain_module._METHODS[table.method] in page
            seen |= set(table.notes)
    assert seen == set(_core.NOTES) - {"bot_wrapped"}, "that one takes a file beyond 4 GiB"


def test_a_slide_is_drawn_by_its_tiles(voxtier: Cli, tmp_path: Path) -> None:
    from frames.gateway.slides import write_slide

    write_slide(tmp_path / "slide.dcm", ("1.2.77", "1.2.77.1", "1.2.77.1.1"), columns=5, rows=2)
    done = voxtier("explain", tmp_path / "slide.dcm")
    assert done.code == OK
    assert "level 0" in done.out
    assert "5 x 2     tiles of 64 x 64, 0.5 um a pixel  TILED_FULL" in done.out
    assert done.out.endswith("    #####\n    #####\n")
