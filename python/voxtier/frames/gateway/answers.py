"""Answers to the questions of the core's server, by threads of Python: what only the index knows."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

from voxtier._core import Gateway as Core
from voxtier._core import GatewayJob
from voxtier.errors import (
    ConfigError,
    FormatError,
    SourceError,
    TooBroadError,
    UnfinishedError,
    VoxtierError,
)
from voxtier.frames.gateway.search.query import parse
from voxtier.frames.gateway.search.results import to_json
from voxtier.frames.gateway.search.search import Search
from voxtier.frames.gateway.search.statements import BELOW, is_named_below, prefixes_of
from voxtier.frames.serving.index.index_client import IndexClient
from voxtier.frames.serving.reader import FrameReader
from voxtier.frames.sources.objects import RemoteObject
from voxtier.frames.sources.stores import ObjectState
from voxtier.frames.store.groups import GroupStore
from voxtier.frames.store.statements import SOURCE_ID
from voxtier.frames.store.store import FrameStore
from voxtier.system.s3_config import S3Config
from voxtier.system.workers import ContextThreads, start_thread

_log = logging.getLogger(__name__)
_DICOM_JSON = "application/dicom+json"
_MORE = "There are additional results that can be requested"
_SECONDS = 0.5
_STOP_SECONDS = 1.0
# Questions that are answered at once.
_THREADS = 4
# Requests to stores at the same time: they wait for one another no more than for the index.
_STORE_THREADS = 32

# Copies of an instance in the order of paths, those with all frames first, then those with some; no more
# than so many are tried.
_COPIES = 8
_FILES = f"""
SELECT sop_instance_uid, paths FROM (
SELECT f.series_instance_uid, f.sop_instance_uid,
    (array_agg(f.path ORDER BY f.error_kind IS NOT NULL, f.status = 'truncated', f.path))[1:{_COPIES}]
        AS paths
FROM voxtier.file AS f
WHERE f.source_id = {SOURCE_ID}
    AND f.study_instance_uid = %(study)s AND f.sop_instance_uid IS NOT NULL
    AND hashtextextended(f.study_instance_uid, 0) = hashtextextended(%(study)s, 0)
    AND (%(series)s = '' OR f.series_instance_uid = %(series)s)
    AND (%(prefixes)s::text[] IS NULL OR {BELOW})
    AND (%(groups)s::text[] IS NULL
        OR voxtier.groups_may_read(f.key, %(source)s, f.path, f.sop_instance_uid, %(groups)s::text[]))
GROUP BY f.series_instance_uid, f.sop_instance_uid
) AS instance ORDER BY series_instance_uid, paths[1]
"""


class Answers:
    """Threads that answer a server's questions, from `start` until they are stopped.

    Parameters
    ----------
    core : voxtier._core.Gateway
        Asks.
    reader : FrameReader
        One with an index, which answers, and takes what was computed.
    search : Search
        Answers searches.
    status : callable
        Returns what the status page shows of tables and preload.
    """

    def __init__(
        self,
        core: Core,
        reader: FrameReader,
        search: Search,
        status: Callable[[], dict[str, Any]],
    ) -> None:
        assert reader.index is not None  # a gateway has a store
        self._core, self._reader, self._search, self._status = core, reader, search, status
        self._index: IndexClient = reader.index
        self._stopping = threading.Event()
        self._stores = ContextThreads(_STORE_THREADS, "voxtier-gateway-store")
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads, in the context of who starts them."""
        for number in range(_THREADS):
            run = partial(copy_context().run, self._run)
            self._threads.append(start_thread(run, f"voxtier-gateway-{number}"))

    def stop(self) -> None:
        """Stop the threads; one that still waits for a sick database is left: its client is gone by now."""
        self._stopping.set()
        ends = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(ends - time.monotonic(), 0.0))
        self._stores.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self._stopping.is_set():
            job = self._core.next_job(_SECONDS)
            if job is None:
                self._stopping.wait(0.001)  # the queue may be closed
                continue
            try:
                self._answer(job)
            except UnfinishedError as error:  # the index did answer: this says what the next try does
                _log.warning("a search was not finished: %s", error)
                job.fail(str(error))
            except VoxtierError as error:
                _log.warning("the index did not answer the gateway: %s", error)
                job.fail("the index does not answer")
            except Exception as error:  # its text may name a file
                _log.error("a question of the gateway failed: %s", type(error).__name__)
                _log.debug("where it failed", exc_info=True)
                job.fail("the question failed")

    def _answer(self, job: GatewayJob) -> None:
        match job.question:
            case ("instance", (source, uid, groups)):
                roots = self._search.roots
                asked = self._index.ask(
                    lambda store: _rows_of_instance(_for(store, groups), source, uid, roots)
                )
                job.answer_rows(asked)
            case ("file", (source, path, groups)):
                found = self._index.ask(
                    lambda store: _for(store, groups).recall(source, path, with_series=True)
                )
                job.answer_rows(b"" if found is None else found.rows)
            case ("rights", (source, files, groups)):
                rights = self._index.ask(lambda store: GroupStore(store, groups).may_read_each(source, files))
                job.answer_rights(rights)
            case ("files", (source, study, series, groups)):
                parameters = {"source": source, "study": study, "series": series, "groups": groups}
                parameters["prefixes"] = prefixes_of(self._search.roots) if self._search.roots else None
                job.answer_files(_for(self._index.store, groups).query(_FILES, parameters))
            case ("search", (source, path, query, root, groups)):
                job.answer_http(*self._search_for(source, path, query, root, groups))
            case ("open" | "ranges", _):
                self._stores.submit(_answer_by_store, job, self._reader.s3_config())
            case ("status", (sources,)):  # of those that are served, the client may know these
                shown = json.dumps({**self._status(), "sources": sources})
                job.answer_http(200, "application/json", shown.encode())
            case ("computed", (source, row)):
                self._reader.keep_row(source, row)

    def _search_for(
        self, source: str, path: str, query: str, root: str, groups: list[str] | None
    ) -> tuple[int, str, bytes, str | None]:
        try:
            parsed = parse(path, query)
        except ConfigError as error:
            return _refusal(400, "bad_query", error)
        try:
            found, has_more = self._search.answer(self._index.store, source, parsed, root, groups)
        except TooBroadError as error:  # PS3.18 table 10.6.3-1
            return _refusal(413, "too_broad", error)
        sentences = [*parsed.warnings, *([_MORE] if has_more else [])]
        warning = " ".join(sentences) or None
        return (200, _DICOM_JSON, to_json(found), warning) if found else (204, "", b"", warning)


