"""The peak memory that a script takes to read files."""

from __future__ import annotations

import subprocess
import sys

from support.peak import PEAK_KIB


def peak_kib(script: str, *arguments: str) -> int:
    """Peak memory that a script takes beyond the import of voxtier, in a process of its own."""
    whole = f"""
import sys
from voxtier.frames import read_table, read_frame
from voxtier.errors import VoxtierError
{PEAK_KIB}
before = peak_kib()
{script}
print(peak_kib() - before)
"""
    done = subprocess.run([sys.executable, "-c", whole, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])
