"""What notebooks show: every value escaped, nothing that runs."""

from __future__ import annotations

from pathlib import Path

from support.builders import dicom, element, image, pattern
from voxtier.frames import FrameStore, read_table, read_tables
from voxtier.system.html import facts_html, rows_html


def test_every_value_is_escaped() -> None:
    bad = "<script>alert(1)</script>&"
    for shown in (facts_html(bad, {bad: bad}), rows_html(bad, [bad], [[bad]])):
        assert "<script" not in shown
        assert shown.count("&lt;script&gt;") == 3
    assert facts_html("t", {"a": None}).count("<tr>") == 0
    assert "and 3 more" in rows_html("t", ["a"], [[1]], 3)
    assert "more" not in rows_html("t", ["a"], [[1]])
    assert "data:image/png;base64,iVBO" in facts_html("t", {}, b"\x89PNG")


def test_a_table_and_an_index_show_themselves(tmp_path: Path, dsn: str) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom([*image(frames=2), element("PixelData", pattern(32))]).content)
    shown = read_table(path, verify="all")._repr_html_()
    assert "FrameTable of 2 frames" in shown
    assert "<td>native</td>" in shown
    with FrameStore(dsn) as store:
        store.upsert("a<b", read_tables([path]))
        assert "<td>a&lt;b</td><td>1</td><td>2</td>" in store._repr_html_()
