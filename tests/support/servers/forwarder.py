"""Forwards TCP connections of this machine to a server's unix socket, and can stop doing so."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Forwarder:
    """A port before the server of a connection string.

    Parameters
    ----------
    server : str
        Connection string of a server that listens on a unix socket.
    """

    def __init__(self, server: str) -> None:
        self._server = conninfo_to_dict(server)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._runs = threading.Event()
        self._runs.set()
        self._ended = False
        self.connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def dsn(self, **parameters: int | str) -> str:
        place = {"host": "127.0.0.1", "port": str(self._listener.getsockname()[1])}
        return make_conninfo("", **{**self._server, **place, **parameters})

    def pause(self) -> None:
        """Read nothing more: connections stay open and silent."""
        self._runs.clear()

    def resume(self) -> None:
        self._runs.set()

    def __enter__(self) -> Forwarder:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._runs.set()
        # Not shutdown alone: it does not wake a thread that accepts on every system.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self.connections:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self._ended:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(client)
            thread = threading.Thread(target=self._forward, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _forward(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        with client, server, selectors.DefaultSelector() as ready:
            server.connect(f"{self._server['host']}/.s.PGSQL.{self._server['port']}")
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            with contextlib.suppress(OSError):
                while not self._ended:
                    found = ready.select()
                    self._runs.wait()
                    for key, _ in found:
                        content = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                        if not content:
                            return
                        key.data.sendall(content)