def _refusal(status: int, kind: str, error: VoxtierError) -> tuple[int, str, bytes, None]:
    body = json.dumps({"error": {"kind": kind, "detail": str(error)}}).encode()
    return status, "application/json", body, None


def _for(store: FrameStore, groups: list[str] | None) -> FrameStore:
    """Return the index as groups see it; a role that row security binds sees restricted rows by it alone."""
    return store if groups is None else GroupStore(store, groups)


def _answer_by_store(job: GatewayJob, config: S3Config) -> None:
    try:
        match job.question:
            case ("open", (address,)):
                job.answer_object(*RemoteObject(address, config).open_ranges())
            case ("ranges", (address, state, ranges)):
                source = RemoteObject(address, config, ObjectState(*state), ahead=True)
                job.answer_ranges(source.fetch(ranges))
    except (FormatError, SourceError) as error:
        _log.warning("a store did not answer the gateway: %s: %s", error.kind, error.detail)
        job.refuse(error.kind, error.detail, getattr(error, "errno", None))
    except Exception:
        _log.exception("a question of the gateway to a store failed")
        job.fail("the question failed")


def _rows_of_instance(store: FrameStore, source: str, uid: str, roots: Sequence[str]) -> bytes:
    """Return the rows of all files that hold an instance; those of the first one's series come along."""
    paths = [found.path for found in store.copies_of(uid, source) if is_named_below(found.path, roots)]
    answers = [store.recall(source, path, with_series=number == 0) for number, path in enumerate(paths)]
    return b"".join(answer.rows for answer in answers if answer is not None)
