"""A project of `generate` for the tests: its folders, its hub, and the ways to run the command on it."""

from __future__ import annotations

import itertools
import multiprocessing.forkserver as forkserver
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing import util
from pathlib import Path
from typing import Any

from tensors.cases import CONFIG, become_command, fork, nifti_bytes, put_raw, run_cli, write_project
from tensors.making.hub_server import HubServer
from voxtier import _core
from voxtier.tensors import item_key, load_config
from voxtier.tensors.identity.folders import item_folder, remember_folder
from voxtier.tensors.identity.keys import hub_path, raw_path
from voxtier.tensors.making.hub import Hub
from voxtier.tensors.making.run import Generator, Options, RunResult

_spawn: Any = util.spawnv_passfds  # type: ignore[attr-defined]


class Project:
    """A project folder, its configuration and its hub, which holds every volume."""

    def __init__(
        self, base: Path, names: list[str], server: HubServer | None = None, config: str = CONFIG
    ) -> None:
        self.base = base
        self.names = names
        self.path = write_project(base, names, config=config)
        self.config = load_config(self.path, environment={})
        self.folder = item_folder(self.config)
        remember_folder(self.config, self.folder)
        self.server = server
        self.env = {"HF_ENDPOINT": server.endpoint if server else "http://127.0.0.1:9"}
        if server is not None:
            server.files |= {hub_path(name): nifti_bytes(number) for number, name in enumerate(names)}

    def put_raw_files(self, **options: Any) -> list[Path]:
        """Lay every volume where the configuration looks for it."""
        return [put_raw(self.base, name, number, **options) for number, name in enumerate(self.names)]

    def generator(self, **options: Any) -> Generator:
        hub = None
        if self.server is not None:
            hub = Hub("some/CT-RATE", endpoint=self.server.endpoint, pause=0.01)
        generator = Generator(self.config, Options(**{"workers": 2, "min_free": 0, **options}), hub=hub)
        if hub is None:
            generator.hub = None
        else:
            hub._stop = generator.stop
        return generator

    def run(self, **options: Any) -> RunResult:
        generator = self.generator(**options)
        return generator.run(generator.plan())

    def final(self, name: str) -> Path:
        return self.folder / f"{item_key(name)}.pt"

    def raw(self, name: str) -> Path:
        return raw_path(self.config.img_dir, name, "nested")

    def log(self, name: str = "generate_cache") -> str:
        return (self.base / "logs" / f"{name}.log").read_text()

    def cli(self, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end as a user does: its fork server imports MONAI, which takes seconds."""
        command = ("generate", "--config", self.path, "--min-free", "0", *arguments)
        return run_cli(*command, env={**self.env, **env})

    def fork(
        self,
        *arguments: str,
        stdout: int | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> Running:
        """Start the command in a child of this process, which has imported everything: in milliseconds.

        It leads a process group, with a fork server of its own. ``stdout`` is the null device by default, and
        ``prepare`` is called in the child first.
        """
        return Running([*self._command(), *arguments], self.env, stdout, prepare)

    def _command(self) -> list[str]:
        return ["generate", "--config", str(self.path), "--yes", "--min-free", "0"]

    def assert_sound(self) -> None:
        for path in self.folder.glob("*.pt"):
            assert _core.verify_tensor_file(path).state == "ok"
        leftovers = [p.name for p in self.folder.iterdir() if p.name.startswith(".")]
        assert leftovers == []


class Running:
    """A command under way in a forked child; it leads a process group."""

    def __init__(
        self, arguments: list[str], env: dict[str, str], stdout: int | None, prepare: Callable[[], None]
    ) -> None:
        read_end, write_end = os.pipe()
        process = fork(_lead_group, arguments, env, stdout, write_end, prepare)
        os.close(write_end)
        assert process.pid is not None
        self.pid = process.pid
        self._process = process
        self._errors = os.fdopen(read_end)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the coordinator alone."""
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self) -> tuple[int, str]:
        """Return the exit code and the rest of stderr."""
        with self._errors:
            errors = self._errors.read()
        while (code := self.poll()) is None:  # stderr is closed: it ends now
            time.sleep(0.001)
        return code, errors

    def wait_until(self, fact: Callable[[], bool]) -> None:
        while not fact():
            assert self.poll() is None, f"it ended too early: {self.wait()}"
            time.sleep(0.01)

    def wait_for_line(self, text: str) -> str:
        """Read stderr up to a line that holds a text; return what was read."""
        read = ""
        while text not in read:
            line = self._errors.readline()
            assert line, f"it ended without {text!r}: {read}"
            read += line
        return read

    def interrupt_twice(self) -> None:
        """Interrupt the whole group, as a terminal does; the second time when the first was answered."""
        os.killpg(self.pid, signal.SIGINT)
        self.wait_for_line("once more")
        os.killpg(self.pid, signal.SIGINT)
        code, errors = self.wait()
        assert code == 130, errors


def _lead_group(
    arguments: list[str],
    env: dict[str, str],
    stdout: int | None,
    errors: int,
    prepare: Callable[[], None],
) -> None:
    os.setsid()
    forkserver._forkserver.__init__()  # type: ignore[attr-defined]  # forget the parent's
    util.spawnv_passfds = start_warm  # type: ignore[attr-defined]
    prepare()
    become_command(arguments, env, os.open(os.devnull, os.O_WRONLY) if stdout is None else stdout, errors)


def start_warm(executable: bytes, arguments: list[str], kept: list[int]) -> int:
    """Start what `multiprocessing` asks for, but a fork server without an interpreter that imports MONAI.

    It is forked from this process, which has it, and runs the same program; it stands in the place of
    `multiprocessing.util.spawnv_passfds`.
    """
    if "forkserver" not in arguments[-1]:
        return _spawn(executable, arguments, kept)
    with warnings.catch_warnings():  # Python 3.12 warns of a fork beside threads
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            ends = [2, *sorted(kept), os.sysconf("SC_OPEN_MAX")]
            for before, after in itertools.pairwise(ends):
                os.closerange(before + 1, after)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            warnings.resetwarnings()  # those of pytest are errors
            exec(arguments[-1], {})
        finally:
            os._exit(0)
    return pid
