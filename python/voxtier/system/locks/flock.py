"""A lock on a file, which the kernel frees when its holder ends, also by a kill.

`voxtier.system.locks` builds on it. The keeper of the embedded server imports it by path, to start within
milliseconds: nothing but the standard library may be imported here.
"""

import fcntl
import os


def try_flock(path: str, *, shared: bool = False, mode: int = 0o600) -> int | None:
    """Take a lock without waiting.

    Parameters
    ----------
    path : str
        The lock file; made where it is absent.
    shared : bool
        Let others hold it too, who take it shared as well.
    mode : int
        Permission bits of a new file, before the umask.

    Returns
    -------
    int or None
        The descriptor that holds the lock; None while somebody else holds it.

    Raises
    ------
    OSError
        The file cannot be opened, or its file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        if _is_at(path, descriptor):
            return descriptor
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return try_flock(path, shared=shared, mode=mode)  # the file was replaced: others lock the new one


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))  # noqa: PTH116 (pathlib costs 10 ms)
    except FileNotFoundError:
        return False
