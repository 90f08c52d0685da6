"""A reader tells by errors of voxtier what cannot be opened, and reads files whose names are no text."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from frames.gateway.slides import write_slide
from frames.serving.images import frame_of, native
from voxtier.errors import NotFoundError, SourceError
from voxtier.frames import FrameReader, FrameStore, Slide, read_many, read_table

WAYS: dict[str, Callable[[FrameReader, str], object]] = {
    "frame": lambda reader, name: reader.frame(name, 0),
    "frames": lambda reader, name: reader.frames(name, [0, 0])[1],
    "scan": lambda reader, name: reader.frame(name, 0, scan=True),
    "aframe": lambda reader, name: asyncio.run(reader.aframe(name, 0)),
    "read_many": lambda reader, name: next(read_many(reader, [(name, 0)]))[1],
    "table": lambda reader, name: reader.table(name),
    "slide": lambda reader, name: Slide(name, reader=reader),
}
UIDS = "1.2.7", "1.2.7.1", "1.2.7.1.1"


@pytest.fixture(params=["no index", "index"])
def reader(request: pytest.FixtureRequest, store: FrameStore) -> FrameReader:
    return FrameReader(store if request.param == "index" else None, publish=False, index_seconds=60)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("none.dcm", errno.ENOENT),
        ("file/x.dcm", errno.ENOTDIR),
        ("loop", errno.ELOOP),
        ("a" * 300, errno.ENAMETOOLONG),
        ("Bild_\udce9.dcm", errno.ENOENT),
        ("half_\ud800.dcm", errno.EINVAL),
        ("nul\0.dcm", errno.EINVAL),
    ],
)
def test_what_cannot_be_opened_is_a_source_error(
    reader: FrameReader, tmp_path: Path, way: str, name: str, number: int
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    with reader, pytest.raises(SourceError) as caught:
        WAYS[way](reader, f"{tmp_path}/{name}")
    assert caught.value.errno == number
    assert str(tmp_path) in str(caught.value)
    str(caught.value).encode()  # it can be printed


def test_for_groups_a_file_that_is_not_there_is_not_told_from_a_hidden_one(
    store: FrameStore, tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with FrameReader(store, publish=False, index_seconds=60, user_groups=["staff"]) as reader:
        for name in ("none.dcm", "none/x.dcm"):
            with pytest.raises(NotFoundError, match="no such file"):
                reader.frame(str(tmp_path / name), 0)
        with pytest.raises(SourceError):
            reader.frame(str(tmp_path / "loop"), 0)


def test_a_file_whose_name_is_no_text_is_read(reader: FrameReader, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/Bild_\xe9.dcm")
    Path(path).write_bytes(native())
    with reader:
        for _ in range(2):
            for way in ("frame", "frames", "scan", "aframe", "read_many"):
                assert WAYS[way](reader, path) == frame_of(0)
            assert reader.table(path).ranges(2) == read_table(path).ranges(2)
        other = tmp_path / "other"  # another file takes the name
        other.write_bytes(native(seed=1))
        other.replace(path)
        assert reader.table(path).status == "ok"
        reader._files.forget(path)
        assert reader.frame(path, 1) == frame_of(1, seed=1)
        reader.flush()


def test_a_slide_whose_name_is_no_text_gives_its_tiles(reader: FrameReader, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/Schnitt_\xe9"))
    folder.mkdir()
    tiles = write_slide(folder / "a.dcm", UIDS, 3, 2)
    with reader:
        for _ in range(2):
            slide = Slide(folder, reader=reader)
            found = [slide.tile(0, number % 3, number // 3) for number in range(6)]
            assert found == [tile + bytes(len(tile) % 2) for tile in tiles]
            reader.flush()
