"""Arrays made from a schema that TileDB wrote for another: nothing tells them from its own."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiledb
from numpy.typing import NDArray

from volumes.support.images import pairs
from voxtier.errors import ConfigError, SourceError
from voxtier.volumes import (
    CompressionConfig,
    Compressor,
    IngestError,
    RadiObject,
    TileConfig,
    Volume,
    configured,
    get_config,
)
from voxtier.volumes.tiledb import replicas
from voxtier.volumes.tiledb.format import schema_copies
from voxtier.volumes.tiledb.session import Session


@pytest.fixture(autouse=True)
def forget_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_copies, "_schemas", {})


@pytest.fixture
def by_tiledb(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count the arrays that TileDB creates."""
    created = []
    real = tiledb.Array.create

    def create(uri: str, *args: Any, **options: Any) -> None:
        created.append(uri)
        real(uri, *args, **options)

    monkeypatch.setattr(tiledb.Array, "create", create)
    return created


def write(uri: Path, image: NDArray[Any], session: Session | None = None) -> None:
    replicas.write_volume(
        str(uri), image, {"obs_id": "x"}, get_config().write, session or Session.of(None), is_free=True
    )


def list_tree(place: Path) -> dict[str, Any]:
    """Folders and schemas with their modes; of the schema's name only its form, of the rest nothing."""
    found = {}
    for path in sorted(Path(place).rglob("*")):
        inside = path.relative_to(place)
        if path.is_dir() and inside.parts[0] != "__fragments":
            found[str(inside)] = path.stat().st_mode
        elif inside.parts[0] == "__schema":
            first, last, unique = path.name.strip("_").split("_")
            assert first == last
            assert first.isdigit()
            assert len(bytes.fromhex(unique)) == 16
            found[f"schema of {len(path.name)} letters"] = (path.stat().st_mode, path.read_bytes())
    return found


@pytest.mark.parametrize("tiling", ["axial", "sagittal", "coronal", "isotropic"])
@pytest.mark.parametrize("dtype", ["i2", "u1", "f4", "f2", "?"])
def test_the_second_of_a_kind_equals_one_that_tiledb_made(
    tmp_path: Path, by_tiledb: list[str], tiling: str, dtype: str
) -> None:
    rng = np.random.default_rng(3)
    images = rng.integers(0, 2, (3, 9, 8, 70)).astype(dtype)
    with configured(tile=TileConfig(tiling)):
        for number, image in enumerate(images):
            write(tmp_path / str(number), image)
    assert by_tiledb == [str(tmp_path / "0")]
    assert list_tree(tmp_path / "1") == list_tree(tmp_path / "0") == list_tree(tmp_path / "2")
    for number, image in enumerate(images):
        volume = Volume(tmp_path / str(number))
        assert np.array_equal(volume.to_numpy(), image.astype(volume.dtype))
        with tiledb.open(str(tmp_path / str(number))) as array:  # through TileDB as well
            names = [array.domain.dim(axis).name for axis in range(3)]
            cells = array[:]["voxels"] if isinstance(array[:], dict) else array[:]
        assert np.array_equal(cells.transpose([names.index(axis) for axis in "xyz"]), image)


def test_every_option_that_shapes_an_array_makes_another_kind(tmp_path: Path, by_tiledb: list[str]) -> None:
    image = np.arange(8 * 8 * 8, dtype=np.int16).reshape(8, 8, 8)
    kinds = [
        (image, {}),
        (image.astype(np.uint16), {}),
        (image.astype(np.int32), {}),
        (image[:, :, :7], {}),
        (image[..., None], {}),
        (image, {"tile": TileConfig("sagittal")}),
        (image, {"tile": TileConfig(x=4)}),
        (image, {"compression": CompressionConfig(Compressor.LZ4)}),
        (image, {"compression": CompressionConfig(level=9)}),
        (image, {"compression": CompressionConfig(Compressor.NONE)}),
    ]
    for turn in range(2):
        for number, (voxels, options) in enumerate(kinds):
            place = tmp_path / f"{turn}-{number}"
            with configured(**options):
                write(place, voxels)
            assert np.array_equal(Volume(place).to_numpy(), voxels)
            assert Volume(place).dtype == voxels.dtype
            assert list_tree(place) == list_tree(tmp_path / f"0-{number}")
    assert len(by_tiledb) == len(kinds)


def test_keys_of_the_users_own_go_through_tiledb(tmp_path: Path, by_tiledb: list[str]) -> None:
    image = np.zeros((4, 4, 4), np.int16)
    write(tmp_path / "0", image)
    keys = {"vfs.file.posix_directory_permissions": "700"}
    for name in ("1", "2"):
        write(tmp_path / name, image, Session.of(keys))
    assert len(by_tiledb) == 3
    assert (tmp_path / "2/__commits").stat().st_mode & 0o777 == 0o700


def test_an_array_made_from_a_schema_takes_updates_and_consolidates(tmp_path: Path) -> None:
    image = np.zeros((6, 5, 4), np.int16)
    for name in ("0", "1"):
        write(tmp_path / name, image)
    volume = Volume(tmp_path / "1")
    for z in range(4):
        image[:, :, z] = z + 1
        volume.update((0, 0, z), image[:, :, z : z + 1])
    assert np.array_equal(volume.to_numpy(), image)
    volume.consolidate()
    assert len(volume.fragments()) == 1
    assert np.array_equal(volume.to_numpy(), image)
    assert volume.meta["obs_id"] == "x"


def test_what_lies_there_is_not_written_over(tmp_path: Path) -> None:
    image = np.ones((4, 4, 4), np.int16)
    write(tmp_path / "0", image)
    with pytest.raises(ConfigError, match="already exists"):
        schema_copies.create_from_copy(next(iter(schema_copies._schemas)), str(tmp_path / "0"))
    assert np.array_equal(Volume(tmp_path / "0").to_numpy(), image)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="already exists"):
        schema_copies.create_from_copy(next(iter(schema_copies._schemas)), str(tmp_path / "file"))


def test_a_disk_that_fills_up_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pairs(tmp_path / "in", ["a", "b", "c"])
    RadiObject.from_niftis(tmp_path / "one", images={"T1w": images[:1]})  # TileDB makes this one

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(schema_copies.os, "fsync", full)
        with pytest.raises(SourceError, match="No space left") as caught:
            schema_copies.create_from_copy(next(iter(schema_copies._schemas)), str(tmp_path / "v"))
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(IngestError, match=r"3 image.*No space left"):
            RadiObject.from_niftis(tmp_path / "r", images={"T1w": images})
    assert not list((tmp_path / "r/collections/T1w/volumes").glob("[abc]*"))
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": images})
    assert sorted(radi) == ["a", "b", "c"]


def test_few_schemas_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_copies, "_MOST_KINDS", 3)
    for size in range(1, 9):
        write(tmp_path / str(size), np.zeros((size, 2, 2), np.int16))
        assert 1 <= len(schema_copies._schemas) <= 3


def test_a_serial_session_keeps_the_users_keys(tmp_path: Path) -> None:
    assert Session.of(None).single_threaded().context().config()["sm.compute_concurrency_level"] == "1"
    assert Session.of(None).single_threaded().is_plain
    mine = Session.of({"sm.compute_concurrency_level": "3", "sm.check_coord_dups": "false"})
    found = mine.single_threaded().context().config()
    assert (found["sm.compute_concurrency_level"], found["sm.io_concurrency_level"]) == ("3", "1")
    assert found["sm.check_coord_dups"] == "false"
    assert not mine.single_threaded().is_plain
