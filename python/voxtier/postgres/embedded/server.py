"""The lifecycle of the embedded server: one folder, one server, any number of users.

Three files are locked (`voxtier.system.locks`); the kernel frees the locks of a process that is killed:

``start.lock``
    Exclusive, for milliseconds, by a process that makes, starts or stops the server, attaches or detaches.
``use.lock``
    Shared, by each process that uses the server. Under ``start.lock`` a process may try to take it
    exclusively; if that succeeds, nobody uses the server, and it is stopped.
``server.lock``
    Exclusive, inherited by the server's processes. It is held as long as one of them lives, even if
    ``postmaster.pid`` is stale or its number now belongs to another process.

The last user stops the server when it detaches. If the last user was killed, the keeper stops the server
within two seconds. If the keeper was killed too, the server runs until its next user detaches.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from voxtier.errors import BackendError, ConfigError
from voxtier.postgres.embedded.postmaster import Postmaster, users_of
from voxtier.postgres.embedded.programs import major_of
from voxtier.postgres.embedded.start import START_WITHIN, start_server
from voxtier.system.fork import after_fork_in_child
from voxtier.system.home import default_home
from voxtier.system.locks import hold_lock, release, take

STOP_WITHIN = 60.0  # seconds
_servers: dict[Path, EmbeddedServer] = {}


def embedded_server(home: Path | None = None) -> EmbeddedServer:
    """Return this process' one object for the server of a home folder (default: `default_home`)."""
    home = default_home() if home is None else home.absolute()
    return _servers.setdefault(home, EmbeddedServer(home))


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The state of an embedded server, read without starting it."""

    folder: Path
    running: bool
    pid: int | None
    version: str | None
    users: tuple[int, ...]
    kept: bool
    bytes_on_disk: int


class EmbeddedServer:
    """A PostgreSQL server in the user's folder, shared by processes; the module describes the locks.

    Parameters
    ----------
    home : Path
        voxtier's folder; the server keeps its own in ``home / "postgres"``.
    """

    def __init__(self, home: Path) -> None:
        self.folder = home / "postgres"
        self._postmaster = Postmaster(self.folder / "data")
        self._threads = threading.RLock()
        self._users = 0
        self._use_lock: int | None = None
        after_fork_in_child(self._forget_after_fork)

    def attach(self) -> None:
        """Count this process among the users, and start the server if it does not run.

        Raises
        ------
        BackendError
            It cannot be started here; the message names cause and remedy.
        """
        with self._threads:
            if self._users == 0:
                with self._start_lock(START_WITHIN + 30):
                    self._start_if_stopped()
                    self._use_lock = take(self.folder / "use.lock", shared=True)
            self._users += 1

    def detach(self) -> None:
        """Detach; the last user of the last process stops the server."""
        with self._threads:
            if self._users > 0:
                self._users -= 1
                if self._users == 0:
                    self._detach_last()

    def ensure_running(self) -> None:
        """Start the server again if it was killed; takes microseconds if it was not."""
        if self._postmaster.pid() is None:
            with self._threads, self._start_lock(START_WITHIN + 30):
                self._start_if_stopped()

    def conninfo(self) -> str:
        """Return the connection string of the running server."""
        folder = (self._postmaster.socket_folder() or "").replace("\\", "\\\\").replace("'", "\\'")
        return f"host='{folder}' port=5432 user=voxtier dbname=postgres"

    def keep(self) -> None:
        """Start the server and keep it running when its last user leaves, until `stop`."""
        self.attach()
        try:
            (self.folder / "keep").touch()
        finally:
            self.detach()

    def stop(self, *, force: bool = False) -> bool:
        """Stop the server; return whether it ran.

        Parameters
        ----------
        force : bool
            Also when other processes use it; they start it again with their next statement.

        Raises
        ------
        ConfigError
            It is in use and ``force`` is not given.
        """
        if not self.folder.is_dir():
            return False
        with self._threads, self._start_lock(STOP_WITHIN):
            unused = take(self.folder / "use.lock")
            if unused is None and not force:
                pids = ", ".join(map(str, users_of(self.folder / "use.lock"))) or "unknown"
                raise ConfigError(f"the server is in use (processes {pids}): --force ends their sessions")
            try:
                ran = self._postmaster.pid() is not None
                self._shut_down()
                (self.folder / "keep").unlink(missing_ok=True)
            finally:
                release(unused)
        return ran

    def status(self) -> ServerStatus:
        """Return the state of the server; nothing is started.

        Raises
        ------
        BackendError
            Its folder does not tell which PostgreSQL wrote it.
        """
        pid = self._postmaster.pid()
        major = major_of(self.folder / "data")
        return ServerStatus(
            folder=self.folder,
            running=pid is not None and self._postmaster.accepts(),
            pid=pid,
            version=None if major is None else str(major),
            users=users_of(self.folder / "use.lock"),
            kept=pid is not None and (self.folder / "keep").exists(),
            bytes_on_disk=_bytes_below(self.folder),
        )

    def _start_if_stopped(self) -> None:
        """Return when the server accepts connections; the caller holds ``start.lock``."""
        deadline = time.monotonic() + START_WITHIN
        while time.monotonic() < deadline:
            server_lock = take(self.folder / "server.lock")
            if server_lock is not None:
                try:
                    # A server that was started by hand does not hold the lock.
                    if self._postmaster.pid() is None:
                        start_server(self.folder, server_lock)
                    return
                except BackendError:
                    raise
                except OSError as error:
                    raise self._unusable(error) from error
                finally:
                    release(server_lock, inherited=True)
            if self._postmaster.accepts():
                return
            self._postmaster.end_orphans()
            time.sleep(0.005)
        raise BackendError(
            f"the server of {self.folder} does not answer, but a process of it lives (on another host?): run "
            "`voxtier db stop --force`, or set VOXTIER_HOME to a folder on a local disk; "
            f"see {self.folder}/server.log"
        )

    def _detach_last(self) -> None:
        use_lock, self._use_lock = self._use_lock, None
        release(use_lock)  # once: another thread's lock may have its number from now on
        # If this fails, the keeper stops the server later.
        with contextlib.suppress(BackendError, OSError), self._start_lock(5.0):
            unused = take(self.folder / "use.lock")
            try:
                if unused is not None and not (self.folder / "keep").exists():
                    self._shut_down()
            finally:
                release(unused)

    def _shut_down(self) -> None:
        """Stop the server and wait for its last process; the caller holds ``start.lock``."""
        pid = self._postmaster.pid()
        if pid is None:
            return None
        # Fast: sessions end, everything is flushed. Then at once, as one that recovers from a killed session
        # may wait for itself (PostgreSQL 18): its log is replayed at the next start.
        for how in (signal.SIGINT, signal.SIGQUIT):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
            deadline = time.monotonic() + STOP_WITHIN
            while time.monotonic() < deadline:
                server_lock = take(self.folder / "server.lock", shared=True)
                if server_lock is not None:
                    return release(server_lock)
                time.sleep(0.002)
        raise BackendError(
            f"the server of {self.folder} did not stop in {2 * STOP_WITHIN:.0f} s; "
            f"see {self.folder}/server.log"
        )

    @contextlib.contextmanager
    def _start_lock(self, timeout: float) -> Iterator[None]:
        """Hold ``start.lock``, waiting up to ``timeout`` seconds for its holder."""
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                stack.enter_context(hold_lock(self.folder / "start.lock", timeout))
            except TimeoutError as error:
                raise BackendError(
                    f"another process has been starting or stopping the server of {self.folder} for "
                    f"{timeout:.0f} s: see {self.folder}/server.log, or set VOXTIER_DSN to a server of yours"
                ) from error
            except OSError as error:
                raise self._unusable(error) from error
            yield

    def _unusable(self, error: OSError) -> BackendError:
        if error.errno == errno.ENOSPC:
            remedy = "free some space, or set VOXTIER_HOME to a folder on another disk"
        else:
            remedy = "set VOXTIER_HOME to a local folder of your own, or VOXTIER_DSN to a PostgreSQL server"
        return BackendError(f"{self.folder} cannot hold the database: {error.strerror or error}; {remedy}")

    def _forget_after_fork(self) -> None:
        self._threads = threading.RLock()
        self._users = 0
        self._use_lock = None

    def _detach_at_exit(self) -> None:
        with self._threads:
            if self._users:
                self._users = 0
                self._detach_last()


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(parent) / name).lstat().st_blocks * 512
    return total


@atexit.register
def _detach_all() -> None:
    for server in list(_servers.values()):
        server._detach_at_exit()
