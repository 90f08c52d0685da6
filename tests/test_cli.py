"""The command line as people and programs meet it: commands, exit codes, and every way to be cut off."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from builders import JPEG, PIXEL_DATA, Element, Fragments, dicom, element, image, jpeg, pattern
from peak import PEAK_KIB
from voxtier import _core
from voxtier.cli import main
from voxtier.cli.commands import _COMMANDS
from voxtier.cli.options import on_one_line
from voxtier.cli.progress import Progress, duration
from voxtier.frames import FrameTable, read_table
from voxtier.frames import explain as explain_module
from voxtier.frames.explain import explain
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.embedded import EmbeddedServer

OK, FINDINGS, USAGE, PARTIAL, DOWN = range(5)
TABLE_KEYS = (
    *("path", "status", "kind", "transfer_syntax_uid", "number_of_frames", "offsets_in", "method"),
    *("verified", "notes", "frames", "error"),
)
# Interactive shells and test runners differ in what a child does on Ctrl-C.
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from voxtier.cli import main; main()"
)
Cli = Callable[..., "Done"]


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    stdout: bytes
    err: str

    @property
    def out(self) -> str:
        return self.stdout.decode()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def voxtier(capsysbinary: Any, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the command line in this process."""

    def run(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["voxtier", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capsysbinary.readouterr()
        assert b"Traceback" not in err
        return Done(int(ended.value.code or 0), out, err.decode())

    return run


def start(*arguments: object, first: str = "", **options: Any) -> subprocess.Popen[bytes]:
    """Run the command line in a process of its own, after what it shall do first."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE}
    program = f"{first}\n{PROGRAM}"
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], **(pipes | options))


def finish(process: subprocess.Popen[bytes], stdin: bytes = b"") -> Done:
    out, err = process.communicate(stdin, timeout=120)
    err = err or b""  # not ours when it went elsewhere
    assert b"Traceback" not in err, err
    return Done(process.returncode, out, err.decode())


def native(frames: int = 1, **attributes: Any) -> bytes:
    return dicom([*image(frames=frames, **attributes), element("PixelData", pattern(16 * frames))]).content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file of each outcome."""
    made = tmp_path / "images"
    (made / "deep").mkdir(parents=True)
    fragments = Fragments([jpeg(20, 0), jpeg(26, 1)])
    contents = {
        "ok.dcm": native(2),
        "deep/jpeg.dcm": dicom([*image(frames=2), Element(PIXEL_DATA, "OB", fragments)], JPEG).content,
        "truncated.dcm": native(3)[:-20],
        "no_pixels.dcm": dicom([element("Modality", "SR")]).content,
        "ambiguous.dcm": dicom(
            [*image(frames=3), Element(PIXEL_DATA, "OB", Fragments([pattern(20), pattern(26)]))], JPEG
        ).content,
        "error.dcm": b"no image at all, but long enough to hold one" * 10,
        "other.txt": b"text",
    }
    for name, content in contents.items():
        (made / name).write_bytes(content)
    return made


STATUSES = {"ok": 2, "truncated": 1, "no_pixels": 1, "ambiguous": 1, "error": 1}


def linked(folder: Path, count: int) -> bytes:
    """Many small files, as a list for stdin."""
    folder.mkdir()
    (folder / "first").write_bytes(native())
    paths = [folder / f"{number:05}.dcm" for number in range(count)]
    for path in paths:
        os.link(folder / "first", path)
    return b"".join(bytes(path) + b"\n" for path in paths)


class TestHelp:
    def test_the_overview(self, voxtier: Cli) -> None:
        done = voxtier("--help")
        assert done.code == OK
        for name, (_, line) in _COMMANDS.items():
            assert name in done.out
            assert line in done.out
        assert "Exit codes" in done.out
        assert voxtier("--version").out.startswith("voxtier, version ")

    def test_nothing_to_do_teaches(self, voxtier: Cli) -> None:
        done = voxtier()
        assert done.code == USAGE
        assert "Commands:" in done.err

    @pytest.mark.parametrize("name", _COMMANDS)
    def test_each_command_teaches(self, voxtier: Cli, name: str) -> None:
        done = voxtier(name, "--help")
        assert done.code == OK
        about, _, options = done.out.partition("Options:")
        assert len(about.split()) > 10, "says what the command does"
        for line in options.splitlines():
            if line.strip().startswith("--"):
                assert "  " in line.strip() or len(line) > 24, f"an option without a word: {line}"

    @pytest.mark.parametrize("name", ["", *_COMMANDS])
    def test_help_loads_nothing_heavy(self, name: str) -> None:
        heavy = ("numpy", "psycopg", "pydicom", "torch", "monai", "tiledb", "pyspark", "asyncio", "rich")
        script = (
            f"import sys; sys.argv = {['voxtier', *([name] if name else []), '--help']!r}\n"
            "from voxtier.cli import main\n"
            "try: main()\n"
            f"finally: print(*[name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == ""

    @pytest.mark.parametrize(
        ("command", "extra"), [("index", "psycopg"), ("summary", "psycopg_pool"), ("errors", "platformdirs")]
    )
    def test_a_missing_extra_is_one_line(self, tmp_path: Path, command: str, extra: str) -> None:
        script = (
            f"import sys; sys.modules[{extra!r}] = None\n"
            f"sys.argv = ['voxtier', {command!r}, *{[str(tmp_path)] if command == 'index' else []!r}]\n"
            "from voxtier.cli import main; main()"
        )
        bare = {name: value for name, value in os.environ.items() if name != "VOXTIER_HOME"}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=bare
        )
        assert done.returncode == USAGE
        [line] = done.stderr.splitlines()
        assert line.startswith("voxtier: ")
        assert "pip install 'voxtier[frames]'" in line

    def test_tables_need_no_extra(self, folder: Path) -> None:
        script = (
            "import sys\nfor name in ('psycopg', 'platformdirs', 'pydicom'): sys.modules[name] = None\n"
            f"sys.argv = ['voxtier', 'table', {str(folder / 'ok.dcm')!r}]\n"
            "from voxtier.cli import main; main()"
        )
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


class TestTable:
    def test_json_has_exactly_these_keys(self, voxtier: Cli, folder: Path) -> None:
        done = voxtier("table", folder, "--json")
        assert done.code == FINDINGS
        assert done.err == ""
        assert len(done.rows) == 7
        for row in done.rows:
            assert tuple(row) == TABLE_KEYS
            if row["error"] is None:
                table = read_table(row["path"], verify="all")
                assert row["frames"] == [
                    [[first, last - first] for first, last in table.ranges(index)]
                    for index in range(len(table))
                ]
                names = [name for name in TABLE_KEYS if name not in {"path", "frames", "error", "notes"}]
                assert {name: row[name] for name in names} == {name: getattr(table, name) for name in names}
                assert row["notes"] == list(table.notes)
            else:
                assert tuple(row["error"]) == ("kind", "offset", "detail")
                assert row["error"]["kind"] in _core.ERROR_KINDS
                assert (row["kind"], row["frames"], row["notes"]) == ("error", [], [])
        found = {Path(row["path"]).name: row["status"] for row in done.rows}
        assert found["ambiguous.dcm"] == "ambiguous"
        assert found["error.dcm"] == found["other.txt"] == "error"
        assert found["truncated.dcm"] == "truncated"

    def test_ranges_hold_the_frames(self, voxtier: Cli, folder: Path) -> None:
        [row] = voxtier("table", folder / "deep" / "jpeg.dcm", "--json").rows
        content = (folder / "deep" / "jpeg.dcm").read_bytes()
        frames = [b"".join(content[at : at + length] for at, length in frame) for frame in row["frames"]]
        assert frames == [jpeg(20, 0), jpeg(26, 1)]

    def test_for_people(self, voxtier: Cli, folder: Path) -> None:
        done = voxtier("table", folder)
        lines = {
            Path(line.split("images/")[1].split()[0].rstrip(":")).name: line for line in done.out.splitlines()
        }
        assert len(lines) == 7
        assert lines["ok.dcm"].split()[:3] == ["ok", "native", "2"]
        assert lines["ambiguous.dcm"].startswith("ambiguous ")
        assert "not_dicom" in lines["error.dcm"]

    def test_all_is_well(self, voxtier: Cli, folder: Path) -> None:
        assert voxtier("table", folder / "ok.dcm", folder / "deep").code == OK

    def test_paths_on_stdin(self, voxtier: Cli, tmp_path: Path) -> None:
        listed = linked(tmp_path / "many", 10_000)
        done = voxtier("table", "-", "--json", stdin=listed)
        assert done.code == OK
        assert sorted(row["path"] for row in done.rows) == sorted(listed.decode().split())

    @pytest.mark.parametrize("form", [b"%s\n", b"%s", b"\n%s\r\n\n"], ids=["line", "no end", "from Windows"])
    def test_forms_of_a_list(self, voxtier: Cli, folder: Path, form: bytes) -> None:
        done = voxtier("table", "-", "--json", stdin=form % bytes(folder / "ok.dcm"))
        assert [row["status"] for row in done.rows] == ["ok"]

    def test_nothing_on_stdin(self, voxtier: Cli) -> None:
        assert voxtier("table", "-") == Done(OK, b"", "")

    def test_a_closed_stdin(self, tmp_path: Path) -> None:
        script = f"{sys.executable} -c '{PROGRAM}' table - <&-"
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, "stdin" in done.stderr) == (USAGE, True)
        assert "Traceback" not in done.stderr

    def test_trouble_is_a_row(self, voxtier: Cli, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        names = ["fifo", "broken", "loop", "missing", "x" * 300]
        done = voxtier("table", "--json", *(tmp_path / name for name in names))
        assert done.code == FINDINGS
        assert {row["error"]["kind"] for row in done.rows} == {"io_error"}
        assert sorted(Path(row["path"]).name for row in done.rows) == sorted(names)

    def test_an_empty_folder(self, voxtier: Cli, tmp_path: Path) -> None:
        assert voxtier("table", tmp_path) == Done(OK, b"", "")

    def test_a_loop_of_folders_ends(self, voxtier: Cli, folder: Path) -> None:
        (folder / "deep" / "up").symlink_to(folder)
        assert len(voxtier("table", folder, "--json").rows) == 7

    def test_names_that_are_no_text(self, voxtier: Cli, tmp_path: Path) -> None:
        odd = os.fsencode(tmp_path) + b"/\xff \x1b[2J\n.dcm"
        with open(odd, "wb") as file:
            file.write(native())
        done = voxtier("table", os.fsdecode(odd))
        assert done.code == OK
        [line] = done.out.splitlines()
        assert r"\udcff \x1b[2J\n.dcm" in line
        [row] = voxtier("table", "--json", tmp_path).rows
        assert os.fsencode(row["path"]) == odd
        piped = os.fsencode(tmp_path) + b"/\xfe.dcm"
        os.rename(odd, piped)
        assert [os.fsencode(r["path"]) for r in voxtier("table", "--json", "-", stdin=piped).rows] == [piped]

    def test_a_terminal_that_cannot_show_all_of_it(self, tmp_path: Path) -> None:
        (tmp_path / "影像.dcm").write_bytes(native())
        done = finish(start("table", tmp_path, env={**os.environ, "PYTHONIOENCODING": "latin-1"}))
        assert done.code == OK
        assert r"\u5f71\u50cf.dcm" in done.out


class TestFrame:
    def test_to_stdout(self, voxtier: Cli, folder: Path) -> None:
        assert voxtier("frame", folder / "ok.dcm", 2) == Done(OK, pattern(32)[16:], "")
        assert voxtier("frame", folder / "deep/jpeg.dcm", 1).stdout == jpeg(20, 0)

    def test_to_a_file(self, voxtier: Cli, folder: Path, tmp_path: Path) -> None:
        target = tmp_path / "frame.raw"
        target.write_bytes(b"what was there before, and longer than the frame")
        done = voxtier("frame", folder / "ok.dcm", 1, "-o", target)
        assert (done.code, done.stdout) == (OK, b"")
        assert "16 bytes" in done.err
        assert target.read_bytes() == pattern(16)
        assert list(tmp_path.iterdir()) == [folder, target] or set(tmp_path.iterdir()) == {folder, target}

    @pytest.mark.parametrize("number", ["0", "-1", "3", "99999999999999999999", "one"])
    def test_no_such_frame(self, voxtier: Cli, folder: Path, number: str) -> None:
        done = voxtier("frame", "--", folder / "ok.dcm", number)
        assert (done.code, done.stdout) == (USAGE, b"")

    def test_how_many_there_are(self, voxtier: Cli, folder: Path) -> None:
        assert "holds 2 frames" in voxtier("frame", folder / "ok.dcm", 3).err
        assert "holds no frame" in voxtier("frame", folder / "no_pixels.dcm", 1).err

    @pytest.mark.parametrize(
        ("name", "number", "kind"),
        [
            ("truncated.dcm", 3, "truncated_frame"),
            ("error.dcm", 1, "not_dicom"),
            ("ambiguous.dcm", 1, "fewer_fragments_than_frames"),
            ("missing.dcm", 1, "io_error"),
        ],
    )
    def test_refusals_leave_nothing(
        self, voxtier: Cli, folder: Path, tmp_path: Path, name: str, number: int, kind: str
    ) -> None:
        done = voxtier("frame", folder / name, number, "-o", tmp_path / "out")
        assert done.code == FINDINGS
        assert kind in done.err
        assert name in done.err
        assert not (tmp_path / "out").exists()

    def test_never_over_its_source(self, voxtier: Cli, folder: Path) -> None:
        before = (folder / "ok.dcm").read_bytes()
        (folder / "link").symlink_to("ok.dcm")
        for target in ("ok.dcm", "link"):
            assert voxtier("frame", folder / "ok.dcm", 1, "-o", folder / target).code == USAGE
        assert (folder / "ok.dcm").read_bytes() == before

    def test_a_link_is_written_through(self, voxtier: Cli, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "target")
        assert voxtier("frame", folder / "ok.dcm", 1, "-o", tmp_path / "link").code == OK
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "target").read_bytes() == pattern(16)

    def test_devices_stay(self, voxtier: Cli, folder: Path) -> None:
        assert voxtier("frame", folder / "ok.dcm", 1, "-o", "/dev/null").code == OK
        assert Path("/dev/null").is_char_device()

    def test_whole_or_not_at_all(self, folder: Path, tmp_path: Path) -> None:
        """A limit on file sizes stands for the full disk: the write fails in the middle."""
        (tmp_path / "big.dcm").write_bytes(
            dicom([*image(rows=256, columns=256), element("PixelData", pattern(65536))]).content
        )
        target = tmp_path / "out.raw"
        target.write_bytes(b"before")
        limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); {PROGRAM}"
        arguments = ["frame", str(tmp_path / "big.dcm"), "1", "-o", str(target)]
        done = subprocess.run(
            [sys.executable, "-c", limited, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == PARTIAL
        assert done.stderr.strip() == f"voxtier: {target}: File too large"
        assert target.read_bytes() == b"before"
        assert {path.name for path in tmp_path.iterdir()} == {"big.dcm", "out.raw", folder.name}

    def test_nowhere_to_write(self, voxtier: Cli, folder: Path, tmp_path: Path) -> None:
        done = voxtier("frame", folder / "ok.dcm", 1, "-o", tmp_path / "no" / "folder")
        assert done.code == PARTIAL
        assert "No such file" in done.err

    def test_a_full_stdout(self, folder: Path) -> None:
        with open("/dev/full", "wb") as full:
            done = finish(start("frame", folder / "ok.dcm", 1, stdout=full))
        assert done.code == PARTIAL
        assert "No space left" in done.err


class TestExplain:
    @pytest.mark.parametrize("name", ["ok.dcm", "deep/jpeg.dcm", "truncated.dcm", "no_pixels.dcm"])
    def test_a_page(self, voxtier: Cli, folder: Path, name: str) -> None:
        done = voxtier("explain", folder / name)
        table = read_table(folder / name, verify="all")
        assert done.code == OK
        assert f"status          {table.status}" in done.out
        assert f"({explain_module.transfer_syntax_name(table.transfer_syntax_uid)})" in done.out
        assert len(done.out.splitlines()) < 60

    @pytest.mark.parametrize("name", ["error.dcm", "ambiguous.dcm", "missing.dcm", "deep"])
    def test_a_refusal(self, voxtier: Cli, folder: Path, name: str) -> None:
        done = voxtier("explain", folder / name)
        assert done.code == FINDINGS
        assert "refused" in done.out

    def test_every_note_and_method_has_its_explanation(self) -> None:
        assert list(explain_module._NOTES) == _core.NOTES
        assert set(explain_module._METHODS) == set(_core.METHODS)
        assert all(explain_module._NOTES.values())

    def test_every_case_can_be_explained(self) -> None:
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


class TestIndex:
    def test_a_life(self, voxtier: Cli, folder: Path, dsn: str) -> None:
        first = voxtier("index", folder, "--dsn", dsn)
        assert first.code == PARTIAL
        assert "6 files, 6 frames" in first.out or "6 files" in first.out
        for status, count in STATUSES.items():
            assert any(line.split()[:2] == [status, str(count)] for line in first.out.splitlines())
        second = voxtier("index", folder, "--dsn", dsn)
        assert any(line.split()[:2] == ["unchanged", "4"] for line in second.out.splitlines())
        assert first.err == second.err == ""

        errors = voxtier("errors", "--dsn", dsn)
        assert errors.code == FINDINGS
        assert [Path(line).name for line in errors.out.splitlines()[::2]] == ["ambiguous.dcm", "error.dcm"]
        rows = voxtier("errors", "--dsn", dsn, "--json").rows
        assert [tuple(row) for row in rows] == [("path", "kind", "offset", "detail")] * 2

        summary = voxtier("summary", "--dsn", dsn)
        assert summary.code == OK
        assert "Explicit VR Little Endian" in summary.out
        [row] = voxtier("summary", "--dsn", dsn, "--json").rows
        assert {name: tally["files"] for name, tally in row["by_status"].items()} == STATUSES
        assert row["total"]["files"] == 6

    def test_json(self, voxtier: Cli, folder: Path, dsn: str) -> None:
        done = voxtier("index", folder, "--dsn", dsn, "--json")
        *rows, last = done.rows
        assert {Path(row["path"]).name: row["status"] for row in rows} == {
            "ok.dcm": "cached",
            "jpeg.dcm": "cached",
            "truncated.dcm": "partial",
            "no_pixels.dcm": "skipped",
            "ambiguous.dcm": "error",
            "error.dcm": "error",
        }
        assert last["summary"]["statuses"] == STATUSES
        assert list(last) == ["summary"]

    def test_which_files(self, voxtier: Cli, folder: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def names(*arguments: object, stdin: bytes = b"") -> set[str]:
            done = voxtier("index", *arguments, "--dsn", dsn, "--json", stdin=stdin)
            return {row["path"].removeprefix(f"{folder}/") for row in done.rows[:-1]}

        assert "other.txt" not in names(folder)
        assert "other.txt" in names(folder, "--all-files")
        assert names(folder, "--ext", ".TXT") == {"other.txt"}
        assert names(folder / "other.txt") == {"other.txt"}, "whoever names a file means it"
        monkeypatch.chdir(folder)
        assert names("deep/../deep") == {"deep/jpeg.dcm"}, "paths are stored whole"
        assert names("-", stdin=b"ok.dcm\ndeep\n") == {"ok.dcm", "deep/jpeg.dcm"}

    def test_an_empty_folder_says_what_may_be_wrong(self, voxtier: Cli, tmp_path: Path, dsn: str) -> None:
        (tmp_path / "IM0001").write_bytes(native())
        done = voxtier("index", tmp_path, "--dsn", dsn)
        assert done.code == OK
        assert "0 files" in done.out
        assert "--all-files" in done.err

    def test_a_missing_path_is_a_slip_of_the_pen(self, voxtier: Cli, folder: Path, dsn: str) -> None:
        done = voxtier("index", folder, folder / "typo", "--dsn", dsn)
        assert done.code == USAGE
        assert "typo" in done.err
        assert voxtier("summary", "--dsn", dsn, "--json").rows[0]["total"]["files"] == 0

    def test_prune(self, voxtier: Cli, folder: Path, dsn: str) -> None:
        voxtier("index", folder, "--dsn", dsn)
        shutil.rmtree(folder / "deep")
        assert voxtier("index", folder, "--dsn", dsn, "--json").rows[-1]["summary"]["pruned"] == 0
        assert voxtier("index", folder, "--dsn", dsn, "--json", "--prune").rows[-1]["summary"]["pruned"] == 1
        shutil.rmtree(folder)
        done = voxtier("index", folder, "--dsn", dsn, "--prune")
        assert done.code == USAGE
        assert "mounted" in done.err
        assert voxtier("summary", "--dsn", dsn, "--json").rows[0]["total"]["files"] == 5
        done = voxtier("index", folder, "--dsn", dsn, "--prune", "--force")
        assert done.code == OK
        assert voxtier("summary", "--dsn", dsn, "--json").rows[0]["total"]["files"] == 0

    def test_prune_needs_a_place(self, voxtier: Cli, folder: Path, dsn: str) -> None:
        done = voxtier("index", "-", "--prune", "--dsn", dsn, stdin=bytes(folder))
        assert done.code == USAGE
        assert "--prune" in done.err

    def test_sources(self, voxtier: Cli, folder: Path, dsn: str) -> None:
        voxtier("index", folder, "--dsn", dsn, "--source", "first")
        voxtier("index", folder / "ok.dcm", "--dsn", dsn, "--source", "second")
        assert voxtier("errors", "--dsn", dsn, "--source", "second").code == OK
        assert voxtier("errors", "--dsn", dsn, "--source", "first").code == FINDINGS
        assert "other sources: first" in voxtier("summary", "--dsn", dsn, "--source", "second").out

    @pytest.mark.parametrize("source", ["", "line\nbreak", "\udcff", "x" * 301])
    @pytest.mark.parametrize("command", ["index", "summary", "errors"])
    def test_names_that_are_none(
        self, voxtier: Cli, folder: Path, dsn: str, command: str, source: str
    ) -> None:
        paths = [folder] if command == "index" else []
        done = voxtier(command, *paths, "--dsn", dsn, "--source", source)
        assert done.code == USAGE
        assert "name" in done.err

    def test_what_cannot_be_a_row_is_told(self, voxtier: Cli, tmp_path: Path, dsn: str) -> None:
        for number in range(30):
            with open(os.fsencode(tmp_path) + b"/\xff%d.dcm" % number, "wb") as file:
                file.write(native())
        done = voxtier("index", tmp_path, "--dsn", dsn)
        assert done.code == PARTIAL
        assert done.err.count("refused: ") == 20
        assert r"\udcff" in done.err
        assert any(line.split()[:2] == ["refused", "30"] for line in done.out.splitlines())

    def test_bad_options(self, voxtier: Cli, folder: Path, dsn: str) -> None:
        for wrong in (["--threads", "0"], ["--threads", "many"], ["--no-such-option"], []):
            paths = [folder] if wrong else []
            assert voxtier("index", *paths, "--dsn", dsn, *wrong).code == USAGE
        assert voxtier("no-such-command").code == USAGE
        assert voxtier("index", folder, "--dsn", "not a dsn").code == USAGE

    @pytest.mark.parametrize("command", ["index", "summary", "errors"])
    def test_a_database_that_is_down(self, voxtier: Cli, folder: Path, command: str) -> None:
        paths = [folder] if command == "index" else []
        done = voxtier(command, *paths, "--dsn", f"host={folder} dbname=none password=secret")
        assert done.code == DOWN
        assert "secret" not in done.err
        assert done.err.startswith("voxtier: ")
        assert len(done.err.splitlines()) == 1

    def test_a_folder_that_may_not_be_entered(self, folder: Path, dsn: str, tmp_path: Path) -> None:
        """Told, not stored; once it may be entered, nothing is left of the trouble."""
        ordinary = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
        if os.geteuid() == 0:
            able = subprocess.run([*ordinary, sys.executable, "-c", ""], capture_output=True, check=False)
            if able.returncode != 0:
                pytest.skip("permissions do not bind root, and there is no way to be somebody else here")
        else:
            ordinary = []
        for parent in [folder, *folder.parents]:
            if parent.is_relative_to(tmp_path.parent.parent):
                parent.chmod(0o755)
        (folder / "deep").chmod(0)
        script = (
            "import json, sys\nfrom voxtier.frames import read_tables\n"
            "from voxtier.frames.indexing.paths import iter_files\n"
            "for result in read_tables(iter_files(sys.argv[1:])):\n"
            "    print(json.dumps([str(result.path), getattr(result.error, 'errno', None)]))"
        )
        try:
            done = subprocess.run(
                [*ordinary, sys.executable, "-c", script, str(folder)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        finally:
            (folder / "deep").chmod(0o755)
        if "PermissionError" in done.stderr or "No module" in done.stderr:
            pytest.skip("the other account cannot reach this package")
        rows = dict(json.loads(line) for line in done.stdout.splitlines())
        assert rows[str(folder / "deep")] == 13
        assert rows[str(folder / "ok.dcm")] is None


class TestCutOff:
    """Signals, closed pipes, killed servers, full disks: a clear exit code, and a second run heals."""

    def rows(self, dsn: str) -> int:
        with psycopg.connect(dsn, autocommit=True) as connection:
            [(found,)] = connection.execute(
                "SELECT coalesce(to_regclass('voxtier.file')::text, '') <> ''"
            ).fetchall()
            if not found:
                return 0
            [(count,)] = connection.execute("SELECT count(*) FROM voxtier.file").fetchall()
            return int(count)

    def in_mid_run(self, process: subprocess.Popen[bytes], listed: bytes, conninfo: Callable[[], str]) -> int:
        """Feed what makes one batch, and wait until it is in the database; the run then waits for more."""
        assert process.stdin is not None
        process.stdin.write(listed)
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert process.poll() is None
            with contextlib.suppress(psycopg.Error):
                if (count := self.rows(conninfo())) >= 5000:
                    return count
            time.sleep(0.02)
        raise AssertionError("no batch was written")

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
    )
    def test_an_index_run_is_interrupted(
        self, voxtier: Cli, tmp_path: Path, dsn: str, number: signal.Signals, code: int
    ) -> None:
        listed = linked(tmp_path / "many", 6000)
        process = start("index", "-", "--dsn", dsn)
        kept = self.in_mid_run(process, listed, lambda: dsn)
        process.send_signal(number)
        done = finish(process)
        assert done.code == code
        assert ("run again" in done.err) == (code > 0)
        with FrameStore(dsn) as store:
            paths = listed.decode().split()
            found = [table for table in store.get_many("default", paths) if table is not None]
            assert len(found) == kept
            assert all(isinstance(table, FrameTable) and len(table) == 1 for table in found)
        again = voxtier("index", "-", "--dsn", dsn, "--json", stdin=listed).rows[-1]["summary"]
        assert again["statuses"] == {"unchanged": kept, "ok": 6000 - kept}

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_reader_is_interrupted(self, folder: Path, number: signal.Signals, code: int) -> None:
        """It has much more to say than a pipe takes, so it is in the middle of it."""
        (folder / "list").write_bytes(b"%s\n" % bytes(folder / "ok.dcm") * 20_000)
        with open(folder / "list", "rb") as listed:
            process = start("table", "-", "--json", stdin=listed)
            assert process.stdout is not None
            assert process.stdout.readline()
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, b"Traceback" in err) == (code, False)
        assert out.count(b"\n") < 20_000

    @pytest.mark.soak
    @pytest.mark.parametrize("command", ["table", "index"])
    def test_a_million_paths(self, tmp_path: Path, dsn: str, command: str) -> None:
        """Whatever the number of files, less than 200 MB."""
        (tmp_path / "list").write_bytes(linked(tmp_path / "many", 50_000) * 20)
        options = ["--dsn", dsn] if command == "index" else []
        told = f"{PEAK_KIB}\nimport atexit, sys; atexit.register(lambda: print(peak_kib(), file=sys.stderr))"
        with open(tmp_path / "list", "rb") as listed, open(tmp_path / "out", "wb") as out:
            process = start(command, "-", "--json", *options, first=told, stdin=listed, stdout=out)
            _, err = process.communicate()
        assert process.returncode == OK
        with open(tmp_path / "out") as out_again:
            assert sum(1 for _ in out_again) == 1_000_000 + (command == "index")
        assert int(err.split()[-1]) < 200 * 1024

    def test_the_server_is_killed(self, voxtier: Cli, tmp_path: Path) -> None:
        listed = linked(tmp_path / "many", 12_000)
        server = EmbeddedServer(Path(os.environ["VOXTIER_HOME"]))
        half = len(listed) // 2
        process = start("index", "-")
        self.in_mid_run(process, listed[:half], server.conninfo)
        pid = server.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        done = finish(process, listed[half:])
        assert done.code in (OK, DOWN)
        assert done.code == DOWN or "12,000 files" in done.out
        assert voxtier("index", "-", stdin=listed).code == OK
        again = voxtier("index", "-", "--json", stdin=listed).rows[-1]["summary"]
        assert again["statuses"] == {"unchanged": 12_000}

    def test_the_disk_is_full(self, voxtier: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=72m", "tmpfs", str(disk)]
        if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        try:
            disk.chmod(0o755)
            monkeypatch.setenv("VOXTIER_HOME", str(disk / "home"))
            small = tmp_path / "small.dcm"
            small.write_bytes(native())
            assert voxtier("index", small).code == OK
            with open(disk / "filler", "wb") as filler:
                free = os.statvfs(disk)
                filler.write(bytes(free.f_bavail * free.f_frsize - (2 << 20)))
            listed = linked(tmp_path / "many", 20_000)
            done = voxtier("index", tmp_path / "many")
            assert done.code == DOWN
            assert "space" in done.err
            (disk / "filler").unlink()
            assert voxtier("index", tmp_path / "many").code == OK
            again = voxtier("index", "-", "--json", stdin=listed).rows[-1]["summary"]
            assert again["statuses"] == {"unchanged": 20_000}
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=False)

    def head(self, *arguments: object) -> int:
        with start(*arguments) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            # On a slow machine a run tells every ten seconds how far it is.
            assert [line for line in process.stderr.read().splitlines() if b" files, " not in line] == []
            return process.wait(timeout=60)

    @pytest.mark.parametrize("form", [[], ["--json"]], ids=["people", "json"])
    def test_head(self, tmp_path: Path, form: list[str]) -> None:
        linked(tmp_path / "many", 5000)
        assert self.head("table", tmp_path / "many", *form) == OK

    def test_head_of_an_index_run(self, voxtier: Cli, tmp_path: Path, dsn: str) -> None:
        """The run is cut short, and says so."""
        listed = linked(tmp_path / "many", 20_000)
        assert self.head("index", tmp_path / "many", "--json", "--dsn", dsn) == PARTIAL
        again = voxtier("index", "-", "--dsn", dsn, "--json", stdin=listed).rows[-1]["summary"]
        assert again["statuses"].keys() == {"ok", "unchanged"}


class TestPrivacy:
    def test_no_name_and_no_path_in_logs(
        self, voxtier: Cli, tmp_path: Path, dsn: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What is printed is the user's own; what is logged goes who knows where."""
        caplog.set_level(logging.DEBUG)
        secret = tmp_path / "Doe^Jane"
        secret.mkdir()
        elements = [element("PatientName", "DOE^JANE^SECRET"), *image(frames=2)]
        whole = dicom([*elements, element("PixelData", pattern(32))]).content
        for name, content in {
            "a.dcm": whole,
            "b.dcm": whole[:-20],
            "c.dcm": whole[:300],
            "d.dcm": b"",
        }.items():
            (secret / name).write_bytes(content)
        (secret / "e.dcm").symlink_to(secret / "nowhere")
        said = "".join(
            done.out.replace(str(secret), "") + done.err.replace(str(secret), "")
            for done in (
                voxtier("index", secret, "--dsn", dsn),
                voxtier("index", secret, "--dsn", dsn, "--json", "--force"),
                voxtier("errors", "--dsn", dsn),
                voxtier("summary", "--dsn", dsn),
                voxtier("table", secret, "--json"),
                voxtier("explain", secret / "c.dcm"),
                voxtier("frame", secret / "b.dcm", 2),
            )
        )
        assert "not_dicom" in said or "error" in said
        for text in (said, caplog.text):
            assert "Doe^Jane" not in text
            assert "DOE^JANE" not in text
        with psycopg.connect(dsn) as connection:
            [(dump,)] = connection.execute("SELECT string_agg(f::text, '') FROM voxtier.file AS f").fetchall()
        assert "DOE^JANE^SECRET" not in dump


class TestProgress:
    def test_lines_now_and_then(self, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        """Without a terminal: whole lines on stderr, ten seconds apart, nothing on stdout."""
        now = [0.0]
        monkeypatch.setattr("voxtier.cli.progress.time.monotonic", lambda: now[0])
        progress = Progress("files", total=4000)
        for second in range(1, 31):
            now[0] = float(second)
            progress.advance(100, ", 3 refused")
        progress.close()
        out, err = capsys.readouterr()
        assert out == ""
        assert err.splitlines() == [
            "1,000 of 4,000 files, 100/s, 30 s left, 3 refused",
            "2,000 of 4,000 files, 100/s, 20 s left, 3 refused",
            "3,000 of 4,000 files, 100/s, 10 s left, 3 refused",
        ]

    def test_one_line_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rewritten in place, never left longer than what follows, wiped before the summary."""
        now, terminal = [0.0], io.StringIO()
        monkeypatch.setattr("voxtier.cli.progress.time.monotonic", lambda: now[0])
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stderr", terminal)
        progress = Progress("files")
        for note in (", 123 refused", ""):
            now[0] += 1
            progress.advance(1000, note)
        progress.close()
        first, second = "1,000 files, 1,000/s, 123 refused", "2,000 files, 1,000/s"
        width = len(second)
        assert terminal.getvalue() == f"\r{first}\r{second:<{len(first)}}\r{'':<{width}}\r"

    def test_a_run_on_a_terminal(self, tmp_path: Path, dsn: str) -> None:
        """The files are counted beside the run; results stay alone on stdout."""
        linked(tmp_path / "many", 15_000)
        ours, theirs = os.openpty()
        # Whoever asks for the time finds a second gone, so that the fastest machine has something to show.
        clock = (
            "import itertools, types, voxtier.cli.progress as progress; "
            "progress.time = types.SimpleNamespace(monotonic=itertools.count().__next__)"
        )
        process = start("index", tmp_path / "many", "--dsn", dsn, "--json", first=clock, stderr=theirs)
        os.close(theirs)
        done, seen = finish(process), b""
        with contextlib.suppress(OSError):  # a terminal ends with EIO
            while part := os.read(ours, 65536):
                seen += part
        os.close(ours)
        assert (done.code, len(done.rows)) == (OK, 15_001)
        assert b"files/s" not in seen
        assert b" files, " in seen
        assert b"\n" not in seen
        assert seen.split(b"\r")[-2].strip() == b"", "wiped at the end"

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0.44, "0.4 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")],
    )
    def test_durations(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/plain/ümläut 影像.dcm", "/plain/ümläut 影像.dcm"),
        ("a\nb\x1b[2J", r"a\nb\x1b[2J"),
        ("\udcff", r"\udcff"),
        ("right‮left", r"right\u202eleft"),
    ],
)
def test_on_one_line(text: str, shown: str) -> None:
    assert on_one_line(text) == shown
