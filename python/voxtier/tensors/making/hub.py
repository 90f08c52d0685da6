"""`Hub`: files of a Hugging Face dataset at one commit, resumable and checked against the hub's checksums.

plan.py looks files up, the threads of download.py fetch them. Metadata comes through `huggingface_hub`. The
bodies are fetched here, because that client puts each file into its cache first (twice the disk), starts
over after a kill, and accepts wrong bytes of the right length.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from voxtier.errors import (
    BackendError,
    ConfigError,
    MissingExtraError,
    NotFoundError,
    StoppedError,
    TransientError,
    WrongContentError,
)
from voxtier.system.text import describe_error, first_line
from voxtier.tensors.claims import Claim
from voxtier.tensors.making.download import CHUNK, Fetched, RemoteFile, Transfer, holds
from voxtier.tensors.making.policies import RetryPolicy
from voxtier.tensors.manifest import Entry

__all__ = ["Hub", "RemoteFile"]

TIMEOUT = 30.0
"""Seconds without a byte after which a request has failed."""
WRONG_CONTENTS = 3
"""Downloads with a wrong checksum after which a file is given up."""
FOLDER_REMOVALS = 100
"""How often in a row the folder of a download may be removed by others before that counts as a fault."""

T = TypeVar("T")


class Hub:
    """A dataset repository at one commit.

    Parameters
    ----------
    repo_id : str
        ``owner/name``.
    revision : str
        Branch, tag or commit; resolved to a commit once.
    token : str, optional
        Sent to the hub only, never to the host that it redirects to, and never logged.
    endpoint : str, optional
        By default ``HF_ENDPOINT`` or the public hub.
    pause : float
        Seconds before the first repetition; doubled each time.
    stop : threading.Event, optional
        Set it to end pauses and transfers early.

    Raises
    ------
    MissingExtraError
        `huggingface_hub` is not installed.
    """

    def __init__(
        self,
        repo_id: str,
        revision: str = "main",
        *,
        token: str | None = None,
        endpoint: str | None = None,
        pause: float = 0.5,
        stop: threading.Event | None = None,
    ) -> None:
        try:
            import huggingface_hub
        except ImportError:
            raise MissingExtraError("huggingface_hub", "tensors") from None
        self.repo_id = repo_id
        self.revision = revision
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self.offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        self._token = token
        self._retries = RetryPolicy(pause)
        self._stop = stop or threading.Event()
        self._api = huggingface_hub.HfApi(endpoint=self.endpoint, token=token or False)
        self._commit: str | None = None
        self._lock = threading.Lock()
        self._opener = urllib.request.build_opener(_RedirectWithoutToken)

    @property
    def commit(self) -> str:
        """The commit that everything is fetched from, 40 hexadecimal digits."""
        with self._lock:
            if self._commit is None:
                found = self._ask(
                    lambda: self._api.repo_info(self.repo_id, repo_type="dataset", revision=self.revision)
                )
                if not found.sha:
                    raise BackendError(f"{self._where()}: the hub names no commit")
                self._commit = str(found.sha)
            return self._commit

    def look_up(self, paths: Iterable[str]) -> dict[str, RemoteFile]:
        """Return size and checksum of the paths that the repository has, by path.

        Raises
        ------
        BackendError
            The hub cannot be reached, or refuses.
        ConfigError
            No such repository or revision, or no permission.
        """
        wanted = list(paths)
        commit = self.commit
        found: dict[str, RemoteFile] = {}
        for start in range(0, len(wanted), 500):
            batch = wanted[start : start + 500]
            for entry in self._ask(partial(self._paths_info, batch, commit)):
                if hasattr(entry, "size"):
                    lfs = getattr(entry, "lfs", None)
                    sha256 = None if lfs is None else str(lfs.sha256)
                    found[entry.path] = RemoteFile(entry.path, int(entry.size), sha256, entry.blob_id)
        return found

    def _paths_info(self, batch: list[str], commit: str) -> Any:
        return self._api.get_paths_info(self.repo_id, batch, revision=commit, repo_type="dataset")

    def source(self, remote: RemoteFile) -> Entry:
        """Return where a file comes from, for the manifest."""
        where = {"repo": self.repo_id, "commit": self.commit, "hub_path": remote.path}
        return {**where, "sha256": remote.sha256}

    def _ask(self, question: Callable[[], T]) -> T:
        """Ask through the client, again while a fault may pass; its errors become ours."""
        from huggingface_hub import errors

        def ask_once() -> T:
            try:
                return question()
            except errors.RepositoryNotFoundError as error:  # also for one that the token may not see
                raise ConfigError(f"{self._where()}: {first_line(error)}{self._token_hint()}") from None
            except errors.HFValidationError as error:
                raise ConfigError(f"downloads.repo_id: {first_line(error)}") from None
            except errors.RevisionNotFoundError:
                raise ConfigError(f"{self._where()}: no such revision; set downloads.revision") from None
            except errors.HfHubHTTPError as error:
                status = getattr(error.response, "status_code", 0)
                if status in (401, 403):
                    raise ConfigError(f"{self._where()}: HTTP {status}{self._token_hint()}") from None
                if status not in (408, 429) and status < 500:
                    raise BackendError(f"{self._where()}: HTTP {status}: {first_line(error)}") from None
                raise TransientError(f"HTTP {status}", _retry_after(dict(error.response.headers))) from None
            except Exception as error:
                if not isinstance(error, OSError | ValueError) and not _is_of_transport(error):
                    raise
                raise TransientError(describe_error(error)) from None

        self._refuse_offline()
        return self._retries.repeat(ask_once, self._sleep, where=self._where())

    def _refuse_offline(self) -> None:
        if self.offline:
            raise BackendError("HF_HUB_OFFLINE is set: nothing is downloaded; unset it, or lay the files out")

    def _where(self) -> str:
        return f"{self.endpoint}/datasets/{self.repo_id}@{self.revision}"

    def _token_hint(self) -> str:
        return "" if self._token else "; no token was given: set HF_TOKEN or downloads.hf_token"

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise StoppedError("stopped while waiting for the hub")

    def fetch(
        self, remote: RemoteFile, final: Path, *, on_bytes: Callable[[int], None] = lambda _: None
    ) -> Fetched:
        """Fetch a file, which appears under its final name whole and checked, or not at all.

        An interrupted transfer is kept as ``.<name>.part`` and continued by the next call, also of a later
        process.

        Parameters
        ----------
        remote : RemoteFile
            From `look_up`.
        final : Path
            Where the file appears; its folder is made.
        on_bytes : callable
            Called with the number of bytes each time some have arrived.

        Returns
        -------
        {"fetched", "same", "other"}
            ``fetched`` when this call put the file there. Else somebody has: another run, also for another
            cache, or the user. That file stays; ``same`` when it has the content of ``remote``.

        Raises
        ------
        NotFoundError
            The hub does not have the file (404).
        ConfigError
            401 or 403.
        BackendError
            The hub cannot be reached, or has failed too often.
        WrongContentError
            The bytes did not match the hub's checksum, several times.
        StoppedError
            The event ``stop`` of the hub was set.
        OSError
            The disk is full, for instance; the part is removed then.
        """
        self._refuse_offline()
        if self._stop.is_set():
            raise StoppedError("stopped before it began")
        with self._claim(final).hold():
            if not os.path.lexists(final):
                transfer = Transfer(remote, final, self.commit)
                try:
                    self._retries.repeat(
                        lambda: self._fetch_once(transfer, on_bytes), self._sleep, where=remote.path
                    )
                finally:
                    transfer.pause()
                if transfer.is_placed:
                    return "fetched"
        return "same" if holds(final, remote) else "other"

    def _claim(self, final: Path) -> Claim:
        """Wait for the right to fetch.

        If two wrote to one part, each would find its own bytes right, and the file would be wrong.
        """
        removed = 0
        while True:
            try:
                final.parent.mkdir(parents=True, exist_ok=True)
                claim = Claim.take(final)
            except FileNotFoundError:  # a run that has removed its raw file removes the empty folder too
                removed += 1
                if removed == FOLDER_REMOVALS:
                    raise
                continue
            if claim is not None:
                return claim
            self._sleep(0.2)

    def _fetch_once(self, transfer: Transfer, on_bytes: Callable[[int], None]) -> None:
        """Fetch what is missing, and let the file appear if its checksum is right."""
        path = transfer.remote.path
        try:
            self._request_rest(transfer, on_bytes)
            if transfer.finish():
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403):
                raise ConfigError(f"{path}: HTTP {error.code}{self._token_hint()}") from None
            if error.code == 404:
                raise NotFoundError(f"{path}: the hub does not have it (404)") from None
            if error.code == 416:  # the part does not fit the file
                transfer.restart()
            raise TransientError(f"HTTP {error.code}", _retry_after(dict(error.headers))) from None
        except (OSError, http.client.HTTPException) as error:
            if transfer.disk_error is not None:
                transfer.restart()
                raise transfer.disk_error from None
            raise TransientError(describe_error(error)) from None
        reason = "the bytes do not match the hub's checksum"
        if transfer.wrong_contents == WRONG_CONTENTS:
            raise WrongContentError(f"{path}: {reason}, {WRONG_CONTENTS} times")
        raise TransientError(reason)

    def _request_rest(self, transfer: Transfer, on_bytes: Callable[[int], None]) -> None:
        """Make one request: for the rest of the file, or for all of it when the server cannot continue."""
        if transfer.position == transfer.remote.size:
            return
        url = f"{self.endpoint}/datasets/{self.repo_id}/resolve/{self.commit}/" + urllib.parse.quote(
            transfer.remote.path
        )
        headers = {"User-Agent": "voxtier", "Accept-Encoding": "identity"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if transfer.position:
            headers["Range"] = f"bytes={transfer.position}-"
            if transfer.etag:
                headers["If-Range"] = transfer.etag
        request = urllib.request.Request(url, headers=headers)
        with self._opener.open(request, timeout=TIMEOUT) as response:
            transfer.begin(response.status, response.headers)
            while chunk := response.read1(CHUNK):  # what has arrived: a kill loses little
                transfer.write(chunk)
                on_bytes(len(chunk))
                if self._stop.is_set():
                    transfer.pause()
                    raise StoppedError(f"stopped at {transfer.position} of {transfer.remote.size} bytes")
        if transfer.position < transfer.remote.size:
            raise ConnectionResetError(f"ended at {transfer.position} of {transfer.remote.size} bytes")


class _RedirectWithoutToken(urllib.request.HTTPRedirectHandler):
    """Follows redirects; only the first host gets the token."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the next request."""
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None:
            old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
            if (old.scheme, old.netloc) != (new.scheme, new.netloc):
                following.remove_header("Authorization")
        return following


def _retry_after(headers: dict[str, str]) -> float:
    """Return the seconds that the server asks for (RFC 9110, 10.2.3); 0 for a date."""
    for name, value in headers.items():
        if name.lower() == "retry-after":
            with contextlib.suppress(ValueError):
                return max(0.0, float(value))
    return 0.0


def _is_of_transport(error: Exception) -> bool:
    """Whether the client's transport raised it: requests or httpx by version, so compared by module."""
    module = type(error).__module__
    return module.split(".")[0] in ("requests", "urllib3", "http") or module.startswith("httpx")
