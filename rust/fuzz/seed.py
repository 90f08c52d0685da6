"""Write the reference cases as first corpus of the fuzz targets: ``PYTHONPATH=tests python rust/fuzz/seed.py``.

Needs the standard library alone. Tables and records are seeded too where voxtier is installed.
"""

from __future__ import annotations

from pathlib import Path

from frames.cases import CASES

CORPUS = Path(__file__).parent / "corpus"
LARGEST = 8_000


def main() -> None:
    """One file a case."""
    small = [case for case in CASES if len(case.content) <= LARGEST]
    for case in small:
        write("parse", case.name, case.content)
    try:
        from voxtier.frames import read_table
    except ImportError:
        return
    for case in small:
        if not case.error:
            table = read_table(case.content, verify="all")
            write("packed", case.name, table.packed)
            write("record", case.name, table.to_bytes())


def write(target: str, name: str, content: bytes) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
