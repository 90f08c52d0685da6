"""The search index: the same answers as from headers, kept right by triggers, removed by one command."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from frames.gateway.search.test_search import files as files  # a fixture
from frames.gateway.serving import index
from voxtier.errors import ConfigError
from voxtier.frames.gateway.search import search as search_module
from voxtier.frames.gateway.search.query import parse
from voxtier.frames.gateway.search.search import Search
from voxtier.frames.indexing.run import FileIndexer, index_files
from voxtier.frames.indexing.search import fill_search_index
from voxtier.frames.store import search_index
from voxtier.frames.store.grants import grants, search_grants
from voxtier.frames.store.search_index import Making, SearchIndex
from voxtier.frames.store.store import FrameStore

LEVELS = ["studies", "series", "instances", "studies/1.2.3.1/series", "studies/1.2.3.1/instances"]
QUERIES = [
    "",
    "PatientName=m%C3%9CLLER*",
    "PatientName=*%5E%C3%84nne%20?",
    "PatientName=%25*_",
    "00100010=Compressed*",
    "PatientID=1CT1&StudyDate=20040119",
    "PatientID=*C*",
    "PatientID=",
    "Modality=&SeriesNumber=&Rows=",
    "SpecificCharacterSet=ISO_IR%20192&TimezoneOffsetFromUTC=-0500",
    "PatientID=%5C*",
    "StudyDate=20261111-20261113",
    "StudyDate=-20051231",
    "StudyDate=20261112-",
    "StudyTime=07-08",
    "StudyTime=0900-1200",
    "StudyTime=07:27:30.0",
    "StudyDate=2026.11.11-",
    "AccessionNumber=*",
    "AccessionNumber=?*",
    "Modality=CT",
    "Modality=?R",
    "ModalitiesInStudy=CT",
    "ModalitiesInStudy=MR%5CCT",
    "ModalitiesInStudy=XA,MR",
    "Modality=CT,S?",
    "NumberOfStudyRelatedInstances=3",
    "NumberOfStudyRelatedSeries=02",
    "NumberOfSeriesRelatedInstances=2",
    "NumberOfSeriesRelatedInstances=",
    "ModalitiesInStudy=CT&NumberOfStudyRelatedSeries=2&limit=2&offset=1",
    "includefield=ModalitiesInStudy,00201206,00201208,00201209",
    "AvailableTransferSyntaxUID=1.2,1.2.840.10008.1.2.1",
    "InstanceAvailability=ONLINE",
    "InstanceAvailability=O?LINE",
    "RetrieveURL=*1.2.3.1*",
    "StudyDate=*",
    "InstanceNumber=05",
    "InstanceNumber=5",
    "Rows=128",
    "SOPClassUID=1.2.840.10008.5.1.4.1.1.2",
    "SOPClassUID=1.2.840.10008.5.1.4.1.1.2,1.2.840.10008.5.1.4.1.1.4",
    "SOPClassUID=1.2%5C1.2.840.10008.5.1.4.1.1.4%5C",
    "StudyInstanceUID=1.2.3.1,1.2.3.2",
    "StudyInstanceUID=1.2.3.1%5C1.2.3.4&Modality=CT",
    "SeriesInstanceUID=1.2.3.1.1",
    "SOPInstanceUID=1.2.4.1",
    "includefield=00080021,00080031,0008103E,00200011",
    "includefield=PatientName&includefield=00280010",
    "includefield=all",
    "RequestAttributesSequence.ScheduledProcedureStepID=*",
    "ReferringPhysicianName=*&limit=2&offset=1",
    "limit=3&offset=2",
    "limit=0",
    "offset=100",
]


ALL = list(itertools.product(LEVELS, QUERIES))
# Each query at two levels: enough where two answers differ by what happened in between.
SOME = [(LEVELS[(n + further) % len(LEVELS)], query) for n, query in enumerate(QUERIES) for further in (0, 1)]


def answers(store: FrameStore, questions: list[tuple[str, str]] = SOME) -> dict[str, Any]:
    search = Search()
    return {f"{level}?{query}": answer_or_refusal(search, store, level, query) for level, query in questions}


def answer_or_refusal(search: Search, store: FrameStore, level: str, query: str) -> Any:
    try:
        return search.answer(store, "default", parse(level, query), "/dicomweb")
    except ConfigError as error:
        assert "alone: search there" in str(error)
        return [], str(error)


def fill(store: FrameStore) -> SearchIndex:
    made = SearchIndex(store)
    made.switch_on("default")
    assert not made.is_complete("default")
    assert sum(fill_search_index(made, "default")) > 0
    assert made.is_complete("default")
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count the searches that are answered by the search index."""
    from voxtier.frames.gateway.search import search

    found: list[str] = []
    original = search._search_index

    def count(store: FrameStore, source: str, query: Any, **options: bool) -> Any:
        found.append(query.level)
        return original(store, source, query, **options)

    monkeypatch.setattr(search, "_search_index", count)
    return found


