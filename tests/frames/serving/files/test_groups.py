"""A reader for a user's groups serves what the index shows to them, from memory, PostgreSQL and the file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from frames.serving.images import frame_of, native
from voxtier import _core
from voxtier.errors import BackendError, ConfigError, NotFoundError
from voxtier.frames import FrameCache, FrameReader, FrameStore, LakebaseUtils, read_tables
from voxtier.frames.store.grants import grants

SOURCE = "main.pixels.catalog"
UID = "2.25.7"


@pytest.fixture
def lakebase(dsn: str) -> Iterator[LakebaseUtils]:
    with LakebaseUtils(dsn=dsn, uc_table_name=SOURCE) as lakebase:
        lakebase.store.sources()
        yield lakebase


@pytest.fixture
def path(tmp_path: Path, lakebase: LakebaseUtils) -> str:
    """An indexed file that the group staff may see."""
    path = tmp_path / "a.dcm"
    path.write_bytes(native(3, 0, UID))
    lakebase.store.upsert(SOURCE, read_tables([path]))
    lakebase.upsert_access_rule(SOURCE, "staff")
    return str(path)


Open = Callable[..., FrameReader]


@pytest.fixture
def reader_for(lakebase: LakebaseUtils) -> Iterator[Open]:
    readers: list[FrameReader] = []

    def open_reader(
        *groups: str, cache: FrameCache | None = None, store: FrameStore | None = None
    ) -> FrameReader:
        store = store or lakebase.store
        readers.append(FrameReader(store, SOURCE, cache=cache, publish=False, user_groups=groups))
        return readers[-1]

    yield open_reader
    for reader in readers:
        reader.close()


def refuses(reader: FrameReader, name: str) -> bool:
    """Whether every way to ask for a file is refused, and in the words for one that does not exist."""
    asked = [lambda: reader.frame(name, 0), lambda: reader.frames(name, [1, 0]), lambda: reader.table(name)]
    if name == UID:
        asked.append(lambda: reader.path_of(name))
    for ask in asked:
        with pytest.raises(NotFoundError):
            ask()
    return True


@pytest.mark.parametrize("name", ["path", UID])
def test_memory_that_another_reader_made_hot_is_not_served(reader_for: Open, path: str, name: str) -> None:
    name = path if name == "path" else name
    cache = FrameCache(1 << 20)
    staff, others = reader_for("staff", cache=cache), reader_for("others", "nobody", cache=cache)
    assert staff.frame(name, 1) == frame_of(1)
    assert staff.frame(name, 1) == frame_of(1)
    assert (path in cache, staff.stats()["tier1"]) == (True, 1)
    assert refuses(others, name)
    with pytest.raises(NotFoundError):
        asyncio.run(others.aframe(name, 1))
    assert asyncio.run(staff.aframe(name, 1)) == frame_of(1)
    assert path in cache, "who may not read a file must not push it out of memory either"
    assert staff.frame(name, 2) == frame_of(2)


@pytest.mark.parametrize("name", ["path", UID])
def test_index_and_file_are_served_to_the_group_alone(
    reader_for: Open, lakebase: LakebaseUtils, path: str, name: str
) -> None:
    name = path if name == "path" else name
    assert refuses(reader_for("others"), name)
    assert refuses(reader_for(), name)
    staff = reader_for("others", "staff")
    assert staff.frame(name, 0) == frame_of(0)
    assert staff.stats()["tier2"] == 1
    os.utime(path)  # what the index has is of no use now
    assert refuses(reader_for("others"), name)
    again = reader_for("staff")
    assert again.frame(name, 0) == frame_of(0)
    assert again.stats()["tier3"] == 1


def test_file_that_is_not_indexed_follows_the_rules(reader_for: Open, path: str) -> None:
    new = Path(path).with_name("new.dcm")
    new.write_bytes(native(2, 5, "2.25.99"))
    assert refuses(reader_for("others"), str(new))
    assert reader_for("staff").frame(str(new), 1) == frame_of(1, 2, 5)


def test_file_without_any_rule_is_for_everyone(
    reader_for: Open, lakebase: LakebaseUtils, tmp_path: Path
) -> None:
    free = tmp_path / "free.dcm"
    free.write_bytes(native(2, 3, "2.25.5"))
    assert reader_for("whoever").frame(str(free), 0) == frame_of(0, 2, 3)
    lakebase.store.upsert(SOURCE, read_tables([free]))
    assert reader_for().frame("2.25.5", 1) == frame_of(1, 2, 3)


@pytest.mark.parametrize("how", ["link", "hard link", "copy"])
def test_another_name_of_a_hidden_file_is_hidden(
    reader_for: Open, lakebase: LakebaseUtils, tmp_path: Path, how: str
) -> None:
    """A rule by prefix does not name the other path: the instance is the same."""
    (tmp_path / "trial").mkdir()
    hidden = tmp_path / "trial" / "a.dcm"
    hidden.write_bytes(native(2, 1, UID))
    lakebase.store.upsert(SOURCE, read_tables([hidden]))
    lakebase.upsert_access_rule(SOURCE, "trial team", path_prefix=str(tmp_path / "trial"))
    other = tmp_path / "b.dcm"
    if how == "link":
        other.symlink_to(hidden)
    elif how == "hard link":
        os.link(hidden, other)
    else:
        other.write_bytes(hidden.read_bytes())
    assert refuses(reader_for("staff"), str(other))
    assert reader_for("trial team").frame(str(other), 0) == frame_of(0, 2, 1)


def test_right_that_is_withdrawn_ends_with_the_next_request(
    reader_for: Open, lakebase: LakebaseUtils, path: str
) -> None:
    staff = reader_for("staff")
    assert staff.frame(path, 0) == staff.frame(UID, 0) == frame_of(0)
    lakebase.execute_query("UPDATE voxtier.file SET allowed_groups = ARRAY['others']")
    assert refuses(staff, path)
    assert refuses(staff, UID)
    lakebase.reset_allowed_groups()
    assert staff.frame(UID, 0) == frame_of(0)


def test_row_of_another_instance_says_nothing_of_the_file(
    reader_for: Open, lakebase: LakebaseUtils, path: str
) -> None:
    """The path was for staff because of the instance that it held; what it holds now is for the trial."""
    lakebase.execute_query("DELETE FROM voxtier.access_rule")
    lakebase.upsert_access_rule(SOURCE, "staff", "conditional", "ward = 1")
    lakebase.upsert_access_rule(SOURCE, "trial", "conditional", "trial = 1")
    found = {"ward": [(UID,)], "trial": [("2.25.8",)]}

    class Warehouse:
        def execute(self, query: str, parameters: object = None) -> list[tuple[str]]:
            assert parameters is None
            return next(rows for word, rows in found.items() if word in query.split("WHERE")[1])

    assert lakebase.sync_uc_row_filters(SOURCE, Warehouse()) == 1
    staff, trial = reader_for("staff"), reader_for("trial")
    assert staff.frame(path, 0) == frame_of(0)
    assert refuses(trial, path)
    new = Path(path).with_name("aside")
    new.write_bytes(native(3, 9, "2.25.8"))
    new.replace(path)
    staff._files.forget(path)  # what a second of time does
    trial._files.forget(path)
    assert refuses(staff, path)
    assert refuses(trial, path), "until the index is told, its row holds too"
    lakebase.store.upsert(SOURCE, read_tables([path]))
    assert refuses(staff, path)
    assert trial.frame(path, 0) == frame_of(0, 3, 9)


def test_copy_that_the_groups_may_see_answers_for_the_instance(
    reader_for: Open, lakebase: LakebaseUtils, tmp_path: Path
) -> None:
    for folder in ("a-hidden", "b-open"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.dcm").write_bytes(native(3, 0, UID))
        lakebase.store.upsert(SOURCE, read_tables([tmp_path / folder / "x.dcm"]))
    lakebase.upsert_access_rule(SOURCE, "trial team", path_prefix=str(tmp_path / "a-hidden"))
    reader = reader_for("staff")
    assert reader.frame(UID, 0) == frame_of(0)
    assert reader.path_of(UID) == str(tmp_path / "b-open" / "x.dcm")
    assert refuses(reader, str(tmp_path / "a-hidden" / "x.dcm"))


def test_claim_for_some_groups_hides_the_file_before_and_after_it_is_indexed(
    reader_for: Open, lakebase: LakebaseUtils, tmp_path: Path
) -> None:
    file = tmp_path / "claimed.dcm"
    file.write_bytes(native(3, 0, UID))
    entry = {"local_path": f"dbfs:{file}", "sop_instance_uid": UID, "uc_table_name": SOURCE}
    lakebase.insert_instance_paths_batch([entry], allowed_groups=["staff, day"])
    for _ in range(2):
        assert refuses(reader_for("staff", "day"), str(file))
        assert reader_for("staff, day").frame(f"file://{file}", 0) == frame_of(0)
        lakebase.store.upsert(SOURCE, read_tables([file]))
    assert refuses(reader_for("staff"), UID)


def test_missing_file_and_hidden_file_are_refused_in_equal_words(reader_for: Open, path: str) -> None:
    reader = reader_for("others")
    words = []
    for name in (path, path.replace("a.dcm", "z.dcm"), f"{path}/below"):
        with pytest.raises(NotFoundError) as refused:
            reader.frame(name, 0)
        words.append(str(refused.value).replace(name, "NAME"))
    assert len(set(words)) == 1


def test_refused_content_is_told_to_those_who_may_read_it(
    reader_for: Open, lakebase: LakebaseUtils, path: str
) -> None:
    Path(path).write_bytes(b"no image at all, but long enough to hold one" * 9)
    lakebase.store.upsert(SOURCE, read_tables([path]))
    with pytest.raises(ValueError, match="not_dicom"):
        reader_for("staff").frame(path, 0)
    assert refuses(reader_for("others"), path)


@pytest.mark.parametrize("groups", [["staff"], ["staff", ""], ["a,b", "staff"], ["'; --", "staff"]])
def test_role_that_row_security_binds_serves_its_groups_from_the_index(
    reader_for: Open, lakebase: LakebaseUtils, dsn: str, postgres: str, path: str, groups: list[str]
) -> None:
    """The role sees no row without its groups; a row that it does not see is not a file without a row."""
    role = f"reader-{os.getpid()}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f'CREATE ROLE "{role}" LOGIN'.encode())
        connection.execute("".join(grants(role, "reader")).encode())
    try:
        with FrameStore(psycopg.conninfo.make_conninfo(dsn, user=role)) as store:
            reader = reader_for(*groups, store=store)
            assert reader.frame(path, 0) == reader.frame(UID, 0) == frame_of(0)
            assert reader.stats()["tier2"] == 1
            others = reader_for("others", store=store)
            assert refuses(others, path)
            assert refuses(others, UID)
            for each in (reader, others):
                each.close()
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f'DROP OWNED BY "{role}"'.encode())
            connection.execute(f'DROP ROLE "{role}"'.encode())


def test_database_that_does_not_answer_shows_nothing(
    reader_for: Open, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FrameCache(1 << 20)
    staff = reader_for("staff", cache=cache)
    assert staff.frame(path, 0) == frame_of(0)

    def fail(*_: object) -> None:
        raise BackendError("the server is gone")

    assert staff.index is not None
    monkeypatch.setattr(staff.index.store, "may_read", fail)
    monkeypatch.setattr(type(staff.index.store.database), "probe", fail)
    for _ in range(2):
        with pytest.raises(BackendError):
            staff.frame(path, 0)
    assert path in cache


@pytest.mark.parametrize("groups", ["staff", b"staff", 5, [None], [b"staff"], ["staff", 1]])
def test_groups_that_are_no_list_of_names_are_refused(store: FrameStore, groups: object) -> None:
    with pytest.raises(ConfigError, match="groups"):
        FrameReader(store, SOURCE, publish=False, user_groups=groups)  # type: ignore[arg-type]


def test_groups_without_an_index_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs a store"):
        FrameReader(None, publish=False, user_groups=["staff"])


def test_path_that_no_row_can_have_is_hidden(
    reader_for: Open, lakebase: LakebaseUtils, tmp_path: Path
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.dcm"))
    odd.write_bytes(native(1, 0, "2.25.3"))
    assert _core.path_fault(str(odd)) is not None
    assert refuses(reader_for("staff"), str(odd))
