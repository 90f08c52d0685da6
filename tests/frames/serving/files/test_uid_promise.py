"""A UID is a promise: the bytes come from a file that holds this SOP Instance now, or there are none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.builders import dicom, element, image, pattern
from voxtier.errors import NotFoundError
from voxtier.frames import FrameReader, FrameStore, read_tables

ONE, TWO = "2.25.111", "2.25.222"
ONE_PIXELS, TWO_PIXELS = pattern(16, 1), pattern(16, 2)


@pytest.fixture
def store(dsn: str) -> Iterator[FrameStore]:
    with FrameStore(dsn) as store:
        yield store


def instance(uid: str, pixels: bytes) -> bytes:
    elements = [e for e in image(frames=1) if e.tag != 0x00080018]
    elements.insert(1, element("SOPInstanceUID", uid))
    return dicom([*elements, element("PixelData", pixels)]).content


def indexed(store: FrameStore, path: Path, uid: str, pixels: bytes) -> Path:
    path.write_bytes(instance(uid, pixels))
    store.upsert("s", read_tables([path]))
    return path


@pytest.mark.parametrize("is_known", [False, True], ids=["new reader", "reader that served it"])
def test_path_that_holds_another_instance_now_is_not_served(
    tmp_path: Path, store: FrameStore, *, is_known: bool
) -> None:
    path = indexed(store, tmp_path / "a.dcm", ONE, ONE_PIXELS)
    with FrameReader(store, "s", publish=False) as reader:
        if is_known:
            assert reader.frame(ONE, 0) == ONE_PIXELS
        other = tmp_path / "other"
        other.write_bytes(instance(TWO, TWO_PIXELS))
        other.replace(path)
        reader._files.forget(str(path))  # what a second of time does
        with pytest.raises(NotFoundError, match=ONE):
            reader.frame(ONE, 0)
        store.upsert("s", read_tables([path]))
        assert reader.frame(TWO, 0) == TWO_PIXELS


def test_rewritten_in_place_with_size_and_time_kept_is_not_served(tmp_path: Path, store: FrameStore) -> None:
    """As ``cp -p`` or ``rsync --inplace -t`` do: size and mtime are those of the index, ctime is not."""
    path = indexed(store, tmp_path / "a.dcm", ONE, ONE_PIXELS)
    with FrameReader(store, "s", publish=False) as reader:
        assert reader.frame(ONE, 0) == ONE_PIXELS
        before = path.stat()
        with path.open("r+b") as file:
            file.write(instance(TWO, TWO_PIXELS))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
        with pytest.raises(NotFoundError, match=ONE):
            reader.frame(ONE, 0)


def test_second_copy_is_served_when_the_first_is_gone(tmp_path: Path, store: FrameStore) -> None:
    first = indexed(store, tmp_path / "a.dcm", ONE, ONE_PIXELS)
    indexed(store, tmp_path / "b.dcm", ONE, ONE_PIXELS)
    with FrameReader(store, "s", publish=False) as reader:
        assert reader.path_of(ONE) == str(first)
        first.unlink()
        reader._files.forget(str(first))
        assert reader.frame(ONE, 0) == ONE_PIXELS
        assert reader.path_of(ONE) == str(tmp_path / "b.dcm")


def test_second_copy_is_served_when_the_first_holds_another_instance(
    tmp_path: Path, store: FrameStore
) -> None:
    first = indexed(store, tmp_path / "a.dcm", ONE, ONE_PIXELS)
    indexed(store, tmp_path / "b.dcm", ONE, ONE_PIXELS)
    first.write_bytes(instance(TWO, TWO_PIXELS))
    with FrameReader(store, "s", publish=False) as reader:
        assert reader.frame(ONE, 0) == ONE_PIXELS


def test_moved_file_is_found_again_once_the_index_knows_it(tmp_path: Path, store: FrameStore) -> None:
    path = indexed(store, tmp_path / "a.dcm", ONE, ONE_PIXELS)
    with FrameReader(store, "s", publish=False) as reader:
        assert reader.frame(ONE, 0) == ONE_PIXELS
        moved = Path(shutil.move(path, tmp_path / "z.dcm"))
        reader._files.forget(str(path))
        with pytest.raises(NotFoundError, match="voxtier index"):
            reader.frame(ONE, 0)
        store.upsert("s", read_tables([moved]))
        assert reader.frame(ONE, 0) == ONE_PIXELS
        assert reader.path_of(ONE) == str(moved)


def test_uid_that_no_file_holds_is_not_found(tmp_path: Path, store: FrameStore) -> None:
    indexed(store, tmp_path / "a.dcm", ONE, ONE_PIXELS)
    with FrameReader(store, "s", publish=False) as reader:
        for ask in (lambda: reader.frame("1.2.3", 0), lambda: reader.path_of("1.2.3")):
            with pytest.raises(NotFoundError, match=r"1\.2\.3"):
                ask()


def test_hundred_replacements_never_give_bytes_of_another_instance(tmp_path: Path, store: FrameStore) -> None:
    path = indexed(store, tmp_path / "a.dcm", ONE, ONE_PIXELS)
    of = {ONE: ONE_PIXELS, TWO: TWO_PIXELS}
    served = 0
    with FrameReader(store, "s", publish=False) as reader:
        for turn in range(100):
            uid = (ONE, TWO)[turn % 2]
            aside = tmp_path / "aside"
            aside.write_bytes(instance(uid, of[uid]))
            aside.replace(path)
            if turn % 3 == 0:
                store.upsert("s", read_tables([path]))
            for asked, pixels in of.items():
                try:
                    assert reader.frame(asked, 0) == pixels
                    served += 1
                except NotFoundError:
                    pass
    assert served >= 30
