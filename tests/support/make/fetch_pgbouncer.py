"""Download pgbouncer of two Debian releases and unpack it.

``make test`` calls it with the folder to fill, which gets one folder a release. Each program comes with the
libraries of its release and runs by their loader, on any distribution. Where it cannot be had, a file
``missing`` in the folder says why; the tests quote it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from debian import unpack

# 1.18, which knows no prepared statements, and 1.24, which passes them on (max_prepared_statements).
RELEASES = ("bookworm", "trixie")


def main(folder: Path) -> int:
    """Fill the folder as far as possible; a release that is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = folder / "missing"
    missing.unlink(missing_ok=True)
    for release in RELEASES:
        root = folder / release
        try:
            unpack(root, release, "pgbouncer")
            if not list(root.rglob("ld-linux*")) or not (root / "usr/sbin/pgbouncer").is_file():
                raise RuntimeError("the packages hold no program or no loader")
        except RuntimeError as error:
            missing.write_text(f"{release}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
