"""`Gateway`: a DICOMweb server over the frames of one or more sources (PS3.18 8 to 10)."""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from importlib import resources
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from voxtier._core import Gateway as Core
from voxtier.arguments import as_several, check_kind
from voxtier.errors import ConfigError, VoxtierError
from voxtier.frames.gateway.answers import Answers
from voxtier.frames.gateway.hot_set import HotSet
from voxtier.frames.gateway.search.search import Search
from voxtier.frames.indexing.paths import absolute
from voxtier.frames.serving.reader import FrameReader
from voxtier.frames.serving.status_files import StatusWriter, own_folder
from voxtier.frames.sources.address import is_address
from voxtier.frames.store.store import FrameStore
from voxtier.system.fork import after_fork_in_child
from voxtier.system.workers import start_thread

_log = logging.getLogger(__name__)

_ASK_AGAIN_SECONDS = 0.5
# Time for a question on its way to Python and back.
_HAND_OVER_SECONDS = 0.05
_LOOPBACK = ("127.0.0.1", "::1")
_SHORTEST_TOKEN = 16
_NO_TOKEN = "a token is of letters, digits and signs of ASCII, without blanks: clients send no others"


class Gateway:
    """Serves frames, instances, headers and searches over HTTP, by threads of the core.

    Parameters
    ----------
    store : FrameStore
        The index.
    sources : str or iterable of str
        Sources that are served; the first is the default one.
    host : str
        IP address to listen on, or ``localhost``. Others than loopback need `tokens`, or `is_private`.
    port : int
        Port; 0 for any free one.
    roots : path or iterable of path
        Files, folders, and prefixes of stores (``s3://bucket/prefix``), below which files and objects are
        served; of others in the index nothing is told. Empty for all. Files and folders must exist.
    tokens : mapping of str to str or iterable of str, optional
        Tokens that clients may send, of 16 characters at least and without blanks, and the sources that each
        is good for; empty for all sources.
    cors_origins : str or iterable of str
        Origins of web pages that may ask, exactly as browsers send them.
    viewer : path or None
        Folder of a viewer's files, served at ``/``.
    workers : int or None
        Threads that serve; None for half the cores.
    budget_bytes : int
        Memory for frame tables.
    index_seconds : float
        Longest wait of a frame for the index; files are asked then.
    hot_set : path or None
        File in which the tables in memory are kept over a restart; None for none.
    is_private : bool
        A proxy in front of the gateway checks who asks: other addresses than loopback need no token.
    groups_header : str or None
        Header line in which that proxy names the groups of a user, by comma; what the index shows to none of
        them is not there. A request without it is refused. Needs `is_private`.
    in_flight_bytes : int
        Memory for answers that clients have not taken yet.
    access_log : int or None
        File descriptor to which a JSON object a line is written for each request, without UIDs, paths and
        values of queries; None for no log.

    Raises
    ------
    ConfigError
        The address is none or would be open to everybody, a root or the viewer is not there, a token can be
        guessed or not be sent, or there is nothing to serve.

    Notes
    -----
    With `groups_header` searches read headers, also where there is a search index.
    """

    def __init__(
        self,
        store: FrameStore,
        sources: str | Iterable[str] = "default",
        *,
        host: str = "127.0.0.1",
        port: int = 8042,
        roots: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
        tokens: Mapping[str, str | Iterable[str]] | None = None,
        cors_origins: str | Iterable[str] = (),
        viewer: str | os.PathLike[str] | None = None,
        workers: int | None = None,
        budget_bytes: int = 256 << 20,
        index_seconds: float = 0.25,
        hot_set: str | os.PathLike[str] | None = None,
        is_private: bool = False,
        groups_header: str | None = None,
        in_flight_bytes: int = 256 << 20,
        access_log: int | None = None,
    ) -> None:
        check_kind("store", store, FrameStore, "a FrameStore(dsn), and the sources behind it")
        names, origins = list(as_several(sources)), list(as_several(cors_origins))
        if not names:
            raise ConfigError("a gateway serves one source at least: name it")
        self.host = _address(host)
        if self.host not in _LOOPBACK and not tokens and not is_private:
            raise ConfigError(
                f"host {host}: everybody who reaches this address could read all images. Give tokens "
                "(--token-file), or say that a proxy checks who asks (--trust-proxy)"
            )
        if groups_header is not None and not is_private:
            raise ConfigError(
                f"groups_header {groups_header}: everybody could name groups. Say that a proxy sets this "
                "line (--trust-proxy)"
            )
        if groups_header is not None and not re.fullmatch(r"[A-Za-z0-9-]{1,100}", groups_header):
            raise ConfigError(
                f"groups_header {groups_header[:100]!r}: letters, digits and hyphens make a name"
            )
        for origin in origins:
            if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@*\s]+", origin):
                raise ConfigError(
                    f"cors_origins {origin[:100]!r}: an origin is a scheme, a host and maybe a port, as "
                    "browsers send it, such as https://viewer.example (--cors-origin)"
                )
        for number, token in enumerate(tokens or (), 1):
            if (fault := token_fault(token)) is not None:  # without the token: it may be a secret elsewhere
                raise ConfigError(f"tokens: number {number}: {fault}")
        self.port = port
        self.workers = workers or max(1, (os.cpu_count() or 2) // 2)
        self.reader = FrameReader(
            store,
            names[0],
            budget_bytes=budget_bytes,
            index_seconds=index_seconds,
            other_sources=names[1:],
            publish=False,
        )
        self._roots = [name for root in as_several(roots) for name in _names_of(root)]
        self._sources, self._search = names, Search(self._roots)
        folder = None if viewer is None else Path(viewer).resolve()
        if folder is not None and not (folder / "index.html").is_file():
            raise ConfigError(f"viewer {folder}: the folder has no index.html")
        self._core = Core(
            self.reader.cache,
            names,
            roots=[*self._roots],
            tokens=[(token, list(as_several(good_for))) for token, good_for in (tokens or {}).items()],
            groups_header=groups_header,
            cors_origins=origins,
            viewer=folder,
            index_seconds=index_seconds + _HAND_OVER_SECONDS,
            in_flight_bytes=in_flight_bytes,
            access_log=access_log,
            page=_page(has_viewer=folder is not None),
            viewer_config=_asset("viewer_config.js"),
        )
        self._status = StatusWriter(own_folder(), "+".join(names), self.stats)
        self._hot_set = HotSet(self.reader.cache, hot_set)
        self._store = store
        self._answers: Answers | None = None
        self._stopping = threading.Event()
        self._readying: threading.Thread | None = None
        self._lock = threading.Lock()
        after_fork_in_child(self._abandon)

    @property
    def url(self) -> str:
        """Where the gateway listens, such as ``http://127.0.0.1:8042``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def start(self, *, preload: bool = True) -> Gateway:
        """Listen, and in the background ask the index until it answers, then load the best tables.

        ``/ready`` says yes when both are done, and goes on saying so if the index fails later: frames come
        from memory and files then. In a block of ``configured(s3=...)`` its threads read from that store. A
        program that ends without `stop` stops the gateway, with no time for open requests.

        Parameters
        ----------
        preload : bool
            Fill memory with the tables that score best, unless a hot set was saved: see `Preload`.

        Returns
        -------
        Gateway
            The gateway itself.

        Raises
        ------
        OSError
            The address is in use, or may not be bound.
        RuntimeError
            It was started before, or stopped: a gateway runs once.
        """
        if self._answers is not None or self._stopping.is_set():  # before a hot set comes into its memory
            raise RuntimeError("the gateway was started before, or stopped: make another one")
        restored = self._hot_set.restore()
        listens = False
        try:
            self.host, self.port = self._core.start(self.host, self.port, self.workers)
            listens = True
            # Registered behind the database's: the threads end before its connections, and before the
            # interpreter, which nobody may ask for anything while it is taken apart.
            atexit.register(self._stop_at_exit)
            self._answers = Answers(self._core, self.reader, self._search, self.status)
            self._answers.start()
            self.reader.wake()
            self._status.wake()
            self._hot_set.start()
            get_ready = partial(copy_context().run, self._get_ready, preload=preload and not restored)
            self._readying = start_thread(get_ready, "voxtier-ready")
        except BaseException as error:
            # What the core refused began nothing: this start did not, and one before it goes on.
            if listens or not isinstance(error, Exception):
                self.stop(drain_seconds=0.0)
            raise
        return self

    def _get_ready(self, *, preload: bool) -> None:
        """Wait for the index, which may come up later than the gateway, and load the best tables."""
        has_said = False
        while not self._stopping.is_set():
            try:
                self._store.sources()
            except VoxtierError as error:
                if not has_said and not self._stopping.is_set():
                    _log.warning("the gateway is not ready until the index of frames answers: %s", error)
                has_said = True
                self._stopping.wait(_ASK_AGAIN_SECONDS)
                continue
            if preload and not self._stopping.is_set():
                self.reader.preload.start(on_done=self._core.set_ready)
            else:
                self._core.set_ready()
            return

    def status(self) -> dict[str, Any]:
        """Return what the status page shows beside the server's counters: sources, memory, searches."""
        return {**self.reader.stats(), "sources": self._sources, "searches": self._search.counts()}

    def stats(self) -> dict[str, Any]:
        """Return what ``voxtier frames top`` shows: `status`, requests by tier, counters, address.

        Returns
        -------
        dict
            As `FrameReader.stats`; ``gateway`` holds ``url``, ``routes``, ``bytes``, ``connections``.
        """
        counters = json.loads(self._core.counters())
        tiers = counters["tiers"]
        return {
            **self.status(),
            "requests": sum(route["requests"] for route in counters["routes"].values()),
            **{f"tier{number}": tiers[name] for number, name in enumerate(("memory", "index", "file"), 1)},
            "gateway": {"url": self.url, **counters},
        }

    def stop(self, *, drain_seconds: float = 10.0) -> None:
        """Accept nothing more, finish open requests within a time, end all threads.

        Parameters
        ----------
        drain_seconds : float
            Time for open requests. A call from another thread, or a signal, may shorten it.
        """
        self._stopping.set()
        atexit.unregister(self._stop_at_exit)
        try:
            self._core.stop(drain_seconds)
        finally:
            self._status.close()
            with self._lock:
                answers, self._answers = self._answers, None
            if self._readying is not None:
                self._readying.join(_ASK_AGAIN_SECONDS)  # one that waits for a sick database is left
            if answers is not None:
                answers.stop()
                self._hot_set.stop()
                self.reader.close()

    def _stop_at_exit(self) -> None:
        """Stop a gateway that the program left running: nobody waits for its open requests."""
        self.stop(drain_seconds=0.0)

    def _abandon(self) -> None:
        atexit.unregister(self._stop_at_exit)
        self._core.abandon()
        self._status.after_fork()
        self._answers = self._readying = None

    def __enter__(self) -> Gateway:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _address(host: str) -> str:
    """Return the address to listen on. A name may have several, of which none can be chosen for the user."""
    if host == "localhost":
        return "127.0.0.1"
    with suppress(ValueError):
        if "%" not in host:  # the core knows no zones of IPv6
            return str(ip_address(host))
    raise ConfigError(
        f"host {host!r} is no IP address: name one of this machine, or 0.0.0.0 or :: for all (--host)"
    )


def token_fault(token: str) -> str | None:
    """Return what is wrong with a token; None where it may be used."""
    if len(token) < _SHORTEST_TOKEN:
        return f"a token has {_SHORTEST_TOKEN} characters at least"
    return None if token.isascii() and token.isprintable() and " " not in token else _NO_TOKEN


def _names_of(root: str | os.PathLike[str]) -> list[str]:
    """Return the names of a root: as files below it are indexed, and with its links resolved."""
    if not os.fspath(root):
        raise ConfigError(
            "roots: a path is empty, as an unset variable leaves it; . names the working folder"
        )
    name = absolute(root)
    if is_address(name):
        return [name]  # a prefix may be empty today
    try:
        Path(name).stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"roots: {name}: {reason}: name files and folders that are there") from None
    return list(dict.fromkeys([name, os.path.realpath(name)]))


def _page(*, has_viewer: bool) -> str:
    page = _asset("page.html")
    return page.replace("<body>", '<body data-viewer="yes">') if has_viewer else page


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
