"""A bucket is indexed as a folder is: once, then what is new; what failed heals with the next run."""

from __future__ import annotations

import io
import itertools
import tarfile
import zipfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli.conftest import voxtier  # noqa: F401 - a fixture
from cli.running import FINDINGS, OK, USAGE, Cli
from frames.sources.conftest import Bucket
from frames.sources.images import ct, slide
from support.object_proxy import Fault, Request
from voxtier.errors import SourceError
from voxtier.frames import FileIndexer, index_files, read_table
from voxtier.frames.indexing.paths import iter_files
from voxtier.frames.sources.listing import file_is_gone
from voxtier.frames.store.store import FrameStore


@pytest.fixture
def prefix(bucket: Bucket, request: pytest.FixtureRequest) -> str:
    name = f"index/{request.node.name}"
    for number in range(25):
        bucket.put(f"{name}/{number:02}.dcm", ct(number, f"2.25.{100 + number}"))
    bucket.put(f"{name}/notes.txt", b"no image")
    return f"s3://frames/{name}"


def run(store: FrameStore, prefix: str, **options: object) -> Counter[str]:
    indexer = FileIndexer(store, threads=8)
    return Counter(
        report.status for part in index_files(indexer, iter_files([prefix], **options)) for report in part
    )


def test_a_prefix_is_indexed_and_unchanged_objects_cost_no_request(
    bucket: Bucket, prefix: str, store: FrameStore
) -> None:
    assert run(store, prefix) == {"ok": 25}
    assert len(bucket.proxy.gets) == 25
    bucket.proxy.forget()
    assert run(store, prefix) == {"unchanged": 25}
    assert bucket.proxy.gets == []
    [state] = store.file_states("default", [f"{prefix}/03.dcm"])
    assert state is not None
    assert state.etag == read_table(f"{prefix}/03.dcm").etag
    assert state.mtime_ns is None


def test_a_replaced_object_is_read_again_alone(bucket: Bucket, prefix: str, store: FrameStore) -> None:
    run(store, prefix)
    bucket.put(f"{prefix.removeprefix('s3://frames/')}/07.dcm", ct(99))  # of the same size
    bucket.proxy.forget()
    reports = [report for part in index_files(FileIndexer(store), iter_files([prefix])) for report in part]
    assert {report.path for report in reports if report.status == "ok"} == {f"{prefix}/07.dcm"}
    assert {report.path for report in reports if report.status == "unchanged"} == {
        f"{prefix}/{number:02}.dcm" for number in range(25) if number != 7
    }
    assert [report.frames for report in reports] == [1] * 25
    assert len(bucket.proxy.gets) == 1


@pytest.fixture
def named(bucket: Bucket) -> list[str]:
    """Objects that no listing names, as in a column of Spark's or on a command line."""
    return [bucket.put(f"named/{number}.dcm", ct(number, f"2.25.{number + 1}")) for number in range(5)]


def run_named(bucket: Bucket, store: FrameStore, named: list[str]) -> Counter[str]:
    requests = bucket.proxy.requests
    requests.clear()
    found = Counter(report.status for report in FileIndexer(store, threads=4).index_batch(named))
    assert len(requests) == len(named), "a request for each"
    return found


def test_an_unchanged_object_that_was_not_listed_costs_a_request_without_bytes(
    bucket: Bucket, named: list[str], store: FrameStore
) -> None:
    assert run_named(bucket, store, named) == {"ok": 5}
    bucket.put("named/2.dcm", ct(99, "2.25.3"))  # of the same size
    assert run_named(bucket, store, named) == {"unchanged": 4, "ok": 1}
    assert sorted((each.status, each.path[-5:]) for each in bucket.proxy.gets if each.sent) == [
        (206, "2.dcm")
    ]
    table = store.get("default", named[2])
    assert table is not None
    assert table.etag == read_table(named[2]).etag
    assert run_named(bucket, store, named) == {"unchanged": 5}
    assert bucket.proxy.moved == 0


def test_a_server_that_ignores_the_question_has_its_answer_compared(
    bucket: Bucket, store: FrameStore
) -> None:
    named = []
    for number in range(3):
        place = bucket.public.put(f"named/{number}.dcm", ct(number)).removeprefix("s3://")
        named.append(f"http://127.0.0.1:{bucket.proxy.port}/{place}")
    bucket.proxy.drop = ("if-none-match",)
    try:
        assert run_named(bucket, store, named) == {"ok": 3}
        assert run_named(bucket, store, named) == {"unchanged": 3}
        bucket.public.put("named/2.dcm", ct(98))
        assert run_named(bucket, store, named) == {"unchanged": 2, "ok": 1}
    finally:
        bucket.proxy.drop = ()
    assert [each.status for each in bucket.proxy.gets] == [206] * 3


