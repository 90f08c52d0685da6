"""`voxtier frames metadata`: DICOM JSON a line, and lines for people."""

from __future__ import annotations

import os
from pathlib import Path

from cli.running import FINDINGS, OK, USAGE, Cli
from support.builders import Element, Items, dicom, element, image, pattern
from voxtier import _core
from voxtier.frames import read_metadata

CODE = [Element(0x00080100, "SH", "x "), Element(0x00080104, "LO", b"a\x1b[31m\nb ")]
ELEMENTS = [
    Element(0x00080005, "CS", "ISO_IR 100"),
    Element(0x00080016, "UI", "1.2.840.10008.5.1.4.1.1.2"),
    Element(0x00081032, "SQ", Items([CODE, []])),
    Element(0x00081140, "SQ", Items([])),
    Element(0x00100010, "PN", b"M\xfcller^A=B "),
    Element(0x00180050, "DS", "1.50"),
    Element(0x00204000, "LT", "z" * 200),
    Element(0x00280030, "DS", "0.70\\+7 "),
    Element(0x00720069, "OB", bytes(10)),
    *[each for each in image() if each.tag > 0x00280000][:1],
]
LINES = r"""
  (0008,0005) CS ISO_IR 100
  (0008,0016) UI 1.2.840.10008.5.1.4.1.1.2 (CT Image Storage)
  (0008,1032) SQ 2 items
    item 1
      (0008,0100) SH x
      (0008,0104) LO a\x1b[31m\nb
    item 2
  (0008,1140) SQ 0 items
  (0010,0010) PN Müller^A=B
  (0018,0050) DS 1.50
  (0020,4000) LT zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz... (200 characters)
  (0028,0002) US 1
  (0028,0030) DS 0.70\7
  (0072,0069) OB 10 bytes
"""


def write(folder: Path) -> Path:
    path = folder / "a.dcm"
    elements = sorted(ELEMENTS, key=lambda each: each.tag)
    path.write_bytes(dicom([*elements, element("PixelData", pattern(16))]).content)
    return path


def test_lines_for_people(voxtier: Cli, tmp_path: Path) -> None:
    path = write(tmp_path)
    done = voxtier("frames", "metadata", path)
    assert (done.code, done.err) == (OK, "")
    assert done.out == f"{path}{LINES}"


def test_json_is_that_of_read_metadata(voxtier: Cli, tmp_path: Path) -> None:
    path = write(tmp_path)
    done = voxtier("frames", "metadata", tmp_path, "--json")
    assert done.code == OK
    assert done.rows == [{"path": str(path), "metadata": read_metadata(path), "error": None}]


def test_refused_file_is_a_row_and_the_others_are_read(voxtier: Cli, tmp_path: Path) -> None:
    path = write(tmp_path)
    broken = tmp_path / "b.dcm"
    broken.write_bytes(path.read_bytes()[:300])
    done = voxtier("frames", "metadata", tmp_path, "--json")
    assert done.code == FINDINGS
    rows = {Path(row["path"]).name: row for row in done.rows}
    assert rows["a.dcm"]["error"] is None
    assert rows["b.dcm"]["metadata"] is None
    assert tuple(rows["b.dcm"]["error"]) == ("kind", "offset", "detail")
    assert rows["b.dcm"]["error"]["kind"] in _core.ERROR_KINDS
    lines = voxtier("frames", "metadata", broken, path)
    assert lines.code == FINDINGS
    assert lines.out.startswith(f"{broken}: ")
    assert lines.out.endswith(LINES)


def test_nothing_to_read_exits_1_and_a_path_that_is_not_there_2(voxtier: Cli, tmp_path: Path) -> None:
    done = voxtier("frames", "metadata", tmp_path)
    assert (done.code, "there is no file" in done.err) == (FINDINGS, True)
    path = write(tmp_path)
    done = voxtier("frames", "metadata", tmp_path / "absent", path, "--json")
    assert (done.code, len(done.rows)) == (USAGE, 2)


def test_paths_come_from_stdin_and_need_not_be_text(voxtier: Cli, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff.dcm"
    os.rename(write(tmp_path), odd)
    [row] = voxtier("frames", "metadata", "-", "--json", stdin=odd).rows
    assert os.fsencode(row["path"]) == odd
