"""Addresses that are named to a run: objects, prefixes, names that are both; and how new they must be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli.conftest import voxtier  # noqa: F401 - a fixture
from cli.running import OK, Cli
from frames.sources.conftest import Bucket, _bucket, bucket  # noqa: F401 - fixtures
from frames.sources.images import ct
from support.object_proxy import Fault, Request
from voxtier.errors import SourceError
from voxtier.frames.indexing.paths import iter_files

NOW = datetime.now(UTC)
LATER, EARLIER = NOW + timedelta(hours=1), NOW - timedelta(hours=1)


def is_list(request: Request) -> bool:
    return "list-type" in request.path


@pytest.mark.parametrize("kind", ["s3", "http", "local"])
@pytest.mark.parametrize("extension", [".dcm", ".img", None])
def test_what_is_named_is_taken_if_it_was_written_since(
    bucket: Bucket,  # noqa: F811
    tmp_path: Path,
    kind: str,
    extension: str | None,
) -> None:
    if kind == "local":
        (tmp_path / "a.dcm").write_bytes(b"x")
        name = str(tmp_path / "a.dcm")
    elif kind == "s3":
        name = bucket.put("since/a.dcm", b"x")
    else:
        place = bucket.public.put("since/a.dcm", b"x").removeprefix("s3://")
        name = f"http://127.0.0.1:{bucket.proxy.port}/{place}"
    missing = name.replace("a.dcm", "none.dcm")
    assert list(iter_files([name], extension=extension, since=LATER)) == []
    assert list(iter_files([name], extension=extension, since=EARLIER)) == [name]
    assert list(iter_files([name], extension=extension)) == [name]
    # What nobody can look at is taken: reading it gives the reason.
    assert list(iter_files([missing, name], extension=extension, since=LATER)) == [missing]
    if kind != "local":
        bucket.proxy.fault = lambda request: None if is_list(request) else Fault(403, "AccessDenied")
        assert list(iter_files([name], extension=extension, since=LATER)) == [name]
        bucket.proxy.fault = lambda _: Fault(headers={"last-modified": None})
        assert list(iter_files([name], extension=extension, since=LATER)) == [name]


def test_a_prefix_that_is_named_as_objects_are_is_listed(bucket: Bucket) -> None:  # noqa: F811
    below = [bucket.put(f"named/sub.dcm/{name}", b"x") for name in ("1.dcm", "2.DCM", "deep.dcm/3.dcm")]
    text = bucket.put("named/sub.dcm/notes.txt", b"x")
    prefix = "s3://frames/named/sub.dcm"
    assert list(iter_files([prefix])) == list(iter_files([f"{prefix}/"])) == below
    assert list(iter_files([prefix], extension=None)) == [*below, text]
    assert list(iter_files([prefix], since=LATER)) == []
    assert list(iter_files([f"{prefix}/1.dcm", prefix])) == [below[0], *below]


@pytest.mark.parametrize("extension", [".dcm", None])
def test_a_name_of_an_object_and_of_a_folder_is_both(
    bucket: Bucket,  # noqa: F811
    extension: str | None,
) -> None:
    own = bucket.put("both/x.dcm", b"xy")
    below = bucket.put("both/x.dcm/1.dcm", b"x")
    assert list(iter_files([own], extension=extension)) == [own, below]
    assert list(iter_files([own], extension=extension, since=LATER)) == []
    assert list(iter_files([f"{own}/"], extension=extension)) == [below]
    bucket.proxy.fault = lambda request: None if is_list(request) else Fault(403, "AccessDenied")
    assert list(iter_files([own], extension=extension)) == [own, below]
    bucket.proxy.forget()
    bucket.put("both/empty.dcm", b"")  # it stands for the folder
    inside = bucket.put("both/empty.dcm/1.dcm", b"x")
    assert list(iter_files(["s3://frames/both/empty.dcm"], extension=extension)) == [inside]


def test_who_may_not_list_may_name_objects(bucket: Bucket) -> None:  # noqa: F811
    names = [bucket.put(f"closed/{number}.dcm", b"x") for number in range(3)]
    bucket.proxy.fault = lambda request: Fault(403, "AccessDenied") if is_list(request) else None
    assert list(iter_files(names)) == names
    assert list(iter_files(names, since=LATER)) == []
    with pytest.raises(SourceError, match="list"):
        list(iter_files(["s3://frames/closed"]))


def test_many_named_objects_are_asked_for_at_the_same_time(
    bucket: Bucket,  # noqa: F811
    tmp_path: Path,
) -> None:
    names = [bucket.put(f"crowd/{number:03}.dcm", b"x") for number in range(40)]
    folder = tmp_path / "a.dcm"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"x")
    bucket.proxy.forget()
    bucket.proxy.latency = 0.05
    mixed = [names[0], str(folder), *names[1:], "s3://frames/crowd/none/"]
    assert list(iter_files(mixed)) == [names[0], str(folder / "1.dcm"), *names[1:]]
    assert len(bucket.proxy.requests) == 41
    assert bucket.proxy.most_in_flight > 4


def test_an_address_of_no_store_is_told_after_those_before_it(bucket: Bucket) -> None:  # noqa: F811
    name = bucket.put("order/a.dcm", b"x")
    found = iter_files([name, "ftp://host/a.dcm", name])
    assert next(found) == name
    with pytest.raises(SourceError, match="no store of scheme 'ftp'"):
        next(found)


def test_a_key_that_no_client_can_ask_for_is_yielded_for_its_reason(bucket: Bucket) -> None:  # noqa: F811
    bucket.put("odd/a/b.dcm", b"x")
    bucket.put("odd/a/b.dcm/c.dcm", b"x")
    bucket.proxy.forget()
    name = "s3://frames/odd/a//b.dcm"
    assert list(iter_files([name])) == [name]
    assert bucket.proxy.requests == []


def test_the_command_indexes_a_prefix_that_ends_as_files_do(
    bucket: Bucket,  # noqa: F811
    dsn: str,
    voxtier: Cli,  # noqa: F811
) -> None:
    for number in range(3):
        bucket.put(f"command/sub.dcm/{number}.dcm", ct(number, f"2.25.{number + 1}"))

    def indexed(*arguments: str) -> dict[str, object]:
        done = voxtier("index", *arguments, "--dsn", dsn, "--json")
        assert done.code == OK, done.err
        return done.rows[-1]["summary"]["statuses"]

    assert indexed("s3://frames/command/sub.dcm") == {"ok": 3}
    assert indexed("s3://frames/command/sub.dcm/") == {"unchanged": 3}
    one = "s3://frames/command/sub.dcm/1.dcm"
    assert indexed(one, "--since", EARLIER.date().isoformat()) == {"unchanged": 1}
    assert voxtier("index", one, "--since", "2999-01-01", "--force", "--dsn", dsn).code == OK
