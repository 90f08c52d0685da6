"""Download pgbouncer of two Debian releases and unpack it; nothing is installed, and root is not needed.

``make test`` calls it with the folder to fill, which gets one folder a release. The archive is the one
that this machine's apt uses. Each program comes with the libraries of its release and runs by their loader,
on any distribution. Where it cannot be had, a file ``missing`` in the folder says why; the tests quote it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# 1.18, which knows no prepared statements, and 1.24, which passes them on (max_prepared_statements).
RELEASES = ("bookworm", "trixie")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def main(folder: Path) -> int:
    """Fill the folder as far as possible; a release that is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = folder / "missing"
    missing.unlink(missing_ok=True)
    for release in RELEASES:
        if (folder / release).is_dir():
            continue
        try:
            fetch(folder, release)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            missing.write_text(f"{release}: {' '.join(reason.split())[-300:]}\n")
    return 0


def fetch(folder: Path, release: str) -> None:
    """Download and unpack one release."""
    work = folder / f".{release}"
    for part in ("lists/partial", "cache/archives/partial", "packages", "root"):
        (work / part).mkdir(parents=True, exist_ok=True)
    sources = work / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {archive()} {release} main\n")
    options = {
        "Dir::Etc::sourcelist": sources.absolute(),
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": (work / "lists").absolute(),
        "Dir::Cache": (work / "cache").absolute(),
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "Acquire::Retries": "3",
        "Acquire::http::Timeout": "30",
        "APT::Sandbox::User": "",
        "APT::Get::List-Cleanup": "false",
    }
    apt = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    run("apt-get", *apt, "--quiet", "update")
    names = sorted(closure(apt, "pgbouncer"))
    run("apt-get", *apt, "--quiet", "download", *names, cwd=work / "packages")
    for package in sorted((work / "packages").glob("*.deb")):
        run("dpkg-deb", "--extract", str(package), str(work / "root"))
    if not list((work / "root").rglob("ld-linux*")) or not (work / "root/usr/sbin/pgbouncer").is_file():
        raise RuntimeError("the packages hold no program or no loader")
    (work / "root").rename(folder / release)
    run("rm", "-r", str(work))


def archive() -> str:
    """Return the address of the Debian archive in this machine's settings."""
    found = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages")
    for line in found.splitlines():
        address, _, component = line.partition(" ")
        if component == "main" and address.rstrip("/").endswith("/debian"):
            return address
    raise RuntimeError("apt on this machine uses no Debian archive")


def closure(apt: list[str], package: str) -> set[str]:
    """Return a package and the libraries that it needs, those of the libraries too."""
    only = [
        f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    ]
    libraries: dict[str, list[str]] = {}
    name = ""
    for line in run("apt-cache", *apt, "depends", "--recurse", *only, package).splitlines():
        kind, _, needed = line.strip().partition(": ")
        if not line.startswith((" ", "|", "<")):
            name = line.strip()
        elif kind in ("Depends", "PreDepends") and (needed.startswith("lib") or needed == "zlib1g"):
            libraries.setdefault(name, []).append(needed)
    found: set[str] = set()
    wanted = [package]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            wanted += libraries.get(name, [])
    return found


def run(*command: str, cwd: Path | None = None) -> str:
    """Run a program and return its output."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