def test_an_object_without_entity_tag_is_unchanged_by_size_and_time(
    bucket: Bucket, named: list[str], store: FrameStore
) -> None:
    headers: dict[str, str | None] = {"etag": None, "last-modified": "Fri, 27 Nov 2020 00:00:00 GMT"}
    bucket.proxy.fault = lambda _: Fault(headers=headers)
    assert run_named(bucket, store, named) == {"ok": 5}
    assert run_named(bucket, store, named) == {"unchanged": 5}
    headers["last-modified"] = "Fri, 27 Nov 2020 00:00:01 GMT"
    assert run_named(bucket, store, named) == {"ok": 5}


def test_only_what_was_written_since_is_taken(bucket: Bucket, prefix: str, store: FrameStore) -> None:
    now = datetime.now(UTC)
    assert run(store, prefix, since=now + timedelta(hours=1)) == {}
    assert run(store, prefix, since=now - timedelta(hours=1)) == {"ok": 25}


def test_a_run_over_a_store_that_fails_heals(bucket: Bucket, prefix: str, store: FrameStore) -> None:
    def deny(request: object) -> Fault | None:
        path = request.path  # type: ignore[attr-defined]
        return Fault(403, "AccessDenied") if "/1" in path.rpartition("/")[0][-1:] + path[-7:-5] else None

    bucket.proxy.fault = deny
    found = run(store, prefix)
    assert found == {"ok": 15, "error": 10}
    refused = list(store.refused_files("default"))
    assert len(refused) == 10
    assert all(each.kind == "io_error" and each.path in each.detail for each in refused)
    bucket.proxy.forget()
    assert run(store, prefix) == {"unchanged": 15, "ok": 10}
    assert list(store.refused_files("default")) == []


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("fault", [Fault(403, "AccessDenied"), Fault(400, "ExpiredToken"), Fault(404, "x")])
def test_an_expired_key_takes_no_frame_away(
    bucket: Bucket, named: list[str], store: FrameStore, fault: Fault, *, force: bool
) -> None:
    assert run_named(bucket, store, named) == {"ok": 5}
    before = store.get_many("default", named)
    bucket.put("named/2.dcm", ct(99, "2.25.3"))  # of the same size
    bucket.proxy.fault = lambda _: fault
    reports = FileIndexer(store, force=force).index_batch(named)
    assert {(report.status, report.error_kind) for report in reports} == {("error", "io_error")}
    assert store.get_many("default", named) == before
    assert list(store.refused_files("default")) == []
    bucket.proxy.forget()
    assert run_named(bucket, store, named) == {"unchanged": 4, "ok": 1}


def test_a_listing_that_breaks_off_is_an_error_and_keeps_what_was_read(
    bucket: Bucket, store: FrameStore
) -> None:
    bucket.proxy.fault = lambda request: Fault(403, "AccessDenied") if "list-type" in request.path else None
    with pytest.raises(SourceError, match="list"):
        run(store, "s3://frames/index")


@pytest.mark.parametrize("refused", [3, None])
def test_a_listing_is_tried_again_but_not_for_ever(bucket: Bucket, prefix: str, refused: int | None) -> None:
    left = iter(range(refused)) if refused else itertools.count()

    def fail(request: Request) -> Fault | None:
        is_refused = "list-type" in request.path and next(left, None) is not None
        return Fault(500, "InternalError") if is_refused else None

    bucket.proxy.fault = fail
    if refused:
        assert len(list(iter_files([prefix]))) == 25
    else:
        with pytest.raises(SourceError, match="status 500"):
            list(iter_files([prefix]))


