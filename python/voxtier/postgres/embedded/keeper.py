"""Parent of the embedded server: starts it, reaps it, and stops it when its last user is gone.

A user that ends normally stops the server itself if it is the last. A user that is killed cannot: the kernel
drops its lock, and the keeper notices within two seconds that nobody is left. It is run by path, with the
standard library alone, so that it starts within milliseconds and keeps no file or memory of the program
that needed the server first.

Usage: keeper.py FOLDER SERVER_LOCK_FD COMMAND...; prints ``ready`` when the server accepts connections.
"""

import contextlib
import os
import signal
import sys
import time

# By path: importing voxtier would load numpy and the core.
sys.path.append(f"{os.path.dirname(__file__)}/../../system/locks")  # noqa: PTH120
from flock import try_flock  # type: ignore[import-not-found]

CHECK_EVERY = 2.0  # seconds
STOP_WITHIN = 60.0  # seconds


def is_ready(folder: str, pid: int) -> bool:
    """Return whether ``postmaster.pid`` says that this server accepts connections (its line 8)."""
    try:
        # In bytes, as it names folders. (pathlib costs 10 ms here)
        with open(f"{folder}/data/postmaster.pid", "rb") as file:  # noqa: PTH123
            lines = file.read().split(b"\n")
    except OSError:
        return False
    return len(lines) > 7 and lines[0] == b"%d" % pid and lines[7].strip() == b"ready"


def has_ended(pid: int) -> bool:
    """Reap the server if it has ended; return whether it has."""
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def stop_if_unused(folder: str, pid: int) -> None:
    """Stop the server when nobody uses it; ``start.lock`` keeps new users out meanwhile."""
    start_lock = try_flock(f"{folder}/start.lock")
    if start_lock is None:
        return
    use_lock = try_flock(f"{folder}/use.lock")
    if use_lock is not None and not os.path.exists(f"{folder}/keep"):  # noqa: PTH110
        os.kill(pid, signal.SIGINT)  # fast shutdown: sessions end, everything is flushed
        deadline = time.monotonic() + STOP_WITHIN
        while not has_ended(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGQUIT)  # immediate; the log is replayed at the next start
                os.waitpid(pid, 0)
                break
            time.sleep(0.002)
        os._exit(0)
    for lock in (use_lock, start_lock):
        if lock is not None:
            os.close(lock)


def main() -> None:
    """Start the server that the command line names, and stay until it ends."""
    folder, server_lock, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    if os.fork():
        os._exit(0)  # init becomes the parent: a program that kills its children does not stop the server
    os.chdir("/")
    appending = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND  # also behind who cuts it off
    log = os.open(f"{folder}/server.log", appending | os.O_CLOEXEC, 0o600)
    stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0)] + [(os.POSIX_SPAWN_DUP2, log, fd) for fd in (1, 2)]
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions, setsid=True)
    # From here on only the processes of the server hold the lock.
    os.close(server_lock)
    while not is_ready(folder, pid):
        if has_ended(pid):
            os._exit(1)
        time.sleep(0.002)
    with contextlib.suppress(BrokenPipeError):  # the program that waits may have been killed
        os.write(1, b"ready\n")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    while True:
        signal.sigtimedwait([signal.SIGCHLD], CHECK_EVERY)
        if has_ended(pid):
            return
        stop_if_unused(folder, pid)


if __name__ == "__main__":
    main()