@pytest.mark.usefixtures("files")
def test_both_ways_give_the_same_answers(store: FrameStore, asked: list[str]) -> None:
    by_headers = answers(store, ALL)
    assert sum(bool(found) for found, _ in by_headers.values()) > 60
    fill(store)
    assert not asked
    for query, found in answers(store, ALL).items():
        assert found == by_headers[query], query
    assert len(asked) > 100


@pytest.mark.usefixtures("files")
def test_both_ways_count_copies_once(store: FrameStore, tmp_path: Path, asked: list[str]) -> None:
    before = answers(store, ALL)
    copies = tmp_path / "copies"
    copies.mkdir()
    for name in ("0.dcm", "5.dcm", "MR_small.dcm"):
        (copies / name).write_bytes((tmp_path / name).read_bytes())
    index(store, copies.iterdir())
    assert answers(store, ALL) == before
    made = fill(store)
    assert answers(store, ALL) == before
    assert len(asked) > 100
    store.delete("default", [str(tmp_path / "5.dcm")])  # the copy is left
    assert made.is_complete("default")
    assert answers(store, [("instances", "")])["instances?"] == before["instances?"]


@pytest.mark.usefixtures("files")
def test_what_changes_in_the_index_changes_in_the_search_index(
    store: FrameStore, tmp_path: Path, asked: list[str]
) -> None:
    made = fill(store)
    first, second = tmp_path / "1.dcm", tmp_path / "2.dcm"
    first.write_bytes(second.read_bytes())  # another instance lies here now
    index(store, [first])
    assert not made.is_complete("default")
    held = "SELECT count(*) FROM voxtier_search.instance AS i JOIN voxtier.file USING (key) WHERE path = %s"
    assert store.query(held, (str(first),)) == [(0,)]
    changed = answers(store)
    assert not asked
    assert sum(fill_search_index(made, "default")) == 1
    assert answers(store) == changed
    store.delete("default", [str(second), str(tmp_path / "3.dcm")])
    assert made.is_complete("default")
    with_index = answers(store)
    assert made.drop()
    assert answers(store) == with_index
    assert not made.drop()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("column", ["size", "mtime_ns", "ctime_ns", "inode", "etag"])
def test_another_state_of_a_file_is_another_file(store: FrameStore, tmp_path: Path, column: str) -> None:
    made = fill(store)
    path = str(tmp_path / "1.dcm")
    value = "'another'" if column == "etag" else "7"
    store.query(f"UPDATE voxtier.file SET {column} = {value} WHERE path = %s RETURNING 1", (path,))
    assert not made.is_complete("default")
    held = "SELECT count(*) FROM voxtier_search.instance AS i JOIN voxtier.file USING (key) WHERE path = %s"
    assert store.query(held, (path,)) == [(0,)]


