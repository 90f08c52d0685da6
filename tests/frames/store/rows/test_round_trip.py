"""A table or refusal goes into a row of the index and comes out unchanged, whichever way it is asked for."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest

from frames.dicom.cases import CASES, SPARSE, Case
from frames.store.rows.index_rows import ask, check_stored, ct, result, table_of
from support.builders import JPEG, PIXEL_DATA, Element, Fragments, dicom, image, pattern
from voxtier import _core
from voxtier._core import Refusal
from voxtier.errors import SourceError
from voxtier.frames import FrameTable, TableResult, read_tables
from voxtier.frames.indexing.run import FileIndexer
from voxtier.frames.store.store import FrameStore


@pytest.mark.parametrize("path", ["/datä/x.dcm", "/x", "x", "s3://b/ü/", "/a\n/b\n", "/" * 2600])
def test_the_key_is_blake2b_of_source_nul_path_behind_sha256_of_the_folder(path: str) -> None:
    folder = hashlib.sha256(path[: path.rfind("/") + 1].encode()).digest()
    digest = hashlib.blake2b(b"s\xc3\xb6urce\0" + path.encode(), digest_size=16).digest()
    assert _core.file_key("söurce", path) == folder[:4] + digest[4:]


def test_every_case_upserted_from_results_comes_back(store: FrameStore, case_files: dict[str, Case]) -> None:
    results = {str(r.path): r for r in read_tables(case_files, verify="all")}
    counts = store.upsert("python", results.values())
    assert counts == (len(CASES), 0, 0, ())
    check_stored(store, "python", results)


def test_every_case_upserted_as_rows_comes_back(store: FrameStore, case_files: dict[str, Case]) -> None:
    paths = list(case_files)
    rows = b"".join(part.rows for part in FileIndexer(store, source="core", threads=2).read(paths))
    assert store.upsert_rows("core", rows) == (len(CASES), 0, 0, ())
    results = {str(r.path): r for r in read_tables(case_files, verify="all")}
    check_stored(store, "core", results)


def test_results_and_rows_give_equal_columns(
    store: FrameStore, dsn: str, case_files: dict[str, Case]
) -> None:
    paths = [path for path, case in case_files.items() if not case.error]
    FileIndexer(store, source="core", threads=2).index_batch(paths)
    store.upsert("python", read_tables(paths, verify="all"))
    names = ", ".join(name for name, _, _ in _core.ROW_COLUMNS if name != "key")
    of_source = f"""SELECT {names} FROM voxtier.file JOIN voxtier.source USING (source_id)
        WHERE name = %s ORDER BY path"""
    assert ask(dsn, of_source, "core") == ask(dsn, of_source, "python")


@pytest.mark.parametrize("case", SPARSE, ids=str)
def test_positions_beyond_4_gib_come_back(store: FrameStore, tmp_path: Path, case: Case) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        case.write(file)
    [read] = read_tables([path])
    store.upsert("s", [read])
    found = store.get("s", str(path))
    assert found == read.table
    assert isinstance(found, FrameTable)
    assert int(found.offsets[-1]) > 1 << 31


def test_a_refusal_of_the_surroundings_is_a_source_error(store: FrameStore) -> None:
    store.upsert("s", [TableResult("/gone", None, SourceError("io_error", None, "No such file", 2))])
    found = store.get("s", "/gone")
    assert isinstance(found, Refusal)
    assert isinstance(found.error, SourceError)


def test_an_empty_index_answers_every_question(store: FrameStore) -> None:
    assert store.get("s", "/x") is None
    assert store.get_many("s", ["/x", "/y"]) == [None, None]
    assert store.file_states("s", []) == []
    assert store.sources() == []
    assert store.summary("s").total == (0, 0, 0, 0)
    assert list(store.refused_files("s")) == []
    assert store.prune("s") == 0


@pytest.fixture
def files(store: FrameStore, tmp_path: Path) -> list[str]:
    paths = [tmp_path / folder / f"{n}.dcm" for folder in ("a", "ab", "b") for n in range(3)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(ct())
    names = list(map(str, paths))
    store.upsert("s", read_tables(names))
    return names


def test_a_frame_takes_less_than_six_bytes_on_disk(store: FrameStore, dsn: str) -> None:
    """0 bytes a frame for native files, at most 5 for encapsulated ones, beyond the fixed row."""
    empty = struct.calcsize("<32x")
    native = table_of(ct(frames=200))
    assert len(native.packed) == empty
    payloads = [pattern(2 * (i % 7) + 2, i) for i in range(1000)]
    elements = [*image(frames=len(payloads)), Element(PIXEL_DATA, "OB", Fragments(payloads))]
    slide = table_of(dicom(elements, JPEG).content)
    for n in range(200):
        store.upsert("s", [result(f"/{n}", slide)])
    [(size,)] = ask(dsn, "SELECT pg_total_relation_size('voxtier.file')")
    assert size / (200 * 1000) < 6  # with the fixed row and whole pages
