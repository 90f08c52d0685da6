"""`Gateway`: a DICOMweb server over the frames of one or more sources (PS3.18 8 to 10)."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from voxtier._core import Gateway as Core
from voxtier.errors import ConfigError
from voxtier.frames.gateway.answers import Answers
from voxtier.frames.gateway.hot_set import HotSet
from voxtier.frames.gateway.search import Search
from voxtier.frames.serving.reader import FrameReader
from voxtier.frames.sources.address import is_address, normal
from voxtier.frames.store.store import FrameStore
from voxtier.system.fork import after_fork_in_child

# Time for a question on its way to Python and back.
_HAND_OVER_SECONDS = 0.05
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Gateway:
    """Serves frames, instances, headers and searches over HTTP, by threads of the core.

    Parameters
    ----------
    store : FrameStore
        The index.
    sources : str or sequence of str
        Sources that are served; the first is the default one.
    host : str
        Address to listen on. Others than loopback need `tokens`.
    port : int
        Port; 0 for any free one.
    roots : sequence of path
        Folders, and prefixes of stores (``s3://bucket/prefix``), below which files and objects may be opened,
        whatever the index says; empty for all.
    tokens : mapping of str to sequence of str, optional
        Tokens that clients may send, and the sources that each is good for; empty for all sources.
    cors_origins : sequence of str
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
        The address would be open to everybody, or there is nothing to serve.

    Notes
    -----
    With `groups_header` searches read headers, also where there is a search index.
    """

    def __init__(
        self,
        store: FrameStore,
        sources: str | Sequence[str] = "default",
        *,
        host: str = "127.0.0.1",
        port: int = 8042,
        roots: Sequence[str | os.PathLike[str]] = (),
        tokens: Mapping[str, Sequence[str]] | None = None,
        cors_origins: Sequence[str] = (),
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
        names = [sources] if isinstance(sources, str) else list(sources)
        if not names:
            raise ConfigError("a gateway serves one source at least: name it")
        if host not in _LOOPBACK and not tokens and not is_private:
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
        self.host = "127.0.0.1" if host == "localhost" else host
        self.port = port
        self.workers = workers or max(1, (os.cpu_count() or 2) // 2)
        self.reader = FrameReader(
            store,
            names[0],
            budget_bytes=budget_bytes,
            index_seconds=index_seconds,
            other_sources=names[1:],
        )
        folder = None if viewer is None else Path(viewer).resolve()
        if folder is not None and not (folder / "index.html").is_file():
            raise ConfigError(f"viewer {folder}: the folder has no index.html")
        self._core = Core(
            self.reader.cache,
            names,
            roots=[normal(str(root)) if is_address(str(root)) else Path(root).resolve() for root in roots],
            tokens=[(token, list(good_for)) for token, good_for in (tokens or {}).items()],
            groups_header=groups_header,
            cors_origins=list(cors_origins),
            viewer=folder,
            index_seconds=index_seconds + _HAND_OVER_SECONDS,
            in_flight_bytes=in_flight_bytes,
            access_log=access_log,
            page=_page(has_viewer=folder is not None),
            viewer_config=_asset("viewer_config.js"),
        )
        self._hot_set = HotSet(self.reader.cache, hot_set)
        self._answers: Answers | None = None
        self._lock = threading.Lock()
        after_fork_in_child(self._abandon)

    @property
    def url(self) -> str:
        """Where the gateway listens, such as ``http://127.0.0.1:8042``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def start(self, *, preload: bool = True) -> Gateway:
        """Listen, and load the best tables in the background.

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
        """
        restored = self._hot_set.restore()
        self.host, self.port = self._core.start(self.host, self.port, self.workers)
        self._answers = Answers(self._core, self.reader, Search(), self.status)
        self.reader.wake()
        self._hot_set.start()
        if preload and not restored:
            self.reader.preload.start(on_done=self._core.set_ready)
        else:
            self._core.set_ready()
        return self

    def status(self) -> dict[str, Any]:
        """Return what the status page shows beside the server's counters: memory, tiers, preload."""
        return self.reader.stats()

    def stop(self, *, drain_seconds: float = 10.0) -> None:
        """Accept nothing more, finish open requests within a time, end all threads.

        Parameters
        ----------
        drain_seconds : float
            Time for open requests. A call from another thread, or a signal, may shorten it.
        """
        try:
            self._core.stop(drain_seconds)
        finally:
            with self._lock:
                answers, self._answers = self._answers, None
            if answers is not None:
                answers.stop()
                self._hot_set.stop()
                self.reader.close()

    def _abandon(self) -> None:
        self._core.abandon()
        self._answers = None

    def __enter__(self) -> Gateway:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _page(*, has_viewer: bool) -> str:
    page = _asset("page.html")
    return page.replace("<body>", '<body data-viewer="yes">') if has_viewer else page


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
