"""Programs of Debian, downloaded by apt and unpacked: nothing is installed, and root is not needed.

The archive is the one that this machine's apt uses; release and architecture may be others.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def unpack(folder: Path, release: str, *packages: str, architecture: str | None = None) -> None:
    """Fill a folder with packages and the libraries that they need; one that is there already stays.

    Parameters
    ----------
    folder : Path
        Gets the files as they lie below the root of a Debian system.
    release : str
        As ``bookworm``.
    *packages : str
        Their names.
    architecture : str or None
        As ``arm64``. None: this machine's.

    Raises
    ------
    RuntimeError
        They cannot be had; the message says why.
    """
    if folder.is_dir():
        return
    try:
        _unpack(folder, release, packages, architecture or _run("dpkg", "--print-architecture").strip())
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise RuntimeError(" ".join(reason.split())[-300:]) from error


def _unpack(folder: Path, release: str, packages: tuple[str, ...], architecture: str) -> None:
    work = folder.with_name(f".{folder.name}")
    for part in ("lists/partial", "cache/archives/partial", "packages", "root"):
        (work / part).mkdir(parents=True, exist_ok=True)
    sources, status = work / "sources.list", work / "status"
    sources.write_text(f"deb [arch={architecture} signed-by={KEYRING}] {_archive()} {release} main\n")
    status.touch()  # what this machine has installed is of another release or architecture
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Dir::Etc::sourcelist": sources.absolute(),
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": (work / "lists").absolute(),
        "Dir::State::status": status.absolute(),
        "Dir::Cache": (work / "cache").absolute(),
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "Acquire::Retries": "3",
        "Acquire::http::Timeout": "30",
        "APT::Sandbox::User": "",
        "APT::Get::List-Cleanup": "false",
    }
    apt = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    _run("apt-get", *apt, "--quiet", "update")
    names = sorted(_closure(apt, packages))
    _run("apt-get", *apt, "--quiet", "download", *names, cwd=work / "packages")
    for package in sorted((work / "packages").glob("*.deb")):
        _run("dpkg-deb", "--extract", str(package), str(work / "root"))
    (work / "root").rename(folder)
    _run("rm", "-r", str(work))


def _archive() -> str:
    """Return the address of the Debian archive in this machine's settings."""
    found = _run("apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages")
    for line in found.splitlines():
        address, _, component = line.partition(" ")
        if component == "main" and address.rstrip("/").endswith("/debian"):
            return address
    raise OSError("apt on this machine uses no Debian archive")


def _closure(apt: list[str], packages: tuple[str, ...]) -> set[str]:
    """Return packages and the libraries that they need, those of the libraries too."""
    only = [
        f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    ]
    libraries: dict[str, list[str]] = {}
    name = ""
    for line in _run("apt-cache", *apt, "depends", "--recurse", *only, *packages).splitlines():
        kind, _, needed = line.strip().partition(": ")
        if not line.startswith((" ", "|", "<")):
            name = line.strip()
        elif kind in ("Depends", "PreDepends") and (needed.startswith("lib") or needed == "zlib1g"):
            libraries.setdefault(name, []).append(needed)
    found: set[str] = set()
    wanted = list(packages)
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            wanted += libraries.get(name, [])
    return found


def _run(*command: str, cwd: Path | None = None) -> str:
    """Run a program and return its output."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout
