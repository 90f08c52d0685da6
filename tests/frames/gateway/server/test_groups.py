"""Groups that a proxy names: each resource serves what the index shows to them, from any tier."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from frames.gateway.conftest import Connect
from frames.gateway.serving import STAR, Answer, Client, index, instance_path
from frames.gateway.wado.test_frames import SERIES, STUDY, payload, write
from support.builders import JPEG, Syntax
from voxtier.errors import BackendError, ConfigError
from voxtier.frames import Gateway, LakebaseUtils
from voxtier.frames.gateway.search.query import parse
from voxtier.frames.gateway.search.search import Search
from voxtier.frames.indexing.search import fill_search_index
from voxtier.frames.store.grants import grants, search_grants
from voxtier.frames.store.groups import GroupStore
from voxtier.frames.store.search_index import SearchIndex
from voxtier.frames.store.store import FrameStore

SOURCE = "main.pixels.catalog"
SECRET, OPEN = "1.9", "1.10"
JPEG_LOSSLESS = Syntax("1.2.840.10008.1.2.4.70")
STAFF, OTHERS, NOBODY = "ward, staff", "others,nobody", ""


@pytest.fixture
def client(tmp_path: Path, dsn: str, connect: Connect) -> Client:
    """A gateway over two instances of one series, one of them for the group staff alone."""
    (tmp_path / "open").mkdir()
    (tmp_path / "secret").mkdir()
    files = [write(tmp_path / "open", "b", OPEN), write(tmp_path / "secret", "a", SECRET)]
    with LakebaseUtils(dsn=dsn, uc_table_name=SOURCE) as lakebase:
        index(lakebase.store, files, SOURCE)
        lakebase.store.query(
            "UPDATE voxtier.file SET allowed_groups = '{staff}' WHERE path = %s RETURNING 1", (str(files[1]),)
        )
    return connect(SOURCE, is_private=True, groups_header="X-Groups")


def ask(client: Client, path: str, groups: str, accept: str = "*/*", **headers: str) -> Answer:
    return client.get(path, {"Accept": accept, "X-Groups": groups, **headers})


def test_every_resource_of_an_instance_is_for_its_groups(client: Client) -> None:
    path = instance_path(STUDY, SERIES, SECRET)
    wado = {"requestType": "WADO", "studyUID": STUDY, "seriesUID": SERIES, "objectUID": SECRET}
    first = ask(client, f"{path}/frames/2", STAFF, STAR)
    assert first.parts()[0][1] == payload(2)
    assert ask(client, f"{path}/frames/2", STAFF, STAR).status == 200  # the table is in memory now
    for resource in (path, f"{path}/frames/2", f"{path}/metadata", f"{path}/bulkdata/7FE00010"):
        assert ask(client, resource, STAFF, STAR if "frames" in resource else "*/*").status == 200
        for groups in (OTHERS, NOBODY):
            refused = ask(client, resource, groups, STAR if "frames" in resource else "*/*")
            missing = ask(client, resource.replace(SECRET, "1.11"), groups)
            assert (refused.status, refused.body) == (404, missing.body), resource
    assert ask(client, f"/wado?{urlencode(wado)}", STAFF).status == 200
    assert ask(client, f"/wado?{urlencode(wado)}", OTHERS).status == 404
    held = {"If-None-Match": first.headers["etag"]}
    assert ask(client, f"{path}/frames/2", STAFF, STAR, **held).status == 304
    assert ask(client, f"{path}/frames/2", OTHERS, STAR, **held).status == 404
    # What is in the wrong study tells nothing either.
    elsewhere = instance_path("1.2.9", SERIES, SECRET)
    assert ask(client, elsewhere, STAFF).body == ask(client, elsewhere, OTHERS).body
    for groups in (STAFF, OTHERS, NOBODY):
        assert ask(client, f"{instance_path(STUDY, SERIES, OPEN)}/frames/1", groups, STAR).status == 200


def test_series_and_searches_hold_what_the_groups_see(client: Client) -> None:
    series = f"/dicomweb/studies/{STUDY}/series/{SERIES}"
    for groups, seen in ((STAFF, [SECRET, OPEN]), (OTHERS, [OPEN]), (NOBODY, [OPEN])):
        metadata = json.loads(ask(client, f"{series}/metadata", groups).body)
        assert {each["00080018"]["Value"][0] for each in metadata} == set(seen)
        assert len(ask(client, series, groups).parts()) == len(seen)
        found = json.loads(ask(client, f"{series}/instances", groups).body)
        assert sorted(each["00080018"]["Value"][0] for each in found) == sorted(seen)
        [study] = json.loads(ask(client, "/dicomweb/studies", groups).body)
        assert study["00201208"]["Value"] == [len(seen)]
        by_uid = ask(client, f"/dicomweb/instances?SOPInstanceUID={SECRET}", groups)
        assert by_uid.status == (200 if SECRET in seen else 204)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_role_that_may_only_read_serves_groups_too(
    client: Client, connect: Connect, dsn: str, is_first: bool
) -> None:
    """Row security hides restricted rows of such a role from all questions that name no groups."""
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("DROP ROLE IF EXISTS gateway_viewer")
        owner.execute("CREATE ROLE gateway_viewer LOGIN")
        for statement in grants("gateway_viewer", "reader"):
            owner.execute(statement)
        try:
            with FrameStore(make_conninfo(dsn, user="gateway_viewer")) as store:
                gateway = Gateway(
                    store, SOURCE, port=0, is_private=True, groups_header="X-Groups", index_seconds=60
                )
                with gateway:
                    reader = Client(gateway)
                    path = instance_path(STUDY, SERIES, SECRET)
                    if is_first:
                        assert ask(reader, path, OTHERS).status == 404
                    for resource in (
                        f"{path}/frames/2",
                        path,
                        f"{path}/metadata",
                        f"{path}/bulkdata/7FE00010",
                    ):
                        accept = STAR if "frames" in resource else "*/*"
                        assert ask(reader, resource, STAFF, accept).status == 200, resource
                        assert ask(reader, resource, OTHERS, accept).status == 404, resource
                    # Not computed: the index shows the row to the group.
                    assert gateway.stats()["tier3"] == 0
                    reader.connection.close()
        finally:
            owner.execute("DROP OWNED BY gateway_viewer CASCADE")
            owner.execute("DROP ROLE gateway_viewer")


def test_no_group_takes_the_copy_of_another(client: Client, store: FrameStore, tmp_path: Path) -> None:
    """What one group asked for, of a copy that all may see, is not what another gets."""
    whole = (tmp_path / "secret" / "a.dcm").read_bytes()
    cut = tmp_path / "open" / "cut.dcm"
    cut.write_bytes(whole[:-500])
    index(store, [cut], SOURCE)
    path = instance_path(STUDY, SERIES, SECRET)
    for _ in range(2):
        assert ask(client, f"{path}/frames/3", STAFF, STAR).parts()[0][1] == payload(3)
        assert ask(client, path, STAFF, "application/dicom").body == whole
        assert ask(client, f"{path}/metadata", OTHERS).status == 200
        assert ask(client, path, OTHERS, "application/dicom").body == whole[:-500]
        assert ask(client, f"{path}/frames/3", OTHERS, STAR).status == 404


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_link_shows_nothing_of_what_its_file_may_not(
    client: Client, store: FrameStore, tmp_path: Path, link: str
) -> None:
    """The row of the link is open to all: neither the one who wrote it nor SQL sees that it is one."""
    led = tmp_path / "open" / "link.dcm"
    if link == "file":
        led.symlink_to(tmp_path / "secret" / "a.dcm")
    else:
        (tmp_path / "open" / "current").symlink_to(tmp_path / "secret")
        led = tmp_path / "open" / "current" / "a.dcm"
    index(store, [led], SOURCE)
    path, series = instance_path(STUDY, SERIES, SECRET), f"/dicomweb/studies/{STUDY}/series/{SERIES}"
    named = f"/dicomweb/instances?SOPInstanceUID={SECRET}"
    for _ in range(2):
        for groups, seen in ((STAFF, [SECRET, OPEN]), (OTHERS, [OPEN])):
            status = 200 if SECRET in seen else 404
            for resource in (path, f"{path}/frames/2", f"{path}/metadata", f"{path}/bulkdata/7FE00010"):
                answer = ask(client, resource, groups, STAR if "frames" in resource else "*/*")
                assert answer.status == status, (groups, resource)
            metadata = json.loads(ask(client, f"{series}/metadata", groups).body)
            assert {each["00080018"]["Value"][0] for each in metadata} == set(seen)
            assert len(ask(client, series, groups).parts()) == len(seen)
            [found] = json.loads(ask(client, named, groups).body)
            assert ("00080016" in found) == (SECRET in seen)  # of what is hidden the UIDs alone


def test_a_study_of_links_to_what_is_hidden_is_not_there(
    client: Client, store: FrameStore, dsn: str, tmp_path: Path
) -> None:
    hidden = write(tmp_path / "secret", "c", "1.20")
    led = tmp_path / "open" / "link.dcm"
    led.symlink_to(hidden)
    index(store, [led], SOURCE)
    with LakebaseUtils(dsn=dsn, uc_table_name=SOURCE) as lakebase:
        lakebase.upsert_access_rule(SOURCE, "staff", path_prefix=str(tmp_path / "secret"))
    (tmp_path / "open" / "b.dcm").unlink()
    study = f"/dicomweb/studies/{STUDY}"
    assert ask(client, f"{study}/metadata", STAFF).status == 200
    held = json.loads(ask(client, f"{study}/metadata", STAFF).body)
    assert {each["00080018"]["Value"][0] for each in held} == {SECRET, "1.20"}
    refused = ask(client, f"{study}/metadata", OTHERS)
    assert refused.status == 404


def test_a_folder_that_is_moved_behind_a_link_is_hidden_while_its_files_are_open(
    client: Client, store: FrameStore, dsn: str, tmp_path: Path
) -> None:
    """A move changes nothing of the files below."""
    moved = tmp_path / "open" / "sub"
    moved.mkdir()
    index(store, [write(moved, "c", "1.20")], SOURCE)
    with LakebaseUtils(dsn=dsn, uc_table_name=SOURCE) as lakebase:
        lakebase.upsert_access_rule(SOURCE, "staff", path_prefix=str(tmp_path / "secret"))
    frame = f"{instance_path(STUDY, SERIES, '1.20')}/frames/1"
    assert [ask(client, frame, groups, STAR).status for groups in (STAFF, OTHERS)] == [200, 200]
    moved.rename(tmp_path / "secret" / "sub")
    moved.symlink_to(tmp_path / "secret" / "sub")
    assert [ask(client, frame, groups, STAR).status for groups in (STAFF, OTHERS)] == [200, 404]


def test_a_right_to_one_instance_is_none_to_another_that_the_file_holds_now(
    client: Client, store: FrameStore, tmp_path: Path
) -> None:
    """Two links to one file, which was replaced between two runs: their rows name two instances."""
    (tmp_path / "files").mkdir()
    file = write(tmp_path / "files", "x", "1.30")
    for name, held in (("1", "1.30"), ("2", SECRET)):
        write(tmp_path / "files", "new", held)
        (tmp_path / "files" / "new.dcm").replace(file)
        led = tmp_path / "open" / f"link-{name}.dcm"
        led.symlink_to(file)
        index(store, [led], SOURCE)
    (tmp_path / "secret" / "a.dcm").unlink()
    series = f"/dicomweb/studies/{STUDY}/series/{SERIES}"
    assert ask(client, instance_path(STUDY, SERIES, SECRET), OTHERS).status == 404
    held = json.loads(ask(client, f"{series}/metadata", OTHERS).body)
    assert {each["00080018"]["Value"][0] for each in held} == {OPEN}


def test_a_file_whose_name_no_rule_can_tell_is_shown_to_nobody(
    client: Client, store: FrameStore, tmp_path: Path
) -> None:
    (tmp_path / "strange").mkdir()
    file = write(tmp_path / "strange", "c", "1.20")
    led = tmp_path / "open" / "link.dcm"
    led.symlink_to(file.rename(os.fsdecode(os.fsencode(file.parent) + b"/\xff.dcm")))
    index(store, [led], SOURCE)
    path = instance_path(STUDY, SERIES, "1.20")
    for groups in (STAFF, OTHERS):
        assert ask(client, f"{path}/frames/1", groups, STAR).status == 404
        assert ask(client, path, groups).status == 404


def test_a_file_that_cannot_be_opened_now_is_told_to_those_who_see_it(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "secret" / "a.dcm"
    file.unlink()
    os.symlink(file.name, file)
    path = instance_path(STUDY, SERIES, SECRET)
    for resource in (path, f"{path}/frames/2", f"{path}/metadata", f"{path}/bulkdata/7FE00010"):
        accept = STAR if "frames" in resource else "*/*"
        assert ask(client, resource, STAFF, accept).status == 503, resource
        missing = ask(client, resource.replace(SECRET, "1.11"), OTHERS, accept)
        refused = ask(client, resource, OTHERS, accept)
        assert (refused.status, refused.body) == (404, missing.body), resource


def test_a_study_tells_nothing_of_what_a_file_holds_instead(client: Client, tmp_path: Path) -> None:
    """Nobody was asked who may see it."""
    write(tmp_path / "open", "b", SECRET, JPEG_LOSSLESS)
    accept = f'multipart/related; type="application/dicom"; transfer-syntax={JPEG.uid}'
    answer = ask(client, f"/dicomweb/studies/{STUDY}", OTHERS, accept)
    assert answer.status == 503
    assert JPEG_LOSSLESS.uid.encode() not in answer.body


@pytest.mark.parametrize("blank", ["\u00a0", "\u3000", "\u2003"])
def test_blanks_of_unicode_are_part_of_a_name(client: Client, blank: str) -> None:
    path = f"{instance_path(STUDY, SERIES, SECRET)}/frames/1"
    for name, status in ((f"{blank}staff", 404), (f"staff{blank}", 404), ("\t staff \t", 200)):
        headers: dict[str, Any] = {"Accept": STAR, "X-Groups": name.encode()}
        assert client.get(path, headers).status == status, name


@pytest.mark.parametrize("names", ["größe", "staff, größe"])
def test_a_name_that_is_not_in_utf_8_is_refused_as_that(client: Client, names: str) -> None:
    answer = ask(client, f"{instance_path(STUDY, SERIES, OPEN)}/frames/1", names, STAR)  # in Latin-1
    assert answer.status == 401
    assert b"UTF-8" in answer.body


def test_a_request_that_did_not_come_through_the_proxy_is_refused(client: Client) -> None:
    for path in (f"{instance_path(STUDY, SERIES, OPEN)}/frames/1", "/dicomweb/studies", "/wado"):
        assert client.get(path, {"Accept": STAR}).status == 401
    assert client.get("/health").status == 200


def test_nothing_is_served_while_nobody_knows_the_rights(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{instance_path(STUDY, SERIES, SECRET)}/frames/1"
    assert ask(client, path, STAFF, STAR).status == 200

    def fail(*_: object) -> bool:
        raise BackendError("no database")

    monkeypatch.setattr(GroupStore, "may_read", fail)
    assert ask(client, path, STAFF, STAR).status == 503


def test_groups_need_a_proxy(store: FrameStore) -> None:
    with pytest.raises(ConfigError, match="--trust-proxy"):
        Gateway(store, groups_header="X-Groups")
    with pytest.raises(ConfigError, match="letters"):
        Gateway(store, groups_header="X Groups\r\n", is_private=True)


@pytest.fixture
def viewer(dsn: str) -> Iterator[str]:
    """Name of a role that may ask for connections and nothing else."""
    name = f"viewer-{os.getpid()}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f'CREATE ROLE "{name}" LOGIN')
        yield name
        connection.execute(f'DROP OWNED BY "{name}" CASCADE')
        connection.execute(f'DROP ROLE "{name}"')


@pytest.mark.parametrize("is_bound", [True, False])
def test_the_search_index_tells_a_role_nothing_that_row_security_hides(
    tmp_path: Path, dsn: str, store: FrameStore, viewer: str, *, is_bound: bool
) -> None:
    """The oracle is the search by headers, which row security binds."""
    files = [write(tmp_path, "a", SECRET), write(tmp_path, "b", OPEN)]
    index(store, files, SOURCE)
    filled = SearchIndex(store)
    filled.switch_on(SOURCE)
    assert list(fill_search_index(filled, SOURCE))
    assert filled.complete(SOURCE)
    hidden = "UPDATE voxtier.file SET allowed_groups = '{staff}' WHERE sop_instance_uid = %s RETURNING 1"
    store.query(hidden, (SECRET,))
    for statement in grants(viewer, "reader") + search_grants(viewer, may_fill=False):
        store.database.run(lambda connection, sql=statement: connection.execute(sql.encode()))
    name = psycopg.conninfo.make_conninfo(dsn, user=viewer) if is_bound else dsn
    with FrameStore(name) as asked:
        search = Search()
        for level, count in (("studies", "00201208"), ("series", "00201209"), ("series", "00201208")):
            query = parse(level, "")
            [found], _ = search.answer(asked, SOURCE, query, "")
            assert found[count]["Value"] == [1 if is_bound else 2]
        store.query(hidden, (OPEN,))
        found, _ = search.answer(asked, SOURCE, parse("studies", ""), "")
        assert len(found) == (not is_bound)
        assert search.counts() == ({"index": 0, "headers": 4} if is_bound else {"index": 4, "headers": 0})
