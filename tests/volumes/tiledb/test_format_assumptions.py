"""What voxtier assumes of TileDB's files, one test an assumption, against the TileDB that is installed.

When one fails after an update of TileDB, docs/formats/tiledb.md says what depends on it.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiledb
from numpy.typing import NDArray

from tree.graph import PACKAGE
from voxtier import _core
from voxtier.volumes.tiledb.format import CHUNK_BYTES, VERSION
from voxtier.volumes.tiledb.format.names import (
    ARRAY_FOLDERS,
    COMMITS,
    FRAGMENTS,
    GROUP,
    META,
    RESERVED,
    SCHEMA,
)

PAGE = "TileDB changed: read docs/formats/tiledb.md, section "
SHAPE = (9, 50, 70)
TILE = (5, 50, 70)
CELLS = np.random.default_rng(0).integers(0, 999, SHAPE).astype(np.int16)
PIPELINES: dict[str, list[Any]] = {
    "none": [],
    "shuffle": [tiledb.ByteShuffleFilter()],
    "zstd": [tiledb.ZstdFilter(3)],
    "lz4": [tiledb.LZ4Filter()],
    "gzip": [tiledb.GzipFilter()],
    "shuffle and zstd": [tiledb.ByteShuffleFilter(), tiledb.ZstdFilter(3)],
}
FRAGMENT = re.compile(r"__(\d+)_(\d+)_[0-9a-f]{32}_(\d+)")


def create(uri: Path, filters: Any = ()) -> None:
    """Create a dense array of three dimensions as `Volume` does."""
    sizes = zip("zyx", SHAPE, TILE, strict=True)
    dims = [tiledb.Dim(name=n, domain=(0, size - 1), tile=tile, dtype=np.int32) for n, size, tile in sizes]
    attr = tiledb.Attr("voxels", "int16", filters=tiledb.FilterList(list(filters)))
    tiledb.Array.create(str(uri), tiledb.ArraySchema(tiledb.Domain(*dims), [attr]))


def write(uri: Path) -> None:
    with tiledb.open(str(uri), "w") as array:
        array[:] = CELLS


def make(uri: Path, filters: Any = ()) -> Path:
    """Create an array and write it once."""
    create(uri, filters)
    write(uri)
    return uri


def only(folder: Path) -> Path:
    """Return the one entry of a folder that is no folder of enumerations."""
    (entry,) = (entry for entry in folder.iterdir() if not entry.name.startswith("__enum"))
    return entry


def test_an_array_has_the_folders_that_copies_of_schemas_make(tmp_path: Path) -> None:
    create(tmp_path / "a")
    folders = {str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*") if p.is_dir()}
    assert folders == set(ARRAY_FOLDERS), PAGE + "Folders"


def test_a_schema_is_one_file_whose_bytes_depend_on_the_schema_alone(tmp_path: Path) -> None:
    create(tmp_path / "a")
    time.sleep(0.002)
    create(tmp_path / "b")
    first, second = only(tmp_path / "a" / SCHEMA), only(tmp_path / "b" / SCHEMA)
    assert re.fullmatch(r"__(\d+)_\1_[0-9a-f]{32}", first.name), PAGE + "Schemas"
    assert first.name != second.name
    assert first.read_bytes() == second.read_bytes(), PAGE + "Schemas"


def test_a_column_that_is_added_is_a_schema_file_with_its_time_stamp(tmp_path: Path) -> None:
    """Removing the file removes the column: an unfinished change of a table is taken back so."""
    uri = str(tmp_path / "t")
    key = tiledb.Dim(name="id", dtype="ascii")
    tiledb.Array.create(uri, tiledb.ArraySchema(tiledb.Domain(key), [tiledb.Attr("a", "i4")], sparse=True))
    old = only(tmp_path / "t" / SCHEMA)
    evolution = tiledb.ArraySchemaEvolution()
    evolution.timestamp(4_102_444_800_000)  # the year 2100
    evolution.add_attribute(tiledb.Attr("b", dtype="i4"))
    evolution.array_evolve(uri)
    (new,) = (path for path in (tmp_path / "t" / SCHEMA).glob("__*_*") if path != old)
    assert new.name.startswith("__4102444800000_4102444800000_"), PAGE + "Schemas"
    new.unlink()
    assert not tiledb.ArraySchema.load(uri).has_attr("b"), PAGE + "Schemas"


def test_a_write_is_one_fragment_and_one_empty_commit_of_the_version_that_is_read(tmp_path: Path) -> None:
    make(tmp_path / "a")
    fragment, commit = only(tmp_path / "a" / FRAGMENTS), only(tmp_path / "a" / COMMITS)
    match = FRAGMENT.fullmatch(fragment.name)
    assert match, PAGE + "Fragments and commits"
    assert int(match[3]) == VERSION == _core.TILEDB_FORMAT_VERSION, PAGE + "Version"
    assert (commit.name, commit.read_bytes()) == (f"{fragment.name}.wrt", b""), PAGE + "Fragments and commits"
    write(tmp_path / "a")
    names = {entry.name for entry in (tmp_path / "a" / FRAGMENTS).iterdir()}
    assert len(names) == 2
    assert fragment.name in names


def test_consolidated_commits_are_one_file_that_lists_them(tmp_path: Path) -> None:
    make(tmp_path / "a")
    config = tiledb.Config({"sm.consolidation.mode": "commits", "sm.vacuum.mode": "commits"})
    tiledb.consolidate(str(tmp_path / "a"), config=config)
    tiledb.vacuum(str(tmp_path / "a"), config=config)
    commit, fragment = only(tmp_path / "a" / COMMITS), only(tmp_path / "a" / FRAGMENTS)
    line = f"{COMMITS}/{fragment.name}.wrt\n".encode()
    assert (commit.suffix, commit.read_bytes()) == (".con", line), PAGE + "Fragments and commits"


def chunks(content: bytes) -> list[tuple[int, int, bytes, bytes]]:
    """Return original and filtered length, metadata and filtered bytes of each chunk of a tile file."""
    found, at = [], 0
    while at < len(content):
        (count,) = struct.unpack_from("<Q", content, at)
        at += 8
        for _ in range(count):
            original, filtered, metadata = struct.unpack_from("<III", content, at)
            at += 12
            found.append(
                (original, filtered, content[at : at + metadata], content[at + metadata :][:filtered])
            )
            at += metadata + filtered
    assert at == len(content)
    return found


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_tiles_lie_back_to_back_in_chunks_that_state_their_lengths(tmp_path: Path, pipeline: str) -> None:
    uri = make(tmp_path / "a", PIPELINES[pipeline])
    content = (only(uri / FRAGMENTS) / "a0.tdb").read_bytes()
    tile = int(np.prod(TILE)) * 2
    cut = [CHUNK_BYTES] * (tile // CHUNK_BYTES) + [tile % CHUNK_BYTES]
    try:
        originals = [original for original, *_ in chunks(content)]
    except (struct.error, AssertionError):
        originals = []
    # Two tiles; the second has four planes, and is padded to five.
    assert originals == cut * 2, PAGE + "Tiles"


def test_unfiltered_chunks_are_the_cells_in_the_order_of_the_dimensions(tmp_path: Path) -> None:
    uri = make(tmp_path / "a")
    found = chunks((only(uri / FRAGMENTS) / "a0.tdb").read_bytes())
    cells: NDArray[np.int16] = np.frombuffer(b"".join(body for *_, body in found), np.int16)
    assert {metadata for _, _, metadata, _ in found} == {b""}, PAGE + "Tiles"
    assert np.array_equal(cells.reshape(10, 50, 70)[:9], CELLS), PAGE + "Tiles"


@pytest.mark.parametrize("pipeline", ["zstd", "lz4", "gzip", "shuffle and zstd", "shuffle"])
def test_filters_put_these_lengths_before_their_bytes(tmp_path: Path, pipeline: str) -> None:
    uri = make(tmp_path / "a", PIPELINES[pipeline])
    for original, filtered, metadata, _ in chunks((only(uri / FRAGMENTS) / "a0.tdb").read_bytes()):
        numbers = struct.unpack(f"<{len(metadata) // 4}I", metadata)
        if pipeline == "shuffle":
            assert numbers == (1, original), PAGE + "Filters"
        elif pipeline == "shuffle and zstd":
            assert numbers[:3] + numbers[4:5] == (1, 1, 8, original), PAGE + "Filters"
            assert numbers[3] + numbers[5] == filtered, PAGE + "Filters"
        else:
            assert numbers == (0, 1, original, filtered), PAGE + "Filters"


@pytest.mark.parametrize("pipeline", ["none", "zstd", "lz4", "gzip", "shuffle and zstd"])
def test_the_core_reads_the_cells_of_such_a_file(tmp_path: Path, pipeline: str) -> None:
    names = {"shuffle and zstd": ["byteshuffle", "zstd"], "none": []}.get(pipeline, [pipeline])
    path = only(make(tmp_path / "a", PIPELINES[pipeline]) / FRAGMENTS) / "a0.tdb"
    out = np.empty(CELLS.nbytes, np.uint8)
    tiles = _core.TileFile(path, list(SHAPE), list(TILE), 2, names)
    tiles.read([(0, size, 1) for size in SHAPE], out)
    assert np.array_equal(out.view(np.int16).reshape(SHAPE), CELLS), PAGE + "Tiles"


def headed_files(root: Path) -> list[Path]:
    """Make a group, an array and a table, and return their files of metadata, members and schemas."""
    make(root / "a")
    with tiledb.open(str(root / "a"), "w") as array:
        array.meta["key"] = "value" * 50
    tiledb.Group.create(str(root / "g"))
    with tiledb.Group(str(root / "g"), "w") as group:
        group.meta["key"] = 3
        group.add(str(root / "a"), name="a")
    folders = [root / "a" / META, root / "a" / SCHEMA, root / "g" / META, root / "g" / GROUP]
    return [file for folder in folders for file in folder.iterdir() if file.is_file()]


def test_files_of_metadata_members_and_schemas_state_their_length(tmp_path: Path) -> None:
    header = struct.Struct("<IQQBQBI")
    files = headed_files(tmp_path)
    assert len(files) == 4
    for file in files:
        content = file.read_bytes()
        version, stored, _, _, _, _, pipeline = header.unpack(content[:34])
        assert (header.size, version, pipeline) == (34, VERSION, 18), PAGE + "Files with a header"
        assert len(content) == 34 + pipeline + stored, PAGE + "Files with a header"
        assert file.suffix == "", PAGE + "Files with a header"


@pytest.mark.parametrize("length", [0, 34, 52, -1])
def test_what_holds_a_file_that_ends_too_early_cannot_be_opened(tmp_path: Path, length: int) -> None:
    """Were it skipped instead, nobody would have to remove it."""
    headed_files(tmp_path)
    file = only(tmp_path / "g" / META)
    file.write_bytes(file.read_bytes()[:length])
    try:
        with tiledb.Group(str(tmp_path / "g"), "r") as group:
            found = dict(group.meta)
    except tiledb.TileDBError:
        return
    pytest.fail(f"{PAGE}Files with a header: {found}")


def test_a_commit_and_new_metadata_change_the_times_of_their_folders(tmp_path: Path) -> None:
    uri = make(tmp_path / "a")
    for folder in (COMMITS, META):
        os.utime(uri / folder, (1, 1))
    write(uri)
    assert (uri / COMMITS).stat().st_mtime > 1, PAGE + "Times of folders"
    assert (uri / META).stat().st_mtime == 1, PAGE + "Times of folders"
    with tiledb.open(str(uri), "w") as array:
        array.meta["key"] = 1
    assert (uri / META).stat().st_mtime > 1, PAGE + "Times of folders"


def test_other_folders_and_files_inside_an_array_or_a_group_are_ignored(tmp_path: Path) -> None:
    """Replicas lie inside the folder of their volume, the lock and half-removed folders inside a group."""
    uri = make(tmp_path / "a")
    shutil.copytree(uri, tmp_path / "copy")
    shutil.move(tmp_path / "copy", uri / "replica-sagittal")
    with tiledb.open(str(uri)) as array:
        assert np.array_equal(array[:]["voxels"], CELLS), PAGE + "Folders"
    assert len(tiledb.array_fragments(str(uri))) == 1, PAGE + "Folders"
    tiledb.Group.create(str(tmp_path / "g"))
    (tmp_path / "g" / ".voxtier.lock").touch()
    (tmp_path / "g" / f"{RESERVED}voxtier_lock.json").touch()
    (tmp_path / "g" / ".gone-1").mkdir()
    with tiledb.Group(str(tmp_path / "g"), "r") as group:
        assert len(group) == 0, PAGE + "Folders"


def test_of_two_values_the_one_with_the_later_time_stamp_counts(tmp_path: Path) -> None:
    """A commit wins by its time stamp, whatever the clock says when it is written."""
    tiledb.Group.create(str(tmp_path / "g"))
    for stamp, value in ((4_102_444_800_001, 2), (4_102_444_800_000, 1)):
        config = tiledb.Config({"sm.group.timestamp_end": str(stamp)})
        with tiledb.Group(str(tmp_path / "g"), "w", config) as group:
            group.meta["commit"] = value
    config = tiledb.Config({"sm.group.timestamp_end": str(2**63 - 1)})
    with tiledb.Group(str(tmp_path / "g"), "r", config) as group:
        assert group.meta["commit"] == 2, PAGE + "Time stamps"
    names = sorted(file.name[:16] for file in (tmp_path / "g" / META).iterdir())
    assert names == ["__4102444800000_", "__4102444800001_"], PAGE + "Time stamps"


def test_rows_written_after_a_time_stamp_can_be_removed(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    key = tiledb.Dim(name="id", dtype="ascii")
    tiledb.Array.create(uri, tiledb.ArraySchema(tiledb.Domain(key), [tiledb.Attr("a", "i4")], sparse=True))
    for stamp, name in ((10, "b"), (20, "a")):
        with tiledb.open(uri, "w", timestamp=stamp) as array:
            array[np.array([name], object)] = {"a": np.array([stamp], "i4")}
    with tiledb.open(uri, timestamp=10) as array:
        assert array[:]["a"].tolist() == [10], PAGE + "Time stamps"
    with tiledb.open(uri) as array:
        assert array[:]["a"].tolist() == [20, 10], PAGE + "Time stamps"  # in the order of their keys
    tiledb.Array.delete_fragments(uri, 11, 2**63 - 1)
    with tiledb.open(uri) as array:
        assert array[:]["a"].tolist() == [10], PAGE + "Time stamps"


def test_no_file_outside_format_names_tiledbs_folders() -> None:
    names = re.compile(r"__(fragments|fragment_meta|commits|schema|meta|group|labels|enumerations)\b|\.tdb\b")
    inside = PACKAGE / "volumes" / "tiledb" / "format"
    found = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in PACKAGE.rglob("*.py*")
        if path.suffix in (".py", ".pyi") and inside not in path.parents
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if names.search(line)
    ]
    # The stub documents what the core reads: one tile file, whose path the caller gives.
    assert [place for place in found if not place.startswith("_core.pyi")] == []
