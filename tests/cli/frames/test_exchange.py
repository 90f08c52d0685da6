"""``voxtier frames export | import``, and one share of an index run."""

from __future__ import annotations

import json
from pathlib import Path

from cli.running import FINDINGS, OK, PARTIAL, USAGE, Cli, native
from support.builders import JPEG, PIXEL_DATA, Element, Fragments, dicom, image, jpeg
from voxtier.frames import FrameStore, read_tables


def test_an_index_is_exported_and_imported(voxtier: Cli, dsn: str, folder: Path, tmp_path: Path) -> None:
    assert voxtier("index", folder, "--dsn", dsn).code == PARTIAL
    out = tmp_path / "out.parquet"
    done = voxtier("frames", "export", out, "--dsn", dsn, "--json")
    assert (done.code, json.loads(done.out)["rows"]) == (OK, 6)
    done = voxtier("frames", "import", out, "--dsn", dsn, "--source", "copy")
    assert (done.code, done.out) == (OK, "6 rows inserted, 0 updated, 0 unchanged in source copy\n")
    done = voxtier("frames", "export", out, "--dsn", dsn, "--rows", "frame")
    assert done.out.startswith("5 rows of source default in ")
    assert voxtier("frames", "import", out, "--dsn", dsn).code == USAGE
    assert voxtier("frames", "export", out, "--dsn", dsn, "--source", "none").code == USAGE
    assert voxtier("frames", "import", tmp_path / "absent", "--dsn", dsn).code == USAGE
    voxtier("frames", "export", out, "--dsn", dsn)
    whole = out.read_bytes()
    out.write_bytes(whole[:100] + b"\xff" * 40 + whole[140:])
    done = voxtier("frames", "import", out, "--dsn", dsn)
    assert (done.code, done.err.startswith(f"voxtier: {out} is damaged: ")) == (USAGE, True)


def test_files_that_have_gone_are_left_out_of_rows_of_fragments(
    voxtier: Cli, dsn: str, tmp_path: Path
) -> None:
    made = tmp_path / "d"
    made.mkdir()
    parts = [jpeg(20)[:10], jpeg(20)[10:], jpeg(26)]
    pixels = Element(PIXEL_DATA, "OB", Fragments(parts, table=(0, 36)))
    for name in ("gone.dcm", "there.dcm"):
        (made / name).write_bytes(dicom([*image(frames=2), pixels], JPEG).content)
    (made / "native.dcm").write_bytes(native())
    with FrameStore(dsn) as store:  # tables as a reader writes them back; those of an index run are walked
        store.upsert("default", read_tables(made.iterdir()))
    (made / "gone.dcm").unlink()
    out = tmp_path / "out.parquet"
    done = voxtier("frames", "export", out, "--dsn", dsn, "--rows", "frame", "--json")
    assert (done.code, json.loads(done.out)["rows"], json.loads(done.out)["left_out"]) == (PARTIAL, 4, 1)
    assert "gone.dcm: its table does not tell fragments" in done.err
    assert voxtier("frames", "export", out, "--dsn", dsn).code == OK


def test_shares_of_an_index_run(voxtier: Cli, dsn: str, tmp_path: Path) -> None:
    made = tmp_path / "d"
    made.mkdir()
    done = voxtier("index", made, "--dsn", dsn, "--shard", "1/2")
    assert (done.code, "there is no file" in done.err) == (FINDINGS, True)
    (made / "one.dcm").write_bytes(native())
    shares = [voxtier("index", made, "--dsn", dsn, "--shard", f"{number}/2") for number in (1, 2)]
    assert [done.code for done in shares] == [OK, OK]
    assert sorted(done.err for done in shares) == sorted(["", *(done.err for done in shares if done.err)])
    [empty] = [done for done in shares if done.err]
    assert "is empty: 1 file in other shares" in empty.err
    done = voxtier("index", made, "--dsn", dsn, "--shard", "3/2")
    assert (done.code, "is no share: give I/N" in done.err) == (USAGE, True)
    done = voxtier("index", made, "--dsn", dsn, "--shard", "1/2", "--prune")
    assert (done.code, "without --shard" in done.err) == (USAGE, True)
