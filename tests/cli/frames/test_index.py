"""`voxtier index | summary | errors`: which files, which rows, what is printed, which exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cli.running import DOWN, FINDINGS, OK, PARTIAL, USAGE, Cli, native
from support.accounts import let_others_enter

STATUSES = {"ok": 2, "truncated": 1, "no_pixels": 1, "ambiguous": 1, "refused": 1}


def test_index_twice_then_errors_and_summary(voxtier: Cli, folder: Path, dsn: str) -> None:
    first = voxtier("index", folder, "--dsn", dsn)
    assert first.code == PARTIAL
    assert "6 files, 6 frames" in first.out or "6 files" in first.out
    for status, count in STATUSES.items():
        assert any(line.split()[:2] == [status, str(count)] for line in first.out.splitlines())
    second = voxtier("index", folder, "--dsn", dsn)
    assert any(line.split()[:2] == ["unchanged", "4"] for line in second.out.splitlines())
    assert first.err == second.err == ""

    errors = voxtier("frames", "errors", "--dsn", dsn)
    assert errors.code == FINDINGS
    names = ["ambiguous.dcm", "error.dcm", "truncated.dcm"]
    assert [Path(line).name for line in errors.out.splitlines()[::2]] == names
    assert errors.out.splitlines()[-1] == "    truncated: the file is cut off, whole frames: 1 of 3"
    rows = voxtier("frames", "errors", "--dsn", dsn, "--json").rows
    assert [tuple(row) for row in rows] == [("path", "kind", "offset", "detail")] * 3
    assert [row["kind"] for row in rows] == ["fewer_fragments_than_frames", "not_dicom", "truncated"]

    summary = voxtier("frames", "summary", "--dsn", dsn)
    assert summary.code == OK
    assert "Explicit VR Little Endian" in summary.out
    [row] = voxtier("frames", "summary", "--dsn", dsn, "--json").rows
    assert {name: tally["files"] for name, tally in row["by_status"].items()} == STATUSES
    assert row["total"]["files"] == 6


def test_json_is_a_row_a_file_and_a_summary(voxtier: Cli, folder: Path, dsn: str) -> None:
    done = voxtier("index", folder, "--dsn", dsn, "--json")
    *rows, last = done.rows
    by_name = {Path(row.pop("path")).name: row for row in rows}
    errors = {
        Path(row.pop("path")).name: row for row in voxtier("frames", "errors", "--dsn", dsn, "--json").rows
    }
    good = {"truncated_from": None, "error": None}
    assert by_name == {
        "ok.dcm": {"status": "ok", "num_frames": 2, **good},
        "jpeg.dcm": {"status": "ok", "num_frames": 2, **good},
        "truncated.dcm": {"status": "truncated", "num_frames": 3, "truncated_from": 1, "error": None},
        "no_pixels.dcm": {"status": "no_pixels", "num_frames": 0, **good},
        "ambiguous.dcm": {
            "status": "ambiguous",
            "num_frames": 0,
            "truncated_from": None,
            "error": errors["ambiguous.dcm"],
        },
        "error.dcm": {
            "status": "refused",
            "num_frames": 0,
            "truncated_from": None,
            "error": errors["error.dcm"],
        },
    }
    assert last["summary"]["statuses"] == STATUSES == dict(Counter(row["status"] for row in by_name.values()))
    again = voxtier("index", folder, "--dsn", dsn, "--json").rows[:-1]
    unchanged = {
        Path(row["path"]).name: (row["status"], row["num_frames"]) for row in again if not row["error"]
    }
    assert unchanged == {
        "ok.dcm": ("unchanged", 2), "jpeg.dcm": ("unchanged", 2), "truncated.dcm": ("unchanged", 3),
        "no_pixels.dcm": ("unchanged", 0),
    }  # fmt: skip
    assert list(last) == ["summary"]


def test_folders_extensions_named_files_and_lists_select_the_files(
    voxtier: Cli, folder: Path, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_folder_without_dcm_files_hints_at_all_files(voxtier: Cli, tmp_path: Path, dsn: str) -> None:
    (tmp_path / "IM0001").write_bytes(native())
    done = voxtier("index", tmp_path, "--dsn", dsn)
    assert done.code == FINDINGS
    assert "0 files" in done.out
    assert "--all-files" in done.err
    done = voxtier("index", tmp_path, "--dsn", dsn, "--json")
    assert (done.code, done.rows[0]["summary"]["statuses"]) == (FINDINGS, {})
    assert "there is no file" in done.err
    assert voxtier("index", "-", "--dsn", dsn).code == FINDINGS


def test_a_missing_path_exits_2_and_indexes_nothing(voxtier: Cli, folder: Path, dsn: str) -> None:
    done = voxtier("index", folder, folder / "typo", "--dsn", dsn)
    assert done.code == USAGE
    assert "typo" in done.err
    summary = voxtier("frames", "summary", "--dsn", dsn, "--json")
    assert (summary.code, summary.rows[0]["total"]["files"]) == (FINDINGS, 0)


def test_prune_drops_rows_of_deleted_files_but_not_of_a_missing_folder(
    voxtier: Cli, folder: Path, dsn: str
) -> None:
    voxtier("index", folder, "--dsn", dsn)
    shutil.rmtree(folder / "deep")
    assert voxtier("index", folder, "--dsn", dsn, "--json").rows[-1]["summary"]["pruned"] == 0
    assert voxtier("index", folder, "--dsn", dsn, "--json", "--prune").rows[-1]["summary"]["pruned"] == 1
    shutil.rmtree(folder)
    done = voxtier("index", folder, "--dsn", dsn, "--prune")
    assert done.code == USAGE
    assert "mounted" in done.err
    assert voxtier("frames", "summary", "--dsn", dsn, "--json").rows[0]["total"]["files"] == 5
    done = voxtier("index", folder, "--dsn", dsn, "--prune", "--force")
    assert done.code == OK
    assert voxtier("frames", "summary", "--dsn", dsn, "--json").rows[0]["total"]["files"] == 0


def test_prune_with_paths_on_stdin_is_refused(voxtier: Cli, folder: Path, dsn: str) -> None:
    done = voxtier("index", "-", "--prune", "--dsn", dsn, stdin=bytes(folder))
    assert done.code == USAGE
    assert "--prune" in done.err


def test_sources_are_apart(voxtier: Cli, folder: Path, dsn: str) -> None:
    voxtier("index", folder, "--dsn", dsn, "--source", "first")
    voxtier("index", folder / "ok.dcm", "--dsn", dsn, "--source", "second")
    assert voxtier("frames", "errors", "--dsn", dsn, "--source", "second").code == OK
    assert voxtier("frames", "errors", "--dsn", dsn, "--source", "first").code == FINDINGS
    assert "other sources: first" in voxtier("frames", "summary", "--dsn", dsn, "--source", "second").out


COMMANDS_OF_A_SOURCE = ["summary", "errors", "priority", "preload"]


@pytest.mark.parametrize("command", COMMANDS_OF_A_SOURCE)
def test_an_unknown_source_exits_2_and_names_the_known_ones(
    voxtier: Cli, folder: Path, dsn: str, command: str
) -> None:
    assert "it is empty" in voxtier(*command.split(), "--dsn", dsn, "--source", "third").err
    for name in ("first", "ünï 2"):
        voxtier("index", folder / "ok.dcm", "--dsn", dsn, "--source", name)
    for options in ([], ["--json"]):
        done = voxtier(*command.split(), "--dsn", dsn, "--source", "third", *options)
        assert (done.code, done.stdout) == (USAGE, b"")
        assert "'third'" in done.err
        assert "first, ünï 2" in done.err
        done = voxtier(*command.split(), "--dsn", dsn, *options)  # the default one, which nobody named
        assert done.code == FINDINGS
        assert "first, ünï 2" in done.err
        assert voxtier(*command.split(), "--dsn", dsn, "--source", "first", *options).code == OK


@pytest.mark.parametrize("command", ["frames summary", "frames priority", "frames preload"])
def test_a_source_without_files_is_said_and_exits_1(
    voxtier: Cli, folder: Path, dsn: str, command: str
) -> None:
    voxtier("index", folder / "ok.dcm", "--dsn", dsn)
    (folder / "ok.dcm").unlink()
    voxtier("index", folder / "ok.dcm", "--dsn", dsn, "--prune", "--force")
    for options in ([], ["--json"]):
        done = voxtier(*command.split(), "--dsn", dsn, *options)
        assert done.code == FINDINGS
        assert "holds no file" in done.err


def test_errors_without_any_says_so_and_exits_0(voxtier: Cli, folder: Path, dsn: str) -> None:
    voxtier("index", folder / "ok.dcm", "--dsn", dsn)
    done = voxtier("frames", "errors", "--dsn", dsn)
    assert (done.code, done.out) == (OK, "")
    assert "no file of source 'default' was refused or is cut off" in done.err


def test_paths_may_be_uris_of_local_files(voxtier: Cli, folder: Path, dsn: str) -> None:
    (folder / "a b.dcm").write_bytes(native())
    for name in (f"dbfs:{folder}/a b.dcm", f"file:{folder}/a b.dcm", f"file://{folder}/a%20b.dcm"):
        [row, _] = voxtier("index", name, "--dsn", dsn, "--json").rows
        assert row["path"] == f"{folder}/a b.dcm"
        assert voxtier("frames", "read", name, 1).code == OK
        assert voxtier("frames", "table", name, "--json").rows[0]["status"] == "ok"
        assert voxtier("explain", name).code == OK
    assert voxtier("frames", "summary", "--dsn", dsn, "--json").rows[0]["total"]["files"] == 1
    [*rows, _] = voxtier("index", f"dbfs:{folder}", "--dsn", dsn, "--json").rows
    assert len(rows) == 7


def test_a_file_that_cannot_be_read_is_told_as_its_row_stays(voxtier: Cli, folder: Path, dsn: str) -> None:
    path = folder / "a b.dcm"
    path.write_bytes(native())
    assert voxtier("index", path, "--dsn", dsn).code == OK
    path.unlink()
    path.symlink_to(path)
    done = voxtier("index", path, "--dsn", dsn)
    assert done.code == PARTIAL
    assert f"refused: {path}: " in done.err
    assert voxtier("frames", "errors", "--dsn", dsn).out == ""
    assert voxtier("frames", "summary", "--dsn", dsn, "--json").rows[0]["total"]["frames"] == 1


@pytest.mark.parametrize("source", ["", "line\nbreak", "\udcff", "x" * 301])
@pytest.mark.parametrize("command", ["index", "frames summary", "frames errors"])
def test_a_source_name_that_is_not_storable_exits_2(
    voxtier: Cli, folder: Path, dsn: str, command: str, source: str
) -> None:
    paths = [folder] if command == "index" else []
    done = voxtier(*command.split(), *paths, "--dsn", dsn, "--source", source)
    assert done.code == USAGE
    assert "name" in done.err


def test_names_that_postgres_cannot_store_are_refused_and_counted(
    voxtier: Cli, tmp_path: Path, dsn: str
) -> None:
    for number in range(30):
        with open(os.fsencode(tmp_path) + b"/\xff%d.dcm" % number, "wb") as file:
            file.write(native())
    done = voxtier("index", tmp_path, "--dsn", dsn)
    assert done.code == PARTIAL
    assert done.err.count("refused: ") == 20
    assert r"\udcff" in done.err
    assert any(line.split()[:2] == ["refused", "30"] for line in done.out.splitlines())
    *rows, last = voxtier("index", tmp_path, "--dsn", dsn, "--json").rows
    assert last["summary"]["statuses"] == {"refused": 30}
    for row in rows:
        assert (row["status"], row["error"]["kind"], row["error"]["offset"]) == (
            "refused",
            "invalid_argument",
            None,
        )
        assert "UTF-8" in row["error"]["detail"]
    assert voxtier("frames", "errors", "--dsn", dsn).out == "", "the README promises them no row"


def test_bad_options_exit_2(voxtier: Cli, folder: Path, dsn: str) -> None:
    for wrong in (["--workers", "0"], ["--workers", "many"], ["--threads", "0"], ["--no-such-option"], []):
        paths = [folder] if wrong else []
        assert voxtier("index", *paths, "--dsn", dsn, *wrong).code == USAGE
    assert voxtier("no-such-command").code == USAGE
    assert voxtier("index", folder, "--dsn", "not a dsn").code == USAGE


@pytest.mark.parametrize("command", ["index", "frames summary", "frames errors"])
def test_a_database_that_is_down_exits_4_in_one_line_without_the_password(
    voxtier: Cli, folder: Path, command: str
) -> None:
    paths = [folder] if command == "index" else []
    done = voxtier(*command.split(), *paths, "--dsn", f"host={folder} dbname=none password=secret")
    assert done.code == DOWN
    assert "secret" not in done.err
    assert done.err.startswith("voxtier: ")
    assert len(done.err.splitlines()) == 1


def test_a_folder_without_permission_is_an_error_of_that_folder_alone(folder: Path) -> None:
    """Told, not stored; once it may be entered, nothing is left of the trouble."""
    ordinary = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    if os.geteuid() == 0:
        able = subprocess.run([*ordinary, sys.executable, "-c", ""], capture_output=True, check=False)
        if able.returncode != 0:
            pytest.skip("permissions do not bind root, and there is no way to be somebody else here")
    else:
        ordinary = []
    let_others_enter(folder)
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


def test_nothing_newer_is_no_error(voxtier: Cli, folder: Path, dsn: str) -> None:
    done = voxtier("index", folder, "--since", "2999-01-01", "--dsn", dsn)
    assert (done.code, done.err.count("\n")) == (OK, 1)
    assert "no file of 2999-01-01 00:00:00 UTC or later" in done.err


def test_a_folder_that_never_was_is_not_pruned_in_silence(voxtier: Cli, folder: Path, dsn: str) -> None:
    done = voxtier("index", folder / "typo", "--prune", "--dsn", dsn)
    assert (done.code, "typo: there is no such file" in done.err) == (USAGE, True)
    done = voxtier("index", folder, folder / "typo", "--prune", "--dsn", dsn)
    assert (done.code, "typo: there is no such file" in done.err) == (USAGE, True)
    assert voxtier("frames", "summary", "--dsn", dsn, "--json").rows[0]["total"]["files"] == 6