@pytest.mark.usefixtures("files")
def test_a_file_that_cannot_be_read_is_found_by_its_uids_and_tried_again(
    store: FrameStore, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden"
    (tmp_path / "4.dcm").rename(hidden)
    made = fill(store)
    found, _ = Search().answer(store, "default", parse("instances", "SOPInstanceUID=1.2.4.4"), "")
    assert [set(each) for each in found] == [
        {"0020000D", "0020000E", "00080018", "00080056", "00083002", "00081190"}
        | {"00080061", "00201206", "00201208", "00201209"}
    ]
    hidden.rename(tmp_path / "4.dcm")
    assert sum(fill_search_index(made, "default")) == 1
    [found], _ = Search().answer(store, "default", parse("instances", "SOPInstanceUID=1.2.4.4"), "")
    assert found["00100010"]["Value"] == [{"Alphabetic": "Müller^Änne 4"}]


@pytest.mark.usefixtures("files")
def test_files_that_are_back_are_found_before_the_next_run_reads_them(
    store: FrameStore, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "monotonic", lambda: 0.0)  # the tries took no time
    right = answers(store)
    tmp_path.rename(tmp_path.with_suffix(".away"))
    made = fill(store)
    assert [each.unread for each in made.sources()] == [20]
    nothing = [], False
    assert Search().answer(store, "default", parse("studies", "PatientName=M*"), "/dicomweb") == nothing
    assert asked  # as long as nothing can be read, the search index says what headers would
    tmp_path.with_suffix(".away").rename(tmp_path)
    del asked[:]
    assert answers(store) == right
    assert not asked
    assert sum(fill_search_index(made, "default")) == 20
    assert [each.unread for each in made.sources()] == [0]
    assert answers(store) == right
    assert len(asked) > 40


@pytest.mark.usefixtures("files")
def test_files_of_a_silent_store_are_tried_again_a_tenth_of_the_time(
    store: FrameStore, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.rename(tmp_path.with_suffix(".away"))
    fill(store)
    now, tries = [0.0], [0]

    def silent(*_: str) -> tuple[dict[str, Any], None]:
        now[0] += 60
        tries[0] += 1
        return {}, None

    monkeypatch.setattr(search_module, "monotonic", lambda: now[0])
    monkeypatch.setattr(search_module, "read_indexed", silent)
    searches, wanted = Search(), parse("studies", "PatientName=M*")
    for second, made in ((0, 1), (599, 1), (600, 2), (1199, 2)):
        now[0] = second
        searches.answer(store, "default", wanted, "")
        assert tries[0] == made
    assert len(asked) == 4


@pytest.mark.usefixtures("files")
def test_a_damaged_file_keeps_no_search_from_the_search_index(
    store: FrameStore, tmp_path: Path, asked: list[str]
) -> None:
    for name in ("0.dcm", "MR_small.dcm"):
        (tmp_path / name).write_bytes(b"damaged")
    by_headers = answers(store)
    assert not asked
    made = fill(store)
    assert [each.unread for each in made.sources()] == [2]
    assert answers(store) == by_headers
    assert len(asked) > 40


@pytest.mark.usefixtures("files")
def test_files_without_uids_keep_no_search_from_the_search_index(
    store: FrameStore, tmp_path: Path, asked: list[str]
) -> None:
    """They are in no search, whatever is written to their rows: groups, by a rule."""
    (tmp_path / "junk.dcm").write_bytes(b"no DICOM at all")
    for _ in index_files(FileIndexer(store), [tmp_path / "junk.dcm"]):
        pass
    made = fill(store)
    changed = "UPDATE voxtier.file SET allowed_groups = {} WHERE sop_instance_uid IS NULL RETURNING 1"
    for groups in ("'{staff}'", "NULL"):
        assert store.query(changed.format(groups), ()) == [(1,)]
    assert made.is_complete("default")
    answers(store, SOME[:1])
    assert asked


@pytest.mark.usefixtures("files")
def test_a_search_index_of_another_version_is_not_used_until_it_is_made_anew(
    store: FrameStore, dsn: str, asked: list[str]
) -> None:
    right = answers(store)
    made = fill(store)
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("COMMENT ON SCHEMA voxtier_search IS NULL")  # as the first version had none
        owner.execute(
            "CREATE OR REPLACE FUNCTION voxtier_search.matches(attributes jsonb, names jsonb, tag text, "
            "wanted text, pattern text, name_pattern text) RETURNS boolean LANGUAGE sql AS 'SELECT false'"
        )
        owner.execute("GRANT SELECT ON voxtier_search.header TO PUBLIC")
        assert made.making() is Making.OLDER
        assert answers(store) == right
        assert not asked
        made.switch_on("default")
        assert made.making() is Making.CURRENT
        assert not made.is_complete("default")
        assert sum(fill_search_index(made, "default")) == 20
        assert answers(store) == right
        assert len(asked) > 40
        may_read = "SELECT has_table_privilege('public', 'voxtier_search.header', 'SELECT')"
        assert owner.execute(may_read).fetchone() == (True,)
        owner.execute("COMMENT ON SCHEMA voxtier_search IS 'version 99'")
    assert made.making() is Making.NEWER
    with pytest.raises(ConfigError, match="upgrade voxtier"):
        made.switch_on("default")


@pytest.mark.usefixtures("files")
def test_nothing_of_patients_is_kept_that_no_instance_needs(store: FrameStore, tmp_path: Path) -> None:
    made = fill(store)
    store.delete("default", [str(path) for path in tmp_path.glob("*.dcm")])
    for table in ("instance", "series", "study", "header"):
        assert store.query(f"SELECT count(*) FROM voxtier_search.{table}", ()) == [(0,)], table
    assert made.is_complete("default")


@pytest.mark.usefixtures("files")
def test_roles_of_the_frame_index_have_no_right_to_it(store: FrameStore, dsn: str, tmp_path: Path) -> None:
    made = fill(store)
    names = ("frames_builder", "search_reader")
    with psycopg.connect(dsn, autocommit=True) as owner:
        for name in names:
            owner.execute(f"CREATE ROLE {name} LOGIN")
        try:
            for statement in [*grants(names[0], "builder"), *grants(names[1], "reader")]:
                owner.execute(statement)
            owner.execute(f"GRANT TEMPORARY ON DATABASE {owner.info.dbname} TO {names[0]}")
            for statement in search_grants(names[1], may_fill=False):
                owner.execute(statement)
            with FrameStore(psycopg.conninfo.make_conninfo(dsn, user=names[0])) as builder:
                assert SearchIndex(builder).making() is Making.NONE
                with pytest.raises(ConfigError, match="permission denied"):
                    builder.query("SELECT * FROM voxtier_search.header", ())
                path = tmp_path / "1.dcm"
                os.utime(path, ns=(1, 1))
                index(builder, [path])  # its write removes what is known of the file, with the owner's rights
                assert not made.is_complete("default")
                list(fill_search_index(made, "default"))
                assert len(answers(builder)) == len(answers(store))
            with FrameStore(psycopg.conninfo.make_conninfo(dsn, user=names[1])) as reader:
                assert SearchIndex(reader).is_complete("default")
                assert answers(reader) == answers(store)
        finally:
            for name in names:
                owner.execute(f"DROP OWNED BY {name}")
                owner.execute(f"DROP ROLE {name}")


def test_the_tags_are_those_of_the_standard() -> None:
    assert len(search_index.INDEXED_TAGS) == sum(map(len, search_index.TAGS.values()))


@pytest.mark.usefixtures("files")
def test_the_command_says_what_it_keeps_and_forgets_it(store: FrameStore, dsn: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "voxtier", *arguments, "--dsn", dsn]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    first = run("index", str(tmp_path), "--search")
    assert "names, identifiers and dates of patients" in first.stderr
    assert SearchIndex(store).is_complete("default")
    assert run("frames", "forget").returncode == 2
    assert (
        run("frames", "forget", "--search").returncode,
        run("frames", "forget", "--search").returncode,
    ) == (0, 1)
    assert SearchIndex(store).making() is Making.NONE


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("version", "remedy"), [("1", "run `voxtier index --search`"), ("99", "upgrade voxtier")]
)
def test_the_commands_say_what_helps_against_a_search_index_of_another_version(
    store: FrameStore, dsn: str, tmp_path: Path, version: str, remedy: str
) -> None:
    fill(store)
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute(f"COMMENT ON SCHEMA voxtier_search IS 'version {version}'".encode())
    indexed, checked = (
        subprocess.run(
            [sys.executable, "-m", "voxtier", *command, "--dsn", dsn], capture_output=True, text=True
        )
        for command in (("index", str(tmp_path)), ("doctor",))
    )
    for said in (indexed.stderr, checked.stdout):
        [line] = [line for line in said.splitlines() if "another version of voxtier" in line]
        assert remedy in line
        assert ("--search" in line) == (version == "1")
