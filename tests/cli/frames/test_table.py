"""`voxtier frames table`: its JSON, its lines for people, and the lists and names that it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.running import FINDINGS, OK, PROGRAM, USAGE, Cli, Done, finish, linked, native, start
from frames.dicom.cases.native import one_bit
from support.builders import jpeg
from voxtier import _core
from voxtier.frames import read_table

TABLE_KEYS = (
    *("path", "status", "kind", "transfer_syntax_uid", "number_of_frames", "offsets_in", "method"),
    *("verified", "notes", "frames", "bit_offsets", "error"),
)


def test_json_has_exactly_these_keys(voxtier: Cli, folder: Path) -> None:
    done = voxtier("frames", "table", folder, "--json")
    assert done.code == FINDINGS
    assert done.err == ""
    assert len(done.rows) == 7
    for row in done.rows:
        assert tuple(row) == TABLE_KEYS
        if row["error"] is None:
            table = read_table(row["path"], verify="all")
            assert row["frames"] == [
                [[first, last - first] for first, last in table.ranges(index)] for index in range(len(table))
            ]
            own = {"path", "frames", "bit_offsets", "error", "notes"}
            names = [name for name in TABLE_KEYS if name not in own]
            assert {name: row[name] for name in names} == {name: getattr(table, name) for name in names}
            assert (row["notes"], row["bit_offsets"]) == (list(table.notes), None)
        else:
            assert tuple(row["error"]) == ("kind", "offset", "detail")
            assert row["error"]["kind"] in _core.ERROR_KINDS
            assert (row["kind"], row["frames"], row["notes"]) == ("error", [], [])
            assert row["bit_offsets"] is None
    found = {Path(row["path"]).name: row["status"] for row in done.rows}
    assert found["ambiguous.dcm"] == "ambiguous"
    assert found["error.dcm"] == found["other.txt"] == "error"
    assert found["truncated.dcm"] == "truncated"


def test_bit_at_which_each_frame_of_1_bit_pixels_begins_is_named(voxtier: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(one_bit("a", 1, 5, 4).content)
    [row] = voxtier("frames", "table", path, "--json").rows
    assert row["bit_offsets"] == [0, 5, 2, 7]
    assert [length for [[_, length]] in row["frames"]] == [1, 2, 1, 2]
    page = voxtier("explain", path).out
    assert [line.split("from bit ")[1] for line in page.splitlines() if "from bit" in line] == [*"0527"]


def test_ranges_hold_the_frames(voxtier: Cli, folder: Path) -> None:
    [row] = voxtier("frames", "table", folder / "deep" / "jpeg.dcm", "--json").rows
    content = (folder / "deep" / "jpeg.dcm").read_bytes()
    frames = [b"".join(content[at : at + length] for at, length in frame) for frame in row["frames"]]
    assert frames == [jpeg(20, 0), jpeg(26, 1)]


def test_without_json_one_line_a_file_with_status_or_error(voxtier: Cli, folder: Path) -> None:
    done = voxtier("frames", "table", folder)
    lines = {
        Path(line.split("images/")[1].split()[0].rstrip(":")).name: line for line in done.out.splitlines()
    }
    assert len(lines) == 7
    assert lines["ok.dcm"].split()[:3] == ["ok", "native", "2"]
    assert lines["ambiguous.dcm"].startswith("ambiguous ")
    assert "not_dicom" in lines["error.dcm"]


def test_only_healthy_files_exit_0(voxtier: Cli, folder: Path) -> None:
    assert voxtier("frames", "table", folder / "ok.dcm", folder / "deep").code == OK


def test_ten_thousand_paths_on_stdin(voxtier: Cli, tmp_path: Path) -> None:
    listed = linked(tmp_path / "many", 10_000)
    done = voxtier("frames", "table", "-", "--json", stdin=listed)
    assert done.code == OK
    assert sorted(row["path"] for row in done.rows) == sorted(listed.decode().split())


@pytest.mark.parametrize("form", [b"%s\n", b"%s", b"\n%s\r\n\n"], ids=["line", "no end", "from Windows"])
def test_list_on_stdin_with_any_line_end(voxtier: Cli, folder: Path, form: bytes) -> None:
    done = voxtier("frames", "table", "-", "--json", stdin=form % bytes(folder / "ok.dcm"))
    assert [row["status"] for row in done.rows] == ["ok"]


def test_closed_stdin_exits_2_and_names_stdin(tmp_path: Path) -> None:
    script = f"{sys.executable} -c '{PROGRAM}' frames table - <&-"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, "stdin" in done.stderr) == (USAGE, True)
    assert "Traceback" not in done.stderr


def test_a_path_that_cannot_be_read_is_an_io_error_row(voxtier: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    names = ["fifo", "broken", "loop", "missing", "x" * 300]
    done = voxtier("frames", "table", "--json", *(tmp_path / name for name in names))
    assert done.code == USAGE
    assert {row["error"]["kind"] for row in done.rows} == {"io_error"}
    assert sorted(Path(row["path"]).name for row in done.rows) == sorted(names)
    assert voxtier("frames", "table", *(tmp_path / name for name in ("fifo", "loop"))).code == FINDINGS
    assert voxtier("frames", "table", "-", stdin=bytes(tmp_path / "missing")).code == FINDINGS


def test_an_empty_folder_is_said_and_exits_1(voxtier: Cli, tmp_path: Path) -> None:
    assert voxtier("frames", "table", tmp_path) == Done(
        FINDINGS, b"", f"voxtier: {tmp_path}: there is no file\n"
    )


def test_a_loop_of_folders_ends(voxtier: Cli, folder: Path) -> None:
    (folder / "deep" / "up").symlink_to(folder)
    assert len(voxtier("frames", "table", folder, "--json").rows) == 7


def test_names_that_are_not_utf8_are_escaped_and_read(voxtier: Cli, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff \x1b[2J\n.dcm"
    with open(odd, "wb") as file:
        file.write(native())
    done = voxtier("frames", "table", os.fsdecode(odd))
    assert done.code == OK
    [line] = done.out.splitlines()
    assert r"\udcff \x1b[2J\n.dcm" in line
    [row] = voxtier("frames", "table", "--json", tmp_path).rows
    assert os.fsencode(row["path"]) == odd
    piped = os.fsencode(tmp_path) + b"/\xfe.dcm"
    os.rename(odd, piped)
    assert [os.fsencode(r["path"]) for r in voxtier("frames", "table", "--json", "-", stdin=piped).rows] == [
        piped
    ]


def test_names_outside_the_terminals_encoding_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "影像.dcm").write_bytes(native())
    done = finish(start("frames", "table", tmp_path, env={**os.environ, "PYTHONIOENCODING": "latin-1"}))
    assert done.code == OK
    assert r"\u5f71\u50cf.dcm" in done.out


@pytest.mark.parametrize("command", ["table", "metadata"])
def test_a_list_without_names_is_nothing_to_work_on(voxtier: Cli, command: str) -> None:
    done = voxtier("frames", command, "-", stdin=b"\n")
    assert (done.code, done.out, done.err) == (FINDINGS, "", "voxtier: stdin: there is no file\n")
