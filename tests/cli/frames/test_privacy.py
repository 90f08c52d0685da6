"""No patient's name in output, logs or rows."""

from __future__ import annotations

import logging
from pathlib import Path

import psycopg
import pytest

from cli.running import Cli
from support.builders import dicom, element, image, pattern


def test_no_patients_name_in_output_logs_or_rows(
    voxtier: Cli, tmp_path: Path, dsn: str, caplog: pytest.LogCaptureFixture
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
            voxtier("frames", "errors", "--dsn", dsn),
            voxtier("frames", "summary", "--dsn", dsn),
            voxtier("frames", "table", secret, "--json"),
            voxtier("explain", secret / "c.dcm"),
            voxtier("frames", "read", secret / "b.dcm", 2),
        )
    )
    assert "not_dicom" in said or "error" in said
    for text in (said, caplog.text):
        assert "Doe^Jane" not in text
        assert "DOE^JANE" not in text
    with psycopg.connect(dsn) as connection:
        [(dump,)] = connection.execute("SELECT string_agg(f::text, '') FROM voxtier.file AS f").fetchall()
    assert "DOE^JANE^SECRET" not in dump
