"""What was made from relative paths stays of their files when the working folder changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from frames.gateway.slides import write_slide
from frames.indexing.files import native
from support.builders import pattern
from voxtier.frames import FrameDataset, FrameReader, Slide, generate_frames
from voxtier.frames.gateway.hot_set import HotSet
from voxtier.frames.memory.cache import FrameCache
from voxtier.frames.sources.address import anchored
from voxtier.system.home import default_home

UIDS = "1.2.7", "1.2.7.1", "1.2.7.1.1"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, and beside it a folder of other files of the same names, and one without them."""
    for seed, name in enumerate(("here", "there")):
        (tmp_path / name / "slide").mkdir(parents=True)
        (tmp_path / name / "a.dcm").write_bytes(native(3, seed))
    (tmp_path / "nothing").mkdir()
    write_slide(tmp_path / "there" / "slide" / "1.dcm", UIDS, 2, 3)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "there"


@pytest.mark.parametrize("elsewhere", ["there", "nothing"])
@pytest.mark.parametrize("with_reader", [False, True])
def test_frames_and_tiles_are_those_of_the_files_that_were_named(
    there: Path, elsewhere: str, with_reader: bool
) -> None:
    tiles = [tile + bytes(len(tile) % 2) for tile in write_slide(Path("slide/1.dcm"), UIDS, 3, 2)]
    slide = Slide("slide", reader=FrameReader() if with_reader else None)
    dataset = FrameDataset([Path("a.dcm"), "./a.dcm"], decode=False)
    frames, first = generate_frames("a.dcm"), generate_frames(Path("a.dcm"))
    next(first)
    here = Path.cwd()
    os.chdir(there.parent / elsewhere)
    assert [slide.tile(0, number % 3, number // 3) for number in range(6)] == tiles
    want = [pattern(48, 0)[start : start + 16] for start in (0, 16, 32)]
    assert [dataset[number] for number in range(6)] == want + want
    assert list(frames) == want
    assert list(first) == want[1:]
    assert dataset.place(0) == (str(here / "a.dcm"), 0)


def test_a_folder_behind_a_link_is_left_by_the_system(there: Path) -> None:
    Path("link").symlink_to(there / "slide")
    assert FrameDataset(["link/../a.dcm"], decode=False)[0] == pattern(48, 1)[:16]


@pytest.mark.parametrize("name", ["s3://bucket/a.dcm", "/a/../b.dcm", "", "dbfs:/a.dcm", "https://h/a?b"])
def test_a_name_that_no_folder_changes_stays(name: str) -> None:
    assert anchored(name) == name


def test_the_saved_hot_set_and_the_home_stay_where_they_were_named(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path.cwd()
    hot = HotSet(FrameCache(1 << 20), "hot")
    monkeypatch.setenv("VOXTIER_HOME", f"home-of-{there.parent.name}")
    home = default_home()
    os.chdir(there)
    hot.start()
    hot.stop()
    assert (here / "hot").is_file()
    assert home == default_home() == here / f"home-of-{there.parent.name}"
