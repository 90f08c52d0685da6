"""The index as Parquet: what other tools read of it, and the way back."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from frames.dicom.cases import CASES
from voxtier._core import Refusal
from voxtier.errors import ConfigError, FormatError
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
