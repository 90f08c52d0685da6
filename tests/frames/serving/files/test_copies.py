"""Copies of an instance: one that is damaged or cannot be read hides no good one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support.builders import dicom, element, image, pattern
from voxtier.errors import BackendError, FormatError, NotFoundError, SourceError
from voxtier.frames import FrameReader, FrameStore, read_many, read_tables

UID = "2.25.1"
PIXELS = [pattern(64, frame) for frame in range(2)]
WHOLE = dicom([*image(rows=8, columns=8, frames=2), element("PixelData", b"".join(PIXELS))]).content


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


BAD: dict[str, Callable[[Path], object]] = {
    "no DICOM": lambda path: path.write_bytes(b"x" * 5000),
    "empty": lambda path: path.write_bytes(b""),
    "cut in its header": lambda path: path.write_bytes(WHOLE[:200]),
    "cut before the last frame": lambda path: path.write_bytes(WHOLE[:-64]),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": make_loop,
}
GONE: dict[str, Callable[[Path], object]] = {
    "gone": lambda _: None,
    "in no folder": lambda path: (path.parent.rmdir(), path.parent.write_bytes(b"")),
}


@pytest.fixture
def copies(tmp_path: Path, store: FrameStore) -> list[Path]:
    paths = [tmp_path / folder / "1.dcm" for folder in "abc"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(WHOLE)
    store.upsert("s", read_tables(paths))
    return paths


def spoil(path: Path, fault: Callable[[Path], object], reader: FrameReader) -> None:
    path.unlink()
    fault(path)
    reader._files.forget(str(path))  # what a second of time does


@pytest.mark.parametrize("is_known", [False, True], ids=["new reader", "reader that served it"])
@pytest.mark.parametrize("fault", [*BAD, *GONE])
def test_the_next_copy_is_read(store: FrameStore, copies: list[Path], fault: str, *, is_known: bool) -> None:
    for way in (
        lambda reader: reader.frame(UID, 1),
        lambda reader: reader.frames(UID, [1, 0])[0],
        lambda reader: asyncio.run(reader.aframe(UID, 1)),
        lambda reader: next(read_many(reader, [(UID, 1)]))[1],
    ):
        with FrameReader(store, "s", publish=False) as reader:
            if is_known:
                assert reader.frame(UID, 0) == PIXELS[0]
            for path in copies[:2]:
                spoil(path, {**BAD, **GONE}[fault], reader)
            for _ in range(2):
                assert way(reader) == PIXELS[1]
            if fault != "cut before the last frame":  # which has a table too
                assert reader.table(UID).describes(str(copies[2]))
                assert reader.path_of(UID) == str(copies[2])
        for path in copies[:2]:
            restore(path)


def restore(path: Path) -> None:
    if path.is_dir():
        path.rmdir()
    if path.parent.is_file():
        path.parent.unlink()
        path.parent.mkdir()
    path.unlink(missing_ok=True)
    path.write_bytes(WHOLE)


@pytest.mark.parametrize("fault", BAD)
def test_where_no_copy_is_good_the_first_one_says_why(
    store: FrameStore, copies: list[Path], fault: str
) -> None:
    with FrameReader(store, "s", publish=False) as reader:
        copies[0].unlink()
        spoil(copies[1], BAD[fault], reader)
        spoil(copies[2], BAD["empty"], reader)
        with pytest.raises((FormatError, OSError)) as of_path:
            reader.frame(str(copies[1]), 1)
        for _ in range(2):
            with pytest.raises(type(of_path.value)) as of_uid:
                reader.frame(UID, 1)
            assert str(of_uid.value) == str(of_path.value)
        for path in copies[1:]:
            path.rmdir() if path.is_dir() else path.unlink()
            reader._files.forget(str(path))
        with pytest.raises(NotFoundError, match="run `voxtier index` again"):
            reader.frame(UID, 1)


def test_an_index_that_does_not_answer_hides_no_error(
    store: FrameStore, copies: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FrameReader(store, "s", publish=False) as reader:
        assert reader.frame(UID, 0) == PIXELS[0]
        served = reader._uids.last(UID)
        assert served is not None
        spoil(Path(served), BAD["empty"], reader)

        def refuse(_: object, **__: object) -> None:
            raise BackendError("the index does not answer")

        assert reader.index is not None
        monkeypatch.setattr(reader.index, "ask", refuse)
        with pytest.raises(FormatError, match="empty"):
            reader.frame(UID, 0)
        with pytest.raises(BackendError):
            reader.frame("2.25.2", 0)


def test_a_frame_that_no_copy_has_is_an_index_error(store: FrameStore, copies: list[Path]) -> None:
    with FrameReader(store, "s", publish=False) as reader, pytest.raises(IndexError):
        reader.frame(UID, 2)


def test_of_very_many_copies_that_fail_few_are_tried(
    store: FrameStore, copies: list[Path], tmp_path: Path
) -> None:
    links = [tmp_path / f"{number}.dcm" for number in range(20)]
    for link in links:
        os.link(copies[0], link)
    store.upsert("s", read_tables(links))
    tried: list[str] = []

    def answer(path: str) -> None:
        tried.append(path)
        raise SourceError("io_error", None, f"{path}: no answer")

    with FrameReader(store, "s", publish=False) as reader:
        with pytest.raises(SourceError, match=str(links[0])):
            reader._frames.of_instance(UID, answer)
        assert len(tried) == 8
