"""The index as Parquet: what other tools read of it, and the way back."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydicom import dcmread
from pydicom.encaps import generate_fragments

from frames.dicom.cases import CASES
from support.builders import JPEG, PIXEL_DATA, Element, Fragments, dicom, element, image, jpeg
from voxtier._core import Refusal
from voxtier.errors import ConfigError, FormatError, LeftOutWarning
from voxtier.frames import FrameTable, export_index, import_index, read_tables, to_arrow
from voxtier.frames.store.store import FrameStore


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every reference case, and a path without a file."""
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / f"{case.name} ü.dcm" for case in CASES]
    for path, case in zip(paths, CASES, strict=True):
        path.write_bytes(case.content)
    return [*map(str, paths), str(folder / "nothing")]


def comparable(found: FrameTable | Refusal | None) -> object:
    if isinstance(found, Refusal):
        return str(found.error), found.size, found.mtime_ns, found.ctime_ns, found.inode
    return found


def test_an_exported_index_is_imported_as_it_was(files: list[str], store: FrameStore, tmp_path: Path) -> None:
    counts = store.upsert("s", read_tables(files, verify="all"))
    assert export_index(store, "s", tmp_path / "out.parquet") == counts.inserted == len(files)
    assert import_index(store, "again", tmp_path / "out.parquet").inserted == len(files)
    assert import_index(store, "s", tmp_path / "out.parquet") == (0, 0, len(files), ())
    was, is_now = ([comparable(each) for each in store.get_many(source, files)] for source in ("s", "again"))
    assert was == is_now
    assert sum(isinstance(each, tuple) for each in was) > 10
    assert list(tmp_path.iterdir()) == [tmp_path / "out.parquet"]


def test_rows_of_files_and_frames_are_the_tables(files: list[str], tmp_path: Path) -> None:
    results = list(read_tables(files, verify="all"))
    rows = to_arrow(results).to_pylist()
    for row, result in zip(rows, results, strict=True):
        table = result.table
        if table is None:
            assert (row["error_kind"], row["record"], row["frame_count"]) == (result.error.kind, None, 0)
            continue
        assert FrameTable.from_bytes(row["record"]) == table
        assert (row["frame_count"], row["size"], row["kind"]) == (len(table), table.size, table.kind)
        assert row["sop_instance_uid"] == table.sop_instance_uid
    ranges: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for row in to_arrow(results, rows="frame").to_pylist():
        pairs = ranges.setdefault((row["path"], row["frame"]), [])
        assert row["fragment"] == len(pairs)
        pairs.append((row["offset"], row["offset"] + row["length"]))
    want = {
        (result.path, frame): result.table.ranges(frame)
        for result in results
        if result.table is not None and result.table.offsets_in == "file"
        for frame in range(
            len(result.table) if result.table.truncated_from is None else result.table.truncated_from
        )
    }
    assert ranges == {place: found for place, found in want.items() if found}
    assert len(to_arrow([], rows="frame")) == len(to_arrow([])) == 0


def test_what_is_no_export_is_refused_and_nothing_is_written(
    store: FrameStore, files: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.parquet"
    results = list(read_tables(files[:3]))
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(ConfigError, match="is no Parquet file"):
        import_index(store, "s", path)
    pq.write_table(to_arrow(results, rows="frame"), path)
    with pytest.raises(ConfigError, match=r"lacks the columns .*record.*: export rows of files"):
        import_index(store, "s", path)
    whole = to_arrow(results)
    damaged = [record and record[:-1] + b"?" for record in whole.column("record").to_pylist()]
    place = whole.schema.get_field_index("record")
    pq.write_table(whole.set_column(place, whole.schema.field(place), [damaged]), path)
    with pytest.raises(FormatError, match="bad_table"):
        import_index(store, "s", path)
    with pytest.raises(ConfigError, match="give 'file' or 'frame'"):
        export_index(store, "s", path, rows="tile")  # type: ignore[arg-type]
    assert store.sources() == [] or store.summary("s").total.files == 0


def write_fragments(path: Path) -> Path:
    """Three frames of two fragments, of one and of three, with a Basic Offset Table."""
    one, two, three = jpeg(20, 1), jpeg(26, 3), jpeg(30, 4)
    parts = [one[:10], one[10:], two, three[:8], three[8:20], three[20:]]
    pixels = Element(PIXEL_DATA, "OB", Fragments(parts, table=(0, 36, 70)))
    path.write_bytes(dicom([*image(frames=3), pixels], JPEG).content)
    return path


@pytest.mark.parametrize("verify", ["none", "ends", "all"])
def test_a_row_is_a_fragment_however_far_the_table_was_checked(
    store: FrameStore, tmp_path: Path, verify: str
) -> None:
    path = write_fragments(tmp_path / "parts.dcm")
    want = list(generate_fragments(dcmread(path).PixelData))[1:]  # the first item is the table
    results = list(read_tables([path], verify=verify))
    store.upsert("s", results)
    assert export_index(store, "s", tmp_path / "out.parquet", rows="frame") == 6
    content = path.read_bytes()
    for table in (to_arrow(results, rows="frame"), pq.read_table(tmp_path / "out.parquet")):
        rows = table.to_pylist()
        assert [content[row["offset"] :][: row["length"]] for row in rows] == want
        assert [(row["frame"], row["fragment"]) for row in rows] == [
            (0, 0),
            (0, 1),
            (1, 0),
            (2, 0),
            (2, 1),
            (2, 2),
        ]


def test_a_file_that_cannot_be_read_again_is_left_out_with_a_warning(tmp_path: Path) -> None:
    paths = [write_fragments(tmp_path / name) for name in ("gone", "there")]
    results = list(read_tables(paths))
    paths[0].unlink()
    with pytest.warns(LeftOutWarning, match="gone: its table does not tell fragments"):
        rows = to_arrow(results, rows="frame").to_pylist()
    assert [row["path"] for row in rows] == [str(paths[1])] * 6
    assert len(to_arrow(results)) == 2


def test_frames_of_bits_say_at_which_bit_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "bits.dcm"
    pixels = element("PixelData", bytes([0b10110101, 0b01101011, 0b11000110, 0b101]))
    path.write_bytes(dicom([*image(bits=1, rows=3, columns=3, frames=3), pixels]).content)
    want = dcmread(path).pixel_array.reshape(3, 9)
    content = path.read_bytes()
    for row in to_arrow(read_tables([path]), rows="frame").to_pylist():
        number = int.from_bytes(content[row["offset"] :][: row["length"]], "little") >> row["bit_offset"]
        assert [number >> place & 1 for place in range(9)] == list(want[row["frame"]])


@pytest.mark.parametrize("rows", ["file", "frame"])
def test_what_has_no_path_or_one_that_is_no_text_is_told(tmp_path: Path, rows: str) -> None:
    path = write_fragments(tmp_path / "good.dcm")
    for opened in (io.BytesIO(path.read_bytes()), path.open("rb")):
        with pytest.raises(ConfigError, match="has no path"), opened:
            to_arrow(read_tables([opened]), rows=rows)
    wrong = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.dcm")
    write_fragments(Path(wrong))
    with pytest.warns(LeftOutWarning, match=r"udcff.*is no UTF-8"):
        found = to_arrow(read_tables([wrong, path]), rows=rows)
    assert set(found.column("path").to_pylist()) == {str(path)}
