"""Answers to the questions of the core's server, by threads of Python: what only the index knows."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

from voxtier._core import Gateway as Core
from voxtier._core import GatewayJob
from voxtier.errors import ConfigError, VoxtierError
from voxtier.frames.gateway.search import Search, parse, to_json
from voxtier.frames.serving.index_client import IndexClient
from voxtier.frames.store.store import FrameStore

_log = logging.getLogger(__name__)
_DICOM_JSON = "application/dicom+json"
_SECONDS = 0.5

_FILES = """
SELECT f.sop_instance_uid, f.path FROM voxtier.file AS f
WHERE f.source_id = (SELECT source_id FROM voxtier.source WHERE name = %(source)s)
    AND f.study_instance_uid = %(study)s AND f.error_kind IS NULL AND f.sop_instance_uid IS NOT NULL
    AND (%(series)s = '' OR f.series_instance_uid = %(series)s
        AND hashtextextended(f.series_instance_uid, 0) = hashtextextended(%(series)s, 0))
ORDER BY f.series_instance_uid, f.path
"""


class Answers:
    """Threads that answer a server's questions until they are stopped.

    Parameters
    ----------
    core : voxtier._core.Gateway
        Asks.
    index : IndexClient
        The index, for what a frame waits for.
    search : Search
        Answers searches.
    status : callable
        Returns what the status page shows of tables and preload.
    threads : int
        Questions that are answered at once.
    """

    def __init__(
        self,
        core: Core,
        index: IndexClient,
        search: Search,
        status: Callable[[], dict[str, Any]],
        threads: int = 4,
    ) -> None:
        self._core, self._index, self._search, self._status = core, index, search, status
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"voxtier-gateway-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the threads, after the questions that they are at."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            job = self._core.next_job(_SECONDS)
            if job is None:
                continue
            try:
                self._answer(job)
            except VoxtierError as error:
                _log.warning("the index did not answer the gateway: %s", error)
                job.fail("the index does not answer")
            except Exception:
                _log.exception("a question of the gateway failed")
                job.fail("the question failed")

    def _answer(self, job: GatewayJob) -> None:
        match job.question:
            case ("instance", (source, uid)):
                job.answer_rows(self._index.ask(lambda store: _rows_of_instance(store, source, uid)))
            case ("file", (source, path)):
                found = self._index.ask(lambda store: store.recall(source, path, with_series=True))
                job.answer_rows(b"" if found is None else found.rows)
            case ("files", (source, study, series)):
                parameters = {"source": source, "study": study, "series": series}
                job.answer_files(self._index.store.query(_FILES, parameters))
            case ("search", (source, path, query, root)):
                job.answer_http(*self._search_for(source, path, query, root))
            case ("status", ()):
                job.answer_http(200, "application/json", json.dumps(self._status()).encode())
            case ("computed", (source, row)):
                if not self._index.is_open:
                    self._index.store.upsert_rows(source, row)

    def _search_for(self, source: str, path: str, query: str, root: str) -> tuple[int, str, bytes]:
        try:
            parsed = parse(path, query)
        except ConfigError as error:
            refusal = {"error": {"kind": "bad_query", "detail": str(error)}}
            return 400, "application/json", json.dumps(refusal).encode()
        found = self._search.answer(self._index.store, source, parsed, root)
        return (200, _DICOM_JSON, to_json(found)) if found else (204, "", b"")


def _rows_of_instance(store: FrameStore, source: str, uid: str) -> bytes:
    """Return the rows of all files that hold an instance; those of the first one's series come along."""
    rows = b""
    for number, found in enumerate(store.by_sop_instance(uid, source)):
        answer = store.recall(source, found.path, with_series=number == 0)
        if answer is not None:
            rows = rows + answer.rows if number == 0 else answer.rows + rows
    return rows
