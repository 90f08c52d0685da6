"""The command line run in the test's own process, and a folder with one file of each outcome."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.running import Cli, Done, native
from support.builders import JPEG, PIXEL_DATA, Element, Fragments, dicom, element, image, jpeg, pattern
from voxtier.cli import main


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
