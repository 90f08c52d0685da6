"""Updates, consolidation and vacuum: values compared in every order, while others read."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiledb
from numpy.typing import NDArray

from volumes.support.command_line import run
from voxtier.errors import BackendError, NotFoundError
from voxtier.system.locks import hold_lock
from voxtier.volumes import TileConfig, Volume, configure
from voxtier.volumes.tiledb import arrays
from voxtier.volumes.tiledb.format import direct, fragments
from voxtier.volumes.tiledb.format.groups import write_group
from voxtier.volumes.tiledb.session import LATEST, LOCK_NAME, Session
from voxtier.volumes.tiledb.tables.dataframe import Dataframe


def make_updated(tmp_path: Path, name: str = "v") -> tuple[Volume, NDArray[np.int16]]:
    configure(tile=TileConfig("axial"))
    data = np.zeros((12, 10, 8), np.int16)
    volume = Volume.from_numpy(tmp_path / name, data)
    for z in range(8):
        data[:, :, z] = z + 1
        volume.update((0, 0, z), data[:, :, z : z + 1])
    return volume, data


def test_consolidation_leaves_one_fragment_and_the_same_voxels(tmp_path: Path) -> None:
    volume, data = make_updated(tmp_path)
    assert len(volume.fragments()) == 9
    reader = Volume(volume.uri)
    assert np.array_equal(reader.to_numpy(), data)
    volume.consolidate()
    assert [f.to_vacuum for f in volume.fragments()] == [False]
    assert volume.fragments()[0].box == ((0, 11), (0, 9), (0, 7))
    assert np.array_equal(reader.to_numpy(), data)
    assert np.array_equal(volume.axial(3), data[:, :, 3])
    assert volume.array.is_direct  # a merged list of commits would send every later read through TileDB


@pytest.mark.parametrize(
    ("shape", "tile", "dtype"),
    [
        ((150, 130, 70), TileConfig("isotropic"), np.float32),
        ((3, 700, 5), TileConfig("sagittal"), np.uint8),
        ((70, 50, 90), TileConfig("axial"), np.int16),
        ((40, 30, 50, 9), TileConfig("isotropic"), np.int16),
        ((1, 1, 4000), TileConfig("coronal"), np.float64),
    ],
)
@pytest.mark.parametrize("memory_mb", [None, 64])
def test_volumes_of_any_shape_are_merged_within_the_budget_that_they_are_worth(
    tmp_path: Path, shape: tuple[int, ...], tile: TileConfig, dtype: type, memory_mb: int | None
) -> None:
    configure(tile=tile)
    rng = np.random.default_rng(0)
    data = rng.integers(0, 200, shape).astype(dtype)
    volume = Volume.from_numpy(tmp_path / "v", data)
    for _ in range(5):
        low = [int(rng.integers(size)) for size in shape]
        part = rng.integers(
            0, 200, [int(rng.integers(1, size - at + 1)) for size, at in zip(shape, low, strict=True)]
        )
        data[tuple(slice(at, at + n) for at, n in zip(low, part.shape, strict=True))] = part
        volume.update(tuple(low), part.astype(dtype))
    volume.consolidate(memory_mb=memory_mb)
    assert len(volume.fragments()) == 1
    assert np.array_equal(volume.to_numpy(), data)
    with tiledb.open(volume.uri) as array:  # what TileDB itself reads
        stored = array[:]
        stored = next(iter(stored.values())) if isinstance(stored, dict) else stored
    order = volume.array.layout.order
    assert np.array_equal(stored, data.transpose(order))


@pytest.mark.parametrize("order", list(itertools.permutations(["fragments", "fragment_meta", "commits"])))
def test_every_order_of_consolidation_keeps_the_voxels_readable(
    tmp_path: Path, order: tuple[str, ...]
) -> None:
    volume, data = make_updated(tmp_path)
    for mode in order:
        config = tiledb.Config(
            {"sm.consolidation.mode": mode, "sm.vacuum.mode": mode, "sm.mem.total_budget": str(64 << 20)}
        )
        tiledb.consolidate(volume.uri, config=config)
        assert np.array_equal(volume.to_numpy(), data)
        tiledb.vacuum(volume.uri, config=config)
        assert np.array_equal(Volume(volume.uri).to_numpy(), data)
        assert np.array_equal(volume.to_numpy(), data)
    volume.vacuum()
    assert np.array_equal(volume.to_numpy(), data)


def test_bulk_write_is_one_fragment(tmp_path: Path) -> None:
    assert len(Volume.from_numpy(tmp_path / "v", np.zeros((30, 30, 30))).fragments()) == 1


def test_a_consolidated_commit_counts_only_when_it_lists_the_one_fragment(tmp_path: Path) -> None:
    data = np.arange(12 * 10 * 8, dtype=np.int16).reshape(12, 10, 8)
    volume = Volume.from_numpy(tmp_path / "v", data)
    config = tiledb.Config({"sm.consolidation.mode": "commits", "sm.vacuum.mode": "commits"})
    tiledb.consolidate(volume.uri, config=config)
    tiledb.vacuum(volume.uri, config=config)
    (commit,) = (tmp_path / "v" / "__commits").iterdir()
    assert commit.suffix == ".con" and volume.array.is_direct
    assert np.array_equal(volume.to_numpy(), data)
    commit.write_bytes(commit.read_bytes() + b"__commits/__1_1_0123456789abcdef0123456789abcdef_22.wrt\n")
    assert direct._single_fragment(volume.uri) is None


def test_a_read_goes_on_where_another_process_removes_what_it_has_consolidated(tmp_path: Path) -> None:
    volume, data = make_updated(tmp_path)
    array = volume.array
    assert not array.is_direct
    for step in (tiledb.consolidate, tiledb.vacuum):  # between the look at the folders and the read
        step(volume.uri)
    box = tuple((0, size, 1) for size in data.shape)
    assert np.array_equal(array.read(box), data)


def test_a_volume_opens_while_files_that_were_listed_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, data = make_updated(tmp_path)
    # Listed, and gone when it is read: what a vacuum does between the two.
    listed = tmp_path / "v" / "__commits" / f"__1_2_{'a' * 32}_22.vac"
    listed.symlink_to("gone")
    arrays.forget(volume.uri)
    with pytest.raises(NotFoundError, match="vac"):
        Volume(volume.uri).to_numpy()  # not for ever
    opened, attempts = arrays._opened, []

    def open_once_more(uri: str, session: Session) -> object:
        attempts.append(uri)
        if len(attempts) == 3:
            listed.unlink()
        return opened(uri, session)

    monkeypatch.setattr(arrays, "_opened", open_once_more)
    assert np.array_equal(Volume(volume.uri).to_numpy(), data)
    assert len(attempts) == 3
    with pytest.raises(NotFoundError, match="no volume"):
        Volume(tmp_path / "absent").to_numpy()
    assert len(attempts) == 3


def write_ahead(uri: str, z: int, value: int, seconds: int = 3600) -> int:
    """Write a slice and a key of metadata as a machine does whose clock is ahead; return its time."""
    ahead = time.time_ns() // 1_000_000 + 1000 * seconds
    with tiledb.open(uri, "w", timestamp=ahead) as array:
        cells = np.full((1, *array.shape[1:]), value, np.int16)  # stored z first
        array[z : z + 1] = cells
        array.meta["obs_id"] = f"by {value}"
    return ahead


def test_what_is_written_after_a_clock_that_ran_ahead_counts(tmp_path: Path) -> None:
    volume, data = make_updated(tmp_path)
    volume.replicate("sagittal")
    for value in (77, 78):
        write_ahead(volume.uri, 3, value, seconds=3600 + value)
    data[:, :, 3] = 78
    assert np.array_equal(Volume(volume.uri).to_numpy(), data)
    assert len(volume.fragments()) == 11
    volume.replicate()
    for value in (5, 6):
        data[2:4, 2:4, 2:6] = value
        volume.update((2, 2, 2), data[2:4, 2:4, 2:6])
        volume.set_obs_id(f"{value}")
        found = Volume(volume.uri)
        assert np.array_equal(found.to_numpy(), data)
        assert found.replicas == ["sagittal"]
        assert np.array_equal(found.sagittal(2), data[2])
        assert found.obs_id == f"{value}"
    assert len(volume.fragments()) == 13
    assert volume.fragments()[-1].box == ((2, 3), (2, 3), (2, 5))
    volume.consolidate()
    (fragment,) = volume.fragments()
    assert fragment.box == ((0, 11), (0, 9), (0, 7))
    assert np.array_equal(Volume(volume.uri).to_numpy(), data)
    volume.update((0, 0, 0), data[:1, :1, :1] + 1)
    assert volume[0, 0, 0] == data[0, 0, 0] + 1
    with tiledb.open(volume.uri, timestamp=LATEST) as array:
        assert array[0, 0, 0]["voxels"] == data[0, 0, 0] + 1
        assert array.meta["obs_id"] == "6"


def test_rows_columns_and_groups_count_after_a_clock_that_ran_ahead(tmp_path: Path) -> None:
    ahead = time.time_ns() // 1_000_000 + 3_600_000
    rows: dict[str, Any] = {"obs_subject_id": ["a"], "obs_id": ["a_T1w"], "age": [1]}
    Dataframe.from_pandas(tmp_path / "t", rows)
    Dataframe(tmp_path / "t", timestamp=ahead).update({**rows, "age": [2]})
    Dataframe(tmp_path / "t", timestamp=ahead + 1).add_column("site", "U8", ["x"])
    table = Dataframe(tmp_path / "t")
    assert list(table.read_all().rows()) == [{**{k: v[0] for k, v in rows.items()}, "age": 2, "site": "x"}]
    table.update({**rows, "age": [3]})
    table.add_column("score", np.int32, [7])
    table.drop_column("site")
    found = {"obs_subject_id": "a", "obs_id": "a_T1w", "age": 3, "score": 7}
    assert list(Dataframe(tmp_path / "t").read_all().rows()) == [found]
    group, session = str(tmp_path / "g"), Session.of(None)
    tiledb.Group.create(group)
    write_group(group, session, meta={"n": 1}, timestamp=ahead)
    write_group(group, session, meta={"n": 2})
    with tiledb.Group(group, "r", tiledb.Config({"sm.group.timestamp_end": str(LATEST)})) as opened:
        assert opened.meta["n"] == 2


def merge_commits(uri: str) -> Path:
    """Make the list of commits that another process makes of what it sees; return it."""
    tiledb.consolidate(uri, config=tiledb.Config({"sm.consolidation.mode": "commits"}))
    (listing,) = Path(uri, "__commits").glob("*.con")
    return listing


def test_no_list_of_commits_is_made_while_another_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, data = make_updated(tmp_path)
    consolidate = tiledb.consolidate

    def interrupted(uri: str, **options: Any) -> None:
        consolidate(uri, **options)
        if options["config"]["sm.consolidation.mode"] == "fragments":
            volume.update((0, 0, 0), np.full((2, 2, 2), 99, np.int16))

    monkeypatch.setattr(tiledb, "consolidate", interrupted)
    volume.consolidate()
    data[:2, :2, :2] = 99
    assert len(volume.fragments()) == 2
    assert {path.suffix for path in Path(volume.uri, "__commits").iterdir()} == {".wrt"}
    assert np.array_equal(Volume(volume.uri).to_numpy(), data)


def test_a_volume_is_consolidated_by_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, data = make_updated(tmp_path)
    waits = threading.Event()

    def wait(*arguments: Any, **options: Any) -> Any:
        waits.set()
        return hold_lock(*arguments, **options)

    monkeypatch.setattr(fragments, "hold_lock", wait)
    thread = threading.Thread(target=volume.consolidate)
    with hold_lock(Path(volume.uri, LOCK_NAME), 10):
        thread.start()
        assert waits.wait(60)
        assert len(volume.fragments()) == 9
        refused = pytest.raises(BackendError, match=f"consolidates {volume.uri} or writes its replicas")
        with refused, fragments.only_merger(volume.uri, patience=0):
            pass
    thread.join(60)
    assert len(volume.fragments()) == 1
    assert np.array_equal(volume.to_numpy(), data)


def test_verify_opens_a_volume_whose_list_of_commits_names_what_was_merged(tmp_path: Path) -> None:
    """What two processes left that consolidated one volume: one made the list, the other removed the rest."""
    volume, data = make_updated(tmp_path)
    shutil.copytree(volume.uri, tmp_path / "other")
    listing = merge_commits(str(tmp_path / "other"))
    volume.consolidate()
    shutil.copy(listing, Path(volume.uri, "__commits"))
    with pytest.raises(tiledb.TileDBError):
        tiledb.open(volume.uri)
    (row,) = run("verify", volume.uri, "--json", code=1).rows
    assert (row["status"], len(row["detail"].split(", "))) == ("bad", 9)
    (row,) = run("verify", volume.uri, "--fix", "--json").rows
    assert (row["status"], len(row["ignored"].split(", "))) == ("ok", 9)
    for _ in range(2):
        assert np.array_equal(Volume(volume.uri).to_numpy(), data)
        with tiledb.open(volume.uri) as array:
            assert np.array_equal(array[:]["voxels"], data.transpose(volume.array.layout.order))
        assert run("verify", volume.uri, "--json").rows[0].keys() >= {"shape"}
        volume.update((0, 0, 0), data[:1, :1, :1])
        volume.consolidate()


def test_verify_does_not_call_healthy_what_lost_voxels(tmp_path: Path) -> None:
    volume, _ = make_updated(tmp_path)
    merge_commits(volume.uri)
    last = volume.fragments()[-1].name
    shutil.rmtree(Path(volume.uri, "__fragments", last))
    before = sorted(Path(volume.uri, "__commits").iterdir())
    (row,) = run("verify", volume.uri, "--fix", "--json", code=1).rows
    assert row["status"] == "bad"
    assert f"{last} is gone, and no other holds its voxels" in row["detail"]
    assert sorted(Path(volume.uri, "__commits").iterdir()) == before
