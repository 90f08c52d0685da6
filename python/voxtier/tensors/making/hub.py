"""Volumes from a Hugging Face dataset: a pinned revision, resumable, checked against the hub's own sha256.

Metadata comes through `huggingface_hub`. The bodies are fetched here, because the client puts each file
into its cache first (twice the disk), starts over after a kill, and accepts wrong bytes of the right length.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from voxtier.errors import (
    BackendError,
    ConfigError,
    MissingExtraError,
    NotFoundError,
    StoppedError,
    WrongContentError,
)
from voxtier.tensors.claims import Claim
from voxtier.tensors.making.download import CHUNK, RemoteFile, Transfer

__all__ = ["Hub", "RemoteFile"]

TIMEOUT = 30.0
ATTEMPTS = 6
LONGEST_WAIT = 300.0

T = TypeVar("T")


class Hub:
    """A dataset repository at one commit.

    Parameters
    ----------
    repo_id : str
        ``owner/name``.
    revision : str
        Branch, tag or commit; resolved to a commit on first use.
    token : str, optional
        Sent to the hub only, never to the host that it redirects to, and never logged.
    endpoint : str, optional
        By default ``HF_ENDPOINT`` or the public hub.
    pause : float
        Seconds before the first repetition; doubled each time.
    stop : threading.Event, optional
        Ends waiting and fetching early.
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
        self._pause = pause
        self._stop = stop or threading.Event()
        self._api = huggingface_hub.HfApi(endpoint=self.endpoint, token=token or False)
        self._commit: str | None = None
        self._lock = threading.Lock()
        self._opener = urllib.request.build_opener(_KeepSecretsAtHome)

    @property
    def commit(self) -> str:
        """The commit that everything is fetched from, 40 hexadecimal digits."""
        with self._lock:
            if self._commit is None:
                found = self._ask(
                    lambda: self._api.repo_info(self.repo_id, repo_type="dataset", revision=self.revision)
                )
                if not found.sha:
                    raise BackendError(f"{self.endpoint}: names no commit for {self.repo_id}@{self.revision}")
                self._commit = str(found.sha)
            return self._commit

    def look_up(self, paths: Iterable[str]) -> dict[str, RemoteFile]:
        """Return size and checksum of those paths that the repository has.

        Raises
        ------
        voxtier.BackendError
            The hub cannot be reached, or refuses.
        voxtier.ConfigError
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

    def _ask(self, question: Callable[[], T]) -> T:
        """Ask through the client; its many errors become ours, and passing ones are asked again."""
        from huggingface_hub import errors

        if self.offline:
            raise BackendError("HF_HUB_OFFLINE is set: nothing is downloaded")
        for left, wait in self._waits():
            try:
                return question()
            except (
                errors.RepositoryNotFoundError
            ) as error:  # the hub says 401 for a repository one may not see
                raise ConfigError(f"{self._where()}: {_reason(error)}{self._advice()}") from None
            except errors.HFValidationError as error:
                raise ConfigError(f"downloads.repo_id: {_reason(error)}") from None
            except errors.RevisionNotFoundError:
                raise ConfigError(f"{self._where()}: no such revision") from None
            except errors.HfHubHTTPError as error:
                status = getattr(error.response, "status_code", 0)
                if status in (401, 403):
                    raise ConfigError(f"{self._where()}: HTTP {status}{self._advice()}") from None
                if status not in (408, 429) and status < 500:
                    raise BackendError(f"{self._where()}: HTTP {status}: {_reason(error)}") from None
                last = f"HTTP {status}"
                wait = max(wait, _retry_after(dict(error.response.headers)))
            except (OSError, ValueError, http.client.HTTPException) as error:
                last = f"{type(error).__name__}: {error}"
            except Exception as error:  # the transport differs by version (requests, httpx): by its module
                if type(error).__module__.split(".")[0] not in ("requests", "urllib3") and not type(
                    error
                ).__module__.startswith("httpx"):
                    raise
                last = f"{type(error).__name__}: {error}"
            if left:
                self._sleep(wait)
        raise BackendError(f"{self._where()}: {last}")

    def _where(self) -> str:
        return f"{self.endpoint}/datasets/{self.repo_id}@{self.revision}"

    def _advice(self) -> str:
        return "" if self._token else "; no token was given: set HF_TOKEN or downloads.hf_token"

    def _waits(self) -> Iterator[tuple[int, float]]:
        """Yield for every attempt how many are left, and the seconds before the next."""
        for attempt in range(ATTEMPTS):
            seconds = self._pause * 2**attempt * random.uniform(0.8, 1.2)
            yield ATTEMPTS - 1 - attempt, min(60.0, seconds)

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(min(seconds, LONGEST_WAIT)):
            raise StoppedError("stopped while waiting for the hub")

    def fetch(
        self, remote: RemoteFile, final: Path, *, on_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        """Fetch a file to ``final``, which appears whole and checked, or not at all.

        An interrupted transfer is kept as ``.<name>.part`` and continued by the next call, of this or of a
        later process.

        Raises
        ------
        voxtier.NotFoundError
            The hub does not have it (404).
        voxtier.ConfigError
            401 or 403.
        voxtier.BackendError
            The hub cannot be reached, or fails again and again.
        WrongContentError
            The bytes do not match the hub's checksum, several times.
        OSError
            The disk is full, for instance; the part is removed then.
        """
        if self.offline:
            raise BackendError("HF_HUB_OFFLINE is set: nothing is downloaded")
        if self._stop.is_set():
            raise StoppedError("stopped before it began")
        final.parent.mkdir(parents=True, exist_ok=True)
        claim = self._claim(final)
        if claim is None:
            return
        with claim.held():
            transfer = Transfer(remote, final, self.commit)
            try:
                self._persist(transfer, on_bytes)
            finally:
                transfer.pause()

    def _claim(self, final: Path) -> Claim | None:
        """Wait for the right to fetch; None when another run, perhaps for another cache, has fetched it.

        Two that write one part would each find its own bytes right, and the file wrong.
        """
        claim = Claim.take(final)
        while claim is None:
            self._sleep(0.2)
            if final.exists():
                return None
            claim = Claim.take(final)
        return claim

    def _persist(self, transfer: Transfer, on_bytes: Callable[[int], None]) -> None:
        """Repeat requests until the file is there or hope is lost."""
        remote = transfer.remote
        last = "no attempt"
        wrong = 0
        for left, wait in self._waits():
            try:
                self._continue(transfer, on_bytes)
                if transfer.finish():
                    return
                wrong += 1
                last = "the bytes do not match the hub's checksum"
                if wrong == 3:
                    raise WrongContentError(f"{remote.path}: {last}, three times")
                continue
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in (401, 403):
                    raise ConfigError(f"{remote.path}: HTTP {error.code}{self._advice()}") from None
                if error.code == 404:
                    raise NotFoundError(f"{remote.path}: the hub does not have it (404)") from None
                if error.code == 416:
                    transfer.restart()
                last = f"HTTP {error.code}"
                wait = max(wait, _retry_after(dict(error.headers)))
            except OSError as error:
                if transfer.disk_error is not None:
                    transfer.restart()
                    raise transfer.disk_error from None
                last = f"{type(error).__name__}: {error}"
            except http.client.HTTPException as error:
                last = f"{type(error).__name__}: {error}"
            if left:
                self._sleep(wait)
        raise BackendError(f"{remote.path}: gave up after {ATTEMPTS} attempts: {last}")

    def _continue(self, transfer: Transfer, on_bytes: Callable[[int], None]) -> None:
        """One request: the rest of the file, or all of it when the server cannot continue."""
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


class _KeepSecretsAtHome(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but sends the token to no other host."""

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
    """Return the seconds that the server asks for; a date is not worth parsing."""
    for name, value in headers.items():
        if name.lower() == "retry-after":
            with contextlib.suppress(ValueError):
                return max(0.0, float(value))
    return 0.0


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
