"""A read shows a file to nobody else: links to it, copies and replaced files get no row of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from frames.serving.files.test_groups import SOURCE, UID, Open, lakebase, path, reader_for, refuses  # noqa: F401
from frames.serving.images import frame_of, native
from voxtier.errors import NotFoundError
from voxtier.frames import FrameReader, LakebaseUtils, read_tables

pytestmark = pytest.mark.usefixtures("path")
NEW = "2.25.99"
Name = Callable[[Path, Path], object]
WAYS: dict[str, Name] = {
    "link": lambda file, other: other.symlink_to(file),
    "hard link": lambda file, other: other.hardlink_to(file),
    "copy": shutil.copyfile,
}


def read_and_keep(lakebase: LakebaseUtils, name: str, frame: int, groups: list[str] | None) -> bytes:  # noqa: F811
    """Read a frame as somebody who may, and have what was computed written to the index."""
    with FrameReader(lakebase.store, SOURCE, publish=False, user_groups=groups) as reader:
        found = reader.frame(name, frame)
        reader.flush()
    return found


def rows(lakebase: LakebaseUtils) -> list[str]:  # noqa: F811
    return [found for (found,) in lakebase.store.query("SELECT path FROM voxtier.file ORDER BY path", ())]


@pytest.mark.parametrize("groups", [None, ["staff"]], ids=["anybody", "the group"])
@pytest.mark.parametrize("rights", ["rule", "row"])
@pytest.mark.parametrize("how", WAYS)
def test_reading_a_hidden_instance_under_another_name_shows_it_to_nobody(
    reader_for: Open,  # noqa: F811
    lakebase: LakebaseUtils,  # noqa: F811
    tmp_path: Path,
    how: str,
    rights: str,
    groups: list[str] | None,
) -> None:
    """The rule is for the folder of the file alone, so that none is for the other name."""
    lakebase.reset_allowed_groups(SOURCE)
    (tmp_path / "trial").mkdir()
    hidden, other = tmp_path / "trial" / "h.dcm", tmp_path / "other.dcm"
    hidden.write_bytes(native(2, 5, NEW))
    lakebase.store.upsert(SOURCE, read_tables([hidden]))
    if rights == "rule":
        lakebase.upsert_access_rule(SOURCE, "staff", path_prefix=f"{tmp_path}/trial")
    else:
        given = "UPDATE voxtier.file SET allowed_groups = '{staff}' WHERE path = %s RETURNING 1"
        lakebase.store.change(given, (str(hidden),))
    WAYS[how](hidden, other)
    before = rows(lakebase)
    assert refuses(reader_for("others"), str(other))
    assert read_and_keep(lakebase, str(other), 1, groups) == frame_of(1, 2, 5)
    assert rows(lakebase) == before
    assert refuses(reader_for("others"), str(other))
    with pytest.raises(NotFoundError):
        reader_for("others").frame(NEW, 0)
    assert reader_for("staff").frame(NEW, 0) == frame_of(0, 2, 5)


@pytest.mark.parametrize("groups", [None, ["staff"]], ids=["anybody", "the group"])
def test_an_open_file_that_becomes_a_copy_of_a_hidden_instance_is_hidden(
    reader_for: Open,  # noqa: F811
    lakebase: LakebaseUtils,  # noqa: F811
    path: str,  # noqa: F811
    groups: list[str] | None,
) -> None:
    lakebase.reset_allowed_groups(SOURCE)
    opened = Path(path).with_name("open.dcm")
    opened.write_bytes(native(2, 5, NEW))
    lakebase.store.upsert(SOURCE, read_tables([opened]))
    lakebase.store.change(
        "UPDATE voxtier.file SET allowed_groups = '{staff}' WHERE path = %s RETURNING 1", (path,)
    )
    assert reader_for("others").frame(str(opened), 0) == frame_of(0, 2, 5)
    shutil.copyfile(path, opened)
    assert refuses(reader_for("others"), str(opened))
    assert read_and_keep(lakebase, str(opened), 2, groups) == frame_of(2)
    assert refuses(reader_for("others"), str(opened))
    assert refuses(reader_for("others"), UID)


@pytest.mark.parametrize("groups", [None, ["staff"]], ids=["anybody", "the group"])
@pytest.mark.parametrize("how", ["link", "folder", "root of a process"])
def test_a_file_below_a_rule_that_is_not_indexed_is_hidden_by_any_name(
    reader_for: Open,  # noqa: F811
    lakebase: LakebaseUtils,  # noqa: F811
    tmp_path: Path,
    how: str,
    groups: list[str] | None,
) -> None:
    lakebase.reset_allowed_groups(SOURCE)
    trial = tmp_path / "trial"
    trial.mkdir()
    (trial / "old.dcm").write_bytes(native(2, 1, "2.25.1"))
    lakebase.store.upsert(SOURCE, read_tables([trial / "old.dcm"]))
    lakebase.upsert_access_rule(SOURCE, "staff", path_prefix=str(trial))
    new = trial / "new.dcm"
    new.write_bytes(native(2, 5, NEW))
    if how == "link":
        (tmp_path / "link.dcm").symlink_to(new)
        name = str(tmp_path / "link.dcm")
    elif how == "folder":
        (tmp_path / "linked").symlink_to(trial)
        name = str(tmp_path / "linked" / "new.dcm")
    else:
        name = f"/proc/self/root{new}"
    assert refuses(reader_for("others"), name)
    assert read_and_keep(lakebase, name, 1, groups) == frame_of(1, 2, 5)
    assert refuses(reader_for("others"), name)
    lakebase.store.upsert(SOURCE, read_tables([new]))
    assert refuses(reader_for("others"), name)
    with pytest.raises(NotFoundError):
        reader_for("others").frame(NEW, 0)


def test_what_nobody_hides_is_kept_by_the_name_of_a_link(store_of_links: tuple[LakebaseUtils, str]) -> None:
    lakebase, name = store_of_links  # noqa: F811
    assert read_and_keep(lakebase, name, 1, None) == frame_of(1, 2, 5)
    assert name in rows(lakebase)


@pytest.fixture
def store_of_links(dsn: str, tmp_path: Path) -> tuple[LakebaseUtils, str]:
    """An index without rules, and an archive that lies elsewhere than its name says."""
    lakebase = LakebaseUtils(dsn=dsn, uc_table_name=SOURCE)  # noqa: F811
    lakebase.reset_allowed_groups(SOURCE)
    lakebase.store.change("DELETE FROM voxtier.access_rule RETURNING 1", ())
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt" / "f.dcm").write_bytes(native(2, 5, NEW))
    (tmp_path / "data").symlink_to(tmp_path / "mnt")
    return lakebase, str(tmp_path / "data" / "f.dcm")


def test_hidden_and_missing_are_refused_in_equal_words_by_uid(
    reader_for: Open,  # noqa: F811
    path: str,  # noqa: F811
) -> None:
    reader = reader_for("others")

    def words(uid: str) -> str:
        with pytest.raises(NotFoundError) as refused:
            reader.frame(uid, 0)
        return str(refused.value).replace(uid, "UID")

    assert words(UID) == words("2.25.404")
    loop = Path(path)
    loop.unlink()
    os.symlink(loop, loop)  # it cannot be opened, which is told to those who may see it
    assert words(UID) == words("2.25.404")
    with pytest.raises(NotFoundError):
        reader.frame(path, 0)
    with pytest.raises(OSError, match="levels of symbolic links"):
        reader_for("staff").frame(path, 0)
