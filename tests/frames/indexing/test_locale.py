"""Where the locale is not UTF-8, names beyond ASCII are refused with the remedy, and no row is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from frames.indexing.files import native, run
from support.builders import pattern
from voxtier.frames.sources.listing import file_is_gone
from voxtier.frames.store.store import FrameStore

NAMES = [b"plain.dcm", "é.dcm".encode(), "\u65e5.dcm".encode()]
PROGRAM = """
    import json, os, sys
    from voxtier.errors import NotFoundError
    from voxtier.frames import FileIndexer, FrameReader, FrameStore, index_files
    folder, dsn, encoding = sys.argv[1:]
    if encoding != "none":  # as in a locale of one byte a character, which few machines have
        sys.getfilesystemencoding = lambda: encoding
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    said = {}
    with FrameStore(dsn) as store:
        reports = [report for batch in index_files(FileIndexer(store, source="s"), paths) for report in batch]
        said["refused"] = [report.error for report in reports if report.status == "refused"]
        said["others"] = [os.path.basename(report.path) for report in reports if report.status != "refused"]
        said["missing"] = [ascii(path) for path in store.missing_files("s")]
        with FrameReader(store, "s", publish=False, index_seconds=60) as reader:
            said["frames"] = [reader.frame(path, 1).hex() for path in paths]
            said["kept"] = reader.cache.keys()
        said["hidden"] = 0
        with FrameReader(store, "s", publish=False, index_seconds=60, user_groups=["staff"]) as reader:
            for path in paths:
                try:
                    reader.frame(path, 1)
                except NotFoundError:
                    said["hidden"] += 1
    print(json.dumps(said))
"""


@pytest.mark.parametrize("encoding", ["none", "iso8859-1"])
def test_names_beyond_ascii_are_refused_by_the_reason(
    store: FrameStore, dsn: str, tmp_path: Path, encoding: str
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for name in NAMES:
        Path(os.fsdecode(bytes(folder) + b"/" + name)).write_bytes(native(2))
    assert len(run(store, [str(path) for path in folder.iterdir()], source="s")) == 3
    there = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), dsn, encoding],
        env=there,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    said = json.loads(done.stdout)
    assert len(said["refused"]) == 2
    assert all("PYTHONUTF8=1" in error for error in said["refused"])
    assert said["others"] == ["plain.dcm"]
    assert said["missing"] == []
    assert said["frames"] == [pattern(32)[16:].hex()] * 3
    assert set(said["kept"]) <= set(map(str, folder.iterdir()))
    assert said["hidden"] == 2
    assert store.summary("s").total.files == 3


def test_a_file_that_the_locale_cannot_name_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert file_is_gone("/none/é.dcm")
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    assert not file_is_gone("/none/é.dcm")
    assert file_is_gone("/none/e.dcm")