def test_a_listing_goes_on_in_the_region_of_its_bucket(bucket: Bucket, prefix: str) -> None:
    bucket.proxy.fault = lambda request: (
        None
        if "/eu-west-3/" in request.headers.get("authorization", "")
        else Fault(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-3"})
    )
    assert len(list(iter_files([prefix]))) == 25


def test_a_listing_goes_on_with_renewed_credentials(
    bucket: Bucket, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from volumes.store.s3_server import KEY, NEXT_KEY, NEXT_SECRET

    assert len(list(iter_files([prefix]))) == 25
    bucket.proxy.fault = lambda request: (
        Fault(400, "ExpiredToken") if KEY in request.headers["authorization"] else None
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", NEXT_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", NEXT_SECRET)
    assert len(list(iter_files([prefix]))) == 25


def test_a_key_that_no_client_can_ask_for_is_an_error_row_beside_the_others(
    bucket: Bucket, prefix: str, store: FrameStore
) -> None:
    bucket.put(f"{prefix.removeprefix('s3://frames/')}/.7.dcm", ct(7))
    bucket.proxy.fault = lambda request: Fault(
        edit=(b"/.7.dcm<", b"//7.dcm<")
    )  # the server refuses such keys
    assert run(store, prefix) == {"ok": 25, "error": 1}
    [refused] = store.refused_files("default")
    assert refused.path == f"{prefix}//"
    assert "two of them in a row: copy the object to another key" in refused.detail
    assert run(store, prefix) == {"unchanged": 25, "error": 1}
    assert not file_is_gone(refused.path)
    bucket.proxy.forget()  # it has another key
    assert file_is_gone(refused.path)


def test_an_empty_object_that_stands_for_a_folder_is_none(bucket: Bucket) -> None:
    """Consoles make one, with a slash at its end, for each folder; the client drops the slash."""
    for key, content in (("Z-", b""), ("a/1", b"x"), ("a/b", b""), ("c", b""), ("d", b"x"), ("d/e", b"x")):
        bucket.put(f"folders/{key}", content)
    bucket.proxy.fault = lambda _: Fault(edit=(b"folders/Z-<", b"folders/a/<"))
    found = {path.partition("folders/")[2] for path in iter_files(["s3://frames/folders"], extension=None)}
    assert found == {"a/1", "a/b", "c", "d", "d/e"}


def test_bad_objects_are_rows_with_their_reasons(bucket: Bucket, store: FrameStore) -> None:
    tar, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.dcm"), io.BytesIO())
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.dcm", ct(1))
    contents = {"empty": b"", "tar": tar.getvalue(), "zip": packed.getvalue(), "gzip": ct(2), "good": ct(3)}
    for name, content in contents.items():
        bucket.put(f"bad/{name}.dcm", content)
    bucket.put("bad/other.zip", packed.getvalue())
    bucket.proxy.fault = lambda request: (
        Fault(headers={"content-encoding": "gzip"}) if request.path.endswith("gzip.dcm") else None
    )
    assert run(store, "s3://frames/bad") == {"ok": 1, "error": 4}
    refused = {each.path.rpartition("/")[2]: each for each in store.refused_files("default")}
    details = {name: each.detail for name, each in refused.items()}
    assert set(details) == {"empty.dcm", "tar.dcm", "zip.dcm", "gzip.dcm"}
    assert "tar archive, which is not read: unpack it" in details["tar.dcm"]
    assert "ZIP archive, which is not read: unpack it" in details["zip.dcm"]
    assert "Content-Encoding gzip" in details["gzip.dcm"]
    assert refused["empty.dcm"].kind == "empty"


def test_more_keys_than_one_answer_names(bucket: Bucket) -> None:
    names = {f"s3://frames/many/{number:04}.dcm" for number in range(1100)}
    for name in names:
        bucket.put(name.removeprefix("s3://frames/"), b"")
    assert set(iter_files(["s3://frames/many"])) == names
    assert len(bucket.proxy.requests) == 2


def test_a_listing_that_changes_while_it_is_read(bucket: Bucket) -> None:
    """What is there from the beginning to the end is named once; what comes and goes may be."""
    folder = "changing/listing"
    for number in range(1100):
        bucket.put(f"{folder}/{number:04}.dcm", b"")
    lists = 0

    def change(request: Request) -> None:
        nonlocal lists
        lists += "list-type" in request.path
        if "list-type" in request.path and lists == 2:
            for number in (
                3,
                500,
                999,
                1000,
                1001,
                1099,
            ):  # the last ones of the first answer, and of the second
                bucket.client.delete(f"{folder}/{number:04}.dcm")
            for name in ("0000a", "0999a", "1050a", "9999"):
                bucket.put(f"{folder}/{name}.dcm", b"")

    bucket.proxy.fault = change
    found = Counter(path.rpartition("/")[2] for path in iter_files([f"s3://frames/{folder}"]))
    assert lists == 2
    assert set(found.values()) == {1}
    stayed = {f"{number:04}.dcm" for number in range(1100)} - {
        f"{number:04}.dcm" for number in (3, 500, 999, 1000, 1001, 1099)
    }
    assert stayed | {"1050a.dcm", "9999.dcm"} <= set(found)


@pytest.mark.parametrize("what", ["grows", "shrinks", "is deleted"])
def test_an_object_that_changes_between_list_and_read(
    bucket: Bucket, prefix: str, store: FrameStore, what: str
) -> None:
    """The row is that of the bytes that were read, or an error; the next run has it right either way."""
    key, address = f"{prefix.removeprefix('s3://frames/')}/03.dcm", f"{prefix}/03.dcm"
    changed = slide(*((40, 50_000) if what == "grows" else (3, 900)), "bot", "2.25.103")

    def change(request: Request) -> None:
        if "list-type" not in request.path and request.path.endswith("/03.dcm") and not done:
            done.append(True)
            if what == "is deleted":
                bucket.client.delete(key)
            else:
                bucket.client.put(key, changed)

    done: list[bool] = []
    bucket.proxy.fault = change
    found = run(store, prefix)
    assert done
    bucket.proxy.forget()
    if what == "is deleted":
        assert found == {"ok": 24, "error": 1}
        assert run(store, prefix) == {"unchanged": 24}
        assert [each.path for each in store.refused_files("default")] == [address]
        return
    assert found == {"ok": 25}
    second = run(store, prefix)
    assert second["ok"] + second["unchanged"] == 25
    table = store.get("default", address)
    assert table is not None
    assert (table.etag, len(table)) == (read_table(address).etag, 40 if what == "grows" else 3)
    assert run(store, prefix) == {"unchanged": 25}


def test_an_object_and_a_prefix_without_objects(bucket: Bucket, prefix: str, store: FrameStore) -> None:
    assert list(iter_files([f"{prefix}/03.dcm"])) == [f"{prefix}/03.dcm"]
    assert list(iter_files([f"{prefix}/notes.txt"])) == [f"{prefix}/notes.txt"]
    assert list(iter_files([f"{prefix}/none/"])) == []
    assert run(store, f"{prefix}/none") == {"error": 1}


def test_the_command_indexes_prunes_and_reads(
    bucket: Bucket,
    prefix: str,
    dsn: str,
    tmp_path: Path,
    voxtier: Cli,  # noqa: F811
) -> None:
    def indexed(*arguments: str) -> dict[str, object]:
        done = voxtier("index", prefix, "--dsn", dsn, "--json", *arguments)
        assert done.code == OK, done.err
        return done.rows[-1]["summary"]

    assert indexed()["statuses"] == {"ok": 25}
    bucket.client.delete(f"{prefix.removeprefix('s3://frames/')}/03.dcm")
    summary = indexed("--prune")
    assert (summary["statuses"], summary["pruned"]) == ({"unchanged": 24}, 1)
    assert voxtier("index", prefix, "--since", "2999-01-01", "--dsn", dsn).code == OK
    address = f"{prefix}/04.dcm"
    assert "native" in voxtier("explain", address).out
    assert voxtier("frames", "table", address).out.startswith("ok")
    assert voxtier("frames", "metadata", address).code == OK
    target = tmp_path / "frame"
    assert voxtier("frames", "read", address, "1", "-o", target).code == OK
    assert target.stat().st_size == 512 * 512 * 2
    all_objects = voxtier("frames", "table", f"{prefix}/")
    assert all_objects.code == FINDINGS  # one is no image
    assert len(all_objects.out.splitlines()) == 25


def test_tables_of_objects_are_checked_at_their_ends(bucket: Bucket, store: FrameStore) -> None:
    address = bucket.put("index/slide.dcm", slide(500, 2000, "bot"))
    assert run(store, address) == {"ok": 1}
    assert len(bucket.proxy.gets) <= 2
    table = store.get("default", address)
    assert table is not None
    assert table.verified == "ends"


def test_a_mistyped_prefix_is_said_and_leaves_no_row(
    bucket: Bucket,
    prefix: str,
    dsn: str,
    voxtier: Cli,  # noqa: F811
) -> None:
    for typo in (f"{prefix}x", f"{prefix}/none.dcm"):
        done = voxtier("index", typo, "--dsn", dsn, "--json")
        assert (done.code, done.rows[:-1]) == (USAGE, [])
        assert f"{typo}: there is no such file" in done.err
    done = voxtier("index", f"{prefix}x", prefix, f"{prefix}/03.dcm", "--dsn", dsn, "--json")
    assert (done.code, done.rows[-1]["summary"]["statuses"]) == (USAGE, {"ok": 25})
    assert voxtier("frames", "errors", "--dsn", dsn).out == ""
