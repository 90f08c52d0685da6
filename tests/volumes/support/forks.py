"""Scripts that run in forks of one process: an import of torch takes two seconds, one of MONAI four."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Each fork goes on as a script does that began by itself: in __main__, to the end of the interpreter.
IMPORTER = """
import json, os, sys
from importlib import import_module
folder, *modules = sys.argv[1:]
for module in modules:
    import_module(module)
with open(f"{folder}/scripts") as file:
    scripts = json.load(file)
children = []
for number, (code, *arguments) in enumerate(scripts):
    children.append(os.fork())
    if children[-1] == 0:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{number}.{name}", os.O_CREAT | os.O_WRONLY), stream)
        sys.argv[1:] = arguments
        break
else:
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    code = "print(json.dumps(codes), flush=True); os._exit(0)"
exec(code)
"""


@dataclass(frozen=True)
class Script:
    """What a script printed, and its exit code."""

    code: int
    out: str
    err: str


def run_forks(folder: Path, modules: list[str], scripts: list[list[str]]) -> list[Script]:
    """Run scripts (each the code and its arguments) at once, in forks of a process with these modules."""
    folder.mkdir()
    (folder / "scripts").write_text(json.dumps(scripts))
    command = [sys.executable, "-c", IMPORTER, str(folder), *modules]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=240)
    return [
        Script(code, *((folder / f"{number}.{name}").read_text() for name in ("out", "err")))
        for number, code in enumerate(json.loads(done.stdout))
    ]
