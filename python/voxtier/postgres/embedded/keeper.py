"""Parent of the embedded server: starts it, reaps it, and stops it when its last user has vanished.

Users that leave in an orderly way stop the server themselves. A user that is killed cannot; then the
kernel drops its lock, and the keeper sees within two seconds that nobody is left. It is run by path, with
the standard library alone, so that it starts in milliseconds and holds nothing of the program that
happened to need the server first.

Usage: keeper.py FOLDER SERVER_LOCK_FD COMMAND...; prints ``ready`` when the server accepts connections.
"""

import contextlib
import os
import signal
import sys
import time

# By path: importing voxtier would load numpy and the core.
sys.path.append(f"{os.path.dirname(__file__)}/../../system")  # noqa: PTH120
from flock import try_flock  # type: ignore[import-not-found]

LOOK_EVERY = 2.0  # seconds
STOP_WITHIN = 60.0


def is_ready(folder: str, pid: int) -> bool:
    """Tell whether ``postmaster.pid`` says that this server accepts connections (its line 8)."""
    try:
        with open(f"{folder}/data/postmaster.pid") as file:  # noqa: PTH123 (pathlib costs 10 ms here)
            lines = file.read().split("\n")
    except OSError:
        return False
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"


def has_ended(pid: int) -> bool:
    """Reap the server if it has ended."""
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def stop_if_unused(folder: str, pid: int) -> None:
    """Stop the server when nobody uses it, deciding under the lock that whoever comes must take."""
    coming = try_flock(f"{folder}/start.lock")
    if coming is None:
        return
    using = try_flock(f"{folder}/use.lock")
    if using is not None and not os.path.exists(f"{folder}/keep"):  # noqa: PTH110
        os.kill(pid, signal.SIGINT)  # fast shutdown: sessions end, everything is flushed
        deadline = time.monotonic() + STOP_WITHIN
        while not has_ended(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGQUIT)  # immediate; the log is replayed at the next start
                os.waitpid(pid, 0)
                break
            time.sleep(0.002)
        os._exit(0)
    for lock in (using, coming):
        if lock is not None:
            os.close(lock)


def main() -> None:
    """Start the server named on the command line and keep it."""
    folder, server_lock, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    if os.fork():
        os._exit(0)  # the keeper belongs to init, so that nobody who kills his children stops the server
    os.chdir("/")
    log = os.open(f"{folder}/server.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, nothing, 0)] + [(os.POSIX_SPAWN_DUP2, log, fd) for fd in (1, 2)]
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions, setsid=True)
    # From here on the lock lives exactly as long as any process of the server does.
    os.close(server_lock)
    while not is_ready(folder, pid):
        if has_ended(pid):
            os._exit(1)
        time.sleep(0.002)
    with contextlib.suppress(BrokenPipeError):  # whoever needed the server may have been killed meanwhile
        os.write(1, b"ready\n")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    while True:
        signal.sigtimedwait([signal.SIGCHLD], LOOK_EVERY)
        if has_ended(pid):
            return
        stop_if_unused(folder, pid)


if __name__ == "__main__":
    main()
