"""Make the database folder and start the server in it; the caller holds ``start.lock``."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from voxtier.errors import BackendError
from voxtier.postgres.embedded.failures import explain_start
from voxtier.postgres.embedded.postmaster import SOCKET_NAME
from voxtier.postgres.embedded.programs import Account, Programs, find_account, find_programs, major_of
from voxtier.system.durable import sync_folder
from voxtier.system.fork import apart_from_forks
from voxtier.system.machine import total_memory

START_WITHIN = 120.0  # seconds; replaying a long log takes the longest
_KEEPER = Path(__file__).with_name("keeper.py")
_LONGEST_SOCKET = 100  # the kernel takes 107 bytes
# For pages of tables and indexes; what no page was read into takes no memory.
_LEAST_BUFFERS, _MOST_BUFFERS = 128 << 20, 2 << 30
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": "5432",
    "max_connections": "200",
    "work_mem": "16MB",  # the keys of 300,000 files that were read fit into a hash
    "dynamic_shared_memory_type": "mmap",  # containers give /dev/shm 64 MB
    "huge_pages": "off",
    "jit": "off",  # it costs more than our statements take
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "checkpoint_timeout": "15min",
    # Behind each checkpoint a page is logged whole when it is first written, and keys are hashes: with 1 GB
    # between checkpoints the first run of an index of 10^7 files logs 5 KB a file.
    "max_wal_size": "4GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Statements and details may name files, and file names may name patients.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
}


def start_server(folder: Path, server_lock: int) -> None:
    """Start the server of ``folder / "data"`` and wait until it is ready; make the folder if it is absent.

    Parameters
    ----------
    folder : Path
        The server's own folder.
    server_lock : int
        Descriptor of the lock that the server's processes inherit.

    Raises
    ------
    BackendError
        It does not start; the message names the cause and the ways out.
    OSError
        The folder cannot be used.
    """
    data = folder / "data"
    major = major_of(data)
    programs = find_programs(major)
    account = find_account(programs, folder)
    if major is None:
        _initialise(folder, programs, account, server_lock)
    sockets = _make_socket_folder(folder, account)
    # The lock is free, so these files are of a run that has ended. PostgreSQL would ask whether the processes
    # that they name live, and their numbers may be of others now.
    for left in (data / "postmaster.pid", sockets / f"{SOCKET_NAME}.lock", folder / "keep"):
        left.unlink(missing_ok=True)
    settings = _SETTINGS | {
        "unix_socket_directories": str(sockets),
        "shared_buffers": f"{_buffers() >> 20}MB",
    }
    if programs.major >= 18:
        settings["io_method"] = "sync"  # no extra processes
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    python = sys.executable or shutil.which("python3") or "python3"
    keeper = [python, "-I", "-S", str(_KEEPER), str(folder), str(server_lock)]
    with apart_from_forks():
        keeping = subprocess.Popen(
            [*keeper, *account.prefix, programs.postgres, "-D", str(data), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            pass_fds=[server_lock],
            start_new_session=True,
        )
    with keeping as start:
        try:
            answer, _ = start.communicate(timeout=START_WITHIN)
        except subprocess.TimeoutExpired:
            raise BackendError(
                f"the server of {folder} is not ready after {START_WITHIN:.0f} s, perhaps because it replays "
                f"its log: try again later; see {folder}/server.log"
            ) from None
        if answer != b"ready\n":
            cause = explain_start(folder) or f"see {folder}/server.log"
            raise BackendError(f"the server of {folder} did not start: {cause}")


def _buffers() -> int:
    """Return a sixteenth of the memory within bounds, or the least where so much cannot be mapped at once."""
    size = min(max(total_memory() // 16, _LEAST_BUFFERS), _MOST_BUFFERS)
    try:
        mmap.mmap(-1, size + size // 8).close()  # with what the server keeps of each page
    except OSError:  # a limit of this user (ulimit -v), or a kernel that promises no more than there is
        return _LEAST_BUFFERS
    return size


def _initialise(folder: Path, programs: Programs, account: Account, server_lock: int) -> None:
    """Make the database folder under another name, and rename it when it is complete."""
    unfinished = folder / "data.tmp"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(mode=0o700)
    if account.uid != os.geteuid():
        os.chown(unfinished, account.uid, account.gid)
    options = ["-U", "voxtier", "-A", "trust", "-E", "UTF8", "--locale=C", "--data-checksums"]
    if programs.major >= 17:
        options.append("--sync-method=syncfs")
    # initdb inherits the lock: if this process is killed, nobody touches the folder before initdb ends.
    with apart_from_forks():
        done = subprocess.run(
            [*account.prefix, programs.initdb, "-D", str(unfinished), *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=_environment(),
            pass_fds=[server_lock],
            start_new_session=True,
            check=False,
        )
    if done.returncode != 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        if "No space left on device" in done.stderr + done.stdout:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        errors = [line for line in done.stderr.splitlines() if "error:" in line or "FATAL" in line]
        raise BackendError(
            f"cannot make the database folder {folder}: {(errors or ['no reason given'])[0]}; set "
            "VOXTIER_HOME to a local folder, or VOXTIER_DSN to a PostgreSQL server of your own"
        )
    unfinished.rename(folder / "data")
    sync_folder(folder)


def _make_socket_folder(folder: Path, account: Account) -> Path:
    """Return a private folder for the socket whose path the kernel and PostgreSQL's settings take."""
    name = f"voxtier-{account.uid}-{hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()}"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    parents = [Path(p) for p in (runtime, tempfile.gettempdir(), "/tmp") if p and Path(p).is_dir()]
    tried = []
    for choice in (folder / "socket", *(parent / name for parent in parents)):
        is_own = choice.parent == folder
        fault = _fault_of_path(choice) or _make_private(choice, account, is_on_its_disk=is_own)
        if fault is None:
            return choice
        tried.append(f"{choice}: {fault}")
    raise BackendError(
        f"no private folder with a short path can hold the socket (tried {', '.join(tried)}): "
        "set VOXTIER_HOME to a shorter path, or TMPDIR to a folder of your own with a short one"
    )


def _fault_of_path(folder: Path) -> str | None:
    # PostgreSQL would split its list of folders at a comma or a quote.
    if any(mark in str(folder) for mark in ',"'):
        return "has a comma or a quote"
    # Connection strings are UTF-8; what is no text has no such form.
    if str(folder).encode(errors="replace") != os.fsencode(folder):
        return "is not UTF-8"
    return "too long" if len(os.fsencode(folder / SOCKET_NAME)) > _LONGEST_SOCKET else None


def _make_private(folder: Path, account: Account, *, is_on_its_disk: bool) -> str | None:
    """Make a folder that is the account's alone; return why it is not, None where it is."""
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            if account.uid != os.geteuid():
                os.chown(folder, account.uid, account.gid)
        found = folder.lstat()
    except OSError as error:  # read-only, without links, of another user: the next may do
        if error.errno == errno.ENOSPC and is_on_its_disk:  # which holds the database, too
            raise
        return error.strerror or str(error)
    is_private = found.st_uid == account.uid and found.st_mode & 0o170077 == 0o040000
    return None if is_private else "is not a folder of this account alone"


def _environment() -> dict[str, str]:
    """Return the variables that the server's programs need, and none that changes their behaviour."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"LC_ALL": "C"}
